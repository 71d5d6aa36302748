"""Builds the dataclasses from nested mappings, strictly, and turns them back into mappings.

    template() -> get_config() of a file -> overrides -> build() -> ExperimentConfig

Unknown, missing and mistyped keys raise one ConfigError that names each by its full path, with a suggestion.
Enums are written by value ("two_pass"), tuples as tuples or lists.
"""

import dataclasses
import difflib
import enum
import functools
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from ml_collections import config_dict

from fot_jax.config.errors import ConfigError
from fot_jax.config.experiment import ExperimentConfig
from fot_jax.config.renames import RENAMED

T = TypeVar("T")
LARGEST = 2**63 - 1  # the largest integer in a config: that of numpy's and JAX's int64


@functools.cache
def field_types(kind: type) -> dict[str, Any]:
    """Returns the declared type of every field of a config dataclass, in order."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def suggestion(name: str, known: Iterable[str]) -> str:
    """Returns a question ("Did you mean 'x'?") for the nearest known name, else the list of all."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."


def all_names(kind: type) -> list[str]:
    """Returns every field name of a config dataclass and of the sections in it."""
    names = []
    for name, annotation in field_types(kind).items():
        inner = typing.get_args(annotation)[0] if isinstance(annotation, types.GenericAlias) else annotation
        names += [name, *(all_names(typing.cast(type, inner)) if dataclasses.is_dataclass(inner) else [])]
    return names


def type_name(annotation: Any) -> str:
    """Returns the name of a field's type in error messages."""
    if isinstance(annotation, types.GenericAlias):
        return re.sub(r"fot_jax\.config\.\w+\.", "", str(annotation))
    if issubclass(annotation, enum.Enum):
        return "one of " + ", ".join(repr(member.value) for member in annotation)
    return annotation.__name__


def _mistyped(path: str, annotation: Any, got: object) -> ConfigError:
    fix = ""
    if issubclass_enum(annotation) and isinstance(got, str):
        near = difflib.get_close_matches(got, [member.value for member in annotation], n=1)
        fix = f" Did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"{path} must be {type_name(annotation)}, got {got!r} ({type(got).__name__}).{fix}")


def issubclass_enum(annotation: Any) -> bool:
    """True if a field's type is an enum."""
    return not isinstance(annotation, types.GenericAlias) and issubclass(annotation, enum.Enum)


def unknown_field(kind: type, prefix: str, name: str) -> ConfigError:
    """Builds the error of a name that a config dataclass lacks: its new name, or the nearest one that is known."""
    renamed = RENAMED.get(prefix + name)
    fix = f"It is {prefix}{renamed} now." if renamed else suggestion(name, field_types(kind))
    return ConfigError(f"{prefix}{name} is unknown to {kind.__name__}. {fix}")


@dataclasses.dataclass
class _Problems:
    """Faults that keep a config from being built, gathered so that one error names them all.

    Attributes:
      wrong: a sentence for each unknown or mistyped field.
      missing: path -> type of each field that must be set and is not.
    """

    wrong: list[str] = dataclasses.field(default_factory=list)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)

    def raise_all(self) -> None:
        """Raises ConfigError with all of them; returns if there are none."""
        sentences = list(self.wrong)
        if len(self.missing) == 1:
            ((path, kind),) = self.missing.items()
            sentences.append(
                f"{path} is missing: it must be {kind} and has no default."
                f" Set it in the config file or with --config.{path}=…"
            )
        elif self.missing:
            listed = ", ".join(f"{path} ({kind})" for path, kind in self.missing.items())
            sentences.append(
                f"{len(self.missing)} fields are missing and have no default: {listed}."
                " Set them in the config file or with --config.PATH=VALUE."
            )
        if sentences:
            raise ConfigError(" ".join(sentences))


def _value(annotation: Any, value: Any, path: str, problems: _Problems) -> Any:
    """Returns one field's value, converted where the config writes it differently."""
    if isinstance(annotation, types.GenericAlias):
        return _tuple(annotation, value, path, problems)
    if dataclasses.is_dataclass(annotation):
        return _construct(typing.cast(type, annotation), value, path, problems)
    if issubclass_enum(annotation):
        if isinstance(value, annotation):
            return value
        if value in [member.value for member in annotation]:
            return annotation(value)
        raise _mistyped(path, annotation, value)
    if annotation is float and type(value) is int and abs(value) <= LARGEST:
        value = float(value)
    if type(value) is not annotation:  # bool is not an int here
        raise _mistyped(path, annotation, value)
    if annotation is float and not math.isfinite(value):
        raise ConfigError(f"{path} must be a finite number, got {value!r}.")
    if annotation is int and abs(value) > LARGEST:
        raise ConfigError(f"{path} must be an integer of 64 bits, got one of {value.bit_length()} bits.")
    return value


def _tuple(annotation: types.GenericAlias, value: Any, path: str, problems: _Problems) -> tuple:
    if not isinstance(value, (tuple, list)):
        raise _mistyped(path, annotation, value)
    members = typing.get_args(annotation)
    if len(members) == 2 and members[1] is Ellipsis:
        members = (members[0],) * len(value)
    if len(members) != len(value):
        raise ConfigError(f"{path} must hold {len(members)} values, got {len(value)}: {value!r}.")
    pairs = enumerate(zip(members, value, strict=True))
    return tuple(_value(member, item, f"{path}[{i}]", problems) for i, (member, item) in pairs)


def _construct(kind: type[T], values: Any, path: str, problems: _Problems) -> T | None:
    """Builds a dataclass from a mapping; returns None where `problems` now holds what is wrong with it."""
    if isinstance(values, kind):
        return values
    if not isinstance(values, (Mapping, config_dict.ConfigDict)):
        raise ConfigError(f"{path or 'config'} must be a mapping of {kind.__name__}'s fields, got {values!r}.")
    types_by_name = field_types(kind)
    prefix = f"{path}." if path else ""
    problems.wrong += [str(unknown_field(kind, prefix, str(name))) for name in values if name not in types_by_name]
    fields = {}
    for field in dataclasses.fields(typing.cast(Any, kind)):
        name, value, annotation = field.name, values.get(field.name), types_by_name[field.name]
        required = field.default is dataclasses.MISSING
        if value is None and required and dataclasses.is_dataclass(annotation):
            value = {}  # a section that is left out: each of its fields is missing
        if value is not None:
            try:
                fields[name] = _value(annotation, value, prefix + name, problems)
            except ConfigError as error:
                problems.wrong.append(str(error))
        elif required:
            problems.missing[prefix + name] = type_name(annotation)
    return None if problems.wrong or problems.missing else kind(**fields)


def construct(kind: type[T], values: Any, path: str) -> T:
    """Builds a dataclass from a mapping, which must hold the fields without a default. Validates nothing yet.

    Raises ConfigError with every unknown, missing and mistyped field.
    """
    problems = _Problems()
    built = _construct(kind, values, path, problems)
    problems.raise_all()
    return typing.cast(T, built)


def validated(value: T, path: str = "") -> T:
    """Returns a config after its own `validate`."""
    if isinstance(value, ExperimentConfig):
        value.validate()
    else:
        typing.cast(Any, value).validate(path)
    return value


def build(kind: type[T], values: Mapping[str, Any] | config_dict.ConfigDict, *, path: str = "") -> T:
    """Builds a validated config dataclass from nested mappings.

    Args:
      kind: ExperimentConfig or the class of any section.
      values: its fields; enums by value, tuples as tuples or lists, None where not set.
      path: the path before a field's name in errors (`"model"`), empty for a whole experiment.

    Raises:
      ConfigError: a key is unknown (with a suggestion), missing or mistyped, or `validate` objects.
    """
    return validated(construct(kind, values, path), path or kind.__name__)


def to_dict(value: Any) -> Any:
    """Returns a config as plain dicts, lists, numbers and strings, as in JSON; `build` takes them back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_dict(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return [to_dict(item) for item in value]
    return value


def _as_in_file(value: Any) -> Any:
    """Returns a default as a config file writes it: enums by value, also those in a tuple."""
    if isinstance(value, tuple):
        return tuple(_as_in_file(item) for item in value)
    return value.value if isinstance(value, enum.Enum) else value


def template(kind: type = ExperimentConfig) -> config_dict.ConfigDict:
    """Returns a locked ConfigDict with every default; required fields hold None until they are set.

    It is locked so that a misspelt key raises where it is written. Enums are written by value.
    """
    config = config_dict.ConfigDict()
    for field in dataclasses.fields(kind):
        annotation = field_types(kind)[field.name]
        if dataclasses.is_dataclass(annotation):
            config[field.name] = template(typing.cast(type, annotation))
        elif field.default is not dataclasses.MISSING:
            config[field.name] = _as_in_file(field.default)
        elif isinstance(annotation, types.GenericAlias):
            config[field.name] = config_dict.placeholder(tuple)
        else:
            config[field.name] = config_dict.placeholder(str if issubclass_enum(annotation) else annotation)
    return config.lock()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """One field that differs between two configs; `old` or `new` is None where it does not exist."""

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.path}: {self.old!r} -> {self.new!r}"


def difference(old: Any, new: Any, *, path: str = "") -> list[Difference]:
    """Returns the fields in which two configs (dataclasses or `to_dict`'s dicts) differ, by full path.

    Resuming compares the saved config with the one asked for.
    """
    old, new = to_dict(old), to_dict(new)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        prefix = f"{path}." if path else ""
        names = [*old, *(name for name in new if name not in old)]
        return [d for name in names for d in difference(old.get(name), new.get(name), path=prefix + name)]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and old and isinstance(old[0], Mapping):
        return [d for i, pair in enumerate(zip(old, new, strict=True)) for d in difference(*pair, path=f"{path}[{i}]")]
    return [] if old == new else [Difference(path=path, old=old, new=new)]
