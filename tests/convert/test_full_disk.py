"""Imports, exports and averages on a disk that is full: one line, nothing left, and the same command goes on."""

import errno
import os
import shutil
import subprocess
from collections import namedtuple

import pytest

from fot_jax import checkpoint
from fot_jax.config import Dtype, UserError, errors
from fot_jax.convert import safetensors_files
from fot_jax.convert.averaging import average_runs
from fot_jax.convert.exporting import Format, export_checkpoint
from fot_jax.convert.importing import import_checkpoint
from tests.convert.checkpoints import SMALL, random_tensors, write_folder

Usage = namedtuple("Usage", "total used free")
WIDE = {**SMALL, "hidden_size": 128, "intermediate_size": 256, "vocab_size": 2000}
FLOATS = 2 * 2000 * 128 + 2 * (128 * (2 * 128 + 2 * 64) + 3 * 128 * 256 + 2 * 128) + 128
LINE = r"the disk is full \(needs 3\.\d MB, .* free\)\. Make room and give the same command again"


@pytest.fixture
def source(tmp_path):
    """A checkpoint of about 3 MB in float32."""
    return write_folder(tmp_path / "hf", WIDE, random_tensors(WIDE))


@pytest.fixture
def run(source, tmp_path):
    """It, imported."""
    import_checkpoint(source, tmp_path / "run")
    return tmp_path / "run"


def commands(source, run, to):
    """Everything here that writes parameters."""
    return {
        "import": lambda: import_checkpoint(source, to),
        "average": lambda: average_runs(run, other=run, folder=to, share=0.5),
        "hf": lambda: export_checkpoint(run, to),
        "orbax": lambda: export_checkpoint(run, to, form=Format.ORBAX),
    }


def test_the_bytes_are_those_of_the_parameters(run):
    """Counted by hand; half of them where they are stored in half as many bits."""
    assert checkpoint.stored_bytes(run) == 4 * FLOATS
    assert checkpoint.num_bytes(checkpoint.load_params(run)[0].model, Dtype.BFLOAT16) == 2 * FLOATS


@pytest.mark.parametrize("command", ["import", "average", "hf", "orbax"])
def test_a_disk_far_too_small_is_refused_at_once(source, run, tmp_path, monkeypatch, command):
    """Before anything is read; exports of safetensors need every byte, compressed checkpoints a quarter or more."""
    to = tmp_path / "new" / "out"

    def free(count):
        monkeypatch.setattr(errors.shutil, "disk_usage", lambda path: Usage(0, 0, count))

    def read(*args, **kwargs):
        raise AssertionError("parameters were read")

    free(4 * FLOATS - 1 if command == "hf" else FLOATS - 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "load_stored_params", read)
        with pytest.raises(UserError, match=LINE) as caught:
            commands(source, run, to)[command]()
    assert str(caught.value).startswith(str(to)) and "\n" not in str(caught.value)
    assert not to.parent.exists()
    free(4 * FLOATS if command == "hf" else FLOATS)
    commands(source, run, to)[command]()


@pytest.mark.parametrize("command", ["import", "average", "hf", "orbax"])
def test_a_disk_that_fills_up_gives_one_line(source, run, tmp_path, monkeypatch, command):
    """The libraries raise an OSError while safetensors are written, and TensorStore's error from Orbax."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    theirs = ValueError(f"RESOURCE_EXHAUSTED: Error writing chunk [OS error 28: {os.strerror(errno.ENOSPC)}]")
    name = {"import": "save_imported", "average": "save_imported", "orbax": "write_bare_params"}.get(command)

    def fail(*args, **kwargs):
        raise theirs if name else full

    to = tmp_path / "new" / "out"
    with monkeypatch.context() as patch:
        patch.setattr(*((checkpoint, name) if name else (safetensors_files, "_write")), fail)
        with pytest.raises(UserError, match=LINE):
            commands(source, run, to)[command]()
    assert not to.exists() and not list(tmp_path.glob("new/.*")), "nothing half-written is left"
    commands(source, run, to)[command]()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own of 2 MB; skips where this process may not mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)  # lazily: a failed save may hold files a while


@pytest.mark.parametrize("command", ["import", "average", "hf", "orbax"])
def test_a_real_disk_that_fills_up(source, run, small_disk, monkeypatch, capfd, caplog, command):
    """The system's own error through the libraries; nothing else is printed and the disk is empty again."""
    monkeypatch.setattr(errors, "free_bytes", lambda path: 10**12)  # so that it is met while writing
    monkeypatch.setattr("fot_jax.convert.folders.free_bytes", lambda path: 10**12)
    with pytest.raises(UserError, match="the disk is full"):
        commands(source, run, small_disk / "out")[command]()
    assert not list(small_disk.iterdir())
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err and not caplog.records
