"""A command keeps the memory that it frees: its programs touch no new pages, and its peak hardly grows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fot_jax import malloc

glibc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")

# Outputs of 2 x 40 MiB that a call takes and the next one frees; then blocks of several sizes, for the peak.
PROGRAM = """
import json, resource
import jax, numpy as np

faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
add, x, counts = jax.jit(lambda x: [x + 1, x + 2]), jax.numpy.zeros((10 << 20,)), []
for _ in range(21):
    before = faults()
    jax.block_until_ready(add(x))
    counts.append(faults() - before)
for mebibytes in (100, 40, 170, 60, 230, 90, 280):
    blocks = [np.full(n << 20, 1, np.int8) for n in (mebibytes, 7, mebibytes // 3)]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(json.dumps({"faults": sorted(counts)[10], "peak": peak}))
"""


def environment(**variables: str) -> dict[str, str]:
    """Returns this process's variables, without settings of malloc but those given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    return kept | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **variables}


def run(**variables: str) -> dict[str, int]:
    """Runs PROGRAM in a process of its own; returns what it prints."""
    command = [sys.executable, "-c", PROGRAM]
    return json.loads(subprocess.run(command, env=environment(**variables), capture_output=True, check=True).stdout)


@glibc
def test_no_new_pages_are_touched_and_the_peak_hardly_grows():
    """By default a call that gives 80 MiB back faults 20,480 pages in."""
    kept, default = run(GLIBC_TUNABLES=malloc.tunables({}) or ""), run()
    assert kept["faults"] < 100 and default["faults"] > 20000
    assert kept["peak"] < 1.35 * default["peak"]


@glibc
def test_a_command_starts_itself_again_once(tmp_path):
    """Each start of an interpreter leaves a line: without the settings, then with them."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nprint(os.environ.get('GLIBC_TUNABLES', '-'), os.getpid(), file=open(os.environ['SEEN'], 'a'))"
    )
    seen = tmp_path / "seen"
    variables = {"PYTHONPATH": str(tmp_path), "SEEN": str(seen)}
    command = [sys.executable, "-m", "launch.explain", "--config=configs/tiny_code.py", "--resolved"]
    done = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, check=True)
    (first, process), (second, same) = (line.split() for line in seen.read_text().splitlines())
    assert first == "-" and second == malloc.tunables({}) and process == same
    assert "tiny_code" in done.stdout and "malloc" not in done.stderr
    seen.unlink()
    done = subprocess.run(
        command, env=environment(**variables, MALLOC_TOP_PAD_="9"), capture_output=True, text=True, check=True
    )
    assert len(seen.read_text().splitlines()) == 1
    assert "malloc: left as MALLOC_TOP_PAD_ of the environment sets it" in done.stderr


@glibc
def test_settings_of_the_user_win_and_others_stay():
    ours = malloc.tunables({})
    assert ours is not None
    assert malloc.tunables({"MALLOC_ARENA_MAX": "2"}) is None
    assert malloc.tunables({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}) is None
    assert malloc.tunables({"GLIBC_TUNABLES": "glibc.rtld.nns=3"}) == f"glibc.rtld.nns=3:{ours}"
    assert malloc.tunables({"GLIBC_TUNABLES": ours}) == ours


def test_make_exports_the_same_settings():
    """Its commands then start once, and its tests have the settings of commands."""
    assert f"export GLIBC_TUNABLES ?= {malloc.settings()}\n" in Path("Makefile").read_text()


def test_another_c_library_is_left_alone(monkeypatch, caplog):
    monkeypatch.setattr(os, "confstr", lambda name: None)
    with caplog.at_level("INFO"):
        assert malloc.tunables({}) is None
    assert "malloc: left as it is, the C library is not glibc" in caplog.text
