"""Ring schedules on the host: the drawn tables, and that every reading finds its row."""

import numpy as np
import pytest

from fot_jax.config import CrossbatchConfig
from fot_jax.config.build import build
from fot_jax.ops.distributed import ring_schedule
from fot_jax.ops.plans import make_plan
from fot_jax.types import RingStage
from tests.scale.ring_cases import VARIANTS, problem


def test_schedule_is_the_drawn_one():
    """Compares with the drawing in `ring_schedule.py`: PACKED, k = 2, d = 4, 8 rows on 4 devices."""
    ring = problem("packed", rows=8, devices=4).ring
    assert ring.stages == (RingStage(rows=(0, 1), hops=1, slots=2), RingStage(rows=(1,), hops=1, slots=1))
    assert (ring.step, ring.wraps, ring.home_slots, ring.hops, ring.rows_sent) == (1, False, 1, 2, 3)


def test_two_pass_keeps_streams_together_and_wraps():
    """Puts C_prev and C_curr of a stream on one device; blocks travel around the end of the axis."""
    config = build(CrossbatchConfig, {"plan": "two_pass"})
    order = ring_schedule.row_order(config, batch_rows=8, shards=2)
    np.testing.assert_array_equal(order, [0, 1, 4, 5, 2, 3, 6, 7])
    plan = ring_schedule.arrange(make_plan(config, batch_rows=8, num_contexts=2), order)
    np.testing.assert_array_equal(plan.context_ids[[2, 3, 6, 7]], [[0, 1], [1, 4], [4, 5], [5, 0]])
    np.testing.assert_array_equal(plan.own_document[[2, 3, 6, 7]], [[True, False]] * 4)
    assert (plan.context_ids[[0, 1, 4, 5]] == -1).all()
    ring = problem("two pass", rows=64, devices=8).ring  # 4 streams a device, d = 3 padded to 4 columns: 3 others
    assert (ring.step, ring.wraps, ring.stages) == (-1, True, (RingStage(rows=(0, 1, 2), hops=1, slots=3),))


def test_row_order_keeps_streams_that_do_not_divide():
    """Leaves four streams on eight devices as they are; their schedule still ends."""
    config = build(CrossbatchConfig, {"plan": "two_pass"})
    assert ring_schedule.is_sorted(ring_schedule.row_order(config, batch_rows=8, shards=8))
    assert problem("two pass", rows=8, devices=8).ring.hops < 8


@pytest.mark.parametrize("devices", [2, 4, 8])
@pytest.mark.parametrize("variant", VARIANTS)
def test_schedule_brings_every_row_to_its_readers(variant, devices):
    """Moves blocks by hand, row by row: a reader meets each of its rows once, with slots enough."""
    case = problem(variant, rows=8, devices=devices)
    ring, per_device = case.ring, 8 // devices
    held = {p: set(range(p * per_device, (p + 1) * per_device)) for p in range(devices)}
    met: list[list[int]] = [[] for _ in range(8)]

    def read(slots):
        for b, ids in enumerate(case.plan.context_ids):
            found = [c for c in ids if c >= 0 and c in held[b // per_device]]
            assert len(found) <= slots
            met[b] += found

    read(ring.home_slots)
    for stage in ring.stages:
        for _ in range(stage.hops):
            moved = {p: {c for c in held[p] if c % per_device in stage.rows} for p in held}
            held = {p: set() for p in held}
            for p, rows in moved.items():
                if ring.wraps or 0 <= p + ring.step < devices:
                    held[(p + ring.step) % devices] = rows
            read(stage.slots)
    for b, ids in enumerate(case.plan.context_ids):
        assert sorted(met[b]) == sorted(c for c in ids if c >= 0), f"row {b}"


def test_schedule_is_one_for_each_power_of_two():
    """Gives all d with the same number of columns one schedule, which is that of the largest."""
    for variant in ("packed", "two pass", "range"):
        assert problem(variant, rows=16, devices=4, d=5).ring == problem(variant, rows=16, devices=4, d=7).ring
