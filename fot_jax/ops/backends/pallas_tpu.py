"""The three TPU kernels and their grids: attention over a work list forward, dq, and dk with dv.

    kernel      grid                                                   steps of an output block
    forward     (query head, query block, pair, key block)             all pairs of one reader
    dq          (query head, query block, pair, key block)             all pairs of one reader
    dk, dv      (key head, key block, pair, query head, query block)   all pairs of one context

Scores are held in VMEM only, one [query block, key block] at a time, and are computed again in the backward kernels.
Outputs are float32 and stay in VMEM from the FIRST pair of their row to the LAST. The index maps look the rows of a
pair up in scalar memory, so that no context is ever copied in HBM.

Shapes are those of `kernel_spec.py`; per-query numbers come as rows [B, H, 1, L], segments as columns [·, ·, 1] or as
rows [·, 1, ·].

Source: FoT eq. (2); online softmax: Milakov & Gimelshein 2018; backward: Dao 2023, FlashAttention-2.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from fot_jax.ops.backends.kernel_spec import NN, NT, KernelSpec, array_like, block_mask, lookup_tables, visible_block
from fot_jax.ops.backends.worklist import FIRST, LAST, OWN, WorkList
from fot_jax.ops.softmax import LOWEST_PEAK, MASKED_SCORE
from fot_jax.types import Partial, Rows, Upstream

LANES = 128  # width of a TPU vector register; a column is kept in that many copies
TABLES = 7  # of `lookup_tables`


def block_length(wanted: int, *, length: int, free: bool) -> int:
    """Returns the tokens of a block: a multiple of the lanes, at most the padded row; `free`: any number."""
    if free:
        return min(wanted, length)
    return min(-(-wanted // LANES), -(-length // LANES)) * LANES


class _Specs(NamedTuple):
    """Blocks of positions of one row."""

    heads: pl.BlockSpec  # [B, heads, L, D]
    numbers: pl.BlockSpec  # [B, heads, 1, L]
    column: pl.BlockSpec  # segments [B, L, 1]
    row: pl.BlockSpec  # segments [B, 1, L]


def _specs(block: int, D: int, place) -> _Specs:
    """Returns the specs; `place(*grid, readers, contexts, …)` gives (row, head, block)."""

    def spec(shape, index):
        return pl.BlockSpec(shape, lambda *ids: index(*place(*ids)))

    return _Specs(
        heads=spec((None, None, block, D), lambda b, h, i: (b, h, i, 0)),
        numbers=spec((None, None, 1, block), lambda b, h, i: (b, h, 0, i)),
        column=spec((None, block, 1), lambda b, h, i: (b, i, 0)),
        row=spec((None, 1, block), lambda b, h, i: (b, 0, i)),
    )


def _reader_specs(spec: KernelSpec) -> tuple[_Specs, _Specs]:
    """Returns the specs of queries and of keys for a grid (query head, query block, pair, key block)."""

    def key_place(h, i, pair, j, readers, contexts, *_):
        return contexts[pair], jax.lax.div(h, spec.repeats), spec.key_block_read(i, j)

    queries = _specs(spec.query_block, spec.D, lambda h, i, pair, j, readers, *_: (readers[pair], h, i))
    return queries, _specs(spec.key_block, spec.D, key_place)


def _call(kernel, spec: KernelSpec, tables, *, name, grid, in_specs, out_specs, out, scratch, cost):
    """Returns the `pallas_call` of a kernel, to be called with the arrays of `in_specs`."""
    call = pl.pallas_call(
        functools.partial(kernel, spec),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=TABLES, grid=grid, in_specs=in_specs, out_specs=out_specs, scratch_shapes=scratch
        ),
        out_shape=out,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel") + ("arbitrary",) * (len(grid) - 2)
        ),
        cost_estimate=cost,
        interpret=spec.interpret,
        name=name,
    )
    return functools.partial(call, *tables)


def forward(spec: KernelSpec, work: WorkList, queries, rows: Rows, segments) -> Partial:
    """Returns the partial [B, H, L, D]; `work` is sorted by reader."""
    q, k = _reader_specs(spec)
    numbers = array_like(queries, (spec.B, spec.H, 1, spec.L))
    lanes = pltpu.VMEM((spec.query_block, LANES), jnp.float32)
    call = _call(
        forward_kernel, spec, lookup_tables(spec, work, segments, rows.segments),
        name="crossbatch_attention_forward",
        grid=(spec.H, spec.query_blocks, work.count, spec.key_blocks),
        in_specs=[q.heads, k.heads, k.heads, q.column, k.row],
        out_specs=[q.heads, q.numbers, q.numbers],
        out=[array_like(queries, queries.shape), numbers, numbers],
        scratch=[lanes, lanes],
        cost=spec.cost(
            work, products=2, reads=2 * spec.query_blocks * spec.S, arrays=queries.nbytes + 4 * queries.size
        ),
    )  # fmt: skip
    weighted, peak, total = call(queries, rows.keys, rows.values, segments[:, :, None], rows.segments[:, None, :])
    return Partial(weighted=weighted, peak=peak[:, :, 0], total=total[:, :, 0])


def queries_gradient(spec: KernelSpec, work: WorkList, queries, rows: Rows, segments, upstream: Upstream):
    """Returns dq, float32 [B, H, L, D]; `work` is sorted by reader."""
    q, k = _reader_specs(spec)
    lanes = pltpu.VMEM((spec.query_block, LANES), jnp.float32)
    call = _call(
        queries_kernel, spec, lookup_tables(spec, work, segments, rows.segments),
        name="crossbatch_attention_queries_gradient",
        grid=(spec.H, spec.query_blocks, work.count, spec.key_blocks),
        in_specs=[q.heads, k.heads, k.heads, q.column, k.row, q.heads, q.numbers, q.numbers],
        out_specs=q.heads,
        out=array_like(queries, queries.shape),
        scratch=[lanes, lanes],
        cost=spec.cost(work, products=3, reads=2 * spec.query_blocks * spec.S, arrays=3 * queries.nbytes),
    )  # fmt: skip
    columns = segments[:, :, None], rows.segments[:, None, :]
    return call(queries, rows.keys, rows.values, *columns, *_arrays_of(upstream))


def keys_gradient(spec: KernelSpec, work: WorkList, queries, rows: Rows, segments, upstream: Upstream):
    """Returns [dk, dv], float32 [rows, G, S, D]; `work` is sorted by context."""

    def query_place(g, j, pair, head, i, readers, *_):
        return readers[pair], g * spec.repeats + head, spec.query_block_read(i, j)

    def key_place(g, j, pair, head, i, readers, contexts, *_):
        return contexts[pair], g, j

    q, k = _specs(spec.query_block, spec.D, query_place), _specs(spec.key_block, spec.D, key_place)
    call = _call(
        keys_kernel, spec, lookup_tables(spec, work, segments, rows.segments),
        name="crossbatch_attention_keys_gradient",
        grid=(spec.G, spec.key_blocks, work.count, spec.repeats, spec.query_blocks),
        in_specs=[q.heads, k.heads, k.heads, q.row, k.column, q.heads, q.numbers, q.numbers],
        out_specs=[k.heads, k.heads],
        out=[array_like(rows.keys, rows.keys.shape)] * 2,
        scratch=[],
        cost=spec.cost(work, products=4, reads=2 * spec.key_blocks * spec.L, arrays=4 * rows.keys.nbytes),
    )  # fmt: skip
    columns = segments[:, None, :], rows.segments[:, :, None]
    return call(queries, rows.keys, rows.values, *columns, *_arrays_of(upstream))


def _arrays_of(upstream: Upstream):
    """Returns (d_weighted, peak, d_total) as the kernels take them."""
    return upstream.d_weighted, upstream.peak[:, :, None], upstream.d_total[:, :, None]


def _dot(spec: KernelSpec, a, b, numbers, dtype=None):
    """Returns the float32 product of operands of a's dtype or the one named, of float32 where the chip wants that."""
    dtype = jnp.float32 if spec.widen else dtype or a.dtype
    return jax.lax.dot_general(a.astype(dtype), b.astype(dtype), numbers, preferred_element_type=jnp.float32)


def _to_row(column):
    """Turns [n, LANES], every lane the same, into [1, n]."""
    return column.T[:1]


def _to_column(row):
    """Turns [1, n] into [n, LANES]."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def forward_kernel(spec: KernelSpec, *refs):
    """Computes weighted, peak and total by online softmax."""
    tables, refs = refs[:TABLES], refs[TABLES:]
    q, k, v, q_segments, k_segments, weighted, peak_row, total_row, peak, total = refs
    i, pair, j = (pl.program_id(axis) for axis in (1, 2, 3))
    flag = tables[2][pair]

    @pl.when((flag & FIRST != 0) & (j == 0))
    def _():
        weighted[...] = jnp.zeros_like(weighted)
        peak[...] = jnp.full_like(peak, LOWEST_PEAK)
        total[...] = jnp.zeros_like(total)

    @pl.when(visible_block(spec, pair, i, j, tables))
    def _():
        mask = block_mask(spec, q_segments[...], k_segments[...], flag & OWN, i, j, query_axis=0)
        scores = jnp.where(mask, _dot(spec, q[...], k[...], NT), MASKED_SCORE)
        old_peak = peak[...]
        new_peak = jnp.maximum(old_peak, scores.max(axis=1, keepdims=True))
        weights = jnp.exp(scores - new_peak[:, :1])
        shrink = jnp.exp(old_peak - new_peak)
        peak[...] = new_peak
        total[...] = total[...] * shrink + weights.sum(axis=1, keepdims=True)
        weighted[...] = weighted[...] * shrink[:, :1] + _dot(spec, weights, v[...], NN, v.dtype)

    @pl.when((flag & LAST != 0) & (j == spec.key_blocks - 1))
    def _():
        peak_row[...] = _to_row(peak[...])
        total_row[...] = _to_row(total[...])


def queries_kernel(spec: KernelSpec, *refs):
    """Computes dq = Σ ds k with ds = w (d_weighted·v + d_total), w = exp(s − peak)."""
    tables, refs = refs[:TABLES], refs[TABLES:]
    q, k, v, q_segments, k_segments, d_weighted, peak_row, d_total_row, dq, peak, d_total = refs
    i, pair, j = (pl.program_id(axis) for axis in (1, 2, 3))
    flag = tables[2][pair]

    @pl.when((flag & FIRST != 0) & (j == 0))
    def _():
        dq[...] = jnp.zeros_like(dq)
        peak[...] = _to_column(peak_row[...])
        d_total[...] = _to_column(d_total_row[...])

    @pl.when(visible_block(spec, pair, i, j, tables))
    def _():
        mask = block_mask(spec, q_segments[...], k_segments[...], flag & OWN, i, j, query_axis=0)
        scores = jnp.where(mask, _dot(spec, q[...], k[...], NT), MASKED_SCORE)
        weights = jnp.exp(scores - peak[:, :1])
        d_scores = weights * (_dot(spec, d_weighted[...], v[...], NT) + d_total[:, :1])
        dq[...] += _dot(spec, d_scores, k[...], NN, k.dtype)


def keys_kernel(spec: KernelSpec, *refs):
    """Computes dv = Σ w d_weighted and dk = Σ ds q over all readers; scores are [key block, query block] here."""
    tables, refs = refs[:TABLES], refs[TABLES:]
    q, k, v, q_segments, k_segments, d_weighted, peak_row, d_total_row, dk, dv = refs
    j, pair, head, i = (pl.program_id(axis) for axis in (1, 2, 3, 4))
    flag = tables[2][pair]

    @pl.when((flag & FIRST != 0) & (head == 0) & (i == 0))
    def _():
        dk[...] = jnp.zeros_like(dk)
        dv[...] = jnp.zeros_like(dv)

    @pl.when(visible_block(spec, pair, i, j, tables))
    def _():
        mask = block_mask(spec, q_segments[...], k_segments[...], flag & OWN, i, j, query_axis=1)
        scores = jnp.where(mask, _dot(spec, k[...], q[...], NT), MASKED_SCORE)
        weights = jnp.exp(scores - peak_row[...])
        d_scores = weights * (_dot(spec, v[...], d_weighted[...], NT) + d_total_row[...])
        dv[...] += _dot(spec, weights, d_weighted[...], NN, v.dtype)
        dk[...] += _dot(spec, d_scores, q[...], NN, q.dtype)
