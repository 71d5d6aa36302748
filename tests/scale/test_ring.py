"""The ring against the float64 oracle of equation 2, on meshes; what it sends and what it keeps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fot_jax.config import AttentionBackend, Boundaries
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


def check(variant, mesh, boundaries, *, block=4, backend=AttentionBackend.BLOCKWISE):
    """Compares values and gradients of the contexts with the oracle's; kernels are interpreted."""
    devices = mesh.get("data", 1) * mesh.get("fsdp", 1)
    case = problem(variant, rows=8, devices=devices)
    got = ring_cases.on_devices(case, mesh_of(**mesh), boundaries=boundaries, block=block, backend=backend)
    cases.assert_close(got, ring_cases.expected(case, boundaries=boundaries), ring_cases.NAMES)


@pytest.mark.parametrize(("variant", "mesh", "boundaries"), QUICK)
def test_ring_is_the_oracle(variant, mesh, boundaries, plain_backend):
    """Compares values and gradients; blocks of 4 keys and 5 queries do not divide the pieces of rows."""
    check(variant, mesh, boundaries, backend=plain_backend)


@pytest.mark.parametrize(("variant", "mesh", "boundaries"), [QUICK[0], QUICK[3], *ring_cases.slowly(*QUICK[1:3])])
def test_ring_of_kernels_is_the_oracle(variant, mesh, boundaries, kernels):
    """Compares values and gradients with kernels for the rows of each hop."""
    check(variant, mesh, boundaries, backend=kernels)


@pytest.mark.slow
@pytest.mark.parametrize("name", [AttentionBackend.BLOCKWISE, AttentionBackend.PALLAS])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_ring_of_every_plan_on_every_mesh_is_the_oracle(variant, mesh, name):
    """Compares values and gradients of all published plans."""
    for boundaries in Boundaries:
        check(variant, mesh, boundaries, block=6, backend=name)


def test_ring_rounds_bfloat16_gradients_once():
    """Compares two hops of eight rows over four devices with one device: as near to float64, and within a spacing."""
    errors = {}
    for name, devices in (("ring", 4), ("one device", 1)):
        case = problem("packed", rows=8, devices=devices)
        if devices == 1:
            case = dataclasses.replace(case, ring=None)
        got = ring_cases.on_devices(case, mesh_of(data=devices), boundaries=MASKED, dtype=jnp.bfloat16)
        want = ring_cases.expected(case, boundaries=MASKED, dtype=jnp.bfloat16)
        errors[name] = [oracles.relative_error(g, w) for g, w in zip(got, want, strict=True)]
    for ours, theirs in zip(errors["ring"], errors["one device"], strict=True):
        assert ours <= max(1.5 * theirs, 2.0**-9) and ours < 2.0**-7, errors


def traced(variant: str, devices: int, d: int, *, rows=128, length=7, dtype=jnp.float32, **options):
    """Traces the gradient on a mesh of any size; nothing is compiled. Options are those of `ring_cases.gradient`."""
    case = problem(variant, rows=rows, devices=devices, d=d)
    given = [jax.ShapeDtypeStruct(x.shape, dtype) for x in ring_cases.arrays(rows, length=length, dim=4)]
    ids, own = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (case.plan.context_ids, case.plan.own_document))

    def run(ids, own, segments, *arguments):
        plan = Plan(context_ids=ids, own_document=own, ring=case.ring)
        return ring_cases.gradient(plan, segments, boundaries=MASKED, block=4, **options)(*arguments)

    segments = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    return jax.make_jaxpr(ring_cases.in_mesh(run, ring_cases.abstract_mesh(devices)))(ids, own, segments, *given)


def bytes_sent_by(variant: str, devices: int, d: int, *, dtype=jnp.float32) -> int:
    """Bytes that one device sends, whatever backend attends to the rows that come: the one that is traced fastest."""
    return bytes_sent(traced(variant, devices, d, dtype=dtype, backend=AttentionBackend.REFERENCE))


def bytes_sent(jaxpr) -> int:
    """Bytes a device gives to collective-permutes, each as often as its scan runs; there is no other collective."""
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


def test_ring_bytes_grow_with_d_and_not_with_devices(golden):
    """Counts the bytes that one device of 128 rows sends, forward and backward, by variant, d and devices."""
    table = {}
    for variant in ("packed", "two pass"):
        for d in (2, 4, 16):
            counts = {str(n): bytes_sent_by(variant, n, d) for n in (2, 8, 32)}
            table[f"{variant}, d = {d}"] = counts
            assert len(set(counts.values())) == 1, counts
    one = table["packed, d = 2"]["2"]  # one row forward and back, its gradients home: 2 · (k + v + segments) + dk + dv
    assert one == 7 * (2 * (2 * 2 * 4 * 4 + 4) + 2 * 2 * 4 * 4)
    assert table["packed, d = 16"]["8"] == 15 * one
    halved = bytes_sent_by("packed", 8, 2, dtype=jnp.bfloat16)  # all but the segments
    assert halved == 7 * (2 * (2 * 2 * 4 * 2 + 4) + 2 * 2 * 4 * 2)
    golden("ring_bytes", table)


@pytest.mark.parametrize("remat", [False, True])
def test_ring_keeps_nothing_per_hop(remat):
    """Finds the largest array of the whole gradient as large with 2 hops as with 8."""
    largest = {}
    for d in (4, 16):
        jaxpr = traced("packed", 64, d, remat=remat)
        largest[d] = max(ring_cases.size_of(shape) for shape in jaxprs.shapes(jaxpr) if shape[:1] != (128,))
        assert ring_cases.problem("packed", rows=128, devices=64, d=d).ring.hops == d // 2
    assert largest[4] == largest[16]


@pytest.mark.slow
def test_ring_memory_does_not_grow_with_hops():
    """Gives a layer of seven hops of whole blocks (d = 32) at most 1.15 times the memory of two (d = 8), on 8 devices.

    A stage has buffers of its own, a hop has none: d = 16, three hops of whole blocks and one of three rows, needs
    more.
    """
    sizes, mesh = {}, mesh_of(data=8)
    place = NamedSharding(mesh, PartitionSpec("data"))
    for d, hops in ((8, 2), (32, 7)):
        case = problem("packed", rows=32, devices=8, d=d)
        assert case.ring.hops == hops
        given = [jax.device_put(x, place) for x in cases.to_float32(*ring_cases.arrays(32, length=64, dim=16))]
        segments = jnp.asarray(ring_cases.segments_of(32, 64))

        def run(reads, *given, plan=case.traced_plan, segments=segments):
            return ring_cases.gradient(plan, segments, boundaries=MASKED, block=32, layer_reads=reads)(*given)

        compiled = jax.jit(ring_cases.in_mesh(run, mesh)).lower(jnp.asarray(True), *given).compile()
        sizes[d] = compiled.memory_analysis().temp_size_in_bytes
    assert sizes[32] <= 1.15 * sizes[8], sizes


def test_ring_gives_nan_beyond_its_schedule():
    """Runs the schedule of d = 2 with the plan of d = 4: rows with slots out of reach are NaN, the others right."""
    near, far = (problem("packed", rows=8, devices=4, d=d) for d in (2, 4))
    mixed = ring_cases.Problem(plan=far.plan, ring=near.ring)
    got = ring_cases.on_devices(mixed, mesh_of(data=4), boundaries=MASKED)[0]
    want = ring_cases.expected(far, boundaries=MASKED)[0]
    lost = np.isnan(got).any(axis=(1, 2, 3))
    assert lost.any() and not lost.all()
    cases.assert_close([got[~lost]], [want[~lost]], ["output"])
