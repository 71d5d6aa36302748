"""Several processes as one run, as a user starts them: lost, stopped, refused, and resumed on other meshes."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fot_jax.train.metrics import read_rows
from tests.processes import environment

STEPS = 16
COMMAND = [
    *(sys.executable, "-m", "launch.train", "--config=tests/e2e/tiny_config.py", "--config.mesh.data=-1"),
    *(f"--config.train.steps={STEPS}", "--config.train.checkpoint_every=4"),
]
LIMIT = 1500  # seconds, on a loaded machine


def free_port() -> int:
    """A port whose successor is free too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("", port + 1))
            except OSError:
                continue
            return port


class Run:
    """`processes` processes of `devices` CPU devices each, started at once; they print to `logs`.N.log."""

    def __init__(self, cache, workdir, *, processes: int, devices: int, flags=(), logs=None):
        variables = environment(devices=devices, cache=cache)
        port = free_port()
        self.logs = [Path(f"{logs or workdir}.{number}.log") for number in range(processes)]
        self.processes = []
        for number, log in enumerate(self.logs):
            seat = [f"--coordinator=localhost:{port}", f"--num-processes={processes}", f"--process-id={number}"]
            seat = seat if processes > 1 else []
            with log.open("w") as file:
                command = [*COMMAND, f"--workdir={workdir}", *seat, *flags]
                self.processes.append(subprocess.Popen(command, env=variables, stdout=file, stderr=file))

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        for process in self.processes:
            process.kill()
            process.wait()

    def said(self, number: int) -> str:
        return self.logs[number].read_text()

    def wait_for(self, text: str) -> None:
        """Until process 0 has said it."""
        end = time.monotonic() + LIMIT
        while text not in self.said(0):
            assert time.monotonic() < end and self.processes[0].poll() is None, self.said(0)[-3000:]
            time.sleep(0.02)

    def codes(self, *, seconds: float = LIMIT) -> list[int]:
        """Exit codes, once all have ended."""
        end = time.monotonic() + seconds
        try:
            return [process.wait(timeout=max(end - time.monotonic(), 0.1)) for process in self.processes]
        except subprocess.TimeoutExpired:
            pytest.fail("\n\n".join(self.said(number)[-3000:] for number in range(len(self.logs))))

    def errors(self, number: int) -> list[str]:
        return [line for line in self.said(number).splitlines() if line.startswith("error: ")]


def losses(workdir):
    return [(row["step"], row["loss"]) for row in read_rows(workdir / "metrics.jsonl")]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


def kill_one(run: Run, number: int) -> None:
    """kill -9 of one process after a few steps: the other ends within seconds and names it; no child is left."""
    run.wait_for("step 6/")
    [child] = children(run.processes[number].pid)
    run.processes[number].kill()
    codes = run.codes(seconds=60)
    other = 1 - number
    assert codes[number] == -signal.SIGKILL and codes[other] == 3, run.said(other)[-3000:]
    expected = f"error: stopped, as process {number} ({socket.gethostname()}) died. The same command on every host"
    assert run.errors(other)[-1].startswith(expected), run.errors(other)
    time.sleep(1.0)
    assert not Path(f"/proc/{child}").exists() or "State:\tZ" in Path(f"/proc/{child}/status").read_text()


def test_a_killed_process_stops_the_other_in_one_line(cache, tmp_path):
    with Run(cache, tmp_path / "run", processes=2, devices=1) as run:
        kill_one(run, 1)
    assert len(list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))) >= 1
    said = run.said(0)
    assert "preflight: 2 processes" in said and "the same everywhere" in said
    assert "step 1/" not in run.said(1), "the first process speaks for all"


@pytest.fixture(scope="module")
def reference(cache, tmp_path_factory):
    """An uninterrupted run of 2 processes × 4 devices."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    with Run(cache, workdir, processes=2, devices=4) as run:
        assert run.codes() == [0, 0], run.said(0)[-3000:] + run.said(1)[-3000:]
    curve = losses(workdir)
    assert [step for step, _ in curve] == list(range(1, STEPS + 1))
    return curve


@pytest.fixture(scope="module")
def lost(cache, tmp_path_factory):
    """The folder of such a run, of which process 0 was killed."""
    workdir = tmp_path_factory.mktemp("lost") / "run"
    with Run(cache, workdir, processes=2, devices=4) as run:
        kill_one(run, 0)
    assert len(losses(workdir)) < STEPS
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(2, 4), (1, 8), (2, 2), (1, 1)])
def test_resumed_on_any_mesh_it_continues_the_same_losses(cache, reference, lost, tmp_path, processes, devices):
    shutil.copytree(lost, tmp_path / "run")
    with Run(cache, tmp_path / "run", processes=processes, devices=devices) as run:
        assert run.codes() == [0] * processes, run.said(0)[-3000:]
    assert "resumed after step" in run.said(0)
    curve = losses(tmp_path / "run")
    if (processes, devices) == (2, 4):
        assert curve == reference
    else:
        np.testing.assert_allclose(curve, reference, rtol=1e-5, atol=0)


@pytest.mark.slow
def test_sigterm_on_one_stops_all_at_the_same_step(cache, reference, tmp_path):
    with Run(cache, tmp_path / "run", processes=2, devices=4) as run:
        run.wait_for("step 1/")
        run.processes[1].terminate()
        assert run.codes() == [0, 0], run.said(0)[-3000:] + run.said(1)[-3000:]
    [line] = [line for line in run.said(0).splitlines() if line.startswith("stopped by SIGTERM after step")]
    step = int(line.split("after step ")[1].split(",")[0])
    assert step < STEPS and (tmp_path / "run" / "checkpoints" / str(step)).is_dir()
    with Run(cache, tmp_path / "run", processes=2, devices=4) as run:
        assert run.codes() == [0, 0]
    assert losses(tmp_path / "run") == reference


@pytest.mark.slow
def test_ctrl_c_on_one_host_saves_on_all(cache, reference, tmp_path):
    """The terminal sends SIGINT to the supervisor and to its training; the other host ends with 0, as by SIGTERM."""
    with Run(cache, tmp_path / "run", processes=2, devices=4) as run:
        run.wait_for("step 1/")
        for pid in (run.processes[0].pid, *children(run.processes[0].pid)):
            os.kill(pid, signal.SIGINT)
        assert run.codes() == [130, 0], run.said(0)[-3000:] + run.said(1)[-3000:]
    assert "stopping after this step, saving" in run.said(0)
    [line] = [line for line in run.said(0).splitlines() if line.startswith("stopped by SIGINT after step")]
    step = int(line.split("after step ")[1].split(",")[0])
    assert step < STEPS and (tmp_path / "run" / "checkpoints" / str(step)).is_dir()
    assert losses(tmp_path / "run") == reference[:step]


@pytest.mark.slow
def test_a_refused_lock_stops_all(cache, tmp_path):
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with Run(cache, tmp_path / "run", processes=2, devices=1) as run:
            assert run.codes() == [2, 2]
    assert "is being trained by another process" in run.errors(0)[-1]
    [line] = run.errors(1)
    assert (
        line.startswith(f"error: stopped, as process 0 ({socket.gethostname()}) failed:") and "is being trained" in line
    )
