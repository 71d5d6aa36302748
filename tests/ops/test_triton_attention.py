"""The GPU kernels, interpreted, against the oracle and the blockwise form; and lowered to Triton."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import AttentionForm, Boundaries, ConfigError
from fot_jax.ops import forms, pallas_attention
from fot_jax.ops.kernel_rules import Compiler
from tests import cases, jaxprs
from tests.ops.kernel_cases import (
    GPU,
    PLANS,
    check_joint_softmax,
    check_plan,
    check_unread,
    on,
    step_for_a_chip,
)  # fmt: skip
from tests.scale import ring_cases, test_joint_kernels, test_ring
from tests.train.conftest import _compiled, _quick_compiles  # noqa: F401


@pytest.mark.parametrize(
    ("heads", "boundaries", "block", "query_block", "head_dim"),
    [
        ("grouped", Boundaries.MASKED, 2, 4, 64),
        ("single", Boundaries.JOINED, 4, 2, 80),
        pytest.param("equal", Boundaries.JOINED, 1, 8, 6, marks=pytest.mark.slow),
        pytest.param("grouped", Boundaries.JOINED, 99, 2, 100, marks=pytest.mark.slow),
        pytest.param("single", Boundaries.MASKED, 4, 1, 128, marks=pytest.mark.slow),
    ],
)
def test_joint_softmax_is_the_oracle_in_values_and_all_five_gradients(heads, boundaries, block, query_block, head_dim):
    """Blocks that do not divide the row, padding, empty slots, a row read twice, a row that reads nothing."""
    with on(GPU):
        check_joint_softmax(heads, boundaries, block=block, query_block=query_block, head_dim=head_dim)


@pytest.mark.parametrize("name", PLANS)
def test_every_published_plan_is_the_blockwise_form(name):
    check_plan(name, chip=GPU)


def test_empty_slots_and_blocks_that_nobody_sees_are_not_read():
    check_unread(chip=GPU)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head_dim", [64, 80, 100, 128])
def test_forward_and_backward_lower_to_triton(head_dim, dtype):
    """No GPU needed: Triton's program is built here. Two times three kernels."""
    with on(GPU):
        step, arguments = step_for_a_chip(head_dim, jnp.dtype(dtype))
        text = jax.jit(step).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") == 6


def test_no_array_holds_the_gathered_contexts():
    """Sizes tell arrays apart: C·S = 67·128, and B·C·S·G·D is far above everything else."""
    slots, rows, length = 67, 5, 128
    with on(GPU):
        step, arguments = step_for_a_chip(64, jnp.float32, slots=slots, length=length, rows=rows)
        program = jax.make_jaxpr(step)(*arguments)
    for shape in jaxprs.shapes(program):
        assert slots * length not in shape and np.prod(shape) < rows * slots * length * 64, shape


@pytest.mark.parametrize(("wanted", "length", "block"), [(512, 2048, 64), (48, 640, 32), (512, 20, 32), (1, 3, 16)])
def test_blocks_are_powers_of_two(wanted, length, block):
    with on(GPU):
        rule = pallas_attention.make_rule(
            boundaries=Boundaries.MASKED, causal=True, lengths=(length, length), block=wanted, query_block=wanted
        )
    assert rule.compiler is Compiler.TRITON
    assert (rule.query_block, rule.key_block) == (block, block)


def test_the_ring_reads_blocks_by_these_kernels():
    """Rows over four devices: the merged peak, gradients of rows that travelled."""
    with on(GPU):
        test_ring.check("packed", {"data": 4}, Boundaries.MASKED, form=AttentionForm.PALLAS)


def test_joint_attention_runs_these_kernels_on_a_mesh_too(monkeypatch):
    """What training takes: heads over two devices, peaks merged before the backward kernels."""
    ring_cases.interpret_kernels(monkeypatch, query_block=5)
    with on(GPU):
        case, got = test_joint_kernels.found({"tensor": 2}, Boundaries.JOINED)
    cases.assert_close(got, test_joint_kernels.expected(case, Boundaries.JOINED), test_joint_kernels.NAMES)


def test_a_head_that_does_not_fit_is_refused_by_name():
    with on(GPU):
        step, arguments = step_for_a_chip(160, jnp.float32)
        with pytest.raises(ConfigError, match=r"model\.head_dim must be at most 128 .* of 32 bits, got 160"):
            jax.eval_shape(step, *arguments)


def test_a_form_that_does_not_run_here_is_refused_by_name_or_replaced_and_said(caplog):
    with pytest.raises(ConfigError, match=r"must be one of 'reference', 'blockwise', 'auto' on a cpu, got 'pallas'"):
        forms.check_platform(AttentionForm.PALLAS, "cpu")
    for platform in ("tpu", "gpu"):
        assert forms.runnable(AttentionForm.PALLAS, platform) is AttentionForm.PALLAS
    assert forms.runnable(AttentionForm.BLOCKWISE, "cpu") is AttentionForm.BLOCKWISE
    assert not caplog.records
    forms.runnable.cache_clear()
    for _ in range(2):
        assert forms.runnable(AttentionForm.PALLAS, "cpu") is AttentionForm.AUTO
    assert [record.getMessage() for record in caplog.records] == [
        "model.attention 'pallas' of the checkpoint is 'auto' here: no such kernels on a cpu"
    ]
