"""The kernels outside the ring, interpreted, where rows, heads and positions lie over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from fot_jax.config import AttentionForm, Boundaries
from fot_jax.ops import attention, crossbatch
from fot_jax.ops.kernels_on_mesh import contexts_on_mesh, local_on_mesh
from fot_jax.sharding import spec
from tests import cases, oracles
from tests.ops.kernel_cases import GPU, TPU, on
from tests.scale.ring_cases import NAMES, arrays, in_mesh, interpret_kernels, mesh_of, problem, segments_of

ROWS = 8
LAYOUT = spec("batch", "length", "heads", "head_dim")
BLOCK = 2


@pytest.fixture(autouse=True, params=[TPU, pytest.param(GPU, marks=pytest.mark.slow)], ids=["tpu", "gpu"])
def _interpreted(request, monkeypatch):
    """Every kernel of the chip runs on the CPU, on blocks of two queries."""
    interpret_kernels(monkeypatch, query_block=2)
    with on(request.param):
        yield


def on_mesh(op, mesh) -> list[np.ndarray]:
    """Normalised values and gradients of `op` with the arrays over the mesh."""

    def run(queries, keys, values, upstream):
        out, pullback = jax.vjp(lambda *x: attention.normalise(op(*x)), queries, keys, values)
        return out, *pullback(upstream)

    given = [jax.device_put(x, NamedSharding(mesh, LAYOUT)) for x in cases.to_float32(*arrays(ROWS))]
    return [np.asarray(x) for x in jax.jit(in_mesh(run, mesh))(*given)]


def check(got, name, visible):
    """Against the float64 oracle of what `visible` calls `name`."""
    *arguments, upstream = arrays(ROWS)
    sources = {name: tuple(arguments)}
    want = [oracles.attend(sources, visible), *oracles.attend_gradients(sources, visible, upstream)[name]]
    cases.assert_close(got, want, NAMES)


@pytest.mark.parametrize("boundaries", Boundaries)
@pytest.mark.parametrize(
    "mesh", [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 2, "context": 2, "tensor": 2}, {"context": 3}], ids=str
)
def test_local_attention_is_the_oracle_in_values_and_gradients(mesh, boundaries):
    """Positions over three devices too: each sees its own piece causally, and those before it."""
    options = {"segments": jnp.asarray(segments_of(ROWS)), "boundaries": boundaries, "layout": LAYOUT}
    got = on_mesh(functools.partial(local_on_mesh, **options, block=BLOCK), mesh_of(**mesh))
    check(got, "local", oracles.local_visible(segments_of(ROWS), boundaries=boundaries.value))


@pytest.mark.parametrize("mesh", [{"tensor": 2}, {"data": 2, "tensor": 2}], ids=str)
def test_contexts_without_a_route_are_the_oracle(mesh):
    """Heads are split; rows that are split after all are brought together."""
    case = problem("packed", rows=ROWS, devices=1)
    options = {"segments": jnp.asarray(segments_of(ROWS)), "boundaries": Boundaries.MASKED, "layout": LAYOUT}
    plan = jax.tree.map(jnp.asarray, case.plan).replace(route=None)

    def op(queries, keys, values):
        return contexts_on_mesh(queries, keys, values, plan, **options, block=BLOCK)

    visible = oracles.context_visible(
        segments_of(ROWS), case.plan.context_ids, case.plan.own_document, boundaries="masked"
    )
    check(on_mesh(op, mesh_of(**mesh)), "context", visible)


def test_kernels_in_a_mesh_need_the_layout():
    queries, keys, values, _ = cases.to_float32(*arrays(ROWS))
    options = {"segments": jnp.asarray(segments_of(ROWS)), "boundaries": Boundaries.MASKED, "block": BLOCK}

    def op(queries, keys, values):
        return crossbatch.local_partial(queries, keys, values, form=AttentionForm.PALLAS, **options)

    with pytest.raises(ValueError, match=r"form 'pallas' in a mesh of several devices needs `layout`"):
        jax.eval_shape(in_mesh(op, mesh_of(data=2)), queries, keys, values)
