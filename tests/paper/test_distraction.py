"""r_d of sec. 3.3: the share of the contexts' attention that falls on the own document's context."""

import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import Boundaries
from fot_jax.ops import crossbatch, plans
from fot_jax.types import Plan
from tests import cases, oracles

STREAMS, LENGTH, HEADS, GROUPS, DIM = 5, 3, 4, 2, 6
SEGMENTS = np.repeat(np.tile(np.arange(1, STREAMS + 1), 2)[:, None], LENGTH, axis=1)


def masses(queries, keys, d: int) -> tuple[np.ndarray, Plan]:
    """log masses [B, C, L, H] of the paper's two-pass plan with d contexts."""
    plan = plans.two_pass_plan(STREAMS, w=1, d=d)
    on_device = Plan(context_ids=jnp.asarray(plan.context_ids), own_document=jnp.asarray(plan.own_document))
    got = crossbatch.context_log_masses(
        *cases.to_float32(queries, keys), on_device, segments=jnp.asarray(SEGMENTS), boundaries=Boundaries.MASKED
    )
    return np.asarray(got, np.float64), plan


def r_d(queries, keys, d: int) -> float:
    """Σ_j w_1j / Σ_i Σ_j w_ij from the log masses, mean over C_curr's queries and heads."""
    got, plan = masses(queries, keys, d)
    powers, own = np.exp(got[STREAMS:]), plan.own_document[STREAMS:, :, None, None]
    return float(((powers * own).sum(axis=1) / powers.sum(axis=1)).mean())


def random_problem():
    rows = 2 * STREAMS
    return cases.arrays(31, (rows, LENGTH, HEADS, DIM), (rows, LENGTH, GROUPS, DIM))


@pytest.mark.parametrize("d", [1, 2, 4, 5])
def test_share_from_log_masses_is_the_definition(d):
    queries, keys = random_problem()
    plan = plans.two_pass_plan(STREAMS, w=1, d=d)
    want = oracles.distraction(queries, keys, SEGMENTS, plan.context_ids, plan.own_document, boundaries="masked")
    assert r_d(queries, keys, d) == pytest.approx(want, rel=1e-5)


def test_keys_that_tell_nothing_apart_give_one_over_d():
    queries, keys = random_problem()
    for d in (1, 2, 4):
        assert r_d(queries, np.broadcast_to(keys[:1, :1], keys.shape), d) == pytest.approx(1 / d, rel=1e-5)


def test_keys_that_name_their_document_resist_distraction():
    """Queries and keys of one document share a direction: r_d stays near 1 while 1/d falls."""
    direction = 6.0 * np.eye(DIM)[SEGMENTS[:, 0] % DIM]
    shape = (2 * STREAMS, LENGTH)
    queries = np.broadcast_to(direction[:, None, None], (*shape, HEADS, DIM))
    keys = np.broadcast_to(direction[:, None, None] / 3, (*shape, GROUPS, DIM))
    assert r_d(queries, keys, 5) > 0.99
