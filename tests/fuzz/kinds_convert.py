"""Checkpoints of others: a Hugging Face folder, a GGUF file, tokenizers."""

import functools
import json
import math
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.fuzz import layouts
from tests.fuzz.edits import (
    VALUES,
    Edit,
    Files,
    any_of,
    byte_arguments,
    inside,
    json_arguments,
    of,
    protobuf_arguments,
    removal,
)
from tests.fuzz.edits import word_arguments as words
from tests.fuzz.kind import Kind, read_files, require
from tests.fuzz.words import TEMPLATE_WORDS

ROWS = 300  # of the embedding
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "vocab_size": ROWS,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "bos_token_id": 0, "eos_token_id": [2, 1],
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 32},
}  # fmt: skip
PLAIN = {name: value for name, value in CONFIG.items() if name != "rope_scaling"}
WORDS = tuple(
    json.dumps(word).encode()
    for word in (*CONFIG, "rope_parameters", "type", "yarn", "linear", "dynamic", "longllama", "mem_layers", "fot_jax")
)
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _tensors() -> dict[str, np.ndarray]:
    """A tensor of every name; no two values are alike, and float32 holds them."""
    from tests.convert.checkpoints import shapes

    found, start = {}, 0
    for name, shape in shapes(CONFIG).items():
        size = math.prod(shape)
        found[name] = np.arange(start, start + size, dtype=np.float32).reshape(shape)
        start += size
    return found


def _bpe() -> bytes:
    from tests.convert.checkpoints import bpe_tokenizer

    return bpe_tokenizer(ROWS).to_str().encode()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _folder(config: dict[str, Any], *, shards: int = 1) -> Files:
    from tests.convert.checkpoints import write_folder

    with tempfile.TemporaryDirectory() as place:
        return read_files(write_folder(Path(place), config, _tensors(), shards=shards))


@functools.cache
def folder_files() -> Files:
    """A Hugging Face folder without a tokenizer."""
    return _folder(CONFIG)


@functools.cache
def sharded_files() -> Files:
    """A folder of three shards and an index."""
    return _folder(PLAIN, shards=3)


@functools.cache
def chat_files() -> Files:
    """A folder with a tokenizer, its settings, several end tokens and a chat template."""
    specials = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>"}}
    added = {str(i): {"content": text, "special": True} for i, text in enumerate(("<|endoftext|>", "<|im_start|>"))}
    settings = {"add_bos_token": True, "tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": added}
    return {
        **_folder(PLAIN),
        "tokenizer.json": _bpe(),
        "tokenizer_config.json": _json({**specials, **settings, "chat_template": TEMPLATE}),
        "special_tokens_map.json": _json(specials),
        "added_tokens.json": _json({"<|im_end|>": 2}),
        "chat_template.jinja": TEMPLATE.encode(),
        "generation_config.json": _json({"bos_token_id": 0, "eos_token_id": [2, 1], "do_sample": True, "top_p": 0.9}),
    }


def _stored(source: Path) -> dict[str, np.ndarray]:
    """The tensors of a folder by an own reading of its files, as float32."""
    import ml_dtypes

    kinds = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    index = source / "model.safetensors.index.json"
    if (source / "model.safetensors").exists() or not index.exists():
        paths = list(source.glob("*.safetensors"))
        held = layouts.safetensors(
            next(p for p in paths if len(paths) == 1 or p.name == "model.safetensors").read_bytes()
        )
    else:
        places = json.loads(index.read_bytes())["weight_map"]
        files = {name: layouts.safetensors((source / name).read_bytes()) for name in set(places.values())}
        held = {name: tensor for file in files.values() for name, tensor in file.items()}
        held |= {name: files[file][name] for name, file in places.items()}
    return {
        name: np.frombuffer(data, kinds[kind]).astype(np.float32).reshape(shape)
        for name, (kind, shape, data) in held.items()
        if kind in kinds
    }


def _flat(workdir: Path) -> np.ndarray:
    """Every parameter of an imported run, one after another."""
    import jax

    from fot_jax.checkpoint import load_params

    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(load_params(workdir)[1])])


@functools.cache
def _order(intact: Path, gguf: bool) -> np.ndarray:
    """Where each imported value is in the intact tensors, one after another by name: values name their own place."""
    from fot_jax.convert.importing import import_checkpoint

    with tempfile.TemporaryDirectory() as place:
        import_checkpoint(intact / "model.gguf" if gguf else intact, Path(place) / "run")
        values = _flat(Path(place) / "run")
    held = _read_gguf(intact / "model.gguf") if gguf else _stored(intact)
    stored = np.concatenate([held[name].ravel() for name in sorted(held)])
    return np.argsort(stored)[np.argsort(np.argsort(values))]


def _same_numbers(workdir: Path, held: dict[str, np.ndarray], order: np.ndarray) -> None:
    """The imported values are those of the tensors, each at the place that the intact import gives it."""
    values = _flat(workdir)
    stored = np.concatenate([held[name].ravel() for name in sorted(held)])
    if len(stored) == len(values) == len(order):
        require(np.array_equal(values, stored[order], equal_nan=True), "other numbers than the file's")
    else:  # tied, or with tensors that nothing computes with
        require(bool(np.isin(values, stored).all()), "numbers that the file does not hold")


def _attempt_folder(source: Path, target: Path, intact: Path) -> None:
    from fot_jax.convert.importing import import_checkpoint

    config = import_checkpoint(source, target)
    _check_model(json.loads((source / "config.json").read_bytes()), config.model)
    _same_numbers(target, _stored(source), _order(intact, False))


def _check_model(values: dict[str, Any], model: Any) -> None:
    """Sizes and constants by an own reading of config.json."""
    fields = {
        "hidden_size": "embed_dim", "intermediate_size": "mlp_dim", "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads", "num_key_value_heads": "num_kv_heads", "head_dim": "head_dim",
        "vocab_size": "vocab_size", "max_position_embeddings": "local_context", "rms_norm_eps": "norm_epsilon",
        "tie_word_embeddings": "tie_embeddings",
    }  # fmt: skip
    for key, name in fields.items():
        value, got = values.get(key), getattr(model, name)
        require(value is None or got == value, f"model.{name} is not the file's {key}")
    require(math.isfinite(model.norm_epsilon) and model.norm_epsilon > 0, "norm_epsilon is no positive number")
    found = list(_numbers(values, "rope_theta"))
    require(model.rope.theta in (found or [10000.0]), "model.rope.theta is not the file's rope_theta")
    for section in ("rope_scaling", "rope_parameters"):
        scaling = values.get(section)
        kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else None
        if kind not in (None, "default"):
            require(model.rope.scaling.value == kind, f"model.rope.scaling is not the kind under {section}")
            require(model.rope.factor == scaling["factor"], f"model.rope.factor is not the factor under {section}")
            contexts = list(_numbers(values, "original_max_position_embeddings"))
            known = kind not in ("llama3", "yarn") or not contexts or model.rope.original_context in contexts
            require(known, "model.rope.original_context is not the file's original_max_position_embeddings")
    require(math.isfinite(model.rope.theta) and math.isfinite(model.rope.factor), "rope is not finite")


def _numbers(tree: Any, name: str) -> Any:
    """Every value under a name in a JSON tree."""
    if isinstance(tree, dict):
        yield from (value for key, value in tree.items() if key == name and value is not None)
    for inner in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _numbers(inner, name)


TEXTS = ("def f(x): return 12 + 345  # naïve 你好\n", "The quick  brown fox. ", "a", "\t\n", "x<|im_end|>y</s>")


def _read_vocabulary(config: Any) -> Any:
    """Loads the vocabulary of a VocabularyConfig anew and uses it as commands do."""
    from fot_jax.data.vocabulary import encode_prompt, load_vocabulary

    load_vocabulary.cache_clear()
    vocabulary = load_vocabulary(config)
    for text in TEXTS:
        ids = encode_prompt(vocabulary, text)
        require(all(0 <= i < vocabulary.size for i in ids), "an id is not below the vocabulary's size")
        vocabulary.decode(ids)
    for token in {0, 1, 2, vocabulary.size // 2, vocabulary.size - 1}:
        vocabulary.token_bytes(token)
        vocabulary.decode([token])
    require(0 <= vocabulary.eos_id < vocabulary.size, "eos_id is not below the vocabulary's size")
    return vocabulary


def _attempt_chat(source: Path, target: Path, intact: Path) -> None:
    """Imports with the tokenizer, and asks a question through the chat template."""
    from fot_jax.convert.importing import import_checkpoint
    from fot_jax.data.chat import encode_chat

    config = import_checkpoint(source, target)
    vocabulary = _read_vocabulary(config.data.vocabulary)
    require(sorted(vocabulary.end_ids) == sorted(_stated_ends(source)), "other end tokens than the files state")
    ids = encode_chat(vocabulary, user="hi <|im_end|>", system=None)
    require(all(0 <= i < vocabulary.size for i in ids), "an id of the chat is not below the vocabulary's size")


def _stated_ends(source: Path) -> set[int]:
    """The end tokens of generation_config.json, else of config.json, by an own reading."""
    for path in (source / "generation_config.json", source / "config.json"):
        stated = json.loads(path.read_bytes()).get("eos_token_id") if path.exists() else None
        if stated is not None:
            return set(stated if isinstance(stated, list) else [stated])
    return set()


def _attempt_chat_alone(source: Path, target: Path, intact: Path) -> None:
    """Calls `_attempt_chat`; files imported before the template is read are no residue."""
    import shutil

    try:
        _attempt_chat(source, target, intact)
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _attempt_tokenizer_json(source: Path, target: Path, intact: Path) -> None:
    import tokenizers

    from fot_jax.config import VocabularyConfig, VocabularyKind

    path = str(source / "tokenizer.json")
    vocabulary = _read_vocabulary(VocabularyConfig(kind=VocabularyKind.HF_TOKENIZER, path=path))
    theirs = tokenizers.Tokenizer.from_file(path)
    theirs.no_truncation()
    theirs.no_padding()
    for text in TEXTS[:4]:
        ids = theirs.encode(text, add_special_tokens=False).ids
        require(vocabulary.encode(text) == ids, "other ids than the tokenizers library's")


def _attempt_tokenizer_model(source: Path, target: Path, intact: Path) -> None:
    import sentencepiece

    from fot_jax.config import VocabularyConfig, VocabularyKind

    path = str(source / "tokenizer.model")
    vocabulary = _read_vocabulary(VocabularyConfig(kind=VocabularyKind.SENTENCEPIECE, path=path))
    theirs = sentencepiece.SentencePieceProcessor(model_file=path)
    for text in TEXTS[:4]:
        require(vocabulary.encode(text) == theirs.encode(text), "other ids than the sentencepiece library's")


@functools.cache
def tokenizer_json_files() -> Files:
    """A byte-level BPE tokenizer of few merges."""
    return {"tokenizer.json": _bpe()}


@functools.cache
def tokenizer_model_files() -> Files:
    """A SentencePiece model with bytes to fall back on."""
    import io

    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["def naïve(x): return x", "The quick brown fox jumps over the lazy dog."] * 20),
        model_writer=out,
        vocab_size=310,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    return {
        "tokenizer.model": out.getvalue(),
        "tokenizer_config.json": _json({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}),
    }


@functools.cache
def gguf_files() -> Files:
    """A GGUF file as gguf's own writer makes it, with a byte-level BPE tokenizer."""
    from tests.convert.checkpoints import write_gguf

    with tempfile.TemporaryDirectory() as place:
        metadata = {**_tokenizer_metadata(), "general.name": "tiny", "llama.rope.scaling.type": "none"}
        path = write_gguf(Path(place) / "model.gguf", PLAIN, _tensors(), metadata=metadata)
        return {"model.gguf": path.read_bytes()}


def _tokenizer_metadata() -> dict[str, Any]:
    tree = json.loads(_bpe())
    tokens = sorted(tree["model"]["vocab"], key=tree["model"]["vocab"].get)
    merges = [" ".join(pair) for pair in tree["model"]["merges"]]
    prefix = "tokenizer.ggml."
    return {
        f"{prefix}model": "gpt2", f"{prefix}pre": "smollm", f"{prefix}tokens": tokens,
        f"{prefix}token_type": [3] * 3 + [1] * (len(tokens) - 3), f"{prefix}merges": merges,
        f"{prefix}bos_token_id": 1, f"{prefix}eos_token_id": 2,
    }  # fmt: skip


def _read_gguf(path: Path) -> dict[str, np.ndarray]:
    """The F32 and F16 tensors of a GGUF file by an own reading of it, the last of each name."""
    data = path.read_bytes()
    tensors, pairs = struct.unpack_from("<QQ", data, 8)
    at, align = 24, 32

    def text() -> bytes:
        nonlocal at
        length = struct.unpack_from("<Q", data, at)[0]
        at += 8 + length
        return data[at - length : at]

    def skip(kind: int) -> None:
        nonlocal at
        if kind == 8:
            text()
        elif kind == 9:
            inner, count = struct.unpack_from("<IQ", data, at)
            at += 12
            for _ in range(count):
                skip(inner)
        else:
            at += {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}[kind]

    for _ in range(pairs):
        key = text()
        kind, at = struct.unpack_from("<I", data, at)[0], at + 4
        if key == b"general.alignment":
            align = struct.unpack_from("<I", data, at)[0]
        skip(kind)
    places = []
    for _ in range(tensors):
        name = text().decode()
        count = struct.unpack_from("<I", data, at)[0]
        shape = struct.unpack_from(f"<{count}Q", data, at + 4)
        kind, offset = struct.unpack_from("<IQ", data, at + 4 + 8 * count)
        at += 16 + 8 * count
        places.append((name, shape, kind, offset))
    start = -(-at // align) * align
    kinds = {0: np.float32, 1: np.float16}
    for _, shape, kind, offset in places:
        size = math.prod(shape) * np.dtype(kinds.get(kind, np.uint8)).itemsize
        require(offset % align == 0 and start + offset + size <= len(data), "a tensor beyond the file or off its grid")
    return {
        name: np.frombuffer(data, kinds[kind], math.prod(shape), start + offset).astype(np.float32)
        for name, shape, kind, offset in places
        if kind in kinds
    }


def _attempt_gguf(source: Path, target: Path, intact: Path) -> None:
    from fot_jax.convert.importing import import_checkpoint

    config = import_checkpoint(source / "model.gguf", target)
    _read_vocabulary(config.data.vocabulary)
    _same_numbers(target, _read_gguf(source / "model.gguf"), _order(intact, True))


def _json_file(file: str, *values: str) -> st.SearchStrategy[Edit]:
    """Edits of a JSON file: most of its tree, some of its bytes."""
    tree = json_arguments((*VALUES, *values))
    return of(file, *[tree] * 8, byte_arguments(), words(WORDS))


def _config_edits(files: Files) -> st.SearchStrategy[Edit]:
    kinds = (
        '"yarn"',
        '"linear"',
        '"dynamic"',
        '"llama3"',
        '"default"',
        '{"rope_type": "yarn", "factor": 2.0}',
        "8",
        "16",
    )
    return _json_file("config.json", *kinds)


def _safetensors_edits(files: Files) -> st.SearchStrategy[Edit]:
    kinds = (
        '"F16"',
        '"BF16"',
        '"F64"',
        '"I32"',
        '"F8_E4M3"',
        '"BOOL"',
        "[0, 0]",
        "[0, 64]",
        "[16]",
        "[16, 1]",
        "[24, 16]",
    )
    header = inside("safetensors", json_arguments((*VALUES, *kinds)))
    raw = inside("safetensors", byte_arguments())
    return of("model.safetensors", *[header] * 5, raw, byte_arguments())


def _sharded_edits(files: Files) -> st.SearchStrategy[Edit]:
    shards = sorted(name for name in files if name.endswith(".safetensors"))
    names = tuple(json.dumps(name) for name in (*shards, "model.safetensors", "config.json"))
    tree = json_arguments((*VALUES, *names))
    index = of("model.safetensors.index.json", *[tree] * 5, byte_arguments())
    header = inside("safetensors", json_arguments(VALUES))
    return any_of(*[index] * 5, *(of(name, header, byte_arguments()) for name in shards), *map(removal, shards))


def _settings_edits(files: Files) -> st.SearchStrategy[Edit]:
    names = ('"<|im_end|>"', '"</s>"', '{"content": "<|im_end|>"}', '{"content": 3}', '[{"name": "default"}]', "[2]")
    small = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    template = of("chat_template.jinja", byte_arguments(), words(TEMPLATE_WORDS), words(TEMPLATE_WORDS))
    return any_of(*(_json_file(file, *names) for file in small), template, *map(removal, small))


def _gguf_edits(files: Files) -> st.SearchStrategy[Edit]:
    from tests.fuzz.edits import INTEGERS

    number = st.sampled_from(INTEGERS) | st.integers(0, 40)

    def parts(part: str, most: int) -> st.SearchStrategy[tuple]:
        return st.tuples(st.just("gguf"), st.just(part), st.integers(0, most), number)

    value, text = parts("value", 200), parts("text", 200)
    return of("model.gguf", value, parts("value", 30), value, text, text, parts("layout", 300), byte_arguments())


KINDS = [
    Kind(name="config_json", files=folder_files, edits=_config_edits, attempt=_attempt_folder),
    Kind(name="safetensors", files=folder_files, edits=_safetensors_edits, attempt=_attempt_folder),
    Kind(name="safetensors_index", files=sharded_files, edits=_sharded_edits, attempt=_attempt_folder),
    Kind(
        name="generation_config",
        files=chat_files,
        edits=lambda files: _json_file("generation_config.json", "[1]", "[2, 1]", "[299, 300]", '["<s>"]'),
        attempt=_attempt_chat_alone,
    ),
    Kind(name="tokenizer_settings", files=chat_files, edits=_settings_edits, attempt=_attempt_chat_alone),
    Kind(
        name="tokenizer_json",
        files=tokenizer_json_files,
        edits=lambda files: _json_file("tokenizer.json", '"Metaspace"', '"WordPiece"', '"Unigram"', '"(a+)+$"'),
        attempt=_attempt_tokenizer_json,
    ),
    Kind(
        name="tokenizer_model",
        files=tokenizer_model_files,
        edits=lambda files: of("tokenizer.model", protobuf_arguments(), protobuf_arguments(2), byte_arguments()),
        attempt=_attempt_tokenizer_model,
    ),
    Kind(name="gguf", files=gguf_files, edits=_gguf_edits, attempt=_attempt_gguf),
]
