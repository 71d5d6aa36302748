"""Crossbatch attention (eq. 2) in both forms against the oracle; its memory and its arrays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import AttentionForm, Boundaries
from fot_jax.ops import attention, by_head, crossbatch
from fot_jax.types import Plan
from tests import cases, jaxprs, oracles

NAMES = ("output", "d queries", "d keys", "d values")
HERE = (AttentionForm.REFERENCE, AttentionForm.BLOCKWISE)  # PALLAS: tests/ops/test_pallas_attention.py
FORMS = [(AttentionForm.REFERENCE, 99)] + [(AttentionForm.BLOCKWISE, block) for block in (1, 2, 3, 5, 99)]


def operator(case: cases.Case, boundaries: Boundaries, form: AttentionForm, block: int):
    """crossbatch_partial, normalised, of queries, keys and values."""

    def op(queries, keys, values):
        partial = crossbatch.crossbatch_partial(
            queries, keys, values, jax.tree.map(jnp.asarray, case.plan),
            segments=jnp.asarray(case.segments), boundaries=boundaries, form=form, block=block,
        )  # fmt: skip
        return attention.normalise(partial)

    return op


def expected(case: cases.Case, boundaries: Boundaries) -> list[np.ndarray]:
    """The oracle's values and gradients."""
    sources = {"context": (case.queries, case.keys, case.values)}
    plan = case.plan
    visible = oracles.context_visible(case.segments, plan.context_ids, plan.own_document, boundaries=boundaries.value)
    gradients = oracles.attend_gradients(sources, visible, case.upstream)
    return [oracles.attend(sources, visible), *gradients["context"]]


@pytest.mark.parametrize("heads", cases.HEADS)
@pytest.mark.parametrize("boundaries", Boundaries)
def test_reference_is_the_oracle_in_values_and_gradients(heads, boundaries):
    case = cases.crossbatch_case(heads)
    op = operator(case, boundaries, AttentionForm.REFERENCE, 99)
    got = cases.value_and_gradients(op, (case.queries, case.keys, case.values), case.upstream)
    cases.assert_close(got, expected(case, boundaries), NAMES)


@pytest.mark.parametrize("block", [1, 2, 3, 5, 99])
@pytest.mark.parametrize("boundaries", Boundaries)
@pytest.mark.parametrize("loop", cases.LOOPS)
def test_blockwise_is_the_oracle_in_values_and_gradients(block, boundaries, loop, monkeypatch):
    cases.force_loop(monkeypatch, loop)
    case = cases.crossbatch_case("grouped" if block != 3 else "single")
    op = operator(case, boundaries, AttentionForm.BLOCKWISE, block)
    got = cases.value_and_gradients(op, (case.queries, case.keys, case.values), case.upstream)
    cases.assert_close(got, expected(case, boundaries), NAMES)


def tiled_case() -> cases.Case:
    """Rows of one document each that see up to 17 contexts whole, others in part or not at all, in mixed order.

    Row 0 reads rows 1 and 2 over and over, row 3 whole ones among padded, own and empty ones, row 4 nothing.
    """
    case = cases.crossbatch_case("grouped")
    segments = np.array([[1] * 5, [2] * 5, [3] * 5, [4] * 5, [5] * 5, [6, 6, 0, 0, 0]])
    ids = np.full((6, 18), -1, np.int32)
    ids[0, :17] = [1, 2, 1, 1, 2, 1, 1, 1, 2, 2, 2, 1, 2, 2, 2, 2, 1]
    ids[1, :14] = [0, 2, 3, 4, 0, 2, 3, 4, 0, 2, 3, 4, 5, 5]
    ids[2, 3:6] = [0, 1, 3]
    ids[3, 4:] = [5, 0, -1, 3, 1, 2, 5, 4, 3, -1, 0, 1, 2, 0]
    ids[5, ::2] = [0, 1, 2, 3, 4, 5, 0, 1, 2]
    own = ids == np.arange(6)[:, None]
    return dataclasses.replace(case, segments=segments, plan=Plan(context_ids=ids, own_document=own))


@pytest.mark.parametrize("boundaries", Boundaries)
@pytest.mark.parametrize(("block", "blocks"), [(99, 1), (99, 4), (99, 8), (2, 8)])
def test_tiles_of_several_contexts_are_the_oracle_in_values_and_gradients(block, blocks, boundaries, monkeypatch):
    """Tiles of four leave some contexts over, tiles of eight more; with blocks of two a row's last is padded."""
    cases.force_loop(monkeypatch, "cpu")
    monkeypatch.setattr(by_head, "TILE_BLOCKS", blocks)
    monkeypatch.setattr(by_head, "TILED_FROM_BYTES", 0)
    case = tiled_case()
    op = operator(case, boundaries, AttentionForm.BLOCKWISE, block)
    got = cases.value_and_gradients(op, (case.queries, case.keys, case.values), case.upstream)
    cases.assert_close(got, expected(case, boundaries), NAMES)


def test_large_blocks_in_tiles_are_the_reference_in_values_and_gradients():
    """Blocks long enough to be read several at once: row 0 has two tiles of four, three blocks more, one masked."""
    length, heads = 192, 1
    segments = np.repeat(np.array([[1], [2], [3]]), length, axis=1)
    segments[2, -7:] = 0
    ids = np.array([[1] * 4 + [2] + [1, 0, 1, 1, 1, 1, 1], [2, -1] * 6, [0, 0, 1, 0, 1, 1, 1, 0, 0, 1, 1, -1]])
    plan = Plan(context_ids=ids.astype(np.int32), own_document=ids == np.arange(3)[:, None])
    shape = (3, length, heads, 8)
    queries, keys, values, upstream = cases.arrays(3, *[shape] * 4)
    case = dataclasses.replace(cases.crossbatch_case(), segments=segments, plan=plan)
    rule = by_head.Rule(boundaries=Boundaries.MASKED, causal=False, block=length, repeats=1)
    order = by_head._order(rule, jax.tree.map(jnp.asarray, plan), jnp.asarray(segments), jnp.asarray(segments))
    assert (order.clear[0], order.seen[0], by_head._blocks_in_tile(rule, order, length, length)) == (11, 12, 4)
    want, got = (
        cases.value_and_gradients(operator(case, Boundaries.MASKED, form, 999), (queries, keys, values), upstream)
        for form in HERE
    )
    cases.assert_close(got, want, NAMES)


@pytest.mark.parametrize("form", HERE)
@pytest.mark.parametrize("boundaries", Boundaries)
def test_joint_softmax_is_the_oracle_in_values_and_all_five_gradients(form, boundaries):
    case = cases.crossbatch_case()

    def op(queries_local, queries_context, keys_local, keys_context, values):
        return crossbatch.crossbatch_attention(
            queries_local, queries_context, keys_local, keys_context, values, jax.tree.map(jnp.asarray, case.plan),
            segments=jnp.asarray(case.segments), boundaries=boundaries, form=form, block=2,
        )  # fmt: skip

    arguments = (case.turned_queries, case.queries, case.turned_keys, case.keys, case.values)
    sources = {
        "local": (case.turned_queries, case.turned_keys, case.values),
        "context": (case.queries, case.keys, case.values),
    }
    plan = case.plan
    visible = oracles.union(
        oracles.local_visible(case.segments, boundaries=boundaries.value),
        oracles.context_visible(case.segments, plan.context_ids, plan.own_document, boundaries=boundaries.value),
    )
    local, context = oracles.attend_gradients(sources, visible, case.upstream).values()
    want = [oracles.attend(sources, visible), local[0], context[0], local[1], context[1], local[2] + context[2]]
    names = ("output", "d queries_local", "d queries_context", "d keys_local", "d keys_context", "d values")
    cases.assert_close(cases.value_and_gradients(op, arguments, case.upstream), want, names)


@pytest.mark.parametrize(("form", "block"), FORMS[:1] + FORMS[2:3])
def test_a_plan_of_empty_slots_adds_exactly_nothing(form, block):
    case = cases.crossbatch_case()
    empty = Plan(context_ids=np.full((6, 4), -1, np.int32), own_document=np.zeros((6, 4), bool))
    op = operator(dataclasses.replace(case, plan=empty), Boundaries.JOINED, form, block)
    got = cases.value_and_gradients(op, (case.queries, case.keys, case.values), case.upstream)
    for name, value in zip(NAMES, got, strict=True):
        assert not value.any(), name


@pytest.mark.parametrize(("form", "block"), FORMS[:1] + FORMS[2:3])
def test_empty_columns_and_the_order_of_slots_change_nothing(form, block):
    case = cases.crossbatch_case()
    order = np.array([6, 2, 0, 5, 1, 4, 3])
    padded = Plan(
        context_ids=np.pad(case.plan.context_ids[:, order], ((0, 0), (0, 3)), constant_values=-1),
        own_document=np.pad(case.plan.own_document[:, order], ((0, 0), (0, 3))),
    )
    op = operator(dataclasses.replace(case, plan=padded), Boundaries.MASKED, form, block)
    got = cases.value_and_gradients(op, (case.queries, case.keys, case.values), case.upstream)
    cases.assert_close(got, expected(case, Boundaries.MASKED), NAMES)


def test_context_mask_is_the_drawn_table():
    queries, contexts = jnp.array([[2, 0]]), jnp.array([[1, 2, 2, 0]])
    tables = {
        (True, Boundaries.MASKED): [[0, 1, 1, 0], [0, 0, 0, 0]],
        (True, Boundaries.JOINED): [[1, 1, 1, 0], [1, 1, 1, 0]],
        (False, Boundaries.MASKED): [[1, 0, 0, 0], [1, 1, 1, 0]],
        (False, Boundaries.JOINED): [[1, 0, 0, 0], [1, 1, 1, 0]],
    }
    for (own, boundaries), drawn in tables.items():
        got = crossbatch.context_mask(queries, contexts, jnp.array([own]), boundaries=boundaries)
        np.testing.assert_array_equal(got[0].astype(int), drawn, err_msg=f"own={own} {boundaries}")


@pytest.mark.parametrize("boundaries", Boundaries)
def test_log_masses_are_the_oracle(boundaries):
    case = cases.crossbatch_case()
    plan = case.plan
    got = crossbatch.context_log_masses(
        *cases.to_float32(case.queries, case.keys), jax.tree.map(jnp.asarray, plan),
        segments=jnp.asarray(case.segments), boundaries=boundaries,
    )  # fmt: skip
    want = oracles.log_masses(
        case.queries, case.keys, case.segments, plan.context_ids, plan.own_document, boundaries=boundaries.value
    )
    seen = np.isfinite(want)
    assert seen.any() and not seen.all()
    np.testing.assert_allclose(np.asarray(got)[seen], want[seen], rtol=1e-5, atol=1e-5)
    assert (np.asarray(got)[~seen] < -1e29).all()


def gradient_step(form: AttentionForm, block: int, slots: int, *, rows=8, length=64, heads=4, groups=2, dim=16):
    """(jitted value_and_grad over queries, keys and values of the joint softmax, its arguments)."""
    rng = np.random.default_rng(0)
    ids = np.stack([rng.integers(0, max(b, 1), slots) for b in range(rows)]).astype(np.int32)
    plan = Plan(context_ids=jnp.asarray(ids), own_document=jnp.asarray(rng.random(ids.shape) < 0.5))
    segments = jnp.asarray(np.arange(rows)[:, None] % 3 + np.ones((1, length), int))

    def loss(queries, keys, values, plan, segments):
        out = crossbatch.crossbatch_attention(
            queries, queries, keys, keys, values, plan,
            segments=segments, boundaries=Boundaries.JOINED, form=form, block=block,
        )  # fmt: skip
        return (out**2).sum()

    shapes = (rows, length, heads, dim), (rows, length, groups, dim), (rows, length, groups, dim)
    return jax.value_and_grad(loss, argnums=(0, 1, 2)), (*cases.to_float32(*cases.arrays(1, *shapes)), plan, segments)


def test_memory_of_the_blockwise_form_does_not_grow_with_contexts():
    """64 contexts need at most 1.15 times the temporary memory of 2; the reference form's grows with them."""
    bytes_ = {}
    for form in HERE:
        for slots in (2, 64):
            step, arguments = gradient_step(form, 32, slots)
            analysis = jax.jit(step).lower(*arguments).compile().memory_analysis()
            bytes_[form, slots] = analysis.temp_size_in_bytes
    blockwise, reference = AttentionForm.BLOCKWISE, AttentionForm.REFERENCE
    assert bytes_[blockwise, 64] <= 1.15 * bytes_[blockwise, 2], bytes_
    assert bytes_[reference, 64] > 8 * bytes_[reference, 2], bytes_
    assert bytes_[blockwise, 64] < 0.1 * bytes_[reference, 64], bytes_


@pytest.mark.parametrize("block", [4, 11])
def test_the_blockwise_form_never_holds_all_contexts_in_one_array(block):
    """Sizes are distinct primes: an array with axes C and S (or C·S) or as many numbers as B·C·S can be told."""
    sizes = {"rows": 5, "length": 11, "heads": 3, "groups": 3, "dim": 2}
    slots, rows, length = 67, sizes["rows"], sizes["length"]

    def offenders(form: AttentionForm) -> set[tuple[int, ...]]:
        step, arguments = gradient_step(form, block, slots, **sizes)
        shapes = jaxprs.shapes(jax.make_jaxpr(step)(*arguments)) | jaxprs.compiled_shapes(step, arguments)
        return {
            shape for shape in shapes
            if slots * length in shape or {slots, length} <= set(shape) or np.prod(shape) >= rows * slots * length * 2
        }  # fmt: skip

    assert offenders(AttentionForm.REFERENCE), "the check sees nothing in the form that must show it"
    assert not offenders(AttentionForm.BLOCKWISE)


def test_keys_in_sight_are_the_local_ones_and_whole_rows():
    plan = Plan(context_ids=np.array([[0, -1, 2], [-1, -1, -1]]), own_document=np.zeros((2, 3), bool))
    got = crossbatch.in_sight(plan, jnp.arange(1, 4)[None])
    np.testing.assert_array_equal(got, [[7, 8, 9], [1, 2, 3]])
