"""Attention by the kernels as one function, interpreted, against the float64 oracle of one softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from fot_jax.config import Boundaries
from fot_jax.ops.joint_kernels import joint_attention
from fot_jax.sharding import spec
from tests import cases, oracles
from tests.ops.kernel_cases import GPU, TPU, on
from tests.scale.ring_cases import in_mesh, interpret_kernels, mesh_of, problem, segments_of

ROWS, BLOCK, STRETCH = 8, 2, 1.25
NAMES = ("output", "d queries", "d keys", "d far keys", "d values")
LAYOUT = spec("batch", "length", "heads", "head_dim")


def arrays() -> list[np.ndarray]:
    """Queries, keys, far keys, values and the gradient of the output; four heads over two."""
    q, k = (ROWS, 6, 4, 6), (ROWS, 6, 2, 6)
    return cases.arrays(1, q, k, k, k, q)


def found(mesh_sizes: dict[str, int], boundaries: Boundaries, *, reads=True, stopped=False, planned=True):
    """Values and gradients on a mesh, as a memory layer of a scanned stack computes them (reads is traced)."""
    mesh = mesh_of(**mesh_sizes)
    devices = mesh_sizes.get("data", 1) * mesh_sizes.get("fsdp", 1)
    case = problem("packed", rows=ROWS, devices=devices)
    route = case.route if devices * mesh_sizes.get("context", 1) > 1 else None
    plan = jax.tree.map(jnp.asarray, case.plan).replace(route=route) if planned else None

    def run(reads, stretch, queries, keys, far_keys, values, upstream):
        def op(queries, keys, far_keys, values):
            return joint_attention(
                queries, keys, far_keys, values, plan,
                reads=reads, stretch=stretch, segments=jnp.asarray(segments_of(ROWS)), boundaries=boundaries,
                block=BLOCK, layout=LAYOUT, stopped=stopped,
            )  # fmt: skip

        out, pullback = jax.vjp(op, queries, keys, far_keys, values)
        return out, *pullback(upstream)

    given = [jax.device_put(x, NamedSharding(mesh, LAYOUT)) for x in cases.to_float32(*arrays())]
    return case, jax.jit(in_mesh(run, mesh))(jnp.asarray(reads), jnp.float32(STRETCH), *given)


def expected(case, boundaries: Boundaries, *, stopped=False) -> list[np.ndarray]:
    """The oracle's, of everything there is to read; stopped: without the gradients of what contexts hold."""
    queries, keys, far_keys, values, upstream = arrays()
    sources = {"local": (queries, keys, values), "context": (queries * STRETCH, far_keys, values)}
    segments, plan = segments_of(ROWS), case.plan
    visible = oracles.union(
        oracles.local_visible(segments, boundaries=boundaries.value),
        oracles.context_visible(segments, plan.context_ids, plan.own_document, boundaries=boundaries.value),
    )
    local, far = oracles.attend_gradients(sources, visible, upstream).values()
    out = oracles.attend(sources, visible)
    flow = 0.0 if stopped else 1.0
    return [out, local[0] + STRETCH * far[0], local[1], flow * far[1], local[2] + flow * far[2]]


@pytest.fixture(autouse=True, params=[TPU, pytest.param(GPU, marks=pytest.mark.slow)], ids=["tpu", "gpu"])
def _interpreted(request, monkeypatch):
    """Every kernel of the chip runs on the CPU, on blocks of five queries."""
    interpret_kernels(monkeypatch, query_block=5)
    with on(request.param):
        yield


@pytest.mark.parametrize(
    ("mesh", "boundaries"),
    [
        ({}, Boundaries.MASKED),
        ({"tensor": 2}, Boundaries.JOINED),
        ({"data": 2, "fsdp": 2, "tensor": 2}, Boundaries.MASKED),
        pytest.param({"data": 2, "context": 2, "tensor": 2}, Boundaries.JOINED, marks=pytest.mark.slow),
        pytest.param({"context": 2}, Boundaries.MASKED, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_joint_attention_is_the_oracle_in_values_and_all_gradients(mesh, boundaries):
    case, got = found(mesh, boundaries)
    cases.assert_close(got, expected(case, boundaries), NAMES)


def test_without_contexts_and_with_contexts_that_get_no_gradient():
    """A layer that reads none is one without a plan."""
    _, alone = found({}, Boundaries.MASKED, planned=False)
    _, unread = found({}, Boundaries.MASKED, reads=False)
    cases.assert_close(unread, [np.asarray(x) for x in alone], NAMES)
    assert not np.asarray(unread[3]).any()
    case, stopped = found({}, Boundaries.MASKED, stopped=True)
    cases.assert_close(stopped, expected(case, Boundaries.MASKED, stopped=True), NAMES)
