"""Attention to one set of keys, merging of sets, and the local mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import AttentionForm, Boundaries
from fot_jax.ops import attention, blockwise, crossbatch
from tests import cases, oracles

SEGMENTS = jnp.asarray(cases.SEGMENTS)
NAMES = ("output", "d queries", "d keys", "d values")


def local_problem(heads: str, boundaries: Boundaries, scale: float = 1.0):
    """(arguments, upstream, what the oracle says of values and gradients)."""
    case = cases.crossbatch_case(heads, scale=scale)
    arguments = (case.queries, case.keys, case.values)
    visible = oracles.local_visible(case.segments, boundaries=boundaries.value)
    want = [
        oracles.attend({"local": arguments}, visible),
        *oracles.attend_gradients({"local": arguments}, visible, case.upstream)["local"],
    ]
    return arguments, case.upstream, want


@pytest.mark.parametrize("heads", cases.HEADS)
@pytest.mark.parametrize("boundaries", Boundaries)
def test_causal_attention_is_the_oracle_in_values_and_gradients(heads, boundaries):
    arguments, upstream, want = local_problem(heads, boundaries)
    mask = attention.local_mask(SEGMENTS, SEGMENTS, boundaries=boundaries)
    got = cases.value_and_gradients(lambda q, k, v: attention.attention(q, k, v, mask=mask), arguments, upstream)
    cases.assert_close(got, want, NAMES)


@pytest.mark.parametrize("block", [1, 2, 3, 4])
@pytest.mark.parametrize("boundaries", Boundaries)
@pytest.mark.parametrize("loop", cases.LOOPS)
def test_blockwise_local_attention_is_the_oracle(block, boundaries, loop, monkeypatch):
    cases.force_loop(monkeypatch, loop)
    monkeypatch.setattr(blockwise, "CACHE_BYTES", 0)  # these problems are too small to be cut by head otherwise
    arguments, upstream, want = local_problem("grouped", boundaries)

    def op(queries, keys, values):
        form = AttentionForm.BLOCKWISE
        options = {"segments": SEGMENTS, "boundaries": boundaries, "form": form, "block": block}
        return attention.normalise(crossbatch.local_partial(queries, keys, values, **options))

    cases.assert_close(cases.value_and_gradients(op, arguments, upstream), want, NAMES)


def test_scores_in_the_hundreds_neither_overflow_nor_vanish():
    arguments, upstream, want = local_problem("grouped", Boundaries.MASKED, scale=300.0)
    mask = attention.local_mask(SEGMENTS, SEGMENTS, boundaries=Boundaries.MASKED)
    got = cases.value_and_gradients(lambda q, k, v: attention.attention(q, k, v, mask=mask), arguments, upstream)
    assert all(np.isfinite(value).all() for value in got)
    # float32 scores of hundreds carry 1e-4 into exp; gradients of a saturated softmax are differences of equals
    cases.assert_close([got[0], got[3]], [want[0], want[3]], ("output", "d values"), tolerance=1e-3)


@pytest.mark.parametrize("boundaries", Boundaries)
def test_merging_any_split_of_the_keys_is_one_softmax(boundaries):
    arguments, upstream, want = local_problem("grouped", boundaries)
    mask = attention.local_mask(SEGMENTS, SEGMENTS, boundaries=boundaries)

    def op(queries, keys, values):
        merged = attention.empty_partial(queries)
        for part in (slice(3, 5), slice(0, 1), slice(1, 3)):  # out of order: the merge commutes
            partial = attention.partial_attention(queries, keys[:, part], values[:, part], mask=mask[..., part])
            merged = attention.merge(partial, merged)
        return attention.normalise(attention.merge(merged, attention.empty_partial(queries)))

    cases.assert_close(cases.value_and_gradients(op, arguments, upstream), want, NAMES)


def test_a_query_that_sees_nothing_gives_zero_and_moves_nothing():
    (queries, keys, values), upstream, _ = local_problem("grouped", Boundaries.MASKED)
    mask = jnp.zeros((1, 5, 5), bool)
    got = cases.value_and_gradients(
        lambda q, k, v: attention.attention(q, k, v, mask=mask), (queries, keys, values), upstream
    )
    for name, value in zip(NAMES, got, strict=True):
        assert not value.any(), name


def test_local_mask_is_the_drawn_table():
    segments = jnp.array([[1, 1, 2, 0]])
    masked = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    joined = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]]
    for boundaries, drawn in ((Boundaries.MASKED, masked), (Boundaries.JOINED, joined)):
        got = attention.local_mask(segments, segments, boundaries=boundaries)
        np.testing.assert_array_equal(got[0].astype(int), drawn)


def test_local_mask_with_an_offset_places_the_queries_later():
    keys = jnp.array([[1, 1, 1, 1, 0]])
    got = attention.local_mask(jnp.array([[1, 1]]), keys, boundaries=Boundaries.MASKED, query_offset=2)
    np.testing.assert_array_equal(got[0].astype(int), [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])


def test_bfloat16_inputs_keep_float32_sums():
    (queries, keys, values), _, want = local_problem("grouped", Boundaries.JOINED)
    mask = attention.local_mask(SEGMENTS, SEGMENTS, boundaries=Boundaries.JOINED)
    low = [jnp.asarray(a, jnp.bfloat16) for a in (queries, keys, values)]
    partial = attention.partial_attention(*low, mask=mask)
    assert {leaf.dtype for leaf in jax.tree.leaves(partial)} == {jnp.dtype(jnp.float32)}
    assert oracles.relative_error(attention.normalise(partial), want[0]) < 2e-2
