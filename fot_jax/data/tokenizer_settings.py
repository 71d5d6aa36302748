"""tokenizer_config.json beside a tokenizer's file: special tokens by role, whether a text begins with one."""

import json
import pathlib
from typing import Any

from fot_jax.config import UserError

FILE = "tokenizer_config.json"
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def read_settings(tokenizer: str) -> dict[str, Any]:
    """The settings beside a tokenizer's file, empty where there are none. Raises UserError where they are no object."""
    path = pathlib.Path(tokenizer).with_name(FILE)
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"'{path}' must be a Hugging Face tokenizer_config.json, got {error!r}.") from error
    if not isinstance(values, dict):
        raise UserError(f"'{path}' must be a Hugging Face tokenizer_config.json, got {type(values).__name__}.")
    return values


def token_name(settings: dict[str, Any], role: str, *, tokenizer: str) -> str | None:
    """The text of `ROLE_token`, None where none is named. Raises UserError where it is neither text nor its object."""
    named = settings.get(f"{role}_token")
    name = named.get("content") if isinstance(named, dict) else named
    if named is None or isinstance(name, str):
        return name or None
    path = pathlib.Path(tokenizer).with_name(FILE)
    raise UserError(f"'{path}' must be a Hugging Face tokenizer_config.json, got {role}_token={named!r}.")


def token_names(settings: dict[str, Any], *, tokenizer: str) -> dict[str, str]:
    """Every special token that is named: {"bos_token": "<s>", ...}; see `token_name`."""
    found = {f"{role}_token": token_name(settings, role, tokenizer=tokenizer) for role in ROLES}
    return {key: name for key, name in found.items() if name is not None}


def adds_bos(settings: dict[str, Any], *, tokenizer: str) -> bool | None:
    """`add_bos_token`, None where it is not set. Raises UserError where it is no boolean."""
    value = settings.get("add_bos_token")
    if value is not None and not isinstance(value, bool):
        path = pathlib.Path(tokenizer).with_name(FILE)
        raise UserError(f"'{path}' must have add_bos_token true or false, got {value!r}.")
    return value
