"""The ring against the float64 oracle of equation 2, on meshes; what it sends and what it keeps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fot_jax.config import AttentionForm, Boundaries
from fot_jax.types import Plan
from tests import cases, jaxprs, oracles
from tests.scale import ring_cases
from tests.scale.ring_cases import VARIANTS, mesh_of, problem

MASKED, JOINED = Boundaries

QUICK = [  # variant, mesh, boundaries; 8 rows, so that d is larger than the rows of a device in each
    ("packed", {"data": 4}, MASKED),
    ("two pass", {"data": 2, "fsdp": 2, "tensor": 2}, JOINED),
    ("range", {"data": 8}, MASKED),
    ("own past", {"data": 2, "context": 2, "tensor": 2}, JOINED),
]
MESHES = [{"data": 2}, {"fsdp": 4}, {"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 4, "context": 2}]


def check(variant, mesh, boundaries, *, block=4, form=AttentionForm.BLOCKWISE):
    devices = mesh.get("data", 1) * mesh.get("fsdp", 1)
    case = problem(variant, rows=8, devices=devices)
    got = ring_cases.on_devices(case, mesh_of(**mesh), boundaries=boundaries, block=block, form=form)
    cases.assert_close(got, ring_cases.expected(case, boundaries=boundaries), ring_cases.NAMES)


@pytest.mark.parametrize(("variant", "mesh", "boundaries"), QUICK)
def test_ring_is_the_oracle_in_values_and_gradients(variant, mesh, boundaries):
    check(variant, mesh, boundaries)


@pytest.mark.parametrize(("variant", "mesh", "boundaries"), QUICK)
def test_ring_of_kernels_is_the_oracle_in_values_and_gradients(variant, mesh, boundaries):
    """Pieces of rows that blocks of 4 keys and 5 queries do not divide; interpreted."""
    check(variant, mesh, boundaries, form=AttentionForm.PALLAS)


@pytest.mark.slow
@pytest.mark.parametrize("form", [AttentionForm.BLOCKWISE, AttentionForm.PALLAS])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_plan_on_every_mesh_is_the_oracle(variant, mesh, form):
    for boundaries in Boundaries:
        check(variant, mesh, boundaries, block=6, form=form)


def test_gradients_that_go_home_in_bfloat16_are_rounded_once():
    """Eight rows over four devices, two hops: as near to float64 as one device's, and within bfloat16's spacing."""
    errors = {}
    for name, devices in (("ring", 4), ("one device", 1)):
        case = problem("packed", rows=8, devices=devices)
        if devices == 1:
            case = dataclasses.replace(case, route=None)
        got = ring_cases.on_devices(case, mesh_of(data=devices), boundaries=MASKED, dtype=jnp.bfloat16)
        want = ring_cases.expected(case, boundaries=MASKED, dtype=jnp.bfloat16)
        errors[name] = [oracles.relative_error(g, w) for g, w in zip(got, want, strict=True)]
    for ours, theirs in zip(errors["ring"], errors["one device"], strict=True):
        assert ours <= max(1.5 * theirs, 2.0**-9) and ours < 2.0**-7, errors


def traced(variant: str, devices: int, d: int, *, rows=128, length=7, dtype=jnp.float32, remat=False):
    """The gradient's program on a mesh of any size; nothing is compiled."""
    case = problem(variant, rows=rows, devices=devices, d=d)
    given = [jax.ShapeDtypeStruct(x.shape, dtype) for x in ring_cases.arrays(rows, length=length, dim=4)]
    given[3] = jax.ShapeDtypeStruct(given[3].shape, jnp.float32)  # as the output
    ids, own = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (case.plan.context_ids, case.plan.own_document))

    def run(ids, own, segments, *arguments):
        plan = Plan(context_ids=ids, own_document=own, route=case.route)
        return ring_cases.gradient(plan, segments, boundaries=MASKED, block=4, remat=remat)(*arguments)

    segments = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    return jax.make_jaxpr(ring_cases.in_mesh(run, ring_cases.abstract_mesh(devices)))(ids, own, segments, *given)


def bytes_sent(jaxpr) -> int:
    """What a device gives to collective-permutes, each as often as its scan runs; no other collective may be there."""
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name = equation.primitive.name
        assert name not in ("all_gather", "all_to_all", "psum", "psum_invariant", "reduce_scatter"), name
        if name == "ppermute":
            total += sum(v.aval.size * v.aval.dtype.itemsize for v in equation.outvars)
        inner = [p for ps in equation.params.values() for p in (ps if isinstance(ps, tuple | list) else (ps,))]
        times = equation.params["length"] if name == "scan" else 1
        total += times * sum(bytes_sent(p) for p in inner if hasattr(p, "eqns") or hasattr(p, "jaxpr"))
    return total


def test_bytes_grow_with_d_and_not_with_devices_golden(golden):
    """128 rows: bytes that one device sends, forward and backward, by variant, d and number of devices."""
    table = {}
    for variant in ("packed", "two pass"):
        for d in (2, 4, 16):
            counts = {str(n): bytes_sent(traced(variant, n, d)) for n in (2, 8, 32)}
            table[f"{variant}, d = {d}"] = counts
            assert len(set(counts.values())) == 1, counts
    one = table["packed, d = 2"]["2"]  # one row forward and back, its gradients home: 2 · (k + v + segments) + dk + dv
    assert one == 7 * (2 * (2 * 2 * 4 * 4 + 4) + 2 * 2 * 4 * 4)
    assert table["packed, d = 16"]["8"] == 15 * one
    halved = bytes_sent(traced("packed", 8, 2, dtype=jnp.bfloat16))  # all but the segments
    assert halved == 7 * (2 * (2 * 2 * 4 * 2 + 4) + 2 * 2 * 4 * 2)
    golden("ring_bytes", table)


@pytest.mark.parametrize("remat", [False, True])
def test_nothing_is_kept_per_hop(remat):
    """The largest array of the whole gradient is as large with 2 hops as with 8."""
    largest = {}
    for d in (4, 16):
        jaxpr = traced("packed", 64, d, remat=remat)
        largest[d] = max(ring_cases.size_of(shape) for shape in jaxprs.shapes(jaxpr) if shape[:1] != (128,))
        assert ring_cases.problem("packed", rows=128, devices=64, d=d).route.hops == d // 2
    assert largest[4] == largest[16]


@pytest.mark.slow
def test_temporary_memory_does_not_grow_with_hops():
    """On 8 devices: seven hops of whole blocks (d = 32) need at most 1.15 times the memory of two hops (d = 8).

    A leg has buffers of its own, a hop has none: d = 16, three hops of whole blocks and one of three rows, needs more.
    """
    sizes, mesh = {}, mesh_of(data=8)
    place = NamedSharding(mesh, PartitionSpec("data"))
    for d, hops in ((8, 2), (32, 7)):
        case = problem("packed", rows=32, devices=8, d=d)
        assert case.route.hops == hops
        given = [jax.device_put(x, place) for x in cases.to_float32(*ring_cases.arrays(32, length=64, dim=16))]
        plan = jax.tree.map(jnp.asarray, case.plan).replace(route=case.route)
        segments = jnp.asarray(ring_cases.segments_of(32, 64))
        run = ring_cases.gradient(plan, segments, boundaries=MASKED, block=32)
        compiled = jax.jit(ring_cases.in_mesh(run, mesh)).lower(*given).compile()
        sizes[d] = compiled.memory_analysis().temp_size_in_bytes
    assert sizes[32] <= 1.15 * sizes[8], sizes


def test_a_plan_beyond_its_route_is_nan_and_never_wrong():
    """The route of d = 2 with the plan of d = 4: rows whose slots are not reached are NaN, the others right."""
    near, far = (problem("packed", rows=8, devices=4, d=d) for d in (2, 4))
    mixed = ring_cases.Problem(plan=far.plan, route=near.route)
    got = ring_cases.on_devices(mixed, mesh_of(data=4), boundaries=MASKED)[0]
    want = ring_cases.expected(far, boundaries=MASKED)[0]
    lost = np.isnan(got).any(axis=(1, 2, 3))
    assert lost.any() and not lost.all()
    cases.assert_close([got[~lost]], [want[~lost]], ["output"])
