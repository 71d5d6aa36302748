"""What an import brings along, and that every command helps without loading the heavy libraries."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("tensorflow", "scann", "seqio", "matplotlib")
COMMANDS = sorted(
    path.stem for path in Path("launch").glob("*.py") if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
)


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "module",
    [
        "fot_jax",
        "fot_jax.models.transformer",
        "fot_jax.checkpoint",
        "fot_jax.train.loop",
        "fot_jax.infer.generate",
        "fot_jax.memory.views",
        "launch.explain",
    ],
)
def test_import_is_light(module):
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code).strip() == "[]"


def test_the_commands_are_all_there():
    assert {"train", "evaluate", "generate", "explain", "demo_report"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps(command):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{command}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('launch.{command}', run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    assert stop.code == 0, stop.code\n"
        f"print('LOADED', [name for name in {HEAVY} if name in sys.modules])\n"
    )
    printed = python(code)
    assert "usage:" in printed
    assert f"python -m launch.{command}" in printed
    assert "LOADED []" in printed


def test_the_paper_table_names_what_exists():
    """Every row: paper item, module.name below fot_jax, test file; the README's table has the same rows."""
    import fot_jax

    rows = re.findall(r"^ {4}(\S.*?) {2,}([a-z_.]+\.\w+) +(tests/\S+\.py)$", fot_jax.__doc__, flags=re.MULTILINE)
    assert len(rows) == 16
    readme = Path("README.md").read_text(encoding="utf-8")
    for item, dotted, test in rows:
        module, name = dotted.rsplit(".", 1)
        assert hasattr(importlib.import_module(f"fot_jax.{module}"), name), dotted
        assert Path(test).is_file(), test
        assert f"| {item} | `{dotted}` | `{test}` |" in readme, item
