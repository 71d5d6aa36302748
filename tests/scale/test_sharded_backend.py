"""Any backend inside `Sharded`, where rows, heads and positions are split over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from fot_jax.config import AttentionBackend, Boundaries
from fot_jax.ops.backends import Backend, ContextsAlone
from fot_jax.ops.backends.choose import choose
from fot_jax.ops.backends.cpu import Cpu
from fot_jax.ops.backends.pallas import Pallas
from fot_jax.ops.backends.reference import Reference
from fot_jax.ops.backends.sharded import Sharded
from fot_jax.ops.backends.xla import Xla
from fot_jax.ops.crossbatch import crossbatch_attention
from fot_jax.ops.distributed.ring import Ring
from fot_jax.types import Plan
from tests import cases, oracles
from tests.scale.ring_cases import ARRAYS, LAYOUT, NAMES, arrays, chosen, in_mesh, mesh_of, problem, segments_of, slowly

ROWS = 8
OPTIONS = {"boundaries": Boundaries.MASKED, "block": 2}


def sharded(name: AttentionBackend, boundaries: Boundaries) -> Sharded:
    """The backend of one device inside `Sharded`, on blocks of two keys and two queries."""
    inside = chosen(name, boundaries=boundaries, block=2, query_block=2)
    return Sharded(backend=inside, layout=LAYOUT)


def on_mesh(backend: Backend, plan: Plan | None, mesh) -> list[np.ndarray]:
    """Values and gradients with the arrays over the mesh."""

    def run(queries, keys, values, upstream):
        def op(queries, keys, values):
            segments = jnp.asarray(segments_of(ROWS))
            return crossbatch_attention(queries, keys, keys, values, plan, segments=segments, backend=backend)

        out, pullback = jax.vjp(op, queries, keys, values)
        return out, *pullback(upstream)

    given = [jax.device_put(x, NamedSharding(mesh, ARRAYS)) for x in cases.to_float32(*arrays(ROWS))]
    return [np.asarray(x) for x in jax.jit(in_mesh(run, mesh))(*given)]


def check(got, name, visible):
    """Against the float64 oracle of what `visible` calls `name`."""
    *arguments, upstream = arrays(ROWS)
    sources = {name: tuple(arguments)}
    want = [oracles.attend(sources, visible), *oracles.attend_gradients(sources, visible, upstream)[name]]
    cases.assert_close(got, want, NAMES)


MESHES = [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 2, "context": 2, "tensor": 2}, {"context": 3}]


def check_local(mesh, boundaries, backend):
    got = on_mesh(sharded(backend, boundaries), None, mesh_of(**mesh))
    check(got, "local", oracles.local_visible(segments_of(ROWS), boundaries=boundaries.value))


@pytest.mark.parametrize("boundaries", Boundaries)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_sharded_local_is_the_oracle(mesh, boundaries, plain_backend):
    """Compares values and gradients; positions over three devices too: each sees its own piece and those before it."""
    check_local(mesh, boundaries, plain_backend)


@pytest.mark.parametrize(
    ("mesh", "boundaries"),
    [
        (MESHES[1], Boundaries.MASKED),
        (MESHES[2], Boundaries.JOINED),
        *slowly((MESHES[0], Boundaries.MASKED), (MESHES[0], Boundaries.JOINED)),
        *slowly((MESHES[1], Boundaries.JOINED), (MESHES[2], Boundaries.MASKED)),
    ],
    ids=str,
)
def test_sharded_local_by_kernels_is_the_oracle(mesh, boundaries, kernels):
    """Compares values and gradients of kernels that see their own piece of the positions and those before it."""
    check_local(mesh, boundaries, kernels)


@pytest.mark.parametrize("mesh", [{"tensor": 2}, {"data": 2, "tensor": 2}], ids=str)
def test_sharded_contexts_are_the_oracle(mesh, backend):
    """Compares values and gradients without a ring: heads are split, and rows that are split are brought together."""
    plan = problem("packed", rows=ROWS, devices=1).plan
    contexts = ContextsAlone(sharded(backend, Boundaries.MASKED))
    visible = oracles.context_visible(segments_of(ROWS), plan.context_ids, plan.own_document, boundaries="masked")
    check(on_mesh(contexts, plan.replace(ring=None), mesh_of(**mesh)), "context", visible)


def test_choose_shards_kernels_where_arrays_are_split():
    """Leaves other backends to XLA there; what attends to rows that travel is always the backend of one device."""
    reference, cpu, xla = Reference(boundaries=Boundaries.MASKED), Cpu(**OPTIONS), Xla(**OPTIONS)
    pallas = Pallas(**OPTIONS)
    apart = Sharded(backend=pallas, layout=LAYOUT)
    whole = {"reference": reference, "blockwise": cpu, "auto": cpu, "pallas": pallas}
    split = {"reference": reference, "blockwise": xla, "auto": xla, "pallas": apart}
    ring = problem("packed", rows=ROWS, devices=2).ring
    for name in AttentionBackend:
        inside, outside = whole[name.value], split[name.value]
        for mesh, expected in ((mesh_of(), inside), (mesh_of(data=2), outside)):
            assert in_mesh(lambda name=name: choose(name, **OPTIONS, layout=LAYOUT), mesh)() == expected
        travelling = in_mesh(lambda name=name: choose(name, **OPTIONS, layout=LAYOUT, ring=ring), mesh_of(data=2))()
        assert travelling == Ring(own=outside, inside=inside, schedule=ring)


def test_choose_wants_the_layout_for_kernels_in_a_mesh():
    """Refuses kernels whose arrays may be split in a way that nobody named."""
    with pytest.raises(ValueError, match=r"backend 'pallas' in a mesh of several devices needs `layout`"):
        in_mesh(lambda: choose(AttentionBackend.PALLAS, **OPTIONS), mesh_of(data=2))()
