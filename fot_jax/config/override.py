"""Overrides: `--config.path.key=value` writes one value, given as text, into a config file's ConfigDict.

The declared type of the field, not the text, says how to read it:

    int, float, str        as written            --config.train.steps=500
    bool                   true or false         --config.model.tie_embeddings=true
    an enum                its value             --config.crossbatch.plan=packed
    a tuple                comma-separated       --config.model.memory_layers=1,3
    a tuple of enums       their values          --config.evaluation.needle_kinds=single,multi_key
    a tuple of tuples      in brackets           --config.crossbatch.segments=[[0,0],[1,1]]
    one of the sources     by its number         --config.data.sources[0].path=~/text/*.txt
"""

import contextlib
import dataclasses
import json
import re
import types
import typing
from typing import Any

from ml_collections import config_dict

from fot_jax.config.build import field_types, issubclass_enum, type_name, unknown_field
from fot_jax.config.errors import ConfigError
from fot_jax.config.experiment import ExperimentConfig


def parse(annotation: Any, text: str, *, path: str) -> Any:
    """Returns the value of a text in a field of a given type; enums stay text.

    Raises:
      ConfigError: the text is not a value of that type.
    """
    try:
        if isinstance(annotation, types.GenericAlias):
            return _parse_names(text) if issubclass_enum(typing.get_args(annotation)[0]) else _parse_tuple(text)
        if annotation is bool:
            return {"true": True, "false": False}[text.lower()]
        return text if annotation is str or issubclass_enum(annotation) else annotation(text)
    except (ValueError, KeyError, RecursionError):
        kind = "true or false" if annotation is bool else type_name(annotation)
        raise ConfigError(f"{path} must be {kind}, got {text!r:.200}.") from None


def whole_number(text: str) -> int | None:
    """Returns the number in at most 18 decimal digits (int() refuses more than 4,300), None for other texts."""
    return int(text) if text.isdecimal() and len(text) <= 18 else None


def _parse_names(text: str) -> tuple[str, ...]:
    """Parses 'single, multi_key', in brackets or not, each name in quotes or not."""
    listed = text.strip().strip("[]()")
    return tuple(name.strip().strip("'\"") for name in listed.split(",") if name.strip())


def _parse_tuple(text: str) -> tuple:
    listed = text.replace("(", "[").replace(")", "]").strip()
    listed = listed if listed.startswith("[") else f"[{listed}]"
    return _tuples(json.loads(re.sub(r",\s*\]", "]", listed)))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def apply_override(config: config_dict.ConfigDict, path: str, text: str) -> None:
    """Sets `config.<path>` to the value that `text` gives; references to it follow.

    Args:
      config: the result of a config file's `get_config()`.
      path: "crossbatch.plan", "data.sources[0].path".
      text: the value as written on the command line.

    Raises:
      ConfigError: no such field (with a unknown_field), or the text is not a value of its type.
    """
    kind: Any = ExperimentConfig
    node: Any = config
    *parents, last = path.split(".")
    walked = ""
    for part in parents:
        name, index = _split_index(part, path)
        kind, node = _enter_field(kind, node, name, walked)
        walked += ("." if walked else "") + part
        if index is not None:
            kind, node = _enter_item(kind, node, index, walked)
        if not dataclasses.is_dataclass(kind):
            raise ConfigError(f"{walked} is {type_name(kind)} and has no fields: --config.{path} names nothing.")
    _require_field(kind, last, walked)
    annotation = field_types(kind)[last]
    if dataclasses.is_dataclass(annotation):
        inner = ", ".join(field_types(typing.cast(type, annotation)))
        raise ConfigError(f"{path} is a section: name one of its fields ({inner}), as --config.{path}.FIELD=VALUE.")
    _require_section(kind, node, walked)
    value = parse(annotation, text, path=path)
    with node.ignore_type() if isinstance(node, config_dict.ConfigDict) else contextlib.nullcontext():
        node[last] = value  # `build` checks types, also of what the file holds


def _split_index(part: str, path: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(\w+)(?:\[(\d{1,18})\])?", part)
    if not match:
        raise ConfigError(f"--config.{path} is not a path: write names joined by dots, as data.sources[0].path.")
    return match[1], None if match[2] is None else int(match[2])


def _require_field(kind: Any, name: str, walked: str) -> None:
    if name not in field_types(kind):
        raise unknown_field(kind, f"{walked}." if walked else "", name)


def _require_section(kind: Any, node: Any, walked: str) -> None:
    if not isinstance(node, (dict, config_dict.ConfigDict)):
        place = walked or "config"
        raise ConfigError(f"{place} must be a mapping of {kind.__name__}'s fields in the config file, got {node!r}.")


def _enter_field(kind: Any, node: Any, name: str, walked: str) -> tuple[Any, Any]:
    _require_field(kind, name, walked)
    _require_section(kind, node, walked)
    if name not in node:
        raise ConfigError(f"The config file has no section {name!r}: let its get_config() start from template().")
    return field_types(kind)[name], node[name]


def _enter_item(kind: Any, node: Any, index: int, walked: str) -> tuple[Any, Any]:
    if not isinstance(kind, types.GenericAlias):
        raise ConfigError(f"{walked} is not a list: leave out the [{index}].")
    entries = () if node is None else node
    if not isinstance(entries, (list, tuple)):
        raise ConfigError(f"{walked} must be in a list in the config file, got {node!r}.")
    if index >= len(entries):
        raise ConfigError(f"{walked} does not exist: there are {len(entries)} entries, counted from 0.")
    return typing.get_args(kind)[0], entries[index]
