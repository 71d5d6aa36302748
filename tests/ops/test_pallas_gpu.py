"""Lowering, blocks, meshes and refusals of the GPU kernels. Their values: test_pallas.py."""

import jax
import jax.numpy as jnp
import pytest

from fot_jax.config import AttentionBackend, Boundaries, ConfigError
from fot_jax.ops.backends import choose
from fot_jax.ops.backends.pallas import Pallas
from tests import cases
from tests.ops.kernel_cases import GPU, on, program_without_gathered_contexts, step_for_a_chip
from tests.scale import test_crossbatch_mesh


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head_dim", [64, 80, 100, 128])
def test_forward_and_backward_lower_to_triton(head_dim, dtype):
    """Builds Triton's program without a GPU: two times three kernels."""
    with on(GPU):
        step, arguments = step_for_a_chip(head_dim, jnp.dtype(dtype))
        text = jax.jit(step).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") == 6


def test_no_array_holds_the_gathered_contexts():
    """Contexts are read where they are."""
    with on(GPU):
        program_without_gathered_contexts(slots=67, rows=5, length=128)


@pytest.mark.parametrize(("wanted", "length", "block"), [(512, 2048, 64), (48, 640, 32), (512, 20, 32), (1, 3, 16)])
def test_blocks_are_powers_of_two(wanted, length, block):
    """Blocks are not the multiples of 128 that TPUs want."""
    array = jax.ShapeDtypeStruct((2, 4, length, 64), jnp.bfloat16)
    with on(GPU):
        spec = Pallas(boundaries=Boundaries.MASKED, block=wanted, query_block=wanted).spec(array, array, causal=True)
    assert (spec.query_block, spec.key_block) == (block, block)


@pytest.mark.parametrize(
    ("mesh", "boundaries"),
    [({"data": 4}, Boundaries.MASKED), ({"tensor": 2}, Boundaries.JOINED)],
    ids=["ring", "heads"],
)
def test_kernels_on_a_mesh_are_the_oracle(mesh, boundaries):
    """Rows that travel over four devices, heads over two; peaks are merged before the backward kernels."""
    with on(GPU):
        got = test_crossbatch_mesh.program(mesh, boundaries, AttentionBackend.PALLAS)(True)
    cases.assert_close(got, test_crossbatch_mesh.expected(mesh, boundaries), test_crossbatch_mesh.NAMES)


def test_a_head_that_does_not_fit_is_refused_by_name():
    """The largest head dim is in the message."""
    with on(GPU):
        step, arguments = step_for_a_chip(160, jnp.float32)
        with pytest.raises(ConfigError, match=r"model\.head_dim must be at most 128 .* of 32 bits, got 160"):
            jax.eval_shape(step, *arguments)


def test_a_backend_not_for_this_device_is_refused_or_replaced(caplog):
    """A refusal names the others; a replacement is logged once."""
    with pytest.raises(ConfigError, match=r"must be one of 'reference', 'blockwise', 'auto' on a cpu, got 'pallas'"):
        choose.check_platform(AttentionBackend.PALLAS, "cpu")
    for platform in ("tpu", "gpu"):
        assert choose.runnable(AttentionBackend.PALLAS, platform) is AttentionBackend.PALLAS
    assert choose.runnable(AttentionBackend.BLOCKWISE, "cpu") is AttentionBackend.BLOCKWISE
    assert not caplog.records
    choose.runnable.cache_clear()
    for _ in range(2):
        assert choose.runnable(AttentionBackend.PALLAS, "cpu") is AttentionBackend.AUTO
    assert [record.getMessage() for record in caplog.records] == [
        "model.attention 'pallas' of the checkpoint is 'auto' here: no such kernels on a cpu"
    ]
