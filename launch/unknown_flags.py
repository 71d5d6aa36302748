"""Names the flag that was meant where a command is given one that it does not know.

--workdr=DIR                  Did you mean --workdir?                    the nearest flag
--overlap=8                   Did you mean --memory.overlap?             the flag of that field
--memory.overlap=8            Did you mean --config.memory.overlap?      a command that starts from a config
--config.memory.overlap=8     Did you mean --memory.overlap?             a command that starts from a run
"""

import argparse
import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Sequence

from fot_jax.config import ExperimentConfig
from fot_jax.config.build import field_types

# Former flags whose names say nothing of the present ones -> the present flag; see `suggest`.
FORMER = {
    "memory": "memory.retrieval",
    "top-k-memory": "memory.top_k",
    "checkpoint": "workdir",
    "rows": "show-rows",
    "sweep-mesh": "meshes",
    "memory-entries": "entries",
}


def config_paths(kind: type = ExperimentConfig) -> list[str]:
    """Lists the path of every field below an experiment: "seed", "train.steps", "data.sources[0].path"."""
    paths = []
    for name, annotation in field_types(kind).items():
        item = typing.get_args(annotation)[0] if isinstance(annotation, types.GenericAlias) else annotation
        if dataclasses.is_dataclass(item):
            place = name if item is annotation else f"{name}[0]"
            paths += [f"{place}.{path}" for path in config_paths(typing.cast(type, item))]
        else:
            paths.append(name)
    return paths


def flags_of(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """Lists the flags of a parser, and those of the subcommand that the arguments name (of all where none is named)."""
    flags = []
    for action in parser._actions:
        flags += [flag for flag in action.option_strings if flag.startswith("--")]
        if isinstance(action, argparse._SubParsersAction):
            named = [argument for argument in arguments if argument in action.choices][:1]
            for name in named or action.choices:
                flags += flags_of(action.choices[name], ())
    return flags


def explain_unknown(parser: argparse.ArgumentParser, arguments: Sequence[str], *, overrides: bool) -> str | None:
    """Returns the error line of the first flag that a parser does not know; None where it knows all.

    Args:
      parser: of the command.
      arguments: of its command line.
      overrides: True if the command takes `--config.SECTION.FIELD`.
    """
    known = flags_of(parser, arguments)
    own = arguments[: list(arguments).index("--")] if "--" in arguments else arguments
    for argument in own:
        match = re.match(r"--?([A-Za-z][\w.\[\]-]*)(?==|$)", argument)
        if match and match[0] not in (*known, "-h"):
            fields = [f"--config.{path}" for path in config_paths()] if overrides else []
            meant = suggest(match[1], [*known, *fields])
            return f"the flag {match[0]} is unknown." + (f" Did you mean {meant}?" if meant else "")
    return None


def suggest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known flag that a name without its dashes meant: another spelling of one field, or the nearest."""
    by_name = {flag.removeprefix("--"): flag for flag in known}
    path = FORMER.get(name, name).removeprefix("config.")
    for spelling in (path, f"config.{path}"):
        if spelling in by_name:
            return by_name[spelling]
    field = path.replace("-", "_")
    of_field = [flag for flag in by_name.values() if flag.endswith(f".{field}")]
    if len(of_field) == 1:
        return of_field[0]
    near = difflib.get_close_matches(name, by_name, n=1)
    return by_name[near[0]] if near else None
