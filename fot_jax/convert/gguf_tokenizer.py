"""The tokenizer in a GGUF file's metadata as a tokenizer.json (byte-level BPE) or a tokenizer.model (SentencePiece)."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from fot_jax.config import UserError

PREFIX = "tokenizer.ggml."
CONTROL, USER_DEFINED = 3, 4  # token types; the same numbers as SentencePiece's
LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
# LLaMA 3's split, as its tokenizer.json has it.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def _byte_level(*, use_regex: bool = True) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _pre_tokenizer(kind: str) -> pre_tokenizers.PreTokenizer | None:
    """How text is cut before merging, by llama.cpp's name for it; None if unknown."""
    if kind in ("gpt-2", "default"):
        return _byte_level()
    if kind == "smollm":  # digits one by one
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()])
    if kind in LLAMA3:
        split = pre_tokenizers.Split(tokenizers.Regex(LLAMA3_SPLIT), behavior="isolated")
        return pre_tokenizers.Sequence([split, _byte_level(use_regex=False)])
    return None


def _adds_bos(metadata: dict[str, Any]) -> bool:
    """Whether texts begin with BOS: as the file says, else as llama.cpp does."""
    stated = metadata.get(PREFIX + "add_bos_token")
    if stated is not None:
        return bool(stated)
    llama3 = metadata.get(PREFIX + "pre") in LLAMA3 and PREFIX + "bos_token_id" in metadata
    return metadata[PREFIX + "model"] == "llama" or llama3


def _token(metadata: dict[str, Any], tokens: list[str], role: str) -> str | None:
    """A special token's text, None where the file names none."""
    index = metadata.get(f"{PREFIX}{role}_token_id")
    return tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else None


def _all(values: Any, kind: type) -> bool:
    """Whether it is a list of one type."""
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def write_tokenizer(metadata: dict[str, Any], folder: Path, *, source: str) -> str | None:
    """Writes tokenizer.json or tokenizer.model, and tokenizer_config.json (special tokens, chat template).

    Args:
      metadata: of the GGUF file.
      folder: exists.
      source: what errors begin with.

    Returns:
      The name of the main file; None where the metadata hold no tokenizer.

    Raises:
      UserError: a kind or a pre-tokenizer that is not supported, or lists that do not fit together.
    """
    kind = metadata.get(PREFIX + "model")
    if kind is None:
        return None
    tokens: Any = metadata.get(PREFIX + "tokens")
    types: Any = metadata.get(PREFIX + "token_type")
    if not _all(tokens, str) or not _all(types, int) or len(tokens) != len(types):
        raise UserError(f"{source}: {PREFIX}tokens and token_type must be texts and as many types. Download it again.")
    if kind == "gpt2":
        _write_bpe(metadata, tokens, types, folder / "tokenizer.json", source=source)
    elif kind == "llama":
        _write_sentencepiece(metadata, tokens, types, folder / "tokenizer.model", source=source)
    else:
        raise UserError(f"{source}: {PREFIX}model must be 'gpt2' or 'llama', got {kind!r}. Give --tokenizer=FILE.")
    main, loader = (
        ("tokenizer.json", "PreTrainedTokenizerFast") if kind == "gpt2" else ("tokenizer.model", "LlamaTokenizer")
    )
    _write_settings(metadata, tokens, folder, loader=loader)
    return main


def _write_bpe(metadata: dict[str, Any], tokens: list[str], types: list[int], path: Path, *, source: str) -> None:
    kind = metadata.get(PREFIX + "pre", "default")
    cut = _pre_tokenizer(kind)
    if cut is None:
        raise UserError(
            f"{source}: {PREFIX}pre must be smollm, llama-bpe, gpt-2 or default, got {kind!r}. Give --tokenizer=FILE."
        )
    merges = [tuple(str(merge).split(" ")) for merge in metadata.get(PREFIX + "merges", [])]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens) or not all(len(merge) == 2 for merge in merges):
        raise UserError(f"{source}: {PREFIX}tokens and merges must be distinct tokens and pairs. Download it again.")
    try:
        ignore = kind not in ("smollm", "gpt-2", "default")  # LLaMA 3 takes a whole word that is a token
        model = models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, byte_fallback=False, ignore_merges=ignore)
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{source}: {PREFIX}merges must merge into tokens ({error}). Download it again.") from error
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    added = [t for t, kind_ in zip(tokens, types, strict=True) if kind_ in (CONTROL, USER_DEFINED)]
    special = {t for t, kind_ in zip(tokens, types, strict=True) if kind_ == CONTROL}
    tokenizer.add_tokens([tokenizers.AddedToken(t, special=t in special, normalized=False) for t in added])
    begin = _token(metadata, tokens, "bos")
    if _adds_bos(metadata) and begin is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[begin, "$A"], special_tokens=[(begin, vocabulary[begin])]
        )
    path.write_text(tokenizer.to_str(), encoding="utf-8")


def _write_sentencepiece(
    metadata: dict[str, Any], tokens: list[str], types: list[int], path: Path, *, source: str
) -> None:
    """LLaMA 1 and 2: pieces, scores and types are the model itself."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2  # its classes are made at run time
    scores = metadata.get(PREFIX + "scores")
    if not _all(scores, float) or len(scores) != len(tokens):
        raise UserError(f"{source}: {PREFIX}scores must be a number for each token. Download it again.")
    model = proto.ModelProto()
    for token, score, kind in zip(tokens, scores, types, strict=True):
        model.pieces.add(piece=token, score=score, type=kind)
    model.trainer_spec.model_type = proto.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(tokens)
    for name, default in (("unk_id", 0), ("bos_id", 1), ("eos_id", 2)):
        key = {"unk_id": "unknown_token_id", "bos_id": "bos_token_id", "eos_id": "eos_token_id"}[name]
        index = metadata.get(PREFIX + key, default)
        setattr(model.trainer_spec, name, index)
        if 0 <= index < len(tokens):
            setattr(model.trainer_spec, name.replace("id", "piece"), tokens[index])
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = bool(metadata.get(PREFIX + "add_space_prefix", True))
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    path.write_bytes(model.SerializeToString())


def _write_settings(metadata: dict[str, Any], tokens: list[str], folder: Path, *, loader: str) -> None:
    """tokenizer_config.json: the names of special tokens, the chat template, the trained context."""
    settings: dict[str, Any] = {"tokenizer_class": loader, "clean_up_tokenization_spaces": False}
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    for theirs, ours in names.items():
        token = _token(metadata, tokens, theirs)
        if token is not None:
            settings[f"{ours}_token"] = token
    settings["add_bos_token"] = _adds_bos(metadata)
    if PREFIX + "add_eos_token" in metadata:
        settings["add_eos_token"] = bool(metadata[PREFIX + "add_eos_token"])
    if "tokenizer.chat_template" in metadata:
        settings["chat_template"] = metadata["tokenizer.chat_template"]
    if "llama.context_length" in metadata:
        settings["model_max_length"] = metadata["llama.context_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
