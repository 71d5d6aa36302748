"""Turns the tokenizer in a GGUF file's metadata into a tokenizer.json, with the ids that llama.cpp gives.

    gpt2     byte-level BPE: tokens, merges, `pre` (how text is cut)
    llama    SentencePiece: tokens and scores

Keys that are read: pre, tokens, token_type (absent: all normal), scores, merges, the ids of special tokens,
add_bos_token, add_eos_token, add_space_prefix, chat_template. Source: llama.cpp, src/llama-vocab.cpp.
"""

import json
import logging
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from fot_jax.config import UserError
from fot_jax.convert.gguf_metadata import END_ROLES
from fot_jax.data import llama_tokenizer
from fot_jax.data.llama_tokenizer import CONTROL, NORMAL, USER_DEFINED
from fot_jax.data.tokenizer_settings import FILE, GENERATION_FILE

PREFIX = "tokenizer.ggml."
LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
LLAMA3_NAMES = {"<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}
# LLaMA 3's split, as its tokenizer.json has it.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# llama.cpp's split for `pre` "default": each cuts what those before it left.
DEFAULT_SPLITS = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)

logger = logging.getLogger(__name__)


def _byte_level(*, use_regex: bool = True) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _split_by_pattern(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")


def _pre_tokenizer(kind: str) -> pre_tokenizers.PreTokenizer | None:
    """Returns the pre-tokenizer that llama.cpp calls `kind`; None if unknown."""
    if kind == "gpt-2":
        return _byte_level()
    if kind == "default":
        return pre_tokenizers.Sequence([*map(_split_by_pattern, DEFAULT_SPLITS), _byte_level(use_regex=False)])
    if kind == "smollm":  # digits one by one
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()])
    if kind in LLAMA3:
        return pre_tokenizers.Sequence([_split_by_pattern(LLAMA3_SPLIT), _byte_level(use_regex=False)])
    return None


def _pre_tokenizer_name(metadata: dict[str, Any], tokens: list[str], types: list[int], *, source: str) -> str:
    """Returns the stated `pre`. Files from before May 2024 state none; special tokens identify LLaMA 3's."""
    stated = metadata.get(PREFIX + "pre")
    if stated is None:
        special = {token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL}
        if special >= LLAMA3_NAMES:
            logger.info(
                "%s: %spre is absent; llama-bpe is taken, since the special tokens are LLaMA 3's.", source, PREFIX
            )
            return LLAMA3[0]
    elif isinstance(stated, str) and _pre_tokenizer(stated) is not None:
        return stated
    got = "none, as files of before May 2024 have" if stated is None else repr(stated)
    raise UserError(
        f"{source}: {PREFIX}pre must be smollm, llama-bpe, gpt-2 or default, got {got}. Give --tokenizer=FILE."
    )


def _adds_bos(metadata: dict[str, Any], pre: str) -> bool:
    """True if texts begin with BOS: as the file says, else as llama.cpp does."""
    stated = metadata.get(PREFIX + "add_bos_token")
    if stated is not None:
        return bool(stated)
    llama3 = pre in LLAMA3 and PREFIX + "bos_token_id" in metadata
    return metadata[PREFIX + "model"] == "llama" or llama3


def _special_id(metadata: dict[str, Any], role: str, *, count: int, source: str) -> int | None:
    """Returns a special token's id; None if the file names none, or, except for BOS and end tokens, a missing one."""
    key = f"{PREFIX}{role}_token_id"
    index = metadata.get(key)
    if index is None or (isinstance(index, int) and 0 <= index < count):
        return index
    if role in ("bos", *END_ROLES):
        raise UserError(f"{source}: {key} must be a token's id below {count}, got {index!r}. Give --tokenizer=FILE.")
    logger.info("%s: %s is no token's id (%r) and is left out.", source, key, index)
    return None


def _is_list_of(values: Any, kind: type) -> bool:
    """True if `values` is a list of one type."""
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def write_tokenizer(metadata: dict[str, Any], folder: Path, *, source: str) -> str | None:
    """Writes tokenizer.json, tokenizer_config.json (special tokens, chat template) and generation_config.json.

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
    if not _is_list_of(tokens, str) or len(set(tokens)) != len(tokens):
        raise UserError(f"{source}: {PREFIX}tokens must be distinct texts. Give --tokenizer=FILE.")
    types: Any = metadata.get(PREFIX + "token_type", [NORMAL] * len(tokens))
    if not _is_list_of(types, int) or len(tokens) != len(types):
        raise UserError(
            f"{source}: {PREFIX}token_type must be a number for each of {len(tokens)} tokens. Give --tokenizer=FILE."
        )
    special = {
        role: _special_id(metadata, role, count=len(tokens), source=source)
        for role in ("bos", *END_ROLES, "unknown", "padding")
    }
    pre = ""
    if kind == "gpt2":
        pre = _pre_tokenizer_name(metadata, tokens, types, source=source)
        tokenizer = _bpe(metadata, tokens, types, pre=pre, source=source)
    elif kind == "llama":
        tokenizer = _sentencepiece(metadata, tokens, types, source=source)
        special = _default_special_ids(special, count=len(tokens))
    else:
        raise UserError(f"{source}: {PREFIX}model must be 'gpt2' or 'llama', got {kind!r}. Give --tokenizer=FILE.")
    begin = special["bos"]
    add_bos = begin is not None and _adds_bos(metadata, pre)
    if begin is not None and add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[tokens[begin], "$A"], special_tokens=[(tokens[begin], begin)]
        )
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    named = {role: tokens[index] for role, index in special.items() if index is not None}
    _write_settings(metadata, named, folder, add_bos=add_bos)
    ends = list(dict.fromkeys(special[role] for role in END_ROLES if special[role] is not None))
    if ends:
        generation = {"eos_token_id": ends[0] if len(ends) == 1 else ends}
        (folder / GENERATION_FILE).write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    return "tokenizer.json"


def _default_special_ids(special: dict[str, int | None], *, count: int) -> dict[str, int | None]:
    """Fills the ids of special tokens with llama.cpp's defaults for SentencePiece models."""
    defaults = {"unknown": 0, "bos": 1, "eos": 2}
    return {
        role: defaults[role] if index is None and role in defaults and defaults[role] < count else index
        for role, index in special.items()
    }


def _bpe(
    metadata: dict[str, Any], tokens: list[str], types: list[int], *, pre: str, source: str
) -> tokenizers.Tokenizer:
    stated: Any = metadata.get(PREFIX + "merges")
    merges = [tuple(merge.split(" ")) for merge in stated] if _is_list_of(stated, str) else [()]
    if not all(len(merge) == 2 for merge in merges):
        raise UserError(f"{source}: {PREFIX}merges must be pairs of tokens. Give --tokenizer=FILE.")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    try:
        ignore = pre in LLAMA3  # LLaMA 3 takes a whole word that is a token
        model = models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, byte_fallback=False, ignore_merges=ignore)
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{source}: {PREFIX}merges must merge into tokens ({error}). Give --tokenizer=FILE.") from error
    tokenizer = tokenizers.Tokenizer(model)
    cut = _pre_tokenizer(pre)
    assert cut is not None
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    added = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_tokens([tokenizers.AddedToken(t, special=kind == CONTROL, normalized=False) for t, kind in added])
    return tokenizer


def _sentencepiece(
    metadata: dict[str, Any], tokens: list[str], types: list[int], *, source: str
) -> tokenizers.Tokenizer:
    """Builds the tokenizer of LLaMA 1 and 2 from its pieces, scores and types."""
    scores = metadata.get(PREFIX + "scores")
    if not _is_list_of(scores, float) or len(scores) != len(tokens):
        raise UserError(f"{source}: {PREFIX}scores must be a number for each token. Give --tokenizer=FILE.")
    for key in ("remove_extra_whitespaces", "precompiled_charsmap"):
        if metadata.get(PREFIX + key):
            raise UserError(f"{source}: {PREFIX}{key} must be absent, since it changes text. Give --tokenizer=FILE.")
    prefix = bool(metadata.get(PREFIX + "add_space_prefix", True))
    definition = llama_tokenizer.as_sentencepiece(tokens, scores, types, dummy_prefix=prefix)
    return tokenizers.Tokenizer.from_str(json.dumps(definition))


def _write_settings(metadata: dict[str, Any], named: dict[str, str], folder: Path, *, add_bos: bool) -> None:
    """Writes tokenizer_config.json: the names of special tokens, the chat template, the trained context."""
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    roles = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    settings |= {f"{ours}_token": named[theirs] for theirs, ours in roles.items() if theirs in named}
    settings["add_bos_token"] = add_bos
    if PREFIX + "add_eos_token" in metadata:
        settings["add_eos_token"] = bool(metadata[PREFIX + "add_eos_token"])
    if "tokenizer.chat_template" in metadata:
        settings["chat_template"] = metadata["tokenizer.chat_template"]
    if "llama.context_length" in metadata:
        settings["model_max_length"] = metadata["llama.context_length"]
    (folder / FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
