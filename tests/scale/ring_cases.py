"""Crossbatch problems on meshes: a plan, its ring schedule, and arrays split over devices."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from fot_jax.config import AttentionBackend, Boundaries, CrossbatchConfig, MeshConfig
from fot_jax.config.build import build
from fot_jax.ops.backends import Backend, ContextsAlone, choose
from fot_jax.ops.backends.pallas import Pallas
from fot_jax.ops.crossbatch import crossbatch_attention
from fot_jax.ops.distributed import ring_schedule
from fot_jax.ops.plans import make_plan
from fot_jax.sharding import MESH_AXES, make_mesh, spec
from fot_jax.types import Plan, RingSchedule
from tests import cases, oracles

BLOCKWISE = AttentionBackend.BLOCKWISE
NAMES = ("output", "d queries", "d keys", "d values")
AXES = {"axes": ("data", "fsdp"), "heads": "tensor", "length": "context"}
LAYOUT = spec("batch", "heads", "length", "head_dim")  # as backends take arrays
ARRAYS = spec("batch", "length", "heads", "head_dim")  # as the model does
LONGLLAMA = [[0, 0], [1, 1], [2, 1], [3, 0]]
VARIANTS = {  # every plan kind, twice where a parameter changes the reach: (crossbatch, d)
    "packed": ({"plan": "packed", "packing": 2}, 4),
    "packed w 2": ({"plan": "packed", "packing": 4, "previous_chunks": 2}, 6),
    "two pass": ({"plan": "two_pass"}, 3),
    "two pass w 3": ({"plan": "two_pass", "previous_chunks": 3}, 2),
    "segments": ({"plan": "segments", "packing": 4, "segments": LONGLLAMA}, 1),
    "range": ({"plan": "constant_range", "packing": 4}, 6),
    "range, no stepping": ({"plan": "constant_range", "packing": 4, "stepping": False}, 7),
    "own past": ({"plan": "own_past", "packing": 4, "previous_chunks": 3}, 1),
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """A plan of `rows` rows and its ring schedule on a number of devices; None: the rows do not travel."""

    plan: Plan
    ring: RingSchedule | None

    @property
    def rows(self) -> int:
        return len(self.plan.context_ids)

    @property
    def traced_plan(self) -> Plan:
        """The plan as programs take it."""
        return jax.tree.map(jnp.asarray, self.plan).replace(ring=self.ring)


def problem(variant: str, *, rows: int, devices: int, d: int = 0) -> Problem:
    """Plan and schedule of a variant; d = 0: the variant's own."""
    fields, own_d = VARIANTS[variant]
    config = build(CrossbatchConfig, fields)
    plan = make_plan(config, batch_rows=rows, num_contexts=d or own_d)
    order = ring_schedule.row_order(config, batch_rows=rows, shards=devices)
    columns = plan.context_ids.shape[1]
    ring = ring_schedule.make_schedule(config, batch_rows=rows, columns=columns, shards=devices, **AXES)
    return Problem(plan=ring_schedule.arrange(plan, order), ring=ring)


@contextlib.contextmanager
def interpreted_kernels(*, query_block: int) -> Iterator[None]:
    """Kernels that `choose` names inside run on any device, on blocks of `query_block` queries."""
    kernels = functools.partial(Pallas, query_block=query_block, interpret=True)
    with mock.patch.object(choose, "Pallas", kernels):
        yield


def chosen(name: AttentionBackend, *, query_block: int = 5, **options) -> Backend:
    """Returns what `choose` gives where it is called, kernels interpreted; options are those of `choose`."""
    with interpreted_kernels(query_block=query_block):
        return choose.choose(name, **options)


def mesh_of(data: int = 1, fsdp: int = 1, context: int = 1, tensor: int = 1) -> Mesh:
    """A mesh of the first devices."""
    config = MeshConfig(data=data, fsdp=fsdp, context=context, tensor=tensor)
    return make_mesh(config, jax.devices()[: data * fsdp * context * tensor])


def abstract_mesh(devices: int) -> AbstractMesh:
    """A mesh of any number of devices along data: enough to trace on."""
    return AbstractMesh((devices, 1, 1, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 4)


def operator(
    plan: Plan, segments, *, boundaries: Boundaries, block: int, backend: AttentionBackend = BLOCKWISE, layer_reads=None
):
    """Attention to the plan's contexts, a function of queries, keys and values.

    With `layer_reads`, traced, also to the own chunk, as in a layer of a scanned stack.
    """

    def op(queries, keys, values):
        found = chosen(backend, boundaries=boundaries, block=block, layout=LAYOUT, ring=plan.ring)
        options = {"backend": ContextsAlone(found)} if layer_reads is None else {"backend": found, "reads": layer_reads}
        return crossbatch_attention(queries, keys, keys, values, plan, segments=segments, **options)

    return op


def gradient(plan: Plan, segments, *, remat: bool = False, **options):
    """(queries, keys, values, upstream) -> (output, their gradients)."""
    op = operator(plan, segments, **options)
    op = jax.checkpoint(op) if remat else op

    def run(queries, keys, values, upstream):
        out, pullback = jax.vjp(op, queries, keys, values)
        return out, *pullback(upstream)

    return run


def in_mesh(function, mesh: Mesh | AbstractMesh):
    """`function` traced in a mesh."""

    def traced(*arguments):
        with jax.sharding.use_abstract_mesh(mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh):
            return function(*arguments)

    return traced


def arrays(rows: int, *, length: int = 6, heads: int = 4, groups: int = 2, dim: int = 6) -> list[np.ndarray]:
    """Queries, keys, values and the gradient of the output."""
    q, k = (rows, length, heads, dim), (rows, length, groups, dim)
    return cases.arrays(0, q, k, k, q)


def segments_of(rows: int, length: int = 6) -> np.ndarray:
    """Documents 1 to 3 with borders inside rows, met again in other rows, and padding (0)."""
    return np.random.default_rng(5).integers(0, 4, (rows, length)).astype(np.int32)


def on_devices(problem: Problem, mesh: Mesh, *, block: int = 4, dtype=jnp.float32, **options) -> list[np.ndarray]:
    """Values and gradients with the rows over the mesh; options as `operator`."""
    segments = segments_of(problem.rows)
    place = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "context"))
    given = [jax.device_put(x.astype(dtype), place) for x in cases.to_float32(*arrays(problem.rows))]
    run = gradient(problem.traced_plan, jnp.asarray(segments), block=block, **options)
    return [np.asarray(x) for x in jax.jit(in_mesh(run, mesh))(*given)]


def expected(problem: Problem, *, boundaries: Boundaries, dtype=jnp.float32) -> list[np.ndarray]:
    """The oracle's values and gradients, of inputs rounded to the dtype."""
    rounded = (np.asarray(x.astype(dtype), np.float64) for x in cases.to_float32(*arrays(problem.rows)))
    queries, keys, values, upstream = rounded
    sources = {"context": (queries, keys, values)}
    visible = oracles.context_visible(
        segments_of(problem.rows), problem.plan.context_ids, problem.plan.own_document, boundaries=boundaries.value
    )
    return [oracles.attend(sources, visible), *oracles.attend_gradients(sources, visible, upstream)["context"]]


def slowly(*cases: tuple) -> list:
    """Parameters of cases that run with the slow tests."""
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


def size_of(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
