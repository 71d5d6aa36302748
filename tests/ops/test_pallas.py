"""The Pallas kernels for TPUs and GPUs, interpreted, against the oracle and `Xla`; and lowered for a TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, PartitionSpec

from fot_jax.config import AttentionBackend, Boundaries
from fot_jax.ops.backends import choose
from fot_jax.ops.backends.pallas import Pallas
from fot_jax.ops.backends.xla import Xla
from fot_jax.ops.crossbatch import crossbatch_attention
from fot_jax.ops.target import Target
from fot_jax.types import Plan
from tests import cases, jaxprs, oracles
from tests.ops.kernel_cases import (
    BLOCK,
    GPU,
    KERNELS,
    LENGTH,
    PLANS,
    ROWS,
    SLOTS,
    TPU,
    compiled_contexts,
    contexts_and_gradients,
    inputs,
    on,
    padded,
    program_without_gathered_contexts,
    step_for_a_chip,
)  # fmt: skip

BLOCKS = Xla(boundaries=Boundaries.MASKED, block=BLOCK)
YARN_FACTOR = 1.25  # tells the queries of the contexts from those of the own chunk
BFLOAT16 = 2.0**-8  # relative spacing
CHIPS = pytest.mark.parametrize("chip", [TPU, GPU], ids=["tpu", "gpu"])


@pytest.mark.parametrize(
    ("chip", "heads", "boundaries", "block", "query_block", "head_dim"),
    [
        (TPU, "grouped", Boundaries.MASKED, 2, 3, 64),
        (TPU, "single", Boundaries.JOINED, 3, 2, 80),
        pytest.param(TPU, "equal", Boundaries.JOINED, 1, 5, 6, marks=pytest.mark.slow),
        pytest.param(TPU, "grouped", Boundaries.JOINED, 99, 2, 100, marks=pytest.mark.slow),
        pytest.param(TPU, "single", Boundaries.MASKED, 4, 1, 128, marks=pytest.mark.slow),
        pytest.param(TPU, "equal", Boundaries.MASKED, 5, 99, 80, marks=pytest.mark.slow),
        (GPU, "grouped", Boundaries.MASKED, 2, 4, 64),
        (GPU, "single", Boundaries.JOINED, 4, 2, 80),
        pytest.param(GPU, "equal", Boundaries.JOINED, 1, 8, 6, marks=pytest.mark.slow),
        pytest.param(GPU, "grouped", Boundaries.JOINED, 99, 2, 100, marks=pytest.mark.slow),
        pytest.param(GPU, "single", Boundaries.MASKED, 4, 1, 128, marks=pytest.mark.slow),
    ],
)
def test_joint_softmax_and_gradients_are_the_oracle(chip, heads, boundaries, block, query_block, head_dim):
    """Blocks that do not divide the row, padding, empty slots, a row read twice, a row that reads nothing."""
    case = cases.crossbatch_case(heads, head_dim=head_dim, scale=(6 / head_dim) ** 0.5)
    backend = Pallas(boundaries=boundaries, block=block, query_block=query_block, interpret=True)
    segments, factor = jnp.asarray(case.segments), jnp.float32(YARN_FACTOR)

    def op(*arrays):
        return crossbatch_attention(*arrays, case.plan, segments=segments, backend=backend, yarn_factor=factor)

    with on(chip):
        got = cases.value_and_gradients(op, cases.joint_arguments(case), case.upstream)
    cases.assert_close(got, cases.joint_expected(case, boundaries, yarn_factor=YARN_FACTOR), cases.JOINT_NAMES)


@CHIPS
@pytest.mark.parametrize("name", PLANS)
def test_every_published_plan_is_that_of_xla(name, chip):
    """Values, peaks, totals and gradients of the contexts alone."""
    segments = jnp.asarray(np.repeat(np.arange(ROWS) // 2 + 1, LENGTH).reshape(ROWS, LENGTH)).at[::3, 7:].set(0)
    arguments = (*inputs(), padded(PLANS[name]), segments)
    got = compiled_contexts(KERNELS, *arguments, chip=chip)
    want = compiled_contexts(BLOCKS, *arguments)
    if name == "off":
        assert all(not np.asarray(value).any() for value in got[1:])
    cases.assert_close(got, want, ("peak", "total", "output", "d queries", "d keys", "d values"))


@CHIPS
def test_empty_slots_and_unseen_blocks_are_not_read(chip):
    """NaN where nobody looks: in rows outside the plan, in padding, in another document's blocks."""
    queries, keys, values, d_out = inputs()
    segments = np.ones((ROWS, LENGTH), int)
    segments[0, BLOCK:] = 2  # its blocks 1 and 2 are hidden from document 1
    segments[1, BLOCK:] = 0
    ids, own = np.full((ROWS, SLOTS), -1, np.int32), np.ones((ROWS, SLOTS), bool)
    ids[4:, 1], ids[5:, 4] = 0, 1
    hidden = np.ones((ROWS, LENGTH), bool)
    hidden[:2, :BLOCK] = False
    bad = jnp.asarray(hidden)[:, None, :, None]
    poisoned = [jnp.where(bad, jnp.nan, x) for x in (keys, values)]
    plan, segments = Plan(context_ids=jnp.asarray(ids), own_document=jnp.asarray(own)), jnp.asarray(segments)
    got = compiled_contexts(KERNELS, queries, *poisoned, d_out, plan, segments, chip=chip)
    want = compiled_contexts(KERNELS, queries, keys, values, d_out, plan, segments, chip=chip)
    assert np.asarray(want[2]).any()
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(g, w)


@pytest.mark.slow
@CHIPS
def test_bfloat16_is_as_near_to_float32_as_that_of_xla(chip):
    """Compares both backends with `Xla` in float32 of the same rounded numbers, over head dim 100."""
    shape, groups = (ROWS, 4, LENGTH, 100), (ROWS, 2, LENGTH, 100)
    low = [x.astype(jnp.bfloat16) for x in cases.to_float32(*cases.arrays(5, shape, groups, groups, scale=0.3))]
    d_out = cases.to_float32(*cases.arrays(6, shape))[0]
    plan, segments = padded(PLANS["packed"]), jnp.asarray(np.repeat([1, 1, 2, 2, 3, 3, 4, 4], LENGTH).reshape(ROWS, -1))
    high = [x.astype(jnp.float32) for x in low]
    want = compiled_contexts(BLOCKS, *high, d_out, plan, segments)
    errors = {
        backend: [
            oracles.relative_error(np.asarray(g, np.float32), w)
            for g, w in zip(compiled_contexts(backend, *low, d_out, plan, segments, chip=chip), want, strict=True)
        ]
        for backend in (KERNELS, BLOCKS)
    }
    for ours, theirs in zip(errors[KERNELS], errors[BLOCKS], strict=True):
        assert ours <= max(1.2 * theirs, 1e-6), errors
        assert ours < BFLOAT16, errors


def test_inside_shard_map_devices_read_rows_of_others():
    """Readers split over two devices, keys of all rows on both: the gradients of the keys are summed."""
    queries, keys, values, d_out = inputs()
    segments = jnp.asarray(np.repeat(np.arange(ROWS) // 2 + 1, LENGTH).reshape(ROWS, LENGTH))
    plan = padded(PLANS["packed"])
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
    split, whole = PartitionSpec("data"), PartitionSpec()

    def part(queries, d_out, plan, segments, keys, values, key_segments):
        found = contexts_and_gradients(KERNELS, queries, keys, values, d_out, plan, segments, key_segments)
        _, _, out, dq, dk, dv = found
        return out, dq, jax.lax.psum(dk, "data"), jax.lax.psum(dv, "data")

    on_mesh = jax.shard_map(
        part, mesh=mesh, in_specs=(split,) * 4 + (whole,) * 3, out_specs=(split, split, whole, whole), check_vma=False
    )
    got = jax.jit(on_mesh)(queries, d_out, plan, segments, keys, values, segments)
    want = compiled_contexts(BLOCKS, queries, keys, values, d_out, plan, segments)[2:]
    cases.assert_close(got, want, ("output", "d queries", "d keys", "d values"))


@pytest.mark.parametrize(
    ("head_dim", "dtype"),
    [(64, "bfloat16"), (80, "float32"), (100, "bfloat16"), (128, "float32")]
    + [
        pytest.param(*combination, marks=pytest.mark.slow)
        for combination in ((64, "float32"), (80, "bfloat16"), (100, "float32"), (128, "bfloat16"))
    ],
)
def test_forward_and_backward_lower_for_a_tpu(head_dim, dtype):
    """Pallas' own lowering to Mosaic, which checks block shapes; no TPU needed. Two times three kernels."""
    step, arguments = step_for_a_chip(head_dim, jnp.dtype(dtype))
    text = jax.jit(step).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@tpu_custom_call") == 6


def test_no_array_holds_all_contexts_and_kernels_have_costs():
    """Two, three and four products per score; local attention counts half of them."""
    slots, rows, length = 67, 5, 128
    program = program_without_gathered_contexts(slots=slots, rows=rows, length=length)
    calls = [e.params for e in jaxprs.equations(program) if e.primitive.name == "pallas_call"]
    names = ("forward", "queries_gradient", "keys_gradient")
    assert sorted(call["name"] for call in calls) == sorted(f"crossbatch_attention_{name}" for name in names * 2)
    costs = [call["cost_estimate"] for call in calls]
    local, contexts = rows * 4 * length**2 * 64, rows * slots * 4 * length**2 * 64
    assert sorted(cost.flops for cost in costs) == sorted(
        [2 * n * local // 2 for n in (2, 3, 4)] + [2 * n * contexts for n in (2, 3, 4)]
    )
    assert sorted(cost.transcendentals for cost in costs) == [local // 2 // 64] * 3 + [contexts // 64] * 3
    assert all(cost.bytes_accessed > 4 * 64 * length * rows * 8 for cost in costs)


def test_auto_is_pallas_on_tpus_else_blockwise_said_once(caplog):
    """Chooses by the device, and by whether a mesh says how arrays are split."""
    tpu, gpu = Target(platform="tpu", kind="TPU v5e"), Target(platform="gpu", kind="H100")
    choose.automatic.cache_clear()
    with caplog.at_level("INFO", logger="fot_jax"):
        for _ in range(2):
            assert choose.automatic(tpu, known=True) is AttentionBackend.PALLAS
            assert choose.automatic(gpu, known=True) is AttentionBackend.BLOCKWISE
            assert choose.automatic(tpu, known=False) is AttentionBackend.BLOCKWISE
            assert choose.resolve(AttentionBackend.AUTO) is AttentionBackend.BLOCKWISE
            assert choose.resolve(AttentionBackend.PALLAS) is AttentionBackend.PALLAS
    assert [record.getMessage() for record in caplog.records] == [
        "model.attention 'auto' is 'pallas' here (tpu, TPU v5e)",
        "model.attention 'auto' is 'blockwise' here (gpu, H100)",
        "model.attention 'auto' is 'blockwise' here (tpu, TPU v5e)",
        "no TPU kernel: arrays may be split over several devices, and no mesh says how",
        "model.attention 'auto' is 'blockwise' here (cpu, cpu)",
    ]


@pytest.mark.parametrize(("kind", "widened"), [("TPU v3", True), ("TPU v5e", False)])
def test_auto_is_for_the_chip_of_the_mesh(kind, widened, caplog):
    """A program traced here for a pod: kernels, with float32 products where Mosaic has no others."""
    chip = AbstractDevice(device_kind=kind, num_cores=1, platform="tpu")
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=chip)
    array = jax.ShapeDtypeStruct((2, 4, 640, 64), jnp.bfloat16)
    choose.automatic.cache_clear()
    with caplog.at_level("INFO", logger="fot_jax"), jax.sharding.use_abstract_mesh(mesh):
        assert choose.resolve(AttentionBackend.AUTO) is AttentionBackend.PALLAS
        spec = Pallas(boundaries=Boundaries.MASKED, block=200).spec(array, array, causal=True)
    assert spec.widen is widened
    assert (spec.query_block, spec.key_block) == (512, 256)
    assert (spec.L, spec.S) == (1024, 768)
    assert [record.getMessage() for record in caplog.records] == [
        f"model.attention 'auto' is 'pallas' here (tpu, {kind})"
    ]
