"""The lists that the Pallas kernels walk over, and which blocks they skip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import Boundaries
from fot_jax.ops import visits
from fot_jax.ops.kernel_rules import Rule, Sizes, visible_block
from fot_jax.types import Plan
from tests import cases

by_reader = jax.jit(visits.visits_by_reader)
by_context = jax.jit(visits.visits_by_context, static_argnames="rows")
FLAGS = ((visits.OWN, "own"), (visits.FILLED, "filled"), (visits.FIRST, "first"), (visits.LAST, "last"))


def listed(found: visits.Visits) -> list[tuple]:
    """(reader, context, names of the flags) of the real visits; reader or context None where unfilled."""
    count = int(found.count)
    rows = zip(*(np.asarray(x)[:count].tolist() for x in (found.readers, found.contexts, found.flags)), strict=True)
    return [(reader, context, {name for bit, name in FLAGS if flag & bit}) for reader, context, flag in rows]


def test_the_drawn_plan_is_the_drawn_lists():
    plan = Plan(
        context_ids=np.array([[-1, -1], [0, -1], [1, 0]], np.int32),
        own_document=np.array([[False, False], [True, False], [True, False]]),
    )
    assert listed(by_reader(plan)) == [
        (0, 0, {"first", "last"}),
        (1, 0, {"own", "filled", "first", "last"}),
        (2, 1, {"own", "filled", "first"}),
        (2, 0, {"filled", "last"}),
    ]
    assert listed(by_context(plan, rows=3)) == [
        (1, 0, {"own", "filled", "first"}),
        (2, 0, {"filled", "last"}),
        (2, 1, {"own", "filled", "first", "last"}),
        (0, 2, {"first", "last"}),
    ]


@pytest.mark.parametrize("rows", [6, 9])
def test_every_filled_slot_is_visited_once_and_every_output_row_is_set(rows):
    plan = Plan(context_ids=cases.CONTEXT_IDS.astype(np.int32), own_document=cases.OWN)
    wanted = sorted(
        (b, int(plan.context_ids[b, c]), bool(plan.own_document[b, c]))
        for b, c in np.ndindex(*plan.context_ids.shape)
        if plan.context_ids[b, c] >= 0
    )
    for axis, number, found in (
        (0, 6, by_reader(plan)),
        (1, rows, by_context(plan, rows=rows)),
    ):
        got = listed(found)
        assert sorted((r, c, "own" in names) for r, c, names in got if "filled" in names) == wanted
        outputs = [visit[axis] for visit in got]
        assert outputs == sorted(outputs)
        assert set(outputs) == set(range(number))
        starts = [visit[axis] for visit in got if "first" in visit[2]]
        ends = [visit[axis] for visit in got if "last" in visit[2]]
        assert starts == ends == list(range(number))


@pytest.mark.parametrize("boundaries", Boundaries)
@pytest.mark.parametrize("own", [True, False])
def test_only_blocks_without_a_visible_pair_are_skipped(boundaries, own):
    """Against all pairs of segments of a block; blocks of one document, which training mostly has, exactly."""
    rng = np.random.default_rng(0)
    queries, keys = rng.integers(0, 4, (40, 4)), rng.integers(0, 4, (40, 3))
    queries[::2], keys[::2] = queries[::2, :1], keys[::2, :1]  # one document, or all padding
    spans = visits.spans_of(jnp.asarray(queries), jnp.asarray(keys), query_block=4, key_block=3)
    rule = Rule(boundaries=boundaries, causal=False, query_block=4, key_block=3)
    sizes = Sizes(rule=rule, B=40, H=1, L=4, D=1, rows=40, G=1, S=3, itemsize=4)
    readers, contexts = np.divmod(np.arange(40 * 40), 40)
    scalars = (readers, contexts, np.full(40 * 40, visits.FILLED + own * visits.OWN))
    scalars += tuple(map(np.asarray, (spans.query_low, spans.query_high, spans.key_low, spans.key_high)))
    got = np.asarray(visible_block(sizes, np.arange(40 * 40), 0, 0, scalars))
    same = queries[readers][:, :, None] == keys[contexts][:, None, :]
    allowed = same | (boundaries is Boundaries.JOINED) if own else ~same
    seen = (allowed & (keys[contexts] != 0)[:, None, :]).any(axis=(1, 2))
    assert (got | ~seen).all()
    one = (queries.min(axis=1) == queries.max(axis=1))[readers] & (keys.min(axis=1) == keys.max(axis=1))[contexts]
    np.testing.assert_array_equal(got[one], seen[one])
    assert one.sum() > 40
    assert (~got).sum() > 40
