"""Loads config files: plain Python with get_config(), and resolve(config) where fields depend on others.

    get_config() -> overrides -> resolve(config) -> fot_jax.config.build

`resolve` sets fields that the command line may decide, such as the rows of a batch by the documents that were named.
"""

import contextlib
import difflib
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from ml_collections import config_dict

from fot_jax.config import ConfigError, ExperimentConfig
from fot_jax.config.build import all_names
from fot_jax.config.override import apply_override


def load_config_file(path: str, overrides: Sequence[tuple[str, str]] = ()) -> config_dict.ConfigDict:
    """Returns a config file's get_config() with the overrides, (path, text), and then its resolve().

    Raises:
      ConfigError: no such file, it cannot be imported, or ml_collections refuses a key or a value (in one line); an
        override names no field, or no value of its type.
    """
    if not Path(path).is_file():
        raise ConfigError(f"--config must name an existing file, got {path!r}.")
    module = _load_module(path)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} must define get_config() returning a ConfigDict.")
    with _in_one_line(path):
        values = module.get_config()
    if not isinstance(values, config_dict.ConfigDict):
        raise ConfigError(f"{path}: get_config() must return a ConfigDict, got {type(values).__name__}.")
    for field, text in overrides:
        apply_override(values, field, text)
    if hasattr(module, "resolve"):
        with _in_one_line(path):
            module.resolve(values)
    return values


@contextlib.contextmanager
def _in_one_line(path: str) -> Iterator[None]:
    """Turns ml_collections' refusal of a key or a value inside the block into ConfigError."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        if not _raised_by_ml_collections(error):
            raise
        raise ConfigError(f"{path}: {_explained(error)}") from error


def _load_module(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"fot_config_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config must name a Python file (.py), got {path!r}.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ConfigError(f"{path} line {error.lineno}: {error.msg}.") from error
    except ImportError as error:
        raise ConfigError(f"{path}: {error}. Run from the repository root.") from error
    return module


def _raised_by_ml_collections(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and os.sep + "ml_collections" + os.sep in trace.tb_frame.f_code.co_filename


def _explained(error: BaseException) -> str:
    """Returns ml_collections' message; for an unknown key only its name, with a suggestion."""
    text = str(error)
    unknown = re.search(r'Key "(\w+)" does not exist', text) or re.match(r"\W*(\w+)\W*(\\?n?Did you mean .*)?$", text)
    if not unknown:
        return text
    near = difflib.get_close_matches(unknown[1], all_names(ExperimentConfig), n=1)
    return f"the key {unknown[1]!r} is unknown." + (f" Did you mean {near[0]!r}?" if near else "")
