"""Saves that fail, on a full disk above all: one line, at once, and the older checkpoints stay whole."""

import errno
import os
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fot_jax.checkpoint import Checkpointer, load_params, newest_step
from fot_jax.config import UserError
from fot_jax.sharding import make_mesh
from fot_jax.storage.paths import replace_file
from fot_jax.train.metrics import MetricsWriter, read_rows
from fot_jax.train.recorder import NonFiniteError
from fot_jax.train.saver import Saver
from fot_jax.train.state import create_state
from fot_jax.workdir import write_config
from tests.processes import environment
from tests.train.test_loop import run
from tests.train.tiny import tiny

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
STATUS = "RESOURCE_EXHAUSTED: Error writing \"w/0.0\" in OCDBT database: No space left on device [os_error_code='28']"


class Failing:
    """A write in the background that ends with an error, as a future of Orbax."""

    def __init__(self, error):
        self._error = error

    def result(self, timeout=None):
        """Raises after a while, as a slow disk would."""
        time.sleep(0.1)
        raise self._error


def fail_at(monkeypatch, step, error, *, later):
    """Makes the checkpoint of `step` fail with `error`: at once, or `later`, in the background."""
    real = ocp.StandardCheckpointHandler.async_save

    async def async_save(self, directory, *arguments, **named):
        if f"/{step}." not in str(directory):
            return await real(self, directory, *arguments, **named)
        if not later:
            raise error
        return [*(await real(self, directory, *arguments, **named) or []), Failing(error)]

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "async_save", async_save)


def slowly(line):
    """Gives the background a chance between two steps."""
    if line.startswith("step "):
        time.sleep(0.3)


DISK = r"/checkpoints: the disk is full \(needs [\d.]+ kB, .* free\)\. Make room .* again\. It goes on from step 2: "
OTHER = r"the checkpoint of step 4 could not be saved \(DATA_LOSS: x y\)\. Once .* goes on from step 2"


@pytest.mark.parametrize(
    ("error", "later", "said"),
    [
        (FULL, False, DISK),
        pytest.param(ValueError(STATUS), True, DISK, marks=pytest.mark.slow),
        (ValueError("DATA_LOSS: x\ny"), True, OTHER),
    ],
    ids=["at once", "in the background", "not the disk"],
)
def test_a_failed_save_ends_training_in_one_line(tmp_path, monkeypatch, capfd, error, later, said):
    """Within a few steps, not at the next save; what was saved before is whole and the same command goes on."""
    steps = 40  # the next save after the one that fails is at their end
    with monkeypatch.context() as patch:
        fail_at(patch, 4, error, later=later)
        patch.setattr(Saver, "due", lambda self, step: step in (2, 4, steps))
        with pytest.raises(UserError, match=said) as caught:
            run(tiny(train__steps=steps), tmp_path, log=slowly)
    assert "\n" not in str(caught.value)
    assert max(row["step"] for row in read_rows(tmp_path / "metrics.jsonl")) < steps
    assert newest_step(tmp_path) == 2
    assert "Traceback" not in capfd.readouterr().err
    lines, outcome = run(tiny(train__steps=6), tmp_path, allow_changes=["train"])
    assert outcome.step == 6 and "resumed after step 2" in lines


def test_a_failed_save_does_not_hide_another_error(tmp_path, monkeypatch, caplog):
    """Training has diverged while a save was failing: the first error is raised, the other one logged."""
    fail_at(monkeypatch, 1, FULL, later=True)
    config = tiny()
    write_config(tmp_path, config)
    state = create_state(config, make_mesh(config.mesh, jax.devices()[:1]))

    def diverge():
        with Checkpointer(tmp_path, config) as checkpoints:
            arrays = {"params": state.params, "optimizer": state.opt_state}
            checkpoints.save(1, **arrays, data={"step": 1}, heldout_loss=None)
            raise NonFiniteError("step 2: loss is nan")

    with pytest.raises(NonFiniteError):
        diverge()
    assert "the disk is full" in caplog.text and "from the beginning" in caplog.text
    assert newest_step(tmp_path) is None


class FullFile:
    """A file that takes nothing more."""

    def __init__(self, file):
        self._file = file

    def write(self, text):
        """Raises as the system does."""
        raise FULL

    def flush(self):
        """Raises as the system does."""
        raise FULL

    def close(self):
        """Closes the file underneath."""
        self._file.close()


@pytest.mark.parametrize("name", ["_rows", "_events"])
def test_metrics_on_a_full_disk_end_in_one_line(tmp_path, monkeypatch, name):
    """metrics.jsonl and TensorBoard alike: the error comes where a row is written, and nothing waits."""
    write = MetricsWriter.write

    def fill(self, step, scalars):
        if step == 3:
            full = self._events._file._py_recordio_writer if name == "_events" else self
            attribute = "_writer" if name == "_events" else name
            setattr(full, attribute, FullFile(getattr(full, attribute)))
        write(self, step, scalars)

    monkeypatch.setattr(MetricsWriter, "write", fill)
    with pytest.raises(UserError, match=r"the disk is full \(.* free\)\. Make room .* It goes on from step 2\."):
        run(tiny(), tmp_path)
    monkeypatch.undo()
    _, outcome = run(tiny(), tmp_path)
    assert outcome.step == 6 and [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [*range(1, 7)]


def test_a_file_that_was_not_written_leaves_no_other(tmp_path, monkeypatch):
    """The old file stays, the temporary one goes."""
    path = tmp_path / "config.json"
    replace_file(path, "old")

    def replace(*names):
        raise FULL

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, "new")
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"] and path.read_text() == "old"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB; its maker must be root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full_ends_in_one_line(small_disk):
    """Checkpoints of 1.2 MB on 3 MB: what Orbax and TensorStore print on their way down is not shown."""
    command = [sys.executable, "-m", "launch.train", "--config=tests/e2e/tiny_config.py", "--compilation-cache=off"]
    command += [f"--workdir={small_disk}/run", "--config.model.mlp_dim=1024", "--config.train.steps=8"]
    done = subprocess.run(
        command,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    newest = newest_step(small_disk / "run")
    [line] = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith(f"error: {small_disk}/run/checkpoints: the disk is full (needs 1.2 MB, "), line
    assert f"It goes on from step {newest}: step" in line
    assert np.isfinite(load_params(small_disk / "run")[1]["embedding"]).all()
