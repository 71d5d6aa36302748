"""The calls of the Pallas kernels: grids, and the blocks that each step of a grid reads and writes.

Rows are read where they lie: the index maps look the row of a visit up in scalar memory
(`fot_jax/ops/visits.py`), so that no context is ever copied in HBM.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from fot_jax.ops.kernel_rules import Rule, Sizes, array_like, sizes_of
from fot_jax.ops.pallas_kernels import LANES, forward_kernel, keys_kernel, queries_kernel
from fot_jax.ops.visits import Spans, Visits


def _query_specs(sizes: Sizes, place):
    """Blocks of queries, of their segments as column and row, and of per-query numbers.

    `place(*grid, readers, contexts, …)` gives (reader row, query head, query block).
    """
    block, D = sizes.rule.query_block, sizes.D

    def at(index):
        return lambda *ids: index(*place(*ids))

    return (
        pl.BlockSpec((None, None, block, D), at(lambda b, h, i: (b, h, i, 0))),
        pl.BlockSpec((None, block, 1), at(lambda b, h, i: (b, i, 0))),
        pl.BlockSpec((None, 1, block), at(lambda b, h, i: (b, 0, i))),
        pl.BlockSpec((None, None, 1, block), at(lambda b, h, i: (b, h, 0, i))),
    )


def _key_specs(sizes: Sizes, place):
    """Blocks of keys, and of their segments as column and row; `place` gives (row, key head, key block)."""
    block, D = sizes.rule.key_block, sizes.D

    def at(index):
        return lambda *ids: index(*place(*ids))

    return (
        pl.BlockSpec((None, None, block, D), at(lambda b, g, j: (b, g, j, 0))),
        pl.BlockSpec((None, block, 1), at(lambda b, g, j: (b, j, 0))),
        pl.BlockSpec((None, 1, block), at(lambda b, g, j: (b, 0, j))),
    )


def _reader_specs(sizes: Sizes):
    """Specs of a grid (query head, query block, visit, key block)."""
    repeats = sizes.H // sizes.G
    queries = _query_specs(sizes, lambda h, i, visit, j, readers, *_: (readers[visit], h, i))

    def key_place(h, i, visit, j, readers, contexts, *_):
        return contexts[visit], jax.lax.div(h, repeats), sizes.key_block_read(i, j)

    return queries, _key_specs(sizes, key_place)


def _call(kernel, sizes: Sizes, visits: Visits, spans: Spans, *, name, grid, in_specs, out_specs, out, scratch, cost):
    """A `pallas_call` of the kernel, to be called with the arrays of `in_specs`."""
    call = pl.pallas_call(
        functools.partial(kernel, sizes),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=7, grid=grid, in_specs=in_specs, out_specs=out_specs, scratch_shapes=scratch
        ),
        out_shape=out,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel") + ("arbitrary",) * (len(grid) - 2)
        ),
        cost_estimate=cost,
        interpret=sizes.rule.interpret,
        name=name,
    )
    scalars = (visits.readers, visits.contexts, visits.flags)
    return functools.partial(
        call, *scalars, spans.query_low, spans.query_high, spans.key_low, spans.key_high
    )  # fmt: skip


def forward(rule: Rule, visits: Visits, spans: Spans, queries, keys, values, query_segments, key_segments):
    """(weighted [B, H, L, D], peak [B, H, 1, L], total [B, H, 1, L]), float32; visits by reader."""
    sizes = sizes_of(rule, queries, keys)
    (q, q_column, _, q_numbers), (k, _, k_row) = _reader_specs(sizes)
    numbers = array_like(queries, (sizes.B, sizes.H, 1, sizes.L), jnp.float32)
    lanes = pltpu.VMEM((rule.query_block, LANES), jnp.float32)
    call = _call(
        forward_kernel, sizes, visits, spans,
        name="visited_attention_forward",
        grid=(sizes.H, sizes.query_blocks, visits.count, sizes.key_blocks),
        in_specs=[q, k, k, q_column, k_row],
        out_specs=[q, q_numbers, q_numbers],
        out=[array_like(queries, queries.shape, jnp.float32), numbers, numbers],
        scratch=[lanes, lanes],
        cost=sizes.cost(
            visits, products=2, reads=2 * sizes.query_blocks * sizes.S, arrays=queries.nbytes + 4 * queries.size
        ),
    )  # fmt: skip
    return call(queries, keys, values, query_segments[:, :, None], key_segments[:, None, :])


def queries_gradient(
    rule: Rule, visits: Visits, spans: Spans, queries, keys, values, query_segments, key_segments,
    d_weighted, peak, d_total,
):  # fmt: skip
    """Float32 dq [B, H, L, D]; visits by reader."""
    sizes = sizes_of(rule, queries, keys)
    (q, q_column, _, q_numbers), (k, _, k_row) = _reader_specs(sizes)
    lanes = pltpu.VMEM((rule.query_block, LANES), jnp.float32)
    call = _call(
        queries_kernel, sizes, visits, spans,
        name="visited_attention_queries_gradient",
        grid=(sizes.H, sizes.query_blocks, visits.count, sizes.key_blocks),
        in_specs=[q, k, k, q_column, k_row, q, q_numbers, q_numbers],
        out_specs=q,
        out=array_like(queries, queries.shape, jnp.float32),
        scratch=[lanes, lanes],
        cost=sizes.cost(visits, products=3, reads=2 * sizes.query_blocks * sizes.S, arrays=3 * queries.nbytes),
    )  # fmt: skip
    segments = query_segments[:, :, None], key_segments[:, None, :]
    return call(queries, keys, values, *segments, d_weighted, peak, d_total)


def keys_gradient(
    rule: Rule, visits: Visits, spans: Spans, queries, keys, values, query_segments, key_segments,
    d_weighted, peak, d_total,
):  # fmt: skip
    """Float32 (dk, dv) [rows, G, S, D]; visits by context."""
    sizes = sizes_of(rule, queries, keys)
    repeats = sizes.H // sizes.G

    def query_place(g, j, visit, head, i, readers, *_):
        return readers[visit], g * repeats + head, sizes.query_block_read(i, j)

    q, _, q_row, q_numbers = _query_specs(sizes, query_place)
    k, k_column, _ = _key_specs(sizes, lambda g, j, visit, head, i, readers, contexts, *_: (contexts[visit], g, j))
    call = _call(
        keys_kernel, sizes, visits, spans,
        name="visited_attention_keys_gradient",
        grid=(sizes.G, sizes.key_blocks, visits.count, repeats, sizes.query_blocks),
        in_specs=[q, k, k, q_row, k_column, q, q_numbers, q_numbers],
        out_specs=[k, k],
        out=[array_like(keys, keys.shape, jnp.float32)] * 2,
        scratch=[],
        cost=sizes.cost(visits, products=4, reads=2 * sizes.key_blocks * sizes.L, arrays=4 * keys.nbytes),
    )  # fmt: skip
    segments = query_segments[:, None, :], key_segments[:, :, None]
    return call(queries, keys, values, *segments, d_weighted, peak, d_total)
