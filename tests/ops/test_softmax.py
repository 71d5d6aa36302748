"""Partials of one softmax: attention to one set of keys, merging, and the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import Boundaries
from fot_jax.ops import softmax
from fot_jax.ops.softmax import heads_first
from fot_jax.ops.visibility import local_mask
from tests import cases, oracles

SEGMENTS = jnp.asarray(cases.SEGMENTS)
NAMES = ("output", "d queries", "d keys", "d values")


def local_problem(heads: str, boundaries: Boundaries, scale: float = 1.0):
    """(arguments, upstream, mask, the oracle's values and gradients) of causal attention."""
    case = cases.crossbatch_case(heads, scale=scale)
    arguments = (case.queries, case.keys, case.values)
    visible = oracles.local_visible(case.segments, boundaries=boundaries.value)
    want = [
        oracles.attend({"local": arguments}, visible),
        *oracles.attend_gradients({"local": arguments}, visible, case.upstream)["local"],
    ]
    return arguments, case.upstream, local_mask(SEGMENTS, SEGMENTS, boundaries=boundaries), want


def attention(queries, keys, values, *, mask):
    """Plain softmax attention on arrays in the model's order."""
    return heads_first(softmax.normalise(softmax.attend(*map(heads_first, (queries, keys, values)), mask=mask)))


@pytest.mark.parametrize("heads", cases.HEADS)
@pytest.mark.parametrize("boundaries", Boundaries)
def test_attend_is_the_oracle(heads, boundaries):
    """Agrees in values, and in gradients by autodiff."""
    arguments, upstream, mask, want = local_problem(heads, boundaries)
    got = cases.value_and_gradients(lambda q, k, v: attention(q, k, v, mask=mask), arguments, upstream)
    cases.assert_close(got, want, NAMES)


@pytest.mark.parametrize("heads", cases.HEADS)
def test_attend_gradients_is_the_oracle(heads):
    """Agrees by the formula too, given the output's gradient."""
    arguments, upstream, mask, want = local_problem(heads, Boundaries.MASKED)

    @jax.jit
    def found(queries, keys, values, d_out):
        partial = softmax.attend(queries, keys, values, mask=mask)
        out = softmax.normalise(partial)
        given = softmax.normalise_gradients(out, partial.peak, partial.total, d_out)
        return softmax.attend_gradients(queries, keys, values, given, mask=mask)

    got = found(*map(heads_first, cases.to_float32(*arguments, upstream)))
    cases.assert_close([heads_first(x) for x in got], want[1:], NAMES[1:])


def test_attend_survives_scores_in_the_hundreds():
    """Neither overflows nor vanishes."""
    arguments, upstream, mask, want = local_problem("grouped", Boundaries.MASKED, scale=300.0)
    got = cases.value_and_gradients(lambda q, k, v: attention(q, k, v, mask=mask), arguments, upstream)
    assert all(np.isfinite(value).all() for value in got)
    # float32 scores of hundreds carry 1e-4 into exp; gradients of a saturated softmax are differences of equals
    cases.assert_close([got[0], got[3]], [want[0], want[3]], ("output", "d values"), tolerance=1e-3)


@pytest.mark.parametrize("boundaries", Boundaries)
def test_merge_of_any_split_is_one_softmax(boundaries):
    """Merges keys in any order; parts with no key are neutral."""
    arguments, upstream, mask, want = local_problem("grouped", boundaries)

    def op(*arrays):
        queries, keys, values = map(heads_first, arrays)
        merged = softmax.empty_partial(queries)
        for part in (slice(3, 5), slice(0, 1), slice(1, 3)):
            partial = softmax.attend(queries, keys[:, :, part], values[:, :, part], mask=mask[..., part])
            merged = softmax.merge(partial, merged)
        return heads_first(softmax.normalise(softmax.merge(merged, softmax.empty_partial(queries))))

    cases.assert_close(cases.value_and_gradients(op, arguments, upstream), want, NAMES)


def test_add_key_by_key_is_one_softmax():
    """Adds one key at a time, in any order."""
    arguments, upstream, mask, want = local_problem("grouped", Boundaries.MASKED)

    def op(*arrays):
        queries, keys, values = map(heads_first, arrays)
        partial = softmax.empty_partial(queries)
        for s in (2, 0, 4, 1, 3):
            one = slice(s, s + 1)
            partial = softmax.add(partial, queries, keys[:, :, one], values[:, :, one], mask=mask[..., one])
        return heads_first(softmax.normalise(partial))

    cases.assert_close(cases.value_and_gradients(op, arguments, upstream), want, NAMES)


def test_query_that_sees_nothing_gives_zero():
    """And moves nothing: all gradients are zero."""
    arguments, upstream, _, _ = local_problem("grouped", Boundaries.MASKED)
    mask = jnp.zeros((1, 5, 5), bool)
    got = cases.value_and_gradients(lambda q, k, v: attention(q, k, v, mask=mask), arguments, upstream)
    for name, value in zip(NAMES, got, strict=True):
        assert not value.any(), name


def test_attend_sums_bfloat16_in_float32():
    """Keeps float32 partials of bfloat16 inputs."""
    arguments, _, mask, want = local_problem("grouped", Boundaries.JOINED)
    low = [heads_first(jnp.asarray(a, jnp.bfloat16)) for a in arguments]
    partial = softmax.attend(*low, mask=mask)
    assert {leaf.dtype for leaf in jax.tree.leaves(partial)} == {jnp.dtype(jnp.float32)}
    assert oracles.relative_error(heads_first(softmax.normalise(partial)), want[0]) < 2e-2
