"""The command in a bucket as a user runs it: killed anywhere and resumed, alone and as two processes."""

import random
import signal
import subprocess
import sys
import time

import pytest

from fot_jax.checkpoint import load_params, newest_step
from fot_jax.storage.paths import storage_path
from fot_jax.train.metrics import read_rows
from tests import processes
from tests.buckets import new_bucket
from tests.e2e import test_multihost as multihost
from tests.storage.proxy import proxied

STEPS = 24
COMMAND = [sys.executable, "-m", "launch.train", "--config=tests/e2e/tiny_config.py", f"--config.train.steps={STEPS}"]
LEASE = "--lease-seconds=4"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


def start(cache, workdir, variables: dict[str, str] | None = None) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = processes.environment(cache=cache) | (variables or {})
    return subprocess.Popen([*COMMAND, f"--workdir={workdir}", LEASE], env=environment, **pipes)


def wait_for_a_step(process: subprocess.Popen) -> None:
    """Returns once a step is done, or the run has ended."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step "):
            return


def losses(workdir):
    """(step, loss) of every row, exactly as written."""
    return [(row["step"], row["loss"]) for row in read_rows(storage_path(workdir) / "metrics.jsonl")]


@pytest.fixture(scope="module")
def reference(cache, tmp_path_factory):
    """The losses of a run on a disk that nothing interrupted."""
    process = start(cache, workdir := tmp_path_factory.mktemp("reference"))
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    curve = losses(workdir)
    assert [step for step, _ in curve] == list(range(1, STEPS + 1))
    return curve


def kill(cache, workdir, after: float) -> bool:
    """Kills a run `after` seconds from its first step; False where it had ended. Checks what is left."""
    process = start(cache, workdir)
    wait_for_a_step(process)
    time.sleep(after)
    process.kill()
    process.communicate()
    assert process.returncode in (-signal.SIGKILL, 0)
    newest = newest_step(workdir)
    if newest is not None:
        assert load_params(workdir)[2] == newest  # with the digests of its arrays
        rows = [step for step, _ in losses(workdir)]
        assert rows[:newest] == list(range(1, newest + 1)), "a checkpoint without its rows"
    return process.returncode != 0


def finish(cache, workdir) -> str:
    process = start(cache, workdir)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    return out


def test_killed_once_in_a_bucket_and_resumed(gcs, cache, reference):
    """Finds the lock of the killed process, waits for its lease and goes on; another process is refused."""
    workdir = f"{new_bucket(gcs)}/run"
    kill(cache, workdir, random.uniform(0.0, 1.0))
    finish(cache, workdir)
    assert losses(workdir) == reference


@pytest.mark.slow
def test_killed_twenty_times_in_a_bucket_and_resumed(gcs, cache, reference):
    """At random moments, most of them within a save: there is one after every other step."""
    killed, runs = 0, 0
    chance = random.Random(0)
    while killed < 20:
        workdir, runs = f"{new_bucket(gcs)}/run", runs + 1
        while killed < 20 and kill(cache, workdir, after := chance.uniform(0.0, 1.5)):
            killed += 1
            print(f"kill {killed}: run {runs}, {after:.3f} s after its first step, newest {newest_step(workdir)}")
        finish(cache, workdir)
        assert losses(workdir) == reference


@pytest.mark.slow
def test_a_frozen_run_that_was_taken_over_ends(gcs, cache, reference):
    """The frozen process writes nothing more, and says why it ends."""
    workdir = f"{new_bucket(gcs)}/run"
    frozen = start(cache, workdir)
    wait_for_a_step(frozen)
    frozen.send_signal(signal.SIGSTOP)
    assert "resumed after step" in finish(cache, workdir) or newest_step(workdir) == STEPS
    frozen.send_signal(signal.SIGCONT)
    _, err = frozen.communicate(timeout=60)
    assert frozen.returncode == 2
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "the lock of this run was" in line and line.endswith("This process ends, it saves nothing more.")
    assert losses(workdir) == reference and load_params(workdir)[2] == STEPS


@pytest.mark.slow
def test_a_bucket_that_is_away_for_a_while_is_waited_for(gcs, cache, reference):
    """For longer than the lease: nobody took it, so the run goes on and saves once the bucket answers again."""
    with proxied(gcs) as (proxy, variables):
        workdir = f"{new_bucket(gcs)}/run"
        process = start(cache, workdir, variables)
        wait_for_a_step(process)
        proxy.away = True
        time.sleep(8)
        assert process.poll() is None
        proxy.away = False
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    assert losses(workdir) == reference


@pytest.mark.slow
def test_two_processes_train_and_resume_in_a_bucket(gcs, cache, tmp_path):
    """Two processes of four devices: one is killed, both go on, with the losses of a run on a disk."""
    both = {"processes": 2, "devices": 4, "flags": [LEASE]}
    with multihost.Run(cache, tmp_path / "disk", **both) as run:
        assert run.codes() == [0, 0], run.said(0)[-3000:]
    workdir = f"{new_bucket(gcs)}/run"
    with multihost.Run(cache, workdir, **both, logs=tmp_path / "first") as run:
        multihost.kill_one(run, 0)
        assert f"{workdir} is shared" in run.said(0)
    with multihost.Run(cache, workdir, **both, logs=tmp_path / "second") as run:
        assert run.codes() == [0, 0], run.said(0)[-3000:]
        assert "resumed after step" in run.said(0)
    assert losses(workdir) == losses(tmp_path / "disk")


@pytest.mark.slow
def test_a_lost_lock_ends_every_process_of_a_run(gcs, cache, tmp_path):
    """Process 0 holds the lock for all; the other prints what became of it."""
    workdir = f"{new_bucket(gcs)}/run"
    both = {"processes": 2, "devices": 1, "flags": [LEASE, "--config.train.steps=4000"]}
    with multihost.Run(cache, workdir, **both, logs=tmp_path / "run") as run:
        run.wait_for("step 6/")
        (storage_path(workdir) / ".lock").write_text('{"id": "x", "pid": 7, "host": "elsewhere"}')
        assert run.codes(seconds=60) == [2, 2]
    assert "the lock of this run was taken by process 7 on elsewhere" in run.errors(0)[-1]
    assert run.errors(1)[-1].startswith("error: stopped, as process 0 (") and "elsewhere" in run.errors(1)[-1]
