"""Loads config files: plain Python with get_config(), or with get_config(ARG) and the ARGUMENTS that it knows.

--config=configs/tiny_code.py          get_config()
--config=configs/paper.py:37m          get_config("37m"), as ml_collections' config_flags has it

A file may have resolve(config) too, for fields that depend on what the command line decides, such as the rows of a
batch on the documents that it names:

    get_config() -> overrides -> resolve(config) -> fot_jax.config.build
"""

import contextlib
import difflib
import importlib.util
import inspect
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from ml_collections import config_dict

from fot_jax.config import ConfigError, ExperimentConfig
from fot_jax.config.build import all_names
from fot_jax.config.override import apply_override


def load_config_file(address: str, overrides: Sequence[tuple[str, str]] = ()) -> config_dict.ConfigDict:
    """Returns a config file's get_config() with the overrides and, where the file has one, after its resolve().

    Args:
      address: FILE.py, or FILE.py:ARG for a file whose get_config(ARG) takes an argument.
      overrides: the (path, text) of each field to change.

    Raises:
      ConfigError: no such file, it cannot be imported, the argument is missing, unknown or not taken,
        ml_collections refuses a key or a value (in one line), or an override names no field or no value of its type.
    """
    path, colon, argument = address.partition(".py:")
    path = f"{path}.py" if colon else address
    module = import_config_file(path)
    arguments = _checked_argument(module, path, argument if colon else None)
    with _in_one_line(path):
        values = module.get_config(*arguments)
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


def addresses(path: str) -> list[str]:
    """Lists the experiments of a config file: FILE.py, or FILE.py:ARG for each of its ARGUMENTS."""
    listed = getattr(import_config_file(path), "ARGUMENTS", ())
    return [f"{path}:{argument}" for argument in listed] or [path]


def import_config_file(path: str) -> ModuleType:
    """Imports a config file. Raises ConfigError where it is missing, cannot be imported or has no get_config()."""
    if not Path(path).is_file():
        there = [str(file) for file in Path(path).parent.glob("*.py")]
        near = difflib.get_close_matches(path, there, n=1)
        fix = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"--config must name an existing file, got {path!r}.{fix}")
    module = _load_module(path)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} must define get_config() returning a ConfigDict.")
    return module


def _checked_argument(module: ModuleType, path: str, argument: str | None) -> tuple[str, ...]:
    """Returns the arguments for a module's get_config(). Raises ConfigError unless it takes what is given."""
    parameters = inspect.signature(module.get_config).parameters.values()
    if argument is not None and not parameters:
        raise ConfigError(f"--config={path} takes no argument, got ':{argument}'. Leave it out.")
    known = list(getattr(module, "ARGUMENTS", ()))
    allowed = f"one of {', '.join(known)}" if known else "the argument of its get_config()"
    if argument is None and any(parameter.default is parameter.empty for parameter in parameters):
        raise ConfigError(f"--config={path}:ARG must name {allowed}; got no argument.")
    if argument is not None and known and argument not in known:
        near = difflib.get_close_matches(argument, known, n=1)
        fix = f" Did you mean {path}:{near[0]}?" if near else ""
        raise ConfigError(f"--config={path}:ARG must name {allowed}; got {argument!r}.{fix}")
    return () if argument is None else (argument,)


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
