"""Reads the files next to a tokenizer's main file: special tokens by role, added tokens, end tokens.

    tokenizer_config.json      ROLE_token, added_tokens_decoder, add_bos_token, legacy, add_prefix_space, chat_template
    special_tokens_map.json    ROLE_token, of older checkpoints (its lists are not read, as in transformers)
    added_tokens.json          added tokens, of older checkpoints
    generation_config.json     eos_token_id, a number or a list; where it has none, config.json's

Precedence is that of transformers 5. A tokenizer_config.json with an `added_tokens_decoder` is the newer format and
overrides the two older files. Otherwise special_tokens_map.json overrides tokenizer_config.json, and
added_tokens.json counts.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from fot_jax.config import UserError

FILE = "tokenizer_config.json"
SPECIAL_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
GENERATION_FILE = "generation_config.json"
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
LISTS = ("additional_special_tokens", "extra_special_tokens")
LONGEST_NAME = 1024  # characters of a token's name; the libraries' time grows faster than its length
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddedToken:
    """A token that a file adds to the tokenizer's own.

    Attributes:
      content: its text.
      id: None where the file names none: it becomes the next one.
      flags: see `tokenizers.AddedToken`.
      file: the name of the file that states it.
    """

    content: str
    id: int | None
    flags: dict[str, bool]
    file: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """Settings that the files next to a tokenizer's main file state.

    Attributes:
      path: the main file.
      values: tokenizer_config.json and special_tokens_map.json, merged.
      added: the added tokens with a stated id, by id.
      end_ids: the tokens that end generated text; None where none are stated.
      end_file: the name of the file that states them.
      stated: False where no file about the tokenizer is there at all.
    """

    path: pathlib.Path
    values: dict[str, Any]
    added: tuple[AddedToken, ...]
    end_ids: tuple[int, ...] | None
    end_file: str
    stated: bool

    def name_of(self, role: str) -> str | None:
        """Returns the text of `ROLE_token`, None where none is named. Raises UserError where it is no token."""
        value = self.values.get(f"{role}_token")
        return None if value is None else _content(value, key=f"{role}_token", path=self.path) or None

    def names(self) -> dict[str, str]:
        """Returns every named special token: {"bos_token": "<s>", ...}. Raises the errors of `name_of`."""
        found = {f"{role}_token": self.name_of(role) for role in ROLES}
        others = {key: value for key, value in self.values.items() if key.endswith("_token") and key not in found}
        found |= {key: value for key, value in others.items() if isinstance(value, str)}
        return {key: name for key, name in found.items() if name is not None}

    def special_tokens_without_role(self) -> list[str]:
        """Lists special tokens without a role, in order. Raises UserError where they are no tokens."""
        found: list[str] = []
        for key in LISTS:
            value = self.values.get(key) or []
            entries = list(value.values()) if isinstance(value, dict) else value
            if not isinstance(entries, list):
                raise _no_config(self.path.with_name(FILE), f"{key}={value!r}")
            found += [_content(entry, key=key, path=self.path) for entry in entries]
        return found

    def flag(self, key: str) -> bool | None:
        """Returns a boolean setting, None where it is not set. Raises UserError where it is no boolean."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise UserError(f"'{self.path.with_name(FILE)}' must have {key} true or false, got {value!r}.")
        return value

    def checked_end_ids(self, size: int) -> tuple[int, ...] | None:
        """`end_ids`. Raises UserError where one is no token of a vocabulary of this size."""
        beyond = [i for i in self.end_ids or () if i >= size]
        if beyond:
            place = self.path.with_name(self.end_file)
            raise UserError(f"'{place}' must have eos_token_id below {size}, the number of tokens, got {beyond}.")
        return self.end_ids

    def tokenizer_class(self) -> str:
        """Returns `tokenizer_class` without "Fast", empty where none is stated."""
        return str(self.values.get("tokenizer_class") or "").removesuffix("Fast")

    def log_name(self) -> str:
        """Names the main file for the log, without the folders above its own."""
        return f"{self.path.parent.name}/{self.path.name}"


def _no_config(path: pathlib.Path, got: str) -> UserError:
    return UserError(f"'{path}' must be a Hugging Face {path.name}, got {got}.")


def _content(value: Any, *, key: str, path: pathlib.Path) -> str:
    name = value.get("content") if isinstance(value, dict) else value
    if not isinstance(name, str):
        raise _no_config(path.with_name(FILE), f"{key}={value!r}")
    if len(name) > LONGEST_NAME:
        raise _no_config(path.with_name(FILE), f"{key} of {len(name):,} characters, where {LONGEST_NAME:,} are allowed")
    return name


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    """Reads a file's JSON object, empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text("utf-8"))
        json.dumps(values, ensure_ascii=False).encode("utf-8")  # "\ud800" stands for no text
    except (OSError, ValueError, RecursionError) as error:
        raise _no_config(path, repr(error)) from error
    if not isinstance(values, dict):
        raise _no_config(path, type(values).__name__)
    return values


def read_settings(tokenizer: str | pathlib.Path) -> TokenizerSettings:
    """Reads the files next to a tokenizer's main file.

    Raises:
      UserError: a file is no JSON object, or states a token or an id that is none.
    """
    path = pathlib.Path(tokenizer)
    config = _read_object(path.with_name(FILE))
    older = {k: v for k, v in _read_object(path.with_name(SPECIAL_FILE)).items() if v is not None and k not in LISTS}
    newer = {k: v for k, v in config.items() if v is not None}
    values = {**older, **newer} if "added_tokens_decoder" in newer else {**newer, **older}
    if values.get("split_special_tokens"):
        raise UserError(f"'{path.with_name(FILE)}' must have split_special_tokens false, got true. Remove the key.")
    legacy = _read_object(path.with_name(ADDED_FILE))
    settings = TokenizerSettings(
        path=path, values=values, added=(), end_ids=None, end_file="", stated=bool(config or older or legacy)
    )
    if "added_tokens_decoder" in newer:
        added = _read_decoder(newer["added_tokens_decoder"], path=path.with_name(FILE))
    else:
        special = {*settings.names().values(), *settings.special_tokens_without_role()}
        added = _read_added(legacy, special=special, path=path.with_name(ADDED_FILE))
    end_ids, end_file = _read_end_ids(path)
    in_order = tuple(sorted(added, key=lambda token: token.id or 0))
    return dataclasses.replace(settings, added=in_order, end_ids=end_ids, end_file=end_file)


def _read_decoder(decoder: Any, *, path: pathlib.Path) -> Iterator[AddedToken]:
    """Yields the tokens of {"32000": {"content": "<|im_end|>", "special": true, ...}, ...}."""
    if not isinstance(decoder, dict):
        raise _no_config(path, f"added_tokens_decoder={decoder!r}")
    for index, entry in decoder.items():
        fits = isinstance(entry, dict) and isinstance(entry.get("content"), str) and index.isdecimal()
        if not fits or not entry["content"] or not all(isinstance(entry.get(flag, False), bool) for flag in FLAGS):
            raise _no_config(path, f"added_tokens_decoder[{index!r}]={entry!r}")
        flags = {flag: entry[flag] for flag in FLAGS if flag in entry}
        yield AddedToken(content=entry["content"], id=int(index), flags=flags, file=path.name)


def _read_added(legacy: dict[str, Any], *, special: set[str], path: pathlib.Path) -> Iterator[AddedToken]:
    """Yields the tokens of {"<|im_end|>": 32000, ...}: special where a role or a list names them."""
    for content, index in legacy.items():
        if not content or not isinstance(index, int) or isinstance(index, bool) or index < 0:
            raise _no_config(path, f"{content!r}: {index!r}")
        flags = {"special": content in special, "normalized": content not in special}
        yield AddedToken(content=content, id=index, flags=flags, file=path.name)


def _read_end_ids(path: pathlib.Path) -> tuple[tuple[int, ...] | None, str]:
    """Reads `eos_token_id` of generation_config.json, else of config.json, and names the file that states it."""
    for name in (GENERATION_FILE, "config.json"):
        stated = _read_object(path.with_name(name)).get("eos_token_id")
        if stated is not None:
            return parse_end_ids(stated, where=f"'{path.with_name(name)}'"), name
    return None, ""


def parse_end_ids(stated: Any, *, where: str) -> tuple[int, ...]:
    """Returns the ids of an `eos_token_id`, each once. Raises UserError unless it is a number or a list of them."""
    ids = stated if isinstance(stated, list) else [stated]
    if not ids or any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in ids):
        raise UserError(f"{where} must have token ids as eos_token_id, got {stated!r}.")
    return tuple(dict.fromkeys(ids))
