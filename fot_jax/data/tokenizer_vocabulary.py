"""Tokenizers of the `tokenizers` library with the files next to them: tokenizer.json, LLaMA's tokenizer.model."""

import collections
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from fot_jax.config import UserError
from fot_jax.data import llama_tokenizer
from fot_jax.data.tokenizer_settings import TokenizerSettings
from fot_jax.logging import info_once

END_OF_TEXT_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|im_end|>")
NO_SCORE = -1e9  # of a Unigram model's piece that no text becomes


class TokenizerVocabulary:
    """A `tokenizers.Tokenizer` with the tokens that the files next to it add and name.

    Attributes: see Vocabulary; `special_ids` are the special tokens by name.

    Raises UserError where it cannot be read, lacks an end-of-text token or the token that is to begin texts, or has an
    added token under another id than stated.
    """

    pad_id = 0

    def __init__(self, definition: dict[str, Any], settings: TokenizerSettings, *, add_bos: bool | None = None):
        """Builds the tokenizer.

        Args:
          definition: the content of tokenizer.json.
          settings: of the files next to it.
          add_bos: whether texts begin with BOS where no file says so; None: the post-processor says so.
        """
        self.path = str(settings.path)
        self._settings = settings
        self._plain = _build(definition, settings)
        self._plain.encode_special_tokens = True
        self.eos_id, self.bos_id = self._find_eos(), self._find_bos(add_bos)
        _add_named(self._plain, settings)
        added = self._plain.get_added_tokens_decoder()
        self.special_ids = {token.content: index for index, token in added.items() if token.special}
        self._special = set(self.special_ids.values())
        self._added = {index: token.content for index, token in added.items()}
        # Ids may have gaps: the model needs a row for the largest one.
        self.size = max(self._plain.get_vocab(with_added_tokens=True).values()) + 1
        self.end_ids = settings.checked_end_ids(self.size) or (self.eos_id,)
        stated = definition.get("decoder") or {}
        self._decoders = {part["type"] for part in stated.get("decoders", [stated]) if "type" in part}
        self._check_plain(unknown={settings.name_of("unk"), definition["model"].get("unk_token")})

    def _find_eos(self) -> int:
        named = self._settings.name_of("eos")
        stated = self._settings.end_ids
        if named is None and stated is not None:
            return stated[0]
        names = [named] if named else list(END_OF_TEXT_NAMES)
        found = [i for i in map(self._plain.token_to_id, names) if i is not None]
        if not found:
            raise UserError(
                f"'{self.path}' must hold an end-of-text token, one of {names}, got none."
                " Put a tokenizer_config.json next to it that names its eos_token."
            )
        if named is None:
            info_once(
                f"{self._settings.log_name()}: no file names the eos_token;"
                f" {self._plain.id_to_token(found[0])!r} is taken. Name it in a tokenizer_config.json next to it."
            )
        return found[0]

    def _find_bos(self, add_bos: bool | None) -> int | None:
        name = self._settings.name_of("bos")
        wanted = self._settings.flag("add_bos_token")
        if wanted is None and add_bos is None:
            return self._bos_of_post_processor()
        found = None if name is None else self._plain.token_to_id(name)
        if wanted is None and add_bos and found is not None:
            wanted = True
            log_name = self._settings.log_name()
            info_once(f"{log_name}: no file says add_bos_token; texts begin with {name!r}, as LLaMA's do.")
        if wanted and found is None:
            raise missing_bos_error(self.path, name)
        return found if wanted else None

    def _bos_of_post_processor(self) -> int | None:
        """Returns the token that the post-processor puts before a text, None if there is none."""
        text = self._plain.encode("a", add_special_tokens=False).ids
        whole = self._plain.encode("a").ids
        places = [n for n in range(len(whole) + 1) if whole[n : n + len(text)] == text]
        before = whole[: places[0]] if places else whole
        if len(before) > 1:
            raise UserError(
                f"'{self.path}' must put at most one token before a text, got {before}."
                " Set add_bos_token in a tokenizer_config.json next to it."
            )
        return before[0] if before else None

    def _check_plain(self, *, unknown: set[str | None]) -> None:
        """Raises UserError where the text of a special token, as text, would give the token itself."""
        for name, index in self.special_ids.items():
            if index in self.encode(name) and name not in unknown:
                raise UserError(
                    f"'{self.path}' must keep the special token {name!r} apart from its text, but a text gives it."
                    " Remove it from the model's vocabulary, or make it no special token."
                )

    @property
    def identity(self) -> list[object]:
        """See Vocabulary."""
        return [self._digest, self.bos_id, self.eos_id]

    @functools.cached_property
    def _digest(self) -> str:
        return hashlib.blake2b(self._plain.to_str().encode("utf-8"), digest_size=16).hexdigest()

    @functools.cached_property
    def _trusted(self) -> Any:
        import tokenizers

        return tokenizers.Tokenizer.from_str(self._plain.to_str())

    def encode(self, text: str) -> list[int]:
        """See Vocabulary."""
        return _encode(self._plain, text)

    def encode_trusted(self, text: str) -> list[int]:
        """See Vocabulary."""
        return _encode(self._trusted, text)

    def encode_marked(self, text: str, marks: dict[str, int]) -> list[int]:
        """See MarkedVocabulary."""
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_str(self._plain.to_str())
        tokenizer.encode_special_tokens = True
        known = self._plain.get_added_tokens_decoder()
        for mark, index in marks.items():
            flags = {flag: getattr(known[index], flag) for flag in ("lstrip", "rstrip", "single_word")}
            tokenizer.add_tokens([tokenizers.AddedToken(mark, special=False, normalized=False, **flags)])
        meant = {tokenizer.token_to_id(mark): index for mark, index in marks.items()}
        return [meant.get(i, i) for i in _encode(tokenizer, text)]

    def decode(self, ids: Iterable[int]) -> str:
        """See Vocabulary."""
        return self._plain.decode([int(i) for i in ids], skip_special_tokens=True)

    def token_bytes(self, token: int) -> int:
        """See Vocabulary. Raises UserError unless the tokenizer is byte-level or SentencePiece-like."""
        piece = self._plain.id_to_token(token)
        if piece is None or token in self._special:
            return 0
        if token in self._added:
            return len(piece.encode("utf-8"))
        if "ByteLevel" in self._decoders:
            return len(piece)  # one printable character is one byte
        if self._decoders & {"Metaspace", "ByteFallback", "Replace"}:
            is_byte = llama_tokenizer.BYTE.fullmatch(piece) is not None
            return 1 if is_byte else len(piece.replace(llama_tokenizer.SPACE, " ").encode("utf-8"))
        raise UserError(
            f"'{self.path}' must have a ByteLevel, Metaspace or ByteFallback decoder for bits per byte,"
            f" got {sorted(self._decoders)}."
        )


def missing_bos_error(path: str, name: str | None) -> UserError:
    """Builds the error for a tokenizer without the token that is to begin texts."""
    return UserError(
        f"'{path}' must hold the token that begins a text, since add_bos_token is true, got {name!r}."
        " Name its bos_token in the tokenizer_config.json next to it, or set add_bos_token to false."
    )


def _encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids  # without offsets: twice as fast


def _build(definition: dict[str, Any], settings: TokenizerSettings) -> Any:
    """Builds the tokenizer with the added tokens whose ids are stated."""
    import tokenizers

    added = definition.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(t, dict) and isinstance(t.get("content"), str) for t in added):
        raise _no_tokenizer(settings.path, "added_tokens must be a list of objects with a text as content")
    special = {token["content"] for token in added if token.get("special")}
    special |= {token.content for token in settings.added if token.flags.get("special")}
    special |= {*settings.names().values(), *settings.special_tokens_without_role()}
    try:
        apart = _separate_special_tokens(definition, special)
    except (TypeError, ValueError) as error:  # merges or pieces of another shape
        raise _no_tokenizer(settings.path, error) from error
    tokenizer = _parse_definition(apart, settings.path)
    pieces = tokenizer.get_vocab(with_added_tokens=False)
    if len(set(pieces.values())) < len(pieces):
        raise _no_tokenizer(settings.path, "two tokens have one id")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    named = {*settings.names().values()}
    for token in settings.added:
        if not (token.content in known and token.file.startswith("added_tokens")):  # tokenizer.json overrides it
            flags = {**token.flags, "special": token.flags.get("special", False) or token.content in named}
            tokenizer.add_tokens([tokenizers.AddedToken(token.content, **flags)])
        found = tokenizer.token_to_id(token.content)
        if found != token.id:
            raise UserError(
                f"'{settings.path.with_name(token.file)}' must give {token.content!r} the id that it has in"
                f" {settings.path.name}, {found}, got {token.id}. Give the model's own files."
            )
    return tokenizer


def _parse_definition(definition: dict[str, Any], path: pathlib.Path) -> Any:
    """Builds the library's tokenizer of a definition. Raises UserError where it takes it for none."""
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(json.dumps(definition))
    except BaseException as error:  # bare Exception; of a panic in Rust a BaseException that cannot be imported
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise _no_tokenizer(path, error) from error


def _no_tokenizer(path: str | pathlib.Path, reason: object) -> UserError:
    return UserError(f"data.vocabulary.path must be a Hugging Face tokenizer.json, got '{path}' ({reason}).")


def _separate_special_tokens(definition: dict[str, Any], special: set[str]) -> dict[str, Any]:
    """Changes the definition so that no text becomes a special token: those come from added tokens alone."""
    model = definition.get("model")
    if not isinstance(model, dict):
        return definition
    if model.get("type") == "BPE" and isinstance(model.get("merges"), list):
        made = ["".join(merge if isinstance(merge, list) else str(merge).split(" ")) for merge in model["merges"]]
        kept = [merge for merge, piece in zip(model["merges"], made, strict=True) if piece not in special]
        return {**definition, "model": {**model, "merges": kept}}
    if model.get("type") == "Unigram" and isinstance(model.get("vocab"), list):
        unknown = model.get("unk_id")
        scores = [
            [piece, NO_SCORE if piece in special and index != unknown else score]
            for index, (piece, score) in enumerate(model["vocab"])
        ]
        return {**definition, "model": {**model, "vocab": scores}}
    return definition


def _add_named(tokenizer: Any, settings: TokenizerSettings) -> None:
    """Adds each named special token that is no added token yet, as a special one, after the others."""
    import tokenizers

    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for name in (*settings.names().values(), *settings.special_tokens_without_role()):
        if name not in known:
            tokenizer.add_tokens([tokenizers.AddedToken(name, special=True, normalized=False)])
            known.add(name)


def read_definition(path: str) -> dict[str, Any]:
    """Reads the object in a tokenizer.json. Raises UserError where it is none, or one states a name twice."""
    try:
        definition = json.loads(pathlib.Path(path).read_text("utf-8"), object_pairs_hook=_refuse_duplicates)
    except (OSError, ValueError, RecursionError) as error:
        raise _no_tokenizer(path, error) from error
    if not isinstance(definition, dict) or not isinstance(definition.get("model"), dict):
        raise UserError(f"data.vocabulary.path must be a Hugging Face tokenizer.json, got '{path}', which is none.")
    return definition


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = collections.Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{twice!r} is there twice")
    return found
