"""launch.aot_compile: what it refuses in one line, and a dry run on CPU devices without libtpu."""

import importlib.util
import json
import os
import sys

import pytest

from launch import aot_compile, cli

TINY = "--config=tests/e2e/tiny_config.py"


def command(*flags) -> int:
    """Exit code of python -m launch.aot_compile FLAGS."""
    try:
        cli.run(aot_compile.main, aot_compile.make_parser(), flags)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    """The command sets variables and paths for the process it runs in."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--topology=v5e",), "--topology must be CHIP:NxM"),
        (("--topology=h100:8",), "one of the chips v3, v4, v5e, v5p, v6e"),
        (("--topology=cpu:8", "--programs=train,write"), "--programs must be some of train, read, decode, got 'write'"),
        (("--topology=cpu:8", "--meshes=fsdp=64,wide=2"), "of data, fsdp, "),
        (("--topology=cpu:8", "--meshes=fsdp"), "--meshes must be AXIS=SIZE"),
        (("--topology=cpu:8", "--contexts=0"), "--contexts must be an integer >= 1, got '0'"),
        (("--topology=cpu:8", "--entries=-1"), "--entries must be an integer >= 0"),
        (
            ("--topology=cpu:8", "--config.crossbatch.plan=off", "--contexts=2"),
            "--contexts needs a plan that uses d, got crossbatch.plan='off'",
        ),
        (("--topology=cpu:8", "--config.mesh.data=3"), "mesh.data=3"),
        (
            ("--topology=cpu:8", "--config.mesh.data=8", "--programs=read", "--rows=3"),
            "--rows must be 1 or a multiple of",
        ),
    ],
)
def test_command_refuses_mistakes_in_one_line(flags, message, capfd):
    """Exits with code 2 and one line that names the flag or field."""
    assert command(TINY, *flags) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


def test_command_without_libtpu_says_how_to_install_it(monkeypatch, capfd):
    """Exits with code 2 and names both ways to install it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name))
    assert command(TINY, "--topology=v5e:16x16") == 2
    error = capfd.readouterr().err.strip()
    assert "--topology=v5e:16x16 needs libtpu, which is not installed: make libtpu" in error
    assert "pip install --no-deps --target .libtpu -r requirements-aot.txt" in error


def test_command_runs_dry_on_cpu_devices(tmp_path, capfd):
    """Writes a report and a program text for each program of a sweep, and shows them."""
    out, hlo = tmp_path / "reports" / "tiny.json", tmp_path / "hlo"
    flags = (
        "--config.mesh.data=-1",
        "--config.model.attention=reference",
        "--topology=cpu:8",
        "--programs=train,decode",
        "--entries=16",
    )
    assert command(TINY, *flags, "--contexts=1,2", f"--out={out}", f"--hlo={hlo}") == 0
    shown = capfd.readouterr().out
    assert "tiny train, d = 1: cpu:8, 8 devices" in shown
    assert "largest: " in shown and "roofline" in shown
    records = json.loads(out.read_text())
    assert [(record["program"], record["variant"]) for record in records] == [
        ("train", "d = 1"), ("train", "d = 2"), ("decode", ""),
    ]  # fmt: skip
    assert all(record["fits"] and record["costs"]["flops"] > 0 for record in records)
    assert records[0]["tokens"] == 8 * 24
    assert records[2]["tokens"] == 8
    assert len(list(hlo.iterdir())) == 3
