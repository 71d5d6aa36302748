"""Flags and dotted names that the pages mention in prose exist. Whole commands: test_command_lines.py."""

import argparse
import dataclasses
import functools
import importlib
import pathlib
import re
import typing
from collections.abc import Iterator

from fot_jax.config import ExperimentConfig

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOREIGN = {"--dry-run-out"}  # gcluster's
FILES = (".md", ".py", ".json", ".jsonl", ".txt")


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yields a parser and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


def known_flags() -> set[str]:
    """Returns the flags of all commands, and `--config.PATH` for every field."""
    scripts = [path for path in (ROOT / "launch").rglob("*.py") if "\ndef make_parser()" in path.read_text("utf-8")]
    modules = [importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts)) for path in scripts]
    assert len(modules) >= 11
    found = {flag for module in modules for one in parsers(module.make_parser()) for flag in one._option_string_actions}
    return found | {f"--config.{path}" for path in fields()}


@functools.cache
def fields(kind: type = ExperimentConfig, prefix: str = "") -> frozenset[str]:
    """Returns the dotted names of all fields of a config, sections included."""
    found = set()
    for name, annotation in typing.get_type_hints(kind).items():
        found.add(f"{prefix}{name}")
        if dataclasses.is_dataclass(annotation):
            found |= fields(annotation, f"{prefix}{name}.")
    return frozenset(found)


def exists(dotted: str) -> bool:
    """Returns whether a name is a field of a config, or a module of the package, or something in one."""
    if dotted in fields():
        return True
    parts = ["fot_jax", *dotted.split(".")]
    for length in range(len(parts), 1, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            found = getattr(found, name, None)
        return found is not None
    return False


def test_flags_in_prose_exist():
    """Finds every flag in backquotes in the parser of some command; FIELD and SECTION may be any."""
    known, missing, seen = known_flags() | FOREIGN, [], 0
    for page in PAGES:
        for quoted in re.findall(r"`((?:--|launch\.)[^`\n]+)`", page.read_text(encoding="utf-8")):
            flags = re.findall(r"(?<![\w-])--[a-z][\w.-]*(?<!\.)", quoted)
            missing += [
                f"{page.name}: {flag}" for flag in flags if flag not in known and not re.search(r"\.[A-Z]", flag)
            ]
            seen += len(flags)
    assert not missing
    assert seen > 50


def test_dotted_names_exist():
    """Finds every `section.field` and `module.name` in backquotes, without its value, in the config or the package."""
    first = {name.partition(".")[0] for name in fields()} | {path.stem for path in (ROOT / "fot_jax").iterdir()}
    missing, seen = [], 0
    for page in PAGES:
        for name in re.findall(r"`([a-z_]+(?:\.[A-Za-z_]+)+)(?:=[^`]*)?`", page.read_text(encoding="utf-8")):
            if name.partition(".")[0] in first and not name.endswith(FILES):
                missing += [] if exists(name) else [f"{page.name}: {name}"]
                seen += 1
    assert not missing
    assert seen > 70
