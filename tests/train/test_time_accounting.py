"""Where a run's seconds went, its trace, and what it keeps compiled."""

import jax
import jax.numpy as jnp
import pytest

from fot_jax.config import UserError
from fot_jax.train.metrics import read_rows
from fot_jax.train.profile import ProfileSteps
from fot_jax.train.time_accounting import Part, TimeAccount
from launch import cli, train
from tests.train.runs import run
from tests.train.tiny import tiny


class Clock:
    """Seconds set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_parts_and_what_is_left_for_steps():
    clock = Clock()
    account = TimeAccount(clock)
    with account.charge(Part.EVALUATION):
        clock.now += 5
        account.compiling._add("/jax/core/compile/backend_compile_duration", 101.0, 104.0)
    with account.charge(Part.DATA_WAIT):
        clock.now += 1
    clock.now += 14
    assert account.scalars() == {
        "compile_seconds": 3.0,
        "data_wait_seconds": 1.0,
        "checkpoint_seconds": 0.0,
        "evaluation_seconds": 2.0,
    }
    assert account.summary() == "time: 70% steps, 15% compile, 5% data wait, 0% checkpoint, 10% evaluation"


def test_traces_within_traces_count_once():
    account = TimeAccount(Clock())
    for start, end in [(1.0, 2.0), (2.5, 3.0), (0.5, 4.0), (6.0, 7.0)]:
        account.compiling._add("/jax/core/compile/jaxpr_trace_duration", start, end)
    account.compiling._add("/jax/other", 0.0, 50.0)
    assert account.seconds[Part.COMPILE] == 4.5


def test_compiling_is_measured():
    with TimeAccount() as account:
        jax.jit(lambda x: jnp.sin(x) * 3.0)(jnp.ones(3))
    measured = account.seconds[Part.COMPILE]
    assert 0.001 < measured < 30.0
    jax.jit(lambda x: jnp.cos(x) * 3.0)(jnp.ones(3))
    assert account.seconds[Part.COMPILE] == measured, "not after its end"


def test_a_run_writes_a_trace_and_says_where_its_time_went(tmp_path):
    lines, _ = run(tiny(train__steps=4, train__eval_every=2), tmp_path, profile=ProfileSteps(first=2, last=3))
    assert f"profile: trace in {tmp_path / 'profile'}" in lines
    [trace] = (tmp_path / "profile").rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(trace))
    names = [event.name for plane in data.planes for line in plane.lines for event in line.events]
    numbers = [
        dict(event.stats)["step_num"]
        for plane in data.planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    ]
    assert sorted(numbers) == [2, 3], set(names)
    last = read_rows(tmp_path / "metrics.jsonl")[-1]
    assert last["compile_seconds"] > 0 and last["evaluation_seconds"] > 0
    [summary] = [line for line in lines if line.startswith("time: ")]
    shares = [int(part.split("%")[0]) for part in summary.removeprefix("time: ").split(", ")]
    assert len(shares) == 5 and 97 <= sum(shares) <= 103


def test_a_trace_of_a_run_that_ends_within_it_is_written(tmp_path):
    run(tiny(train__steps=2), tmp_path, profile=ProfileSteps(first=2, last=9))
    assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1


def test_steps_to_trace_are_checked(capsys):
    with pytest.raises(UserError, match="must be FROM:TO with 1 <= FROM <= TO, got 3:2"):
        ProfileSteps(first=3, last=2)
    with pytest.raises(SystemExit):
        cli.run(train.main, train.make_parser(), ["--config=tests/e2e/tiny_config.py", "--profile-steps=5"])
    assert "--profile-steps must be FROM:TO, e.g. 20:24, got '5'" in capsys.readouterr().err
