"""Local attention and contexts as one differentiable function, against the float64 oracle of one softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import AttentionForm, Boundaries
from fot_jax.ops import crossbatch
from fot_jax.ops.joint_blocks import joined
from fot_jax.types import Partial
from tests import cases, oracles

NAMES = ("output", "d turned queries", "d queries", "d turned keys", "d keys", "d values")
BLOCK = 2


def found(case: cases.Case, boundaries: Boundaries, *, reads=True, stopped=False, dtype=jnp.float32):
    """Values and gradients, as a memory layer of a scanned stack computes them (reads is traced)."""

    def op(turned_queries, queries, turned_keys, keys, values, reads):
        options = {"segments": jnp.asarray(case.segments), "boundaries": boundaries, "block": BLOCK}
        form = AttentionForm.REFERENCE
        local = crossbatch.local_partial(turned_queries, turned_keys, values, form=form, **options)
        plan = jax.tree.map(jnp.asarray, case.plan)
        return joined(local, queries, keys, values, plan, reads=reads > 0, stopped=stopped, **options)

    arguments = case.turned_queries, case.queries, case.turned_keys, case.keys, case.values, np.float64(reads)
    out, pullback = jax.vjp(jax.jit(op), *(jnp.asarray(x, dtype) for x in arguments))
    return [np.asarray(x) for x in (out, *pullback(jnp.asarray(case.upstream, out.dtype))[:-1])]


def expected(case: cases.Case, boundaries: Boundaries, *, reads=True, stopped=False) -> list[np.ndarray]:
    """The oracle's; stopped: without the gradients of what contexts hold."""
    sources = {
        "local": (case.turned_queries, case.turned_keys, case.values),
        "context": (case.queries, case.keys, case.values),
    }
    plan = case.plan
    visible = oracles.local_visible(case.segments, boundaries=boundaries.value)
    if reads:
        far = oracles.context_visible(case.segments, plan.context_ids, plan.own_document, boundaries=boundaries.value)
        visible = oracles.union(visible, far)
    near, far = oracles.attend_gradients(sources, visible, case.upstream).values()
    flow = 0.0 if stopped else 1.0
    return [oracles.attend(sources, visible), near[0], far[0], near[1], flow * far[1], near[2] + flow * far[2]]


@pytest.mark.parametrize("loop", cases.LOOPS)
@pytest.mark.parametrize("boundaries", Boundaries)
def test_joined_is_the_oracle_in_values_and_all_gradients(boundaries, loop, monkeypatch):
    cases.force_loop(monkeypatch, loop)
    case = cases.crossbatch_case()
    cases.assert_close(found(case, boundaries), expected(case, boundaries), NAMES)


def test_in_bfloat16_the_output_is_of_that_type_and_gradients_are_the_oracle_within_its_precision():
    case = cases.crossbatch_case()
    got = found(case, Boundaries.MASKED, dtype=jnp.bfloat16)
    assert all(x.dtype == jnp.bfloat16 for x in got)
    cases.assert_close(got, expected(case, Boundaries.MASKED), NAMES, tolerance=2**-6)


@pytest.mark.parametrize("settings", [{"reads": False}, {"stopped": True}], ids=str)
def test_layers_that_read_nothing_and_contexts_that_get_no_gradient(settings):
    case = cases.crossbatch_case()
    got = found(case, Boundaries.MASKED, **settings)
    cases.assert_close(got, expected(case, Boundaries.MASKED, **settings), NAMES)


def test_kept_for_the_backward_pass_are_the_inputs_the_output_and_three_numbers_a_query():
    """Of local attention its peaks alone: not its sums, nor those of the contexts."""
    case = cases.crossbatch_case()
    plan, segments = jax.tree.map(jnp.asarray, case.plan), jnp.asarray(case.segments)
    queries, keys, values = cases.to_float32(case.queries, case.keys, case.values)

    def op(weighted, total, queries, keys, values):
        local = Partial(weighted=weighted, peak=jnp.zeros_like(total), total=total)
        return joined(
            local, queries, keys, values, plan,
            reads=jnp.asarray(True), segments=segments, boundaries=Boundaries.MASKED, block=BLOCK, stopped=False,
        )  # fmt: skip

    pullback = jax.vjp(op, 2 * queries, jnp.ones(queries.shape[:-1]), queries, keys, values)[1]
    kept = sum(x.size for x in jax.tree.leaves(pullback) if x.dtype == jnp.float32)
    assert kept == 2 * queries.size + keys.size + values.size + 3 * queries[..., 0].size
