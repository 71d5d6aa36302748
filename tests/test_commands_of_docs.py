"""Commands, flags, targets of make and dotted names that the pages mention exist."""

import argparse
import dataclasses
import functools
import importlib
import pathlib
import re
import runpy
import shlex
import typing
import warnings
from collections.abc import Iterator
from unittest import mock

import pytest

from fot_jax.config import ExperimentConfig
from launch import cli

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A command to its end: lines that end in a backslash go on; in prose it ends with its backquote.
COMMAND = re.compile(
    r"(?<![`\"])python -m (launch\.[\w.]+)((?:[^\n`\\]|\\\n|\\.)*)|`python -m (launch\.[\w.]+)([^`]*)`"
)
PLACEHOLDERS = {None, "FILE"}  # of --config
FOREIGN = {"--dry-run-out"}  # gcluster's


@functools.cache
def parser_of(command: str) -> argparse.ArgumentParser:
    """Returns the parser that `python -m COMMAND` parses with, without running the command."""
    with mock.patch.object(cli, "run") as run, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the module may be imported already
        runpy.run_module(command, run_name="__main__")
    return run.call_args.args[1]


def expand(text: str) -> str:
    """Replaces shell variables that a page sets, as POD and AT of docs/pods.md; takes optional flags as given."""
    for name, value in re.findall(r'`([A-Z]+)="([^"]+)"`', text):
        text = text.replace(f"${name} ", f"{value} ")
    return re.sub(r"\[(--[^\]]+)\]", r"\1", text)


def commands_of(page: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
    """Yields the commands of a page, each with its arguments."""
    for match in COMMAND.finditer(expand(page.read_text(encoding="utf-8"))):
        command, arguments = match[1] or match[3], match[2] or match[4] or ""
        words = shlex.split(arguments.replace("\\\n", " "), comments=True)
        yield command, [word for word in words if word != "..."]


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yields a parser and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse_and_configs_resolve(page):
    """Parses each command of a page; builds the config that it names, with its overrides."""
    for command, arguments in commands_of(page):
        parser = parser_of(command)
        if "--help" in arguments:
            continue
        try:
            flags = cli.parse_flags(parser, arguments)
            if {getattr(flags, "config", None), *getattr(flags, "gin_file", [])} - PLACEHOLDERS:
                cli.load_experiment(flags)
        except SystemExit:
            pytest.fail(f"python -m {command} {shlex.join(arguments)}")


def test_some_commands_are_found():
    """The tests above and below would pass on pages in which nothing is found."""
    found = [command for page in PAGES for command, _ in commands_of(page)]
    assert {"launch.train", "launch.evaluate", "launch.generate", "launch.pods.jobset"} <= set(found)
    assert "launch.pods.queued_resources" in found
    assert len(found) > 50


def test_flags_in_prose_exist():
    """Finds every flag that a page has in backquotes in the parser of some command; FIELD and SECTION are any."""
    scripts = [path for path in (ROOT / "launch").rglob("*.py") if "\n    cli.run(" in path.read_text(encoding="utf-8")]
    commands = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in scripts]
    known = {flag for name in commands for one in parsers(parser_of(name)) for flag in one._option_string_actions}
    known |= FOREIGN | {f"--config.{path}" for path in fields()}
    missing = []
    for page in PAGES:
        for quoted in re.findall(r"`((?:--|launch\.)[^`\n]+)`", page.read_text(encoding="utf-8")):
            flags = re.findall(r"(?<![\w-])--[a-z][\w.-]*(?<![.])", quoted)
            missing += [f"{page.name}: {flag}" for flag in flags if not (flag in known or re.search("[.][A-Z]", flag))]
    assert not missing


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


def test_dotted_names_exist():
    """Finds every `section.field` and `module.name` in backquotes, without its value, in the config or the package."""
    first = {name.partition(".")[0] for name in fields()} | {path.stem for path in (ROOT / "fot_jax").iterdir()}
    missing = []
    for page in PAGES:
        for name in re.findall(r"`([a-z_]+(?:\.[A-Za-z_]+)+)(?:=[^`]*)?`", page.read_text(encoding="utf-8")):
            if (
                name.partition(".")[0] in first
                and not name.endswith((".md", ".py", ".json", ".txt"))
                and not exists(name)
            ):
                missing.append(f"{page.name}: {name}")
    assert not missing


def test_targets_of_make_exist():
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"(?:^    |`)make ([a-z][\w-]*)", text, flags=re.MULTILINE)
        assert set(named) <= targets, page.name
