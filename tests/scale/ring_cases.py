"""Crossbatch problems on meshes: a plan, its route, and arrays laid over devices."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from fot_jax.config import AttentionForm, Boundaries, CrossbatchConfig, MeshConfig
from fot_jax.config.build import build
from fot_jax.ops import attention, crossbatch, pallas_attention, ring, routes
from fot_jax.ops.plans import make_plan
from fot_jax.sharding import MESH_AXES, make_mesh
from fot_jax.types import Plan, Route
from tests import cases, oracles

BLOCKWISE = AttentionForm.BLOCKWISE
NAMES = ("output", "d queries", "d keys", "d values")
AXES = {"axes": ("data", "fsdp"), "heads": "tensor", "length": "context"}
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
    """A plan of `rows` rows as it lies on `devices` devices."""

    plan: Plan
    route: Route

    @property
    def rows(self) -> int:
        return len(self.plan.context_ids)


def problem(variant: str, *, rows: int, devices: int, d: int = 0) -> Problem:
    """Plan and route of a variant; d = 0: the variant's own."""
    fields, own_d = VARIANTS[variant]
    config = build(CrossbatchConfig, fields)
    plan = make_plan(config, batch_rows=rows, num_contexts=d or own_d)
    order = routes.row_order(config, batch_rows=rows, shards=devices)
    columns = plan.context_ids.shape[1]
    route = routes.make_route(config, batch_rows=rows, columns=columns, shards=devices, **AXES)
    return Problem(plan=routes.arrange(plan, order), route=route)


def interpret_kernels(monkeypatch, *, query_block: int) -> None:
    """Until the test ends the Pallas kernels run on any backend, on blocks of so many queries."""
    real = pallas_attention.make_rule

    def make_rule(**fields):
        return real(**{**fields, "interpret": True, "query_block": query_block})

    monkeypatch.setattr(pallas_attention, "make_rule", make_rule)


def mesh_of(data: int = 1, fsdp: int = 1, context: int = 1, tensor: int = 1) -> Mesh:
    """A mesh of the first devices."""
    config = MeshConfig(data=data, fsdp=fsdp, context=context, tensor=tensor)
    return make_mesh(config, jax.devices()[: data * fsdp * context * tensor])


def abstract_mesh(devices: int) -> AbstractMesh:
    """A mesh of any number of devices along data: enough to trace on."""
    return AbstractMesh((devices, 1, 1, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 4)


def operator(plan: Plan, segments, *, boundaries: Boundaries, block: int, form: AttentionForm = BLOCKWISE):
    """crossbatch_partial, normalised, of queries, keys and values; of the kernels interpreted what it calls."""
    options = {"segments": segments, "boundaries": boundaries, "block": block}

    def op(queries, keys, values):
        if form is AttentionForm.PALLAS:
            partial = ring.ring_partial(
                queries, keys, values, plan, form=form, query_block=5, interpret=True, **options
            )
        else:
            partial = crossbatch.crossbatch_partial(queries, keys, values, plan, form=form, **options)
        return attention.normalise(partial)

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
    given[3] = given[3].astype(jnp.float32)  # the output is
    plan = jax.tree.map(jnp.asarray, problem.plan).replace(route=problem.route)
    run = gradient(plan, jnp.asarray(segments), block=block, **options)
    return [np.asarray(x) for x in jax.jit(in_mesh(run, mesh))(*given)]


def expected(problem: Problem, *, boundaries: Boundaries, dtype=jnp.float32) -> list[np.ndarray]:
    """The oracle's values and gradients, of inputs rounded to a dtype shorter than float32."""
    *inputs, upstream = arrays(problem.rows)
    rounds = dtype != jnp.float32
    queries, keys, values = (np.asarray(x.astype(dtype), np.float64) if rounds else x for x in inputs)
    sources = {"context": (queries, keys, values)}
    visible = oracles.context_visible(
        segments_of(problem.rows), problem.plan.context_ids, problem.plan.own_document, boundaries=boundaries.value
    )
    return [oracles.attend(sources, visible), *oracles.attend_gradients(sources, visible, upstream)["context"]]


def size_of(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
