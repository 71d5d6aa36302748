"""Equation (2) as memory layers compute it, by every backend on meshes, against the float64 oracle of one softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from fot_jax.config import AttentionBackend, Boundaries
from fot_jax.ops.crossbatch import crossbatch_attention
from tests import cases, oracles
from tests.scale.ring_cases import ARRAYS, LAYOUT, chosen, in_mesh, mesh_of, problem, segments_of, slowly

ROWS, YARN_FACTOR = 8, 1.25
NAMES = ("output", "d queries", "d keys", "d context keys", "d values")


def arrays() -> list[np.ndarray]:
    """Queries, keys, context keys, values and the gradient of the output; four heads over two."""
    q, k = (ROWS, 6, 4, 6), (ROWS, 6, 2, 6)
    return cases.arrays(1, q, k, k, k, q)


def posed(mesh: dict[str, int]):
    """The plan on such a mesh, with a ring where rows or positions are split."""
    devices = mesh.get("data", 1) * mesh.get("fsdp", 1)
    return problem("packed", rows=ROWS, devices=devices), devices * mesh.get("context", 1) > 1


def program(mesh_sizes: dict[str, int], boundaries: Boundaries, backend: AttentionBackend, *, stopped=False):
    """reads -> values and gradients on a mesh, as a memory layer of a scanned stack computes them (reads is traced)."""
    mesh, (case, travels) = mesh_of(**mesh_sizes), posed(mesh_sizes)
    ring = case.ring if travels else None
    plan = case.traced_plan.replace(ring=ring)

    @jax.jit
    def run(reads, yarn_factor, *given):
        def op(queries, keys, context_keys, values):
            return crossbatch_attention(
                queries, keys, context_keys, values, plan,
                segments=jnp.asarray(segments_of(ROWS)), reads=reads, yarn_factor=yarn_factor, stopped=stopped,
                backend=chosen(backend, boundaries=boundaries, block=2, layout=LAYOUT, ring=ring),
            )  # fmt: skip

        *inputs, upstream = given
        out, pullback = jax.vjp(op, *inputs)
        return out, *pullback(upstream)

    given = [jax.device_put(x, NamedSharding(mesh, ARRAYS)) for x in cases.to_float32(*arrays())]
    return lambda reads: in_mesh(run, mesh)(jnp.asarray(reads), jnp.float32(YARN_FACTOR), *given)


def expected(mesh: dict[str, int], boundaries: Boundaries, *, reads=True, stopped=False) -> list[np.ndarray]:
    """The oracle's; stopped: without the gradients of what contexts hold."""
    queries, keys, context_keys, values, upstream = arrays()
    sources = {"local": (queries, keys, values), "context": (queries * YARN_FACTOR, context_keys, values)}
    segments, plan = segments_of(ROWS), posed(mesh)[0].plan
    visible = oracles.local_visible(segments, boundaries=boundaries.value)
    if reads:
        ids, own = plan.context_ids, plan.own_document
        visible = oracles.union(visible, oracles.context_visible(segments, ids, own, boundaries=boundaries.value))
    local, context = oracles.attend_gradients(sources, visible, upstream).values()
    flow = 0.0 if stopped else 1.0
    dq, dv = local[0] + YARN_FACTOR * context[0], local[2] + flow * context[2]
    return [oracles.attend(sources, visible), dq, local[1], flow * context[1], dv]


CASES = [
    ({"data": 2, "fsdp": 2, "tensor": 2}, Boundaries.MASKED),
    ({}, Boundaries.MASKED),
    ({"tensor": 2}, Boundaries.JOINED),
    ({"data": 2, "context": 2, "tensor": 2}, Boundaries.JOINED),
    ({"context": 2}, Boundaries.MASKED),
]


def check(mesh, boundaries, backend):
    """Compares a layer that reads contexts and one that does not."""
    run = program(mesh, boundaries, backend)
    for reads in (True, False):
        cases.assert_close(run(reads), expected(mesh, boundaries, reads=reads), NAMES)


@pytest.mark.parametrize(("mesh", "boundaries"), [*CASES[:3], *slowly(*CASES[3:])], ids=str)
def test_crossbatch_on_a_mesh_is_the_oracle(mesh, boundaries, plain_backend):
    """Compares values and all gradients on one, two and eight devices."""
    check(mesh, boundaries, plain_backend)


@pytest.mark.parametrize(("mesh", "boundaries"), [CASES[0], *slowly(*CASES[1:])], ids=str)
def test_crossbatch_by_kernels_on_a_mesh_is_the_oracle(mesh, boundaries, kernels):
    """Compares values and all gradients with kernels in the ring and for the own chunk."""
    check(mesh, boundaries, kernels)


def test_crossbatch_stopped_gives_contexts_no_gradient(backend):
    """Compares with the oracle: queries keep what contexts give them, the contexts' own keys and values get nothing."""
    got = program({"data": 2}, Boundaries.MASKED, backend, stopped=True)(True)
    assert not np.asarray(got[3]).any()
    cases.assert_close(got, expected({"data": 2}, Boundaries.MASKED, stopped=True), NAMES)
