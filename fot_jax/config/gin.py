"""Binds the config dataclasses from gin; gin owns no defaults.

    ModelConfig.num_layers = 4
    CrossbatchConfig.plan = "packed"
    DataConfig.sources = (@code/SourceConfig(),)
    code/SourceConfig.name = "code"
    code/SourceConfig.kind = "stdlib"

Every section is bound to its dataclass automatically: `ExperimentConfig.model = @ModelConfig()` is
optional. Every binding goes through `fot_jax.config.build.build`, as config files do. `to_gin` writes an experiment.
"""

import dataclasses
import functools
import inspect
import re
import tokenize
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gin

from fot_jax.config.build import build, field_types, suggestion, to_dict
from fot_jax.config.crossbatch import CrossbatchConfig, ScheduleConfig
from fot_jax.config.data import DataConfig, DictionaryConfig, SourceConfig, VocabularyConfig
from fot_jax.config.errors import ConfigError
from fot_jax.config.experiment import EvaluationConfig, ExperimentConfig, MemoryConfig
from fot_jax.config.model import ModelConfig, RopeConfig
from fot_jax.config.train import MeshConfig, OptimizerConfig, TrainConfig

_KINDS = (
    ExperimentConfig,
    ModelConfig,
    RopeConfig,
    CrossbatchConfig,
    ScheduleConfig,
    DataConfig,
    SourceConfig,
    VocabularyConfig,
    DictionaryConfig,
    OptimizerConfig,
    TrainConfig,
    MeshConfig,
    MemoryConfig,
    EvaluationConfig,
)
_UNBOUND = None  # no field of a config is ever None
# Errors that gin raises: those whose text says what is wrong; those of its own functions, imports and deep nesting.
_READING = (ValueError, SyntaxError, tokenize.TokenError, OSError, TypeError, NameError)
_OTHER = (KeyError, AttributeError, ImportError, RecursionError)


def _bindings_of(kind: type) -> Callable[..., dict[str, Any]]:
    """Returns a function of the dataclass's fields that returns the fields bound by gin."""

    def bound(**fields: Any) -> dict[str, Any]:
        return {name: value for name, value in fields.items() if value is not _UNBOUND}

    only = inspect.Parameter.KEYWORD_ONLY
    names = field_types(kind)
    bound.__signature__ = inspect.Signature([inspect.Parameter(n, only, default=_UNBOUND) for n in names])
    bound.__name__ = kind.__name__
    bound.__doc__ = kind.__doc__
    return bound


@functools.cache
def _configurables() -> dict[Any, Callable[..., dict[str, Any]]]:
    """Registers every dataclass with gin, once per process."""
    registered: dict[Any, Any] = {}
    for kind in _KINDS:
        registered[kind] = gin.external_configurable(_bindings_of(kind), name=kind.__name__, module="fot_jax.config")
    return registered


def _resolve(kind: type) -> dict[str, Any]:
    """Returns the bound fields of a dataclass, its sections included."""
    fields = _configurables()[kind]()
    for name, annotation in field_types(kind).items():
        if dataclasses.is_dataclass(annotation):
            fields[name] = {**_resolve(annotation), **fields.get(name, {})}
    return fields


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    for kind in _KINDS:
        marker = f"'{kind.__name__}' doesn't have a parameter named '"
        if marker in text:
            name = text.split(marker)[1].split("'")[0]
            return f"{kind.__name__}.{name} is unknown to gin. {suggestion(name, field_types(kind))}"
    if "No configurable matching" in text:
        name = text.split("'")[1]
        return f"gin knows no dataclass {name!r}. {suggestion(name, [kind.__name__ for kind in _KINDS])}"
    macro = re.search(r"In call to configurable 'macro' .* in scope '(\w+)'", text)
    if macro:
        return f"gin macro %{macro[1]} is used but not defined: write {macro[1]} = VALUE."
    return f"gin cannot read the bindings: {text}"


def build_from_gin(files: Sequence[str], bindings: Sequence[str] = ()) -> ExperimentConfig:
    """Builds a validated experiment from gin files and bindings (`"ModelConfig.num_layers = 4"`).

    Args:
      files: paths, later files override earlier ones.
      bindings: override the files.

    Raises:
      ConfigError: a file cannot be read or parsed, a name is unknown, missing or mistyped.
    """
    for file in files:
        if not Path(file).is_file():
            raise ConfigError(f"--gin_file must name an existing file, got {str(file)!r}.")
    _configurables()
    gin.clear_config()
    try:
        gin.parse_config_files_and_bindings(list(files), list(bindings), finalize_config=False)
        fields = _resolve(ExperimentConfig)
    except _READING as error:
        raise ConfigError(_one_line(error)) from error
    except _OTHER as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"gin cannot read the bindings: {type(error).__name__}: {reason}") from error
    finally:
        gin.clear_config()
    return build(ExperimentConfig, fields)


def to_gin(config: ExperimentConfig) -> str:
    """Returns an experiment as gin text that binds every field; `build_from_gin` makes an equal experiment of it."""
    return "\n\n".join("\n".join(block) for block in _blocks(config, scope="")) + "\n"


def _blocks(section: Any, *, scope: str) -> list[list[str]]:
    """Returns the bindings of a dataclass, then those of each section and each source in it."""
    own, inner = [], []
    for name in field_types(type(section)):
        value, parameter = getattr(section, name), f"{scope}{type(section).__name__}.{name}"
        if dataclasses.is_dataclass(value):
            inner += _blocks(value, scope=scope)
        elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):  # sources, a scope each
            scopes = [f"{scope}{name}_{number}/" for number in range(len(value))]
            references = [f"@{at}{type(item).__name__}()" for at, item in zip(scopes, value, strict=True)]
            own.append(f"{parameter} = [{', '.join(references)}]")
            inner += [block for at, item in zip(scopes, value, strict=True) for block in _blocks(item, scope=at)]
        else:
            own.append(f"{parameter} = {to_dict(value)!r}")
    return [own, *inner]
