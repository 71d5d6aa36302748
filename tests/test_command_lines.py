"""Every command line of pages, docstrings and the Makefile is understood by its command, values included."""

import ast
import contextlib
import importlib
import pathlib
import re
import shlex
import subprocess
from collections.abc import Iterator

import pytest

from fot_jax.config.errors import NotHereError
from launch import cli

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [page for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")) if page.name != "CHANGELOG.md"]
MODULES = [*(ROOT / "configs").glob("*.py"), *(ROOT / "launch").rglob("*.py")]
TARGETS = re.findall(r"[\w-]+", (ROOT / "Makefile").read_text().split(".PHONY:")[1].splitlines()[0])


def text_of(page: pathlib.Path) -> str:
    """A page with its shell variables filled in, or a module's docstring with its lines of flags joined."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".py":
        return re.sub(r"\n +(?=\[?--)", " ", re.sub(r"\\\n", "\n", ast.get_docstring(ast.parse(text)) or ""))
    for name, value in re.findall(r'\b([A-Z]+)="([^"]*)"', text):
        text = text.replace(f"${name}", value)
    return text


def words(line: str) -> list[str]:
    """Splits a command line as a shell does, up to a comment, a pipe or a redirection.

    `[--spot]` is given, `...` is not, of `a|b` the first is taken, and N and I are numbers.
    """
    line = re.sub(r"\$\((?:[^()]|\([^()]*\))*\)", "FILE", line)
    line = re.sub(r"\[(--[^\]]*(?:\[\d\][^\]]*)?)\]", r"\1", line)
    line = re.sub(r"(=\w+)(?:\|\w+)+", r"\1", line)
    line = re.sub(r"=[NI](?=\s|$)", "=1", line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&<>")
    lexer.whitespace_split = True
    found = []
    for word in lexer:
        if set(word) <= set("|;&<>"):
            break
        found.append(word)
    return [word for word in found if word not in ("...", "…")]


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yields the module and the arguments of every `python -m launch.NAME` of a text."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        for name, arguments in re.findall(r"python3? -m launch\.([\w.]+)(?=[\s`]|$)([^`]*)", line):
            yield name, words(arguments)


def understand(name: str, arguments: list[str]) -> None:
    """Parses a command's arguments, and builds the config or the changes that they name."""
    parser = importlib.import_module(f"launch.{name}").make_parser()
    flags = cli.parse_flags(parser, arguments)
    if "train" in flags:  # flags of launch.train, behind --
        understand("train", [argument for argument in flags.train if argument != "--"])
    if pathlib.Path(re.sub(r"\.py:.*", ".py", getattr(flags, "config", None) or "?")).is_file():
        with contextlib.suppress(NotHereError):  # own_text looks into its FOLDER
            cli.load_experiment(flags)
    for section in {key.split(".")[0] for key in vars(flags) if "." in key}:
        if section == "mesh":
            cli.mesh_of(flags)
        else:
            cli.section_changes(flags, section)


def check(text: str, capsys) -> list[str]:
    """Returns the names of a text's commands; fails on one that is not understood."""
    found = []
    for name, arguments in commands(text):
        try:
            understand(name, arguments)
        except (SystemExit, cli.UserError) as error:
            if getattr(error, "code", None) == 0:
                continue  # --help
            pytest.fail(f"launch.{name} {shlex.join(arguments)}: {capsys.readouterr().err or error}")
        found.append(name)
    return found


@pytest.mark.parametrize("page", PAGES + MODULES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_pages_and_docstrings_parse(page, capsys):
    found = check(text_of(page), capsys)
    if page.parent.name == "configs":
        assert "train" in found, "a config names the command that trains it"
    if page.name == "commands.md":
        assert len(found) > 15


def test_commands_of_the_makefile_parse(capsys):
    """Takes what `make -n` would run, of all targets, were nothing made yet."""
    printed = subprocess.run(["make", "-nB", *TARGETS], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert {"train", "evaluate", "generate", "convert", "bench", "aot_compile"} <= set(check(printed, capsys))


def test_named_make_targets_exist():
    """In the code of pages and docstrings: `make smollm2 corpora  # ...`."""
    unknown = []
    for page in PAGES + MODULES:
        for line in re.findall(r"^(?:\s{4,}|Command:\s+)make ([^\n]*)$", text_of(page), flags=re.MULTILINE):
            asked = [word for word in line.split("#")[0].split() if "=" not in word]
            unknown += [f"{page.relative_to(ROOT)}: make {word}" for word in asked if word not in TARGETS]
    assert not unknown


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cat a | python -m launch.x --a='b c' # d", [("x", ["--a=b c"])]),
        ("    .venv/bin/python -m launch.pods.x go [--spot] [--n=2] -- --config.a[0].b=1 > f", [
            ("pods.x", ["go", "--spot", "--n=2", "--", "--config.a[0].b=1"])
        ]),
        ("python -m launch.x \\\n   --dtype=float32|bfloat16 --step=N ... --file=$(echo '$(a b)')", [
            ("x", ["--dtype=float32", "--step=1", "--file=FILE"])
        ]),
        ("`python -m launch.x` and `python -m launch.y --a=…` don't", [("x", []), ("y", ["--a=…"])]),
    ],
)  # fmt: skip
def test_commands_are_found(line, expected):
    assert list(commands(line)) == expected
