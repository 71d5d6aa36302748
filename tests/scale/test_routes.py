"""Routes on the host: the drawn tables, and that every reading finds its row."""

import numpy as np
import pytest

from fot_jax.config import CrossbatchConfig
from fot_jax.config.build import build
from fot_jax.ops import routes
from fot_jax.ops.plans import make_plan
from fot_jax.types import Leg
from tests.scale.ring_cases import VARIANTS, problem


def test_the_drawn_route():
    """PACKED, k = 2, d = 4, 8 rows on 4 devices."""
    route = problem("packed", rows=8, devices=4).route
    assert route.legs == (Leg(rows=(0, 1), hops=1, slots=2), Leg(rows=(1,), hops=1, slots=1))
    assert (route.step, route.wraps, route.home_slots, route.hops, route.rows_sent) == (1, False, 1, 2, 3)


def test_two_pass_keeps_streams_together_and_goes_round():
    config = build(CrossbatchConfig, {"plan": "two_pass"})
    order = routes.row_order(config, batch_rows=8, shards=2)
    np.testing.assert_array_equal(order, [0, 1, 4, 5, 2, 3, 6, 7])
    plan = routes.arrange(make_plan(config, batch_rows=8, num_contexts=2), order)
    np.testing.assert_array_equal(plan.context_ids[[2, 3, 6, 7]], [[0, 1], [1, 4], [4, 5], [5, 0]])
    np.testing.assert_array_equal(plan.own_document[[2, 3, 6, 7]], [[True, False]] * 4)
    assert (plan.context_ids[[0, 1, 4, 5]] == -1).all()
    route = problem("two pass", rows=64, devices=8).route  # 4 streams a device, d = 3 padded to 4 columns: 3 others
    assert (route.step, route.wraps, route.legs) == (-1, True, (Leg(rows=(0, 1, 2), hops=1, slots=3),))


def test_streams_that_do_not_divide_stay_in_place():
    config = build(CrossbatchConfig, {"plan": "two_pass"})
    assert routes.is_sorted(routes.row_order(config, batch_rows=8, shards=8))
    assert problem("two pass", rows=8, devices=8).route.hops < 8


@pytest.mark.parametrize("devices", [2, 4, 8])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_reading_finds_its_row(variant, devices):
    """Blocks moved by hand, row by row: a reader meets each of its rows once, with slots enough."""
    case = problem(variant, rows=8, devices=devices)
    route, per_device = case.route, 8 // devices
    held = {p: set(range(p * per_device, (p + 1) * per_device)) for p in range(devices)}
    met: list[list[int]] = [[] for _ in range(8)]

    def read(slots):
        for b, ids in enumerate(case.plan.context_ids):
            found = [c for c in ids if c >= 0 and c in held[b // per_device]]
            assert len(found) <= slots
            met[b] += found

    read(route.home_slots)
    for leg in route.legs:
        for _ in range(leg.hops):
            moved = {p: {c for c in held[p] if c % per_device in leg.rows} for p in held}
            held = {p: set() for p in held}
            for p, rows in moved.items():
                if route.wraps or 0 <= p + route.step < devices:
                    held[(p + route.step) % devices] = rows
            read(leg.slots)
    for b, ids in enumerate(case.plan.context_ids):
        assert sorted(met[b]) == sorted(c for c in ids if c >= 0), f"row {b}"


def test_one_route_for_each_power_of_two():
    """All d with as many columns share a route, which is that of the largest."""
    for variant in ("packed", "two pass", "range"):
        assert problem(variant, rows=16, devices=4, d=5).route == problem(variant, rows=16, devices=4, d=7).route
