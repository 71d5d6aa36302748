"""d by step, drawn out."""

import collections

import pytest

from fot_jax.config import ScheduleConfig, ScheduleKind
from fot_jax.train.context_schedule import ContextSchedule


def make(kind, ds, **fields):
    return ContextSchedule(ScheduleConfig(kind=kind, num_contexts=ds, **fields), seed=7)


def test_constant_and_switch_at_step():
    assert [make(ScheduleKind.CONSTANT, (4,)).num_contexts(s) for s in (0, 9)] == [4, 4]
    switch = make(ScheduleKind.SWITCH_AT_STEP, (2, 64), switch_step=3)
    assert [switch.num_contexts(s) for s in range(5)] == [2, 2, 2, 64, 64]
    assert switch.final == 64


def test_switch_at_accuracy_holds_two_steps_after_it_was_reached():
    """step      0    1    2    3    4    5
    accuracy    .1   .98  .2   .99  .1   .1     reached at step 1, known when step 2 is on its way
    d            1    1    1   128  128  128
    """
    schedule = make(ScheduleKind.SWITCH_AT_ACCURACY, (1, 128))
    known, ds = None, []
    for step, accuracy in enumerate([0.1, 0.98, 0.2, 0.99, 0.1, 0.1]):
        ds.append(schedule.num_contexts(step, switch_step=known))
        known = schedule.observe(known, step=step, accuracy=accuracy)
    assert ds == [1, 1, 1, 128, 128, 128]
    assert known == 3


def test_random_is_a_pure_function_of_seed_and_step():
    schedule = make(ScheduleKind.RANDOM, (2, 128))
    drawn = [schedule.num_contexts(s) for s in range(400)]
    assert drawn == [make(ScheduleKind.RANDOM, (2, 128)).num_contexts(s) for s in range(400)]
    assert drawn != [ContextSchedule(schedule.config, seed=8).num_contexts(s) for s in range(400)]
    assert collections.Counter(drawn)[2] == pytest.approx(200, abs=50)
    assert schedule.final == 128
