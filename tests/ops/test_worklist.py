"""The lists that the Pallas kernels walk over, and which blocks they skip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import Boundaries
from fot_jax.ops.backends import worklist
from fot_jax.ops.backends.kernel_spec import KernelSpec, lookup_tables, visible_block
from fot_jax.types import Plan
from tests import cases

by_reader = jax.jit(worklist.by_reader)
by_context = jax.jit(worklist.by_context, static_argnames="rows")
FLAGS = ((worklist.OWN, "own"), (worklist.FILLED, "filled"), (worklist.FIRST, "first"), (worklist.LAST, "last"))


def listed(found: worklist.WorkList) -> list[tuple]:
    """Returns (reader, context, names of the flags) of the real pairs."""
    count = int(found.count)
    rows = zip(*(np.asarray(x)[:count].tolist() for x in (found.readers, found.contexts, found.flags)), strict=True)
    return [(reader, context, {name for bit, name in FLAGS if flag & bit}) for reader, context, flag in rows]


def test_worklist_of_the_drawn_plan_is_as_drawn():
    """Compares both orders."""
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


def test_starts_of_the_drawn_list_are_as_drawn():
    """Pairs behind `count` belong to no target."""
    starts = worklist.starts_of(jnp.array([0, 0, 1, 2, 2, 2]), 5, num_targets=3)
    assert starts.tolist() == [0, 2, 3, 5]


@pytest.mark.parametrize("rows", [6, 9])
def test_worklist_has_each_filled_slot_once_and_all_outputs(rows):
    """Pairs are sorted by the output row, each of which begins and ends once."""
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
        outputs = [pair[axis] for pair in got]
        assert outputs == sorted(outputs)
        assert set(outputs) == set(range(number))
        starts = [pair[axis] for pair in got if "first" in pair[2]]
        ends = [pair[axis] for pair in got if "last" in pair[2]]
        assert starts == ends == list(range(number))


@pytest.mark.parametrize("boundaries", Boundaries)
@pytest.mark.parametrize("own", [True, False])
def test_visible_block_skips_only_blocks_without_a_seen_pair(boundaries, own):
    """Compares with all pairs of segments of a block; blocks of one document, which training mostly has, exactly."""
    rng = np.random.default_rng(0)
    queries, keys = rng.integers(0, 4, (40, 4)), rng.integers(0, 4, (40, 3))
    queries[::2], keys[::2] = queries[::2, :1], keys[::2, :1]  # one document, or all padding
    spec = KernelSpec(
        boundaries=boundaries, causal=False, query_block=4, key_block=3,
        B=40, H=1, L=4, D=1, rows=40, G=1, S=3, itemsize=4,
    )  # fmt: skip
    readers, contexts = np.divmod(np.arange(40 * 40), 40)
    pairs = map(jnp.asarray, (readers, contexts, np.full(40 * 40, worklist.FILLED + own * worklist.OWN)))
    work = worklist.WorkList(*pairs, count=40 * 40, slots=40 * 40)
    tables = tuple(map(np.asarray, lookup_tables(spec, work, jnp.asarray(queries), jnp.asarray(keys))))
    got = np.asarray(visible_block(spec, np.arange(40 * 40), 0, 0, tables))
    same = queries[readers][:, :, None] == keys[contexts][:, None, :]
    allowed = same | (boundaries is Boundaries.JOINED) if own else ~same
    seen = (allowed & (keys[contexts] != 0)[:, None, :]).any(axis=(1, 2))
    assert (got | ~seen).all()
    one = (queries.min(axis=1) == queries.max(axis=1))[readers] & (keys.min(axis=1) == keys.max(axis=1))[contexts]
    np.testing.assert_array_equal(got[one], seen[one])
    assert one.sum() > 40
    assert (~got).sum() > 40
