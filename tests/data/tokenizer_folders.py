"""Small tokenizers in folders of a LLaMA checkpoint, trained on the spot, for comparison with transformers."""

import json
import random
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from fot_jax.config import VocabularyConfig, VocabularyKind
from fot_jax.data.vocabulary import Vocabulary, load_vocabulary

LINES = [
    "def naïve(x):\n    return 'Ωmega' + x  # 你好\n",
    "The quick brown fox jumps over the lazy dog. ",
] * 20
SPECIALS = ["<unk>", "<s>", "</s>"]
CHAT = {"<|im_end|>": 400, "<|im_start|>": 401, "<tool>": 402, "<sp>": 403}
FLAGS = {
    "<|im_end|>": {"special": True, "normalized": False}, "<|im_start|>": {"special": True, "normalized": False},
    "<tool>": {"special": False, "normalized": True}, "<sp>": {"special": True, "lstrip": True, "rstrip": True},
}  # fmt: skip
NAMES = {"bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>", "add_bos_token": True}


def random_texts(count: int = 200) -> list[str]:
    """Texts with names of special tokens, parts of names, spaces at all ends and characters of no piece."""
    rng = random.Random(7)
    parts = [
        *CHAT,
        *SPECIALS,
        " ",
        "  ",
        "\n",
        "▁",
        "the",
        "fox",
        " quick",
        "x",
        "7",
        "é",
        "你",
        "🙂",
        "<|im_",
        "<s",
        "s>",
    ]
    return ["".join(rng.choices(parts, k=rng.randrange(1, 12))) for _ in range(count)]


def decoder_of(settings: dict[str, Any]) -> dict[str, Any]:
    """`added_tokens_decoder` of CHAT under the settings."""
    return {**settings, "added_tokens_decoder": {str(i): {"content": t, **FLAGS[t]} for t, i in CHAT.items()}}


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """config.json of a LLaMA and tokenizer_config.json."""
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def save_model(folder: Path, settings: dict[str, Any], **training: Any) -> Path:
    """A SentencePiece tokenizer.model of 400 pieces, as LLaMA's are trained."""
    folder.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_prefix=str(folder / "tokenizer"), minloglevel=2,
        **{"vocab_size": 400, "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
           "remove_extra_whitespaces": False, **training},
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    write_settings(folder, settings)
    return folder / "tokenizer.model"


def save_json(folder: Path, settings: dict[str, Any], *, kind: str) -> Path:
    """A tokenizer.json of 400 tokens and CHAT: "bytes", Metaspace "first", "always" or "never", or "prepend"."""
    folder.mkdir(parents=True)
    bpe: Any = tokenizers.Tokenizer(models.BPE(unk_token=None if kind == "bytes" else "<unk>", byte_fallback=True))
    alphabet = []
    if kind == "bytes":
        bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif kind == "prepend":
        bpe.normalizer = tokenizers.normalizers.Sequence(
            [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
        )
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] if kind != "bytes" else []
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS + pieces, initial_alphabet=alphabet, show_progress=False,
        limit_alphabet=60 if pieces else 1000,
    )  # fmt: skip
    bpe.train_from_iterator(LINES, trainer)
    definition = json.loads(bpe.to_str())
    definition["added_tokens"] = definition["added_tokens"][:3]
    definition["model"]["fuse_unk"] = True
    if pieces:
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if kind != "never" else []
        replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
        definition["decoder"] = {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]}
        definition["decoder"]["decoders"] += strip
    bpe = tokenizers.Tokenizer.from_str(json.dumps(definition))
    size = bpe.get_vocab_size()
    bpe.add_tokens([tokenizers.AddedToken(f"<fill{i}>", normalized=False) for i in range(400 - size)])
    bpe.add_tokens([tokenizers.AddedToken(token, **FLAGS[token]) for token in CHAT])
    bpe.save(str(folder / "tokenizer.json"))
    write_settings(folder, settings)
    return folder / "tokenizer.json"


def load(path: Path) -> Any:
    """Our vocabulary of a tokenizer's file."""
    kind = VocabularyKind.SENTENCEPIECE if path.suffix == ".model" else VocabularyKind.HF_TOKENIZER
    return load_vocabulary(VocabularyConfig(kind=kind, path=str(path)))


def assert_same_ids(folder: Path, vocabulary: Vocabulary) -> None:
    """Asserts that transformers, from the folder, gives the same ids for 200 texts, names included, and their text."""
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in random_texts():
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert vocabulary.encode_trusted(text) == ids, text
        assert vocabulary.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
    assert (theirs.eos_token_id, len(theirs)) == (vocabulary.eos_id, vocabulary.size)
