"""Imports bring nothing heavy along, and every command helps without loading the heavy libraries."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

HEAVY = ("tensorflow", "scann", "seqio", "matplotlib")
LIGHT = (
    "fot_jax",
    "launch.cli",
    "fot_jax.models.transformer",
    "fot_jax.checkpoint",
    "fot_jax.memory.views",
    "fot_jax.infer.generate",
    "fot_jax.library",
    "fot_jax.train.loop",
)
COMMANDS = sorted(
    path.stem
    for path in Path("launch").glob("*.py")
    if '\nif __name__ == "__main__"' in path.read_text(encoding="utf-8")
)


def python(code: str) -> str:
    """Returns what a fresh interpreter prints; generous with time, since the machine may be busy."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_imports_are_light():
    """One process, one module after another, so that the first to bring something heavy is named."""
    code = (
        "import importlib, sys\n"
        f"for module in {LIGHT}:\n"
        "    importlib.import_module(module)\n"
        f"    print(module, [name for name in {HEAVY} if name in sys.modules])\n"
    )
    assert python(code).splitlines() == [f"{module} []" for module in LIGHT]


def test_import_fot_jax_does_not_even_bring_jax():
    assert python("import sys, fot_jax; print('jax' in sys.modules)").strip() == "False"


def test_the_commands_are_all_there():
    assert {"train", "evaluate", "generate", "explain", "demo_report"} <= set(COMMANDS)


def test_every_command_helps_quickly():
    """Help ends before JAX is imported, names the command and brings nothing heavy."""
    code = (
        "import runpy, sys\n"
        f"for command in {COMMANDS}:\n"
        "    sys.argv = [command, '--help']\n"
        "    try:\n"
        "        runpy.run_module(f'launch.{command}', run_name='__main__')\n"
        "    except SystemExit as stop:\n"
        "        print('EXIT', command, stop.code)\n"
        f"print('LOADED', [name for name in ('jax', *{HEAVY}) if name in sys.modules])\n"
    )
    printed = python(code)
    for command in COMMANDS:
        assert f"python -m launch.{command}" in printed
        assert f"EXIT {command} 0" in printed
    assert "LOADED []" in printed


def test_paper_table_names_what_exists():
    """Finds every row of the table: paper item, module.name below fot_jax, test file."""
    page = Path("docs/paper.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| `([a-z_.0-9]+\.\w+)` \| `(tests/\S+\.py)` \|$", page, flags=re.MULTILINE)
    assert len(rows) == 17
    for dotted, test in rows:
        module, name = dotted.rsplit(".", 1)
        assert hasattr(importlib.import_module(f"fot_jax.{module}"), name), dotted
        assert Path(test).is_file(), test
