"""The calls of the Triton kernels: the counterparts of `fot_jax/ops/pallas_calls.py` for GPUs.

A program finds its visits between two entries of `starts`; rows are read where they lie, by the plan's index.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Int

from fot_jax.config import ConfigError
from fot_jax.ops import triton_kernels
from fot_jax.ops.kernel_rules import Rule, Sizes, array_like, sizes_of, visible_block
from fot_jax.ops.triton_kernels import padded_head_dim
from fot_jax.ops.visits import Spans, Visits, starts_of

LEAST, MOST = 16, 64  # tokens of a block
MOST_BYTES = 512  # of a token's numbers: four blocks of 64 such tokens are 128 KiB of shared memory


def block_length(wanted: int, length: int, *, least: int = LEAST) -> int:
    """Tokens of a block: a power of two from `least` to 64, at most what is wanted, no more than the row needs."""
    return max(least, min(MOST, pl.next_power_of_2(wanted + 1) // 2, pl.next_power_of_2(length)))


def _whole(*shape: int):
    """The whole array, at every program."""
    return pl.BlockSpec(shape, lambda *_: (0,) * len(shape))


def block_ranges(
    sizes: Sizes, visits: Visits, spans: Spans, *, over: Literal["keys", "queries"]
) -> tuple[Int[Array, "V blocks"], Int[Array, "V blocks"]]:
    """Of each visit and block, the first block `over` which it runs and the one behind the last; 0 and 0: none.

    All blocks that are seen lie between the two; those in between that nobody sees are masked.
    """
    scalars = (
        visits.readers, visits.contexts, visits.flags,
        spans.query_low, spans.query_high, spans.key_low, spans.key_high,
    )  # fmt: skip
    n = jnp.arange(len(visits.readers))[:, None, None]
    i, j = jnp.arange(sizes.query_blocks)[None, :, None], jnp.arange(sizes.key_blocks)[None, None, :]
    seen = visible_block(sizes, n, i, j, scalars)
    axis, places = (2, j) if over == "keys" else (1, i)
    low = jnp.min(jnp.where(seen, places, jnp.iinfo(jnp.int32).max), axis=axis)
    high = jnp.max(jnp.where(seen, places + 1, 0), axis=axis)
    return jnp.minimum(low, high).astype(jnp.int32), high.astype(jnp.int32)


def _call(kernel, sizes: Sizes, visits: Visits, spans: Spans, *, over, name, grid, in_specs, out_specs, out):
    """A `pallas_call` of the kernel, to be called with the arrays of `in_specs`."""
    if padded_head_dim(sizes.D) * sizes.itemsize > MOST_BYTES:
        raise ConfigError(
            f"model.head_dim must be at most {MOST_BYTES // sizes.itemsize} for model.attention='pallas' on a GPU in"
            f" numbers of {8 * sizes.itemsize} bits, got {sizes.D}. Use 'blockwise'."
        )
    targets, rows = (visits.readers, visits.contexts)[:: 1 if over == "keys" else -1]
    lists = (
        starts_of(targets, visits.count, num_targets=grid[2]), rows, visits.flags,
        *block_ranges(sizes, visits, spans, over=over),
    )  # fmt: skip
    warps, stages = 4 if padded_head_dim(sizes.D) <= 64 else 8, 1 if sizes.itemsize == 4 else 2
    call = pl.pallas_call(
        functools.partial(kernel, sizes),
        grid=grid,
        in_specs=[_whole(*x.shape) for x in lists] + in_specs,
        out_specs=out_specs,
        out_shape=out,
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=stages),
        interpret=bool(sizes.rule.interpret),
        name=name,
    )
    return functools.partial(call, *lists)


def _reader_specs(sizes: Sizes):
    """Of programs (query block, query head, reader): queries, per-query numbers, segments; keys, their segments."""
    block, D, repeats = sizes.rule.query_block, padded_head_dim(sizes.D), sizes.H // sizes.G
    return (
        pl.BlockSpec((None, None, block, D), lambda i, h, b: (b, h, i, 0)),
        pl.BlockSpec((None, None, None, block), lambda i, h, b: (b, h, 0, i)),
        pl.BlockSpec((None, block), lambda i, h, b: (b, i)),
        pl.BlockSpec((sizes.rows, None, sizes.S, D), lambda i, h, b: (0, jax.lax.div(h, repeats), 0, 0)),
        _whole(sizes.rows, sizes.S),
    )


def forward(rule: Rule, visits: Visits, spans: Spans, queries, keys, values, query_segments, key_segments):
    """(weighted [B, H, L, D], peak [B, H, 1, L], total [B, H, 1, L]), float32; visits by reader."""
    sizes = sizes_of(rule, queries, keys)
    q, numbers, q_segments, k, k_segments = _reader_specs(sizes)
    shape = array_like(queries, (sizes.B, sizes.H, 1, sizes.L), jnp.float32)
    call = _call(
        triton_kernels.forward_kernel, sizes, visits, spans, over="keys",
        name="visited_attention_forward",
        grid=(sizes.query_blocks, sizes.H, sizes.B),
        in_specs=[q, k, k, q_segments, k_segments],
        out_specs=[q, numbers, numbers],
        out=[array_like(queries, queries.shape, jnp.float32), shape, shape],
    )  # fmt: skip
    return call(queries, keys, values, query_segments, key_segments)


def queries_gradient(
    rule: Rule, visits: Visits, spans: Spans, queries, keys, values, query_segments, key_segments,
    d_weighted, peak, d_total,
):  # fmt: skip
    """Float32 dq [B, H, L, D]; visits by reader."""
    sizes = sizes_of(rule, queries, keys)
    q, numbers, q_segments, k, k_segments = _reader_specs(sizes)
    call = _call(
        triton_kernels.queries_kernel, sizes, visits, spans, over="keys",
        name="visited_attention_queries_gradient",
        grid=(sizes.query_blocks, sizes.H, sizes.B),
        in_specs=[q, k, k, q_segments, k_segments, q, numbers, numbers],
        out_specs=q,
        out=array_like(queries, queries.shape, jnp.float32),
    )  # fmt: skip
    return call(queries, keys, values, query_segments, key_segments, d_weighted, peak, d_total)


def keys_gradient(
    rule: Rule, visits: Visits, spans: Spans, queries, keys, values, query_segments, key_segments,
    d_weighted, peak, d_total,
):  # fmt: skip
    """Float32 (dk, dv) [rows, G, S, D]; visits by context."""
    sizes = sizes_of(rule, queries, keys)
    block, D = rule.key_block, padded_head_dim(sizes.D)
    k = pl.BlockSpec((None, None, block, D), lambda j, g, b: (b, g, j, 0))
    k_segments = pl.BlockSpec((None, block), lambda j, g, b: (b, j))
    q = _whole(sizes.B, sizes.H, sizes.L, D)
    numbers = _whole(sizes.B, sizes.H, 1, sizes.L)
    call = _call(
        triton_kernels.keys_kernel, sizes, visits, spans, over="queries",
        name="visited_attention_keys_gradient",
        grid=(sizes.key_blocks, sizes.G, sizes.rows),
        in_specs=[q, k, k, _whole(sizes.B, sizes.L), k_segments, q, numbers, numbers],
        out_specs=[k, k],
        out=[array_like(keys, keys.shape, jnp.float32)] * 2,
    )  # fmt: skip
    return call(queries, keys, values, query_segments, key_segments, d_weighted, peak, d_total)
