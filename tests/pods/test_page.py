"""Every command of docs/pods.md, run dry: what it prints is golden."""

import importlib
import pathlib
import re
import shlex

from launch import cli
from tests.test_command_lines import commands, text_of

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "pods.md"


def dry_run(name: str, arguments: list[str], capsys) -> list[str]:
    """Returns the lines that a command of launch.pods prints with --dry-run."""
    module = importlib.import_module(f"launch.{name}")
    place = arguments.index("--") if "--" in arguments else len(arguments)
    cli.run(module.main, module.make_parser(), [*arguments[:place], "--dry-run", *arguments[place:]])
    return capsys.readouterr().out.splitlines()


def test_what_the_commands_of_the_page_run_is_golden(capsys, golden):
    found = [(name, arguments) for name, arguments in commands(text_of(PAGE)) if name.startswith("pods.")]
    assert {name for name, _ in found} == {"pods.setup", "pods.queued_resources", "pods.jobset"}
    golden("pods_page", {f"{name} {shlex.join(words)}": dry_run(name, words, capsys) for name, words in found})


def test_the_page_asks_for_no_other_command():
    """All lines of its blocks are launch.train, launch.pods, or what they say; none is gcloud's or kubectl's own."""
    blocks = re.sub(r"\\\n\s*", " ", PAGE.read_text(encoding="utf-8"))
    lines = re.findall(r"^ {4}(\S.*)$", blocks, flags=re.MULTILINE)
    assert len(lines) > 10
    unknown = [
        line for line in lines if not re.match(r"python -m launch\.(train|pods)|\$POD |preflight: |error: ", line)
    ]
    assert not unknown
