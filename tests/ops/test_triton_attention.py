"""What is the GPU kernels' own: lowering, blocks, the ring, refusals. Their values: test_pallas_attention.py."""

import jax
import jax.numpy as jnp
import pytest

from fot_jax.config import AttentionForm, Boundaries, ConfigError
from fot_jax.ops import forms, pallas_attention
from fot_jax.ops.kernel_rules import Compiler
from tests import cases
from tests.ops.kernel_cases import GPU, on, program_without_gathered_contexts, step_for_a_chip
from tests.scale import ring_cases, test_joint_kernels, test_ring
from tests.train.conftest import _compiled, _quick_compiles  # noqa: F401


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head_dim", [64, 80, 100, 128])
def test_forward_and_backward_lower_to_triton(head_dim, dtype):
    """No GPU needed: Triton's program is built here. Two times three kernels."""
    with on(GPU):
        step, arguments = step_for_a_chip(head_dim, jnp.dtype(dtype))
        text = jax.jit(step).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") == 6


def test_no_array_holds_the_gathered_contexts():
    with on(GPU):
        program_without_gathered_contexts(slots=67, rows=5, length=128)


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
