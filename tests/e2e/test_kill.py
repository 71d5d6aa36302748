"""The command as a user runs it: killed at random moments, stopped by SIGTERM, and refusing what it should."""

import json
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from fot_jax.train.metrics import read_rows
from tests import processes

STEPS = 24
FLAGS = ["--config=tests/e2e/tiny_config.py", f"--config.train.steps={STEPS}"]
COMMAND = [sys.executable, "-m", "launch.train", *FLAGS]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """One CPU device, quick compiles kept between processes, no torch."""
    return processes.environment(cache=tmp_path_factory.mktemp("compiled"))


def start(environment, workdir, *flags):
    """Starts the command with Ctrl-C as in a terminal: shells let what they run in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a handler, unlike SIG_IGN, ends with exec
    try:
        return subprocess.Popen(
            [*COMMAND, f"--workdir={workdir}", *flags],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


def finish(environment, workdir, *flags):
    """Runs to the end; returns (exit code, stdout, stderr)."""
    process = start(environment, workdir, *flags)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


IN_TURN = """
import sys
from launch import cli, train
for flags in {}:
    try:
        cli.run(train.main, train.make_parser(), flags)
        code = 0
    except SystemExit as stop:
        code = stop.code
    print("EXIT", code, file=sys.stderr, flush=True)
"""


def finish_in_turn(environment, workdir, *flags):
    """Commands with their flags, one after another in one process, as a start costs seconds.

    Returns the (exit code, stderr) of each; what the process says at its end belongs to the last.
    """
    commands = [[*FLAGS, f"--workdir={workdir}", *each] for each in flags]
    program = [sys.executable, "-c", IN_TURN.format(commands)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=600, check=False)
    *said, end = re.split(r"^EXIT (\d+)\n", done.stderr, flags=re.MULTILINE)
    assert done.returncode == 0 and len(said) == 2 * len(flags), done.stderr
    results = [(int(code), err) for err, code in zip(said[::2], said[1::2], strict=True)]
    return [*results[:-1], (results[-1][0], results[-1][1] + end)]


def interrupt(environment, workdir, signum, *, after: float, said="step "):
    """Sends a signal `after` seconds after a line was printed; returns (exit code, stdout from there on, stderr)."""
    process = start(environment, workdir)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(said):
            break
    time.sleep(after)
    process.send_signal(signum)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def losses(workdir):
    """(step, loss, d) of every row, exactly as written."""
    return [(row["step"], row["loss"], row["num_contexts"]) for row in read_rows(workdir / "metrics.jsonl")]


@pytest.fixture(scope="module")
def reference(environment, tmp_path_factory):
    """The losses of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("reference")
    code, out, err = finish(environment, workdir)
    assert code == 0, out + err
    curve = losses(workdir)
    assert [step for step, _, _ in curve] == list(range(1, STEPS + 1))
    return curve


def killed_and_resumed(environment, workdir, times):
    """kill -9 at random moments, then one run to the end."""
    chance = random.Random()
    for _ in range(times):
        after = chance.uniform(0, 1.5)
        code, _, err = interrupt(environment, workdir, signal.SIGKILL, after=after)
        print(f"killed {after:.3f} s after the first step: exit {code}, {len(losses(workdir))} rows")
        assert code in (-signal.SIGKILL, 0), err  # 0: it was done already
    code, out, err = finish(environment, workdir)
    assert code == 0, err
    return out


def test_killed_once_and_resumed_gives_the_same_losses(environment, reference, tmp_path):
    killed_and_resumed(environment, tmp_path, times=1)
    assert losses(tmp_path) == reference


@pytest.mark.slow
def test_killed_three_times_and_resumed_gives_the_same_losses(environment, reference, tmp_path):
    killed_and_resumed(environment, tmp_path, times=3)
    assert losses(tmp_path) == reference


def test_ctrl_c_saves_says_so_and_exits_with_130(environment, reference, tmp_path):
    """One line at once, one when it is saved; the same command goes on with the same losses."""
    code, out, err = interrupt(environment, tmp_path, signal.SIGINT, after=0.0)
    assert code == 130 and "Traceback" not in err and "interrupted" not in err, err
    lines = out.splitlines()
    assert "stopping after this step, saving; Ctrl-C again ends at once" in lines, out
    [stopped] = [line for line in lines if line.startswith("stopped by SIGINT after step")]
    step = int(stopped.split("after step ")[1].split(",")[0])
    assert step < STEPS and (tmp_path / "checkpoints" / str(step)).is_dir() and losses(tmp_path) == reference[:step]
    code, out, err = finish(environment, tmp_path)
    assert code == 0 and f"resumed after step {step}" in out, err
    assert losses(tmp_path) == reference


def test_ctrl_c_before_the_first_step_ends_in_one_line(environment, tmp_path):
    """While the program compiles there is nothing to save; the folder is whole for the same command."""
    code, _, err = interrupt(environment, tmp_path, signal.SIGINT, after=0.0, said="compilation cache")
    assert code == 130 and err.splitlines() == ["interrupted"], err
    assert not list(tmp_path.glob("checkpoints/*"))


def test_sigterm_saves_and_then_errors_are_one_line(environment, reference, tmp_path):
    code, out, err = interrupt(environment, tmp_path, signal.SIGTERM, after=0.0)
    assert code == 0, err
    stopped = [line for line in out.splitlines() if line.startswith("stopped by SIGTERM after step")]
    assert len(stopped) == 1, out + err
    step = int(stopped[0].split("after step ")[1].split(",")[0])
    newest = tmp_path / "checkpoints" / str(step)
    assert newest.is_dir() and losses(tmp_path) == reference[:step]

    for file in newest.rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    mistakes = ["--config.model.mlp_dim=64"], ["--config.mesh.data=3", "--allow-change=mesh.data"], []
    other_config, mesh, damaged = finish_in_turn(environment, tmp_path, *mistakes)

    code, err = other_config
    assert code == 2 and len(err.splitlines()) == 1, err
    assert "model.mlp_dim: 32 -> 64" in err and "--allow-change=model.mlp_dim" in err
    assert json.loads((tmp_path / "config.json").read_text())["model"]["mlp_dim"] == 32

    code, err = mesh
    assert code == 2 and len(err.splitlines()) == 1, err
    assert "mesh.data=3" in err and "1 devices" in err

    code, err = damaged
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in err, err
    assert f"checkpoint of step {step} cannot be read" in lines[0] and "Delete" in lines[0]
