"""The Pallas kernels for TPUs and GPUs, interpreted, against the oracle and blocks; and lowered for a TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, PartitionSpec

from fot_jax.config import AttentionForm, Boundaries
from fot_jax.ops import attention, forms, pallas_attention
from fot_jax.ops.pallas_attention import pallas_partial
from fot_jax.types import Plan
from tests import cases, jaxprs, oracles
from tests.ops.kernel_cases import (
    BLOCK,
    GPU,
    LENGTH,
    PLANS,
    QUERY_BLOCK,
    ROWS,
    SLOTS,
    TPU,
    inputs,
    joint,
    on,
    padded,
    partial_and_gradients,
    program_without_gathered_contexts,
    step_for_a_chip,
)  # fmt: skip
from tests.train.conftest import _compiled, _quick_compiles  # noqa: F401

NAMES = ("output", "d queries_local", "d queries_context", "d keys_local", "d keys_context", "d values")
BFLOAT16 = 2.0**-8  # relative spacing


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
def test_joint_softmax_is_the_oracle_in_values_and_all_five_gradients(
    chip, heads, boundaries, block, query_block, head_dim
):
    """Blocks that do not divide the row, padding, empty slots, a row read twice, a row that reads nothing."""
    case = cases.crossbatch_case(heads, head_dim=head_dim, scale=(6 / head_dim) ** 0.5)
    op = joint(case.segments, boundaries, block=block, query_block=query_block)
    plan = jax.tree.map(jnp.asarray, case.plan)
    arguments = (case.turned_queries, case.queries, case.turned_keys, case.keys, case.values)
    sources = {
        "local": (case.turned_queries, case.turned_keys, case.values),
        "context": (case.queries, case.keys, case.values),
    }
    visible = oracles.union(
        oracles.local_visible(case.segments, boundaries=boundaries.value),
        oracles.context_visible(
            case.segments, case.plan.context_ids, case.plan.own_document, boundaries=boundaries.value
        ),
    )
    local, context = oracles.attend_gradients(sources, visible, case.upstream).values()
    want = [oracles.attend(sources, visible), local[0], context[0], local[1], context[1], local[2] + context[2]]
    with on(chip):
        got = cases.value_and_gradients(functools.partial(op, plan=plan), arguments, case.upstream)
    cases.assert_close(got, want, NAMES)


@pytest.mark.parametrize("chip", [TPU, GPU], ids=["tpu", "gpu"])
@pytest.mark.parametrize("name", PLANS)
def test_every_published_plan_is_the_blockwise_form(name, chip):
    segments = jnp.asarray(np.repeat(np.arange(ROWS) // 2 + 1, LENGTH).reshape(ROWS, LENGTH)).at[::3, 7:].set(0)
    arguments = (*inputs(), padded(PLANS[name]), segments)
    got = partial_and_gradients(AttentionForm.PALLAS, *arguments, chip=chip)
    want = partial_and_gradients(AttentionForm.BLOCKWISE, *arguments)
    if name == "off":
        assert all(not np.asarray(value).any() for value in got[1:])
    cases.assert_close(got, want, ("peak", "total", "output", "d queries", "d keys", "d values"))


@pytest.mark.parametrize("chip", [TPU, GPU], ids=["tpu", "gpu"])
def test_empty_slots_and_blocks_that_nobody_sees_are_not_read(chip):
    """NaN where nobody looks: in rows outside the plan, in padding, in another document's blocks."""
    queries, keys, values, upstream = inputs()
    segments = np.ones((ROWS, LENGTH), int)
    segments[0, BLOCK:] = 2  # its blocks 1 and 2 are hidden from document 1
    segments[1, BLOCK:] = 0
    ids, own = np.full((ROWS, SLOTS), -1, np.int32), np.ones((ROWS, SLOTS), bool)
    ids[4:, 1], ids[5:, 4] = 0, 1
    hidden = np.ones((ROWS, LENGTH), bool)
    hidden[:2, :BLOCK] = False
    bad = jnp.asarray(hidden)[:, :, None, None]
    poisoned = [jnp.where(bad, jnp.nan, x) for x in (keys, values)]
    plan, segments = Plan(context_ids=jnp.asarray(ids), own_document=jnp.asarray(own)), jnp.asarray(segments)
    got = partial_and_gradients(AttentionForm.PALLAS, queries, *poisoned, upstream, plan, segments, chip=chip)
    want = partial_and_gradients(AttentionForm.PALLAS, queries, keys, values, upstream, plan, segments, chip=chip)
    assert np.asarray(want[2]).any()
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(g, w)


@pytest.mark.slow
@pytest.mark.parametrize("chip", [TPU, GPU], ids=["tpu", "gpu"])
def test_bfloat16_is_as_near_to_float32_as_the_blockwise_form(chip):
    """Over head dim 100, both forms against the blockwise form in float32 of the same rounded numbers."""
    shape, groups = (ROWS, LENGTH, 4, 100), (ROWS, LENGTH, 2, 100)
    low = [x.astype(jnp.bfloat16) for x in cases.to_float32(*cases.arrays(5, shape, groups, groups, scale=0.3))]
    upstream = cases.to_float32(*cases.arrays(6, shape))[0]
    plan, segments = padded(PLANS["packed"]), jnp.asarray(np.repeat([1, 1, 2, 2, 3, 3, 4, 4], LENGTH).reshape(ROWS, -1))
    high = [x.astype(jnp.float32) for x in low]
    want = partial_and_gradients(AttentionForm.BLOCKWISE, *high, upstream, plan, segments)
    errors = {
        form: [
            oracles.relative_error(np.asarray(g, np.float32), w)
            for g, w in zip(partial_and_gradients(form, *low, upstream, plan, segments, chip=chip), want, strict=True)
        ]
        for form in (AttentionForm.PALLAS, AttentionForm.BLOCKWISE)
    }
    for ours, theirs in zip(errors[AttentionForm.PALLAS], errors[AttentionForm.BLOCKWISE], strict=True):
        assert ours <= max(1.2 * theirs, 1e-6), errors
        assert ours < BFLOAT16, errors


def test_inside_shard_map_each_device_reads_rows_it_does_not_own():
    """Readers split over two devices, keys of all rows on both: the gradients of the keys are summed."""
    queries, keys, values, upstream = inputs()
    segments = jnp.asarray(np.repeat(np.arange(ROWS) // 2 + 1, LENGTH).reshape(ROWS, LENGTH))
    plan = padded(PLANS["packed"])
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = PartitionSpec("data"), PartitionSpec()

    def local(queries, query_segments, plan, keys, values, key_segments):
        part = pallas_partial(
            queries, keys, values, plan, query_segments=query_segments, key_segments=key_segments,
            boundaries=Boundaries.MASKED, block=BLOCK, query_block=QUERY_BLOCK, interpret=True,
        )  # fmt: skip
        return attention.normalise(part)

    spread = jax.shard_map(
        local, mesh=mesh, in_specs=(split, split, split, whole, whole, whole), out_specs=split, check_vma=False
    )

    def op(queries, keys, values):
        return spread(queries, segments, plan, keys, values, segments)

    got = cases.value_and_gradients(op, (queries, keys, values), upstream)
    want = partial_and_gradients(AttentionForm.BLOCKWISE, queries, keys, values, upstream, plan, segments)[2:]
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


def test_no_array_holds_the_gathered_contexts_and_every_kernel_has_its_cost():
    slots, rows, length = 67, 5, 128
    program = program_without_gathered_contexts(slots=slots, rows=rows, length=length)
    costs = [e.params["cost_estimate"] for e in jaxprs.equations(program) if e.primitive.name == "pallas_call"]
    local, contexts = rows * 4 * length**2 * 64, rows * slots * 4 * length**2 * 64
    assert sorted(cost.flops for cost in costs) == sorted(
        [2 * n * local // 2 for n in (2, 3, 4)] + [2 * n * contexts for n in (2, 3, 4)]
    )
    assert sorted(cost.transcendentals for cost in costs) == [local // 2 // 64] * 3 + [contexts // 64] * 3
    assert all(cost.bytes_accessed > 4 * 64 * length * rows * 8 for cost in costs)


def test_keys_of_other_rows_need_a_plan():
    queries, keys, values, _ = inputs()
    segments = jnp.ones((ROWS, LENGTH), int)
    with pytest.raises(
        ValueError, match=r"without a plan keys must have the queries' 8 rows of 10 tokens, got 4 of 10"
    ):
        pallas_partial(
            queries, keys[:4], values[:4], None, query_segments=segments, key_segments=segments[:4],
            boundaries=Boundaries.MASKED, block=4,
        )  # fmt: skip


def test_auto_is_the_kernel_on_a_tpu_and_blockwise_elsewhere_said_once(caplog):
    tpu, gpu = forms.Target(platform="tpu", kind="TPU v5e"), forms.Target(platform="gpu", kind="H100")
    forms.automatic.cache_clear()
    with caplog.at_level("INFO", logger="fot_jax"):
        for _ in range(2):
            assert forms.automatic(tpu, known=True) is AttentionForm.PALLAS
            assert forms.automatic(gpu, known=True) is AttentionForm.BLOCKWISE
            assert forms.automatic(tpu, known=False) is AttentionForm.BLOCKWISE
            assert forms.resolve(AttentionForm.AUTO) is AttentionForm.BLOCKWISE
            assert forms.resolve(AttentionForm.PALLAS) is AttentionForm.PALLAS
    assert [record.getMessage() for record in caplog.records] == [
        "model.attention 'auto' is 'pallas' here (tpu, TPU v5e)",
        "model.attention 'auto' is 'blockwise' here (gpu, H100)",
        "model.attention 'auto' is 'blockwise' here (tpu, TPU v5e)",
        "no TPU kernel: arrays may lie on several devices, and no mesh says how",
        "model.attention 'auto' is 'blockwise' here (cpu, cpu)",
    ]


@pytest.mark.parametrize(("kind", "widened"), [("TPU v3", True), ("TPU v5e", False)])
def test_auto_is_for_the_chip_of_the_mesh_not_for_the_process(kind, widened, caplog):
    """A program traced here for a pod: kernels, with float32 products where Mosaic has no others."""
    chip = AbstractDevice(device_kind=kind, num_cores=1, platform="tpu")
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=chip)
    forms.automatic.cache_clear()
    with caplog.at_level("INFO", logger="fot_jax"), jax.sharding.use_abstract_mesh(mesh):
        assert forms.resolve(AttentionForm.AUTO) is AttentionForm.PALLAS
        rule = pallas_attention.make_rule(boundaries=Boundaries.MASKED, causal=True, lengths=(640, 640), block=200)
    assert rule.widen is widened
    assert (rule.query_block, rule.key_block) == (512, 256)
    assert [record.getMessage() for record in caplog.records] == [
        f"model.attention 'auto' is 'pallas' here (tpu, {kind})"
    ]
