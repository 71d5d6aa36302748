"""LLaMA's tokenizer as the definition of a `tokenizers.Tokenizer`, as transformers 5 builds it.

    tokenizer.model    pieces -> BPE, merges by rank        text -> "▁text", spaces -> "▁"
    tokenizer.json     its own vocabulary and merges        likewise, where tokenizer_class is LlamaTokenizer

`scheme` says where a "▁" is put: with `legacy` false, the default, only at a text's beginning; with `legacy` true
also after every added token; with `add_prefix_space` false nowhere. A text that begins with a space gets none.

Source: transformers 5.15, LlamaTokenizer and SentencePieceExtractor.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from fot_jax.data.tokenizer_settings import TokenizerSettings
from fot_jax.logging import info_once

LLAMA_CLASSES = ("LlamaTokenizer", "CodeLlamaTokenizer")
SPACE = "▁"
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
SPACE_INSIDE = re.compile(f"[^{SPACE}]{SPACE}")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # types of a SentencePiece model's pieces
BPE = 2  # type of a SentencePiece model


def merges_of(vocabulary: dict[str, int], *, scores: dict[str, float] | None = None) -> list[list[str]]:
    """Lists all pairs of pieces that make a piece, in the order in which they merge.

    Args:
      vocabulary: ids by piece.
      scores: the highest is merged first, as in SentencePiece; None: the lowest id, as in transformers. Pieces
        without a score are never made.
    """
    ranks = vocabulary if scores is None else {piece: -score for piece, score in scores.items()}
    found = []
    for piece, rank in ranks.items():
        pairs = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        local = [(left, right) for left, right in pairs if left in vocabulary and right in vocabulary]
        local.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(rank, len(left), len(right), left, right) for left, right in local]
    found.sort(key=lambda merge: merge[:3])
    return [[left, right] for *_, left, right in found]


def bpe_model(vocabulary: dict[str, int], merges: Iterable[Any], *, unknown: str | None) -> dict[str, Any]:
    """Builds a BPE model whose unknown characters are bytes, or `unknown` where pieces for bytes are missing."""
    all_bytes = sum(BYTE.fullmatch(piece) is not None for piece in vocabulary) == 256
    return {
        "type": "BPE", "dropout": None, "unk_token": None if all_bytes else unknown,
        "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
        "ignore_merges": False, "vocab": vocabulary, "merges": list(merges),
    }  # fmt: skip


def added_token(content: str, index: int, *, special: bool) -> dict[str, Any]:
    """Builds an added token of a definition."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return {"id": index, "content": content, **flags}


def decoder(*, strip: bool) -> dict[str, Any]:
    """Builds the decoder of SentencePiece-like tokenizers; `strip` drops a text's first space."""
    parts: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if strip:
        parts.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": parts}


def _words(vocabulary: dict[str, int]) -> list[dict[str, Any]]:
    """Returns pre-tokenizers that cut before words, so that words can be cached; none if a merge crosses words."""
    if any(map(SPACE_INSIDE.search, vocabulary)):
        return []
    return [{"type": "Split", "pattern": {"Regex": f"{SPACE}+"}, "behavior": "MergedWithNext", "invert": False}]


def _definition(model: dict[str, Any], added: list[dict[str, Any]], *, scheme: str) -> dict[str, Any]:
    cut: dict[str, Any] = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
    words = _words(model["vocab"])
    cut = {"type": "Sequence", "pretokenizers": [cut, *words]} if words else cut
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": cut, "post_processor": None, "decoder": decoder(strip=scheme != "never"), "model": model,
    }  # fmt: skip


def is_plain_bpe(proto: Any) -> bool:
    """True if a SentencePiece model is of type BPE and changes no text before it cuts it."""
    normalizer, trainer = proto.normalizer_spec, proto.trainer_spec
    as_it_is = not normalizer.precompiled_charsmap and not normalizer.remove_extra_whitespaces
    return trainer.model_type == BPE and as_it_is and not trainer.treat_whitespace_as_suffix


def scheme_of(settings: TokenizerSettings, *, dummy_prefix: bool = True) -> str:
    """Returns the scheme by which "▁" is put before text: "first", "always" or "never".

    Args:
      settings: `add_prefix_space` and `legacy`.
      dummy_prefix: what the SentencePiece model says, where `add_prefix_space` is not set.
    """
    stated = settings.flag("add_prefix_space")
    if not (dummy_prefix if stated is None else stated):
        return "never"
    return "always" if settings.flag("legacy") else "first"


def from_pieces(proto: Any, settings: TokenizerSettings) -> dict[str, Any]:
    """Returns the definition of a SentencePiece model of type BPE."""
    pieces = [piece.piece for piece in proto.pieces]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    types = [piece.type for piece in proto.pieces]
    unknown = pieces[proto.trainer_spec.unk_id] if 0 <= proto.trainer_spec.unk_id < len(pieces) else None
    added = [
        added_token(piece, index, special=kind != USER_DEFINED)
        for index, (piece, kind) in enumerate(zip(pieces, types, strict=True))
        if kind in (CONTROL, USER_DEFINED) or piece == unknown
    ]
    scheme = scheme_of(settings, dummy_prefix=proto.normalizer_spec.add_dummy_prefix)
    return _definition(bpe_model(vocabulary, merges_of(vocabulary), unknown=unknown), added, scheme=scheme)


def as_sentencepiece(
    pieces: Sequence[str], scores: Sequence[float], types: Sequence[int], *, dummy_prefix: bool
) -> dict[str, Any]:
    """Returns a BPE model's definition that gives SentencePiece's own ids, also where a text begins with a space.

    "▁" is put before a text and after every added token, as in llama.cpp. transformers takes the definition as it is.

    Args:
      pieces: distinct.
      scores: the highest is merged first.
      types: SentencePiece's, which are GGUF's too.
      dummy_prefix: whether "▁" is put before text at all.
    """
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    rows = list(zip(pieces, scores, types, strict=True))
    merges = merges_of(vocabulary, scores={piece: score for piece, score, kind in rows if kind == NORMAL})
    unknown = next((piece for piece, _, kind in rows if kind == UNKNOWN), None)
    added = [
        added_token(piece, index, special=kind != USER_DEFINED)
        for index, (piece, _, kind) in enumerate(rows)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    prepend = [{"type": "Prepend", "prepend": SPACE}] if dummy_prefix else []
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    definition = _definition(bpe_model(vocabulary, merges, unknown=unknown), added, scheme="never")
    words = _words(vocabulary)
    return {
        **definition,
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, spaces]},
        "pre_tokenizer": words[0] if words else None,
        "decoder": decoder(strip=dummy_prefix),
    }


def as_llama(definition: dict[str, Any], settings: TokenizerSettings) -> dict[str, Any]:
    """Rebuilds a tokenizer.json as LlamaTokenizer does: its tokens, with LLaMA's own pre-tokenizer.

    It does so for files that name LLaMA's class and put "▁" before text in one of its ways: by Metaspace, or by the
    normalizers Prepend and Replace. Other files are returned as they are.
    """
    if settings.tokenizer_class() not in LLAMA_CLASSES or definition["model"].get("type") != "BPE":
        return definition
    normalizer, cut = definition.get("normalizer"), definition.get("pre_tokenizer")
    kinds = [part.get("type") for part in (normalizer or {}).get("normalizers", [])]
    of_cut = normalizer is None and cut is not None and cut.get("type") == "Metaspace"
    of_normalizer = cut is None and kinds == ["Prepend", "Replace"]
    if not of_cut and not of_normalizer:
        return definition
    scheme = scheme_of(settings)
    if cut is None or cut.get("prepend_scheme") != scheme:
        info_once(
            f"{settings.log_name()}: as LlamaTokenizer in transformers 5, '{SPACE}' is put before text by `legacy` and"
            f" `add_prefix_space` ({scheme}), not by tokenizer.json."
        )
    model = definition["model"]
    model = bpe_model(model["vocab"], model["merges"], unknown=model.get("unk_token"))
    rebuilt = _definition(model, definition.get("added_tokens", []), scheme=scheme)
    return {**rebuilt, "post_processor": definition.get("post_processor")}
