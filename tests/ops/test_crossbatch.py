"""Crossbatch attention (eq. 2) by every backend of XLA against the oracle; its memory and its arrays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import Boundaries
from fot_jax.ops import crossbatch
from fot_jax.ops.backends import Backend, ContextsAlone, cpu
from fot_jax.ops.backends.cpu import Cpu
from fot_jax.ops.backends.reference import Reference
from fot_jax.ops.backends.xla import Loop, Xla
from fot_jax.types import Plan
from tests import cases, jaxprs, oracles

NAMES = cases.JOINT_NAMES
CONTEXT_NAMES = ("output", "d queries", "d context keys", "d values")


def backends(boundaries: Boundaries, *, block: int = 2) -> dict[str, Backend]:
    """One of each kind; PALLAS: tests/ops/test_pallas.py."""
    return {name: cases.backend_of(name, boundaries, block=block) for name in ("reference", "xla", "cpu")}


@pytest.fixture(autouse=True)
def _by_head(monkeypatch):
    """These problems are too small to be cut by head otherwise."""
    monkeypatch.setattr(cpu, "CACHE_BYTES", 0)
    cases.force_loop(monkeypatch, "cpu")


def joint(case: cases.Case, backend: Backend, *, reads=True, dtype=jnp.float32, **options):
    """Values and gradients, as a memory layer of a scanned stack computes them (`reads` is traced)."""

    def op(queries, keys, context_keys, values, reads):
        return crossbatch.crossbatch_attention(
            queries, keys, context_keys, values, case.plan,
            segments=jnp.asarray(case.segments), backend=backend, reads=reads > 0, **options,
        )  # fmt: skip

    arguments = case.queries, case.rotated_keys, case.keys, case.values, np.float64(reads)
    out, pullback = jax.vjp(jax.jit(op), *(jnp.asarray(x, dtype) for x in arguments))
    return [np.asarray(x) for x in (out, *pullback(jnp.asarray(case.upstream, out.dtype))[:-1])]


def contexts(case: cases.Case, backend: Backend):
    """Values and gradients of attention to the contexts alone."""

    def op(queries, context_keys, values):
        return crossbatch.crossbatch_attention(
            queries, jnp.zeros_like(context_keys), context_keys, values, case.plan,
            segments=jnp.asarray(case.segments), backend=ContextsAlone(backend),
        )  # fmt: skip

    return cases.value_and_gradients(op, (case.queries, case.keys, case.values), case.upstream)


def contexts_expected(case: cases.Case, boundaries: Boundaries) -> list[np.ndarray]:
    """The oracle's values and gradients of the contexts alone."""
    sources, plan = {"context": (case.queries, case.keys, case.values)}, case.plan
    visible = oracles.context_visible(case.segments, plan.context_ids, plan.own_document, boundaries=boundaries.value)
    gradients = oracles.attend_gradients(sources, visible, case.upstream)
    return [oracles.attend(sources, visible), *gradients["context"]]


@pytest.mark.parametrize("heads", cases.HEADS)
@pytest.mark.parametrize("boundaries", Boundaries)
@pytest.mark.parametrize("name", ["reference", "xla", "cpu"])
def test_joint_softmax_is_the_oracle(name, boundaries, heads):
    """Agrees in values and in all gradients."""
    case = cases.crossbatch_case(heads)
    got = joint(case, backends(boundaries)[name])
    cases.assert_close(got, cases.joint_expected(case, boundaries), NAMES)


@pytest.mark.parametrize("block", [1, 3, 5, 99])
@pytest.mark.parametrize("boundaries", Boundaries)
@pytest.mark.parametrize("name", ["xla", "cpu"])
def test_contexts_by_any_block_are_the_oracle(name, boundaries, block):
    """Agrees where blocks do not divide the row, and where one holds it whole."""
    case = cases.crossbatch_case("grouped" if block != 3 else "single")
    got = contexts(case, backends(boundaries, block=block)[name])
    cases.assert_close(got, contexts_expected(case, boundaries), CONTEXT_NAMES)


@pytest.mark.parametrize("name", ["reference", "xla", "cpu"])
@pytest.mark.parametrize("settings", [{"reads": False}, {"stopped": True}], ids=str)
def test_layers_without_contexts_or_their_gradient(name, settings):
    """Leaves the contexts out where the layer reads none, and their gradient where it is stopped."""
    case = cases.crossbatch_case()
    got = joint(case, backends(Boundaries.MASKED)[name], **settings)
    cases.assert_close(got, cases.joint_expected(case, Boundaries.MASKED, **settings), NAMES)


def test_yarn_factor_scales_queries_of_contexts():
    """Multiplies the scores of contexts alone, in values and gradients."""
    case = cases.crossbatch_case()
    got = joint(case, Reference(boundaries=Boundaries.MASKED), yarn_factor=jnp.float32(1.5))
    scaled = dataclasses.replace(case, keys=1.5 * case.keys)
    want = cases.joint_expected(scaled, Boundaries.MASKED)
    want[3] = 1.5 * want[3]
    cases.assert_close(got, want, NAMES)


@pytest.mark.parametrize("name", ["reference", "xla", "cpu"])
def test_bfloat16_stays_within_its_precision(name):
    """Gives outputs and gradients of that type."""
    case = cases.crossbatch_case()
    got = joint(case, backends(Boundaries.MASKED)[name], dtype=jnp.bfloat16)
    assert all(x.dtype == jnp.bfloat16 for x in got)
    cases.assert_close(got, cases.joint_expected(case, Boundaries.MASKED), NAMES, tolerance=2**-6)


def test_backward_keeps_inputs_output_and_two_numbers():
    """Keeps neither scores nor float32 sums: the output, once with a projection of it, a peak and a total."""
    case = cases.crossbatch_case()
    queries, keys, context_keys, values = cases.to_float32(case.queries, case.rotated_keys, case.keys, case.values)

    def op(*arrays):
        segments = jnp.asarray(case.segments)
        backend = Xla(boundaries=Boundaries.MASKED, block=2)
        out = crossbatch.crossbatch_attention(*arrays[:-1], case.plan, segments=segments, backend=backend)
        return jnp.einsum("BLHD,HDE->BLE", out, arrays[-1])

    weight = jnp.ones((*queries.shape[2:], 3))
    pullback = jax.vjp(op, queries, keys, context_keys, values, weight)[1]
    kept = sum(x.size for x in jax.tree.leaves(pullback) if x.dtype == jnp.float32)
    assert kept == 2 * queries.size + 3 * keys.size + 2 * queries[..., 0].size + weight.size


def tiled_case() -> cases.Case:
    """Rows of one document each that see up to 17 contexts whole, others in part or not at all, in mixed order.

    Row 0 reads rows 1 and 2 over and over, row 3 whole ones among padded, own and empty ones, row 4 nothing.
    """
    case = cases.crossbatch_case("grouped")
    segments = np.array([[1] * 5, [2] * 5, [3] * 5, [4] * 5, [5] * 5, [6, 6, 0, 0, 0]])
    ids = np.full((6, 18), -1, np.int32)
    ids[0, :17] = [1, 2, 1, 1, 2, 1, 1, 1, 2, 2, 2, 1, 2, 2, 2, 2, 1]
    ids[1, :14] = [0, 2, 3, 4, 0, 2, 3, 4, 0, 2, 3, 4, 5, 5]
    ids[2, 3:6] = [0, 1, 3]
    ids[3, 4:] = [5, 0, -1, 3, 1, 2, 5, 4, 3, -1, 0, 1, 2, 0]
    ids[5, ::2] = [0, 1, 2, 3, 4, 5, 0, 1, 2]
    own = ids == np.arange(6)[:, None]
    return dataclasses.replace(case, segments=segments, plan=Plan(context_ids=ids, own_document=own))


@pytest.mark.parametrize("boundaries", Boundaries)
@pytest.mark.parametrize(("block", "blocks"), [(99, 1), (99, 4), (99, 8), (2, 8)])
def test_tiles_of_several_contexts_are_the_oracle(block, blocks, boundaries, monkeypatch):
    """Tiles of four leave some contexts over, tiles of eight more; with blocks of two a row's last is padded."""
    monkeypatch.setattr(cpu, "TILE_BLOCKS", blocks)
    monkeypatch.setattr(cpu, "TILED_FROM_BYTES", 0)
    case = tiled_case()
    got = contexts(case, Cpu(boundaries=boundaries, block=block))
    cases.assert_close(got, contexts_expected(case, boundaries), CONTEXT_NAMES)


def test_tiles_of_large_blocks_are_the_reference():
    """Reads blocks long enough for tiles: row 0 has two tiles of four, three blocks more, one masked."""
    length, heads = 192, 1
    segments = np.repeat(np.array([[1], [2], [3]]), length, axis=1)
    segments[2, -7:] = 0
    ids = np.array([[1] * 4 + [2] + [1, 0, 1, 1, 1, 1, 1], [2, -1] * 6, [0, 0, 1, 0, 1, 1, 1, 0, 0, 1, 1, -1]])
    plan = Plan(context_ids=jnp.asarray(ids, jnp.int32), own_document=jnp.asarray(ids == np.arange(3)[:, None]))
    shape = (3, length, heads, 8)
    queries, keys, values, upstream = cases.arrays(3, *[shape] * 4)
    case = dataclasses.replace(
        cases.crossbatch_case(),
        queries=queries, keys=keys, values=values, upstream=upstream, segments=segments, plan=plan,
    )  # fmt: skip
    loop = Loop(boundaries=Boundaries.MASKED, block=length, local=False)
    order = cpu._order(loop, plan, jnp.asarray(segments), jnp.asarray(segments))
    assert (order.clear[0], order.seen[0], cpu._blocks_in_tile(loop, order, length)) == (11, 12, 4)
    found = backends(Boundaries.MASKED, block=999)
    cases.assert_close(contexts(case, found["cpu"]), contexts(case, found["reference"]), CONTEXT_NAMES)


@pytest.mark.parametrize("name", ["reference", "xla", "cpu"])
def test_plan_of_empty_slots_adds_exactly_nothing(name):
    """Gives zeros for the contexts alone, in values and gradients, and what no plan gives with the own chunk."""
    case = cases.crossbatch_case()
    empty = Plan(context_ids=np.full((6, 4), -1, np.int32), own_document=np.zeros((6, 4), bool))
    case, backend = dataclasses.replace(case, plan=empty), backends(Boundaries.JOINED)[name]
    for part, value in zip(CONTEXT_NAMES, contexts(case, backend), strict=True):
        assert not value.any(), part
    without = joint(dataclasses.replace(case, plan=None), backend)
    cases.assert_close(joint(case, backend)[:3], without[:3], NAMES[:3])


@pytest.mark.parametrize("name", ["reference", "xla", "cpu"])
def test_order_of_slots_and_empty_columns_change_nothing(name):
    """Sums over slots in any order."""
    case = cases.crossbatch_case()
    order = np.array([6, 2, 0, 5, 1, 4, 3])
    padded = Plan(
        context_ids=np.pad(case.plan.context_ids[:, order], ((0, 0), (0, 3)), constant_values=-1),
        own_document=np.pad(case.plan.own_document[:, order], ((0, 0), (0, 3))),
    )
    got = joint(dataclasses.replace(case, plan=padded), backends(Boundaries.MASKED)[name])
    cases.assert_close(got, cases.joint_expected(case, Boundaries.MASKED), NAMES)


@pytest.mark.parametrize("boundaries", Boundaries)
def test_log_masses_are_the_oracle(boundaries):
    """Measures each context's share before normalisation."""
    case = cases.crossbatch_case()
    plan = case.plan
    got = crossbatch.context_log_masses(
        *cases.to_float32(case.queries, case.keys), plan, segments=jnp.asarray(case.segments), boundaries=boundaries
    )
    want = oracles.log_masses(
        case.queries, case.keys, case.segments, plan.context_ids, plan.own_document, boundaries=boundaries.value
    )
    seen = np.isfinite(want)
    assert seen.any() and not seen.all()
    np.testing.assert_allclose(np.asarray(got)[seen], want[seen], rtol=1e-5, atol=1e-5)
    assert (np.asarray(got)[~seen] < -1e29).all()


def gradient_step(backend: Backend, slots: int, *, rows=8, length=64, heads=4, groups=2, dim=16):
    """(jitted value_and_grad over queries, keys and values of the joint softmax, its arguments)."""
    rng = np.random.default_rng(0)
    ids = np.stack([rng.integers(0, max(b, 1), slots) for b in range(rows)]).astype(np.int32)
    plan = Plan(context_ids=jnp.asarray(ids), own_document=jnp.asarray(rng.random(ids.shape) < 0.5))
    segments = jnp.asarray(np.arange(rows)[:, None] % 3 + np.ones((1, length), int))

    def loss(queries, keys, values, plan, segments):
        out = crossbatch.crossbatch_attention(queries, keys, keys, values, plan, segments=segments, backend=backend)
        return (out**2).sum()

    shapes = (rows, length, heads, dim), (rows, length, groups, dim), (rows, length, groups, dim)
    return jax.value_and_grad(loss, argnums=(0, 1, 2)), (*cases.to_float32(*cases.arrays(1, *shapes)), plan, segments)


def test_memory_by_blocks_does_not_grow_with_contexts():
    """64 contexts need at most 1.15 times the temporary memory of 2; the reference backend's grows with them."""
    found = {}
    for name, backend in backends(Boundaries.JOINED, block=32).items():
        for slots in (2, 64):
            step, arguments = gradient_step(backend, slots)
            analysis = jax.jit(step).lower(*arguments).compile().memory_analysis()
            found[name, slots] = analysis.temp_size_in_bytes
    for name in ("xla", "cpu"):
        assert found[name, 64] <= 1.15 * found[name, 2], found
        assert found[name, 64] < 0.1 * found["reference", 64], found
    assert found["reference", 64] > 8 * found["reference", 2], found


@pytest.mark.parametrize("block", [4, 11])
def test_blocks_never_hold_all_contexts_in_one_array(block):
    """Sizes are distinct primes: an array with axes C and S (or C·S) or as many numbers as B·C·S can be told."""
    sizes = {"rows": 5, "length": 11, "heads": 3, "groups": 3, "dim": 2}
    slots, rows, length = 67, sizes["rows"], sizes["length"]

    def offenders(backend: Backend) -> set[tuple[int, ...]]:
        step, arguments = gradient_step(backend, slots, **sizes)
        shapes = jaxprs.shapes(jax.make_jaxpr(step)(*arguments)) | jaxprs.compiled_shapes(step, arguments)
        return {
            shape for shape in shapes
            if slots * length in shape or {slots, length} <= set(shape) or np.prod(shape) >= rows * slots * length * 2
        }  # fmt: skip

    found = backends(Boundaries.JOINED, block=block)
    assert offenders(found["reference"]), "the check sees nothing in the backend that must show it"
    assert not offenders(found["xla"]) and not offenders(found["cpu"])
