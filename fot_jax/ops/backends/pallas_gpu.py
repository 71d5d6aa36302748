"""The three GPU kernels, written for Triton: the attention of `pallas_tpu.py`, by the same masks.

A GPU has no grid that walks in order over one output block: here a program owns its output block and loops over its
pairs itself, which it finds between two entries of `starts`.

    kernel      program                             loops over
    forward     (query block, query head, reader)   the reader's pairs, key blocks
    dq          (query block, query head, reader)   the reader's pairs, key blocks
    dk, dv      (key block, key head, context)      the context's pairs, query heads of the group, query blocks

Of a pair it reads the blocks from the first to the last that anyone sees; no branch is inside, so that Triton can load
one block while it multiplies another. A block's head dim is the next power of two; what is beyond is masked.

Source: FoT eq. (2); online softmax: Milakov & Gimelshein 2018; backward: Dao 2023, FlashAttention-2.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Int

from fot_jax.config import ConfigError
from fot_jax.ops.backends.kernel_spec import NN, NT, KernelSpec, array_like, block_mask, lookup_tables, visible_block
from fot_jax.ops.backends.worklist import OWN, WorkList, starts_of
from fot_jax.ops.softmax import LOWEST_PEAK, MASKED_SCORE
from fot_jax.types import Partial, Rows, Upstream

LEAST, MOST = 16, 64  # tokens of a block
MOST_BYTES = 512  # of a token's numbers: four blocks of 64 such tokens are 128 KiB of shared memory
LISTS = 5  # of the pairs, the first arguments of every kernel


def block_length(wanted: int, *, length: int, free: bool) -> int:
    """Returns the tokens of a block: a power of two from 16 (`free`: 1) to 64, no more than wanted or needed."""
    least = 1 if free else LEAST
    return max(least, min(MOST, pl.next_power_of_2(wanted + 1) // 2, pl.next_power_of_2(length)))


def padded_head_dim(D: int) -> int:
    """Returns the power of two that a block's head dim is; products want 16 at least."""
    return max(16, pl.next_power_of_2(D))


def loop_bounds(
    spec: KernelSpec, tables, *, over: Literal["keys", "queries"]
) -> tuple[Int[Array, "V blocks"], Int[Array, "V blocks"]]:
    """Returns for each pair and block the first block `over` which a program runs and the one behind the last.

    All blocks that are seen are between the two; those in between that nobody sees are masked. 0 and 0: none.
    """
    n = jnp.arange(len(tables[0]))[:, None, None]
    i, j = jnp.arange(spec.query_blocks)[None, :, None], jnp.arange(spec.key_blocks)[None, None, :]
    seen = visible_block(spec, n, i, j, tables)
    axis, places = (2, j) if over == "keys" else (1, i)
    low = jnp.min(jnp.where(seen, places, jnp.iinfo(jnp.int32).max), axis=axis)
    high = jnp.max(jnp.where(seen, places + 1, 0), axis=axis)
    return jnp.minimum(low, high).astype(jnp.int32), high.astype(jnp.int32)


def _whole(*shape: int) -> pl.BlockSpec:
    """Returns the spec of the whole array, for every program."""
    return pl.BlockSpec(shape, lambda *_: (0,) * len(shape))


def _call(kernel, spec: KernelSpec, work: WorkList, tables, *, over, name, grid, in_specs, out_specs, out):
    """Returns the `pallas_call` of a kernel, to be called with the arrays of `in_specs`."""
    if padded_head_dim(spec.D) * spec.itemsize > MOST_BYTES:
        raise ConfigError(
            f"model.head_dim must be at most {MOST_BYTES // spec.itemsize} for model.attention='pallas' on a GPU in"
            f" numbers of {8 * spec.itemsize} bits, got {spec.D}. Use 'blockwise'."
        )
    targets, others = (work.readers, work.contexts)[:: 1 if over == "keys" else -1]
    starts = starts_of(targets, work.count, num_targets=grid[2])
    lists = starts, others, work.flags, *loop_bounds(spec, tables, over=over)
    warps, stages = 4 if padded_head_dim(spec.D) <= 64 else 8, 1 if spec.itemsize == 4 else 2
    call = pl.pallas_call(
        functools.partial(kernel, spec),
        grid=grid,
        in_specs=[_whole(*x.shape) for x in lists] + in_specs,
        out_specs=out_specs,
        out_shape=out,
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=stages),
        interpret=bool(spec.interpret),
        name=name,
    )
    return functools.partial(call, *lists)


def _reader_specs(spec: KernelSpec):
    """Returns the specs of queries, their numbers and segments, keys and their segments.

    Programs are (query block, query head, reader).
    """
    block, D = spec.query_block, padded_head_dim(spec.D)
    return (
        pl.BlockSpec((None, None, block, D), lambda i, h, b: (b, h, i, 0)),
        pl.BlockSpec((None, None, block), lambda i, h, b: (b, h, i)),
        pl.BlockSpec((None, block), lambda i, h, b: (b, i)),
        pl.BlockSpec((spec.rows, None, spec.S, D), lambda i, h, b: (0, jax.lax.div(h, spec.repeats), 0, 0)),
        _whole(spec.rows, spec.S),
    )


def forward(spec: KernelSpec, work: WorkList, queries, rows: Rows, segments) -> Partial:
    """Returns the partial [B, H, L, D]; `work` is sorted by reader."""
    q, numbers, q_segments, k, k_segments = _reader_specs(spec)
    shape = array_like(queries, queries.shape[:3])
    call = _call(
        forward_kernel, spec, work, lookup_tables(spec, work, segments, rows.segments), over="keys",
        name="crossbatch_attention_forward",
        grid=(spec.query_blocks, spec.H, spec.B),
        in_specs=[q, k, k, q_segments, k_segments],
        out_specs=[q, numbers, numbers],
        out=[array_like(queries, queries.shape), shape, shape],
    )  # fmt: skip
    weighted, peak, total = call(queries, rows.keys, rows.values, segments, rows.segments)
    return Partial(weighted=weighted, peak=peak, total=total)


def queries_gradient(spec: KernelSpec, work: WorkList, queries, rows: Rows, segments, upstream: Upstream):
    """Returns dq, float32 [B, H, L, D]; `work` is sorted by reader."""
    q, numbers, q_segments, k, k_segments = _reader_specs(spec)
    call = _call(
        queries_kernel, spec, work, lookup_tables(spec, work, segments, rows.segments), over="keys",
        name="crossbatch_attention_queries_gradient",
        grid=(spec.query_blocks, spec.H, spec.B),
        in_specs=[q, k, k, q_segments, k_segments, q, numbers, numbers],
        out_specs=q,
        out=array_like(queries, queries.shape),
    )  # fmt: skip
    arrays = queries, rows.keys, rows.values, segments, rows.segments
    return call(*arrays, upstream.d_weighted, upstream.peak, upstream.d_total)


def keys_gradient(spec: KernelSpec, work: WorkList, queries, rows: Rows, segments, upstream: Upstream):
    """Returns [dk, dv], float32 [rows, G, S, D]; `work` is sorted by context."""
    block, D = spec.key_block, padded_head_dim(spec.D)
    k = pl.BlockSpec((None, None, block, D), lambda j, g, b: (b, g, j, 0))
    k_segments = pl.BlockSpec((None, block), lambda j, g, b: (b, j))
    q, numbers = _whole(spec.B, spec.H, spec.L, D), _whole(spec.B, spec.H, spec.L)
    call = _call(
        keys_kernel, spec, work, lookup_tables(spec, work, segments, rows.segments), over="queries",
        name="crossbatch_attention_keys_gradient",
        grid=(spec.key_blocks, spec.G, spec.rows),
        in_specs=[q, k, k, _whole(spec.B, spec.L), k_segments, q, numbers, numbers],
        out_specs=[k, k],
        out=[array_like(rows.keys, rows.keys.shape)] * 2,
    )  # fmt: skip
    arrays = queries, rows.keys, rows.values, segments, rows.segments
    return call(*arrays, upstream.d_weighted, upstream.peak, upstream.d_total)


def _inside(spec: KernelSpec, shape: tuple[int, ...]):
    """Returns which numbers of [block, padded head dim] are the array's."""
    return jax.lax.broadcasted_iota(jnp.int32, shape, 1) < spec.D


def _load(spec: KernelSpec, ref):
    """Loads [block, padded head dim] with zeros beyond the head dim."""
    return plgpu.load(ref, mask=_inside(spec, ref.shape), other=0.0)


def _store(spec: KernelSpec, ref, value) -> None:
    plgpu.store(ref, value.astype(ref.dtype), mask=_inside(spec, value.shape))


def _dot(a, b, numbers):
    return jax.lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)


def _scores(spec: KernelSpec, q, k, q_segments, k_segments, own, i, j, *, query_axis: int):
    """Returns the masked scores of one block, queries along `query_axis`."""
    query, key = ((slice(None), None), (None, slice(None)))[:: 1 if query_axis == 0 else -1]
    mask = block_mask(spec, q_segments[query], k_segments[key], own, i, j, query_axis=query_axis)
    return jnp.where(mask, _dot(q, k, NT) if query_axis == 0 else _dot(k, q, NT), MASKED_SCORE)


def _over_pairs(lists, block, target, one_pair, carry):
    """Runs `one_pair(row, own, first, end, carry)` over the pairs of row `target`; `block` reads first to end."""
    starts, rows, flags, low, high = lists

    def step(n, carry):
        return one_pair(rows[n], flags[n] & OWN, low[n, block], high[n, block], carry)

    return jax.lax.fori_loop(starts[target], starts[target + 1], step, carry)


def _over_keys(spec: KernelSpec, lists, k_segments, one_block, carry):
    """Runs `one_block(row, keys, j, own, segments, carry)` over all that this program's queries see."""
    size = spec.key_block

    def one_pair(row, own, first, end, carry):
        def step(j, carry):
            keys = pl.ds(j * size, size)
            return one_block(row, keys, j, own, k_segments[row, keys], carry)

        return jax.lax.fori_loop(first, end, step, carry)

    return _over_pairs(lists, pl.program_id(0), pl.program_id(2), one_pair, carry)


def forward_kernel(spec: KernelSpec, *refs):
    """Computes weighted, peak and total by online softmax over the reader's pairs."""
    lists, refs = refs[:LISTS], refs[LISTS:]
    q_ref, k_ref, v_ref, q_segments, k_segments, weighted_ref, peak_ref, total_ref = refs
    i, q, segments = pl.program_id(0), _load(spec, q_ref), q_segments[...]

    def one_block(row, keys, j, own, key_segments, carry):
        weighted, peak, total = carry
        k, v = (_load(spec, ref.at[row, keys, :]) for ref in (k_ref, v_ref))
        scores = _scores(spec, q, k, segments, key_segments, own, i, j, query_axis=0)
        new_peak = jnp.maximum(peak, scores.max(axis=1))
        weights, shrink = jnp.exp(scores - new_peak[:, None]), jnp.exp(peak - new_peak)
        weighted = weighted * shrink[:, None] + _dot(weights.astype(v.dtype), v, NN)
        return weighted, new_peak, total * shrink + weights.sum(axis=1)

    peak, total = (jnp.full((spec.query_block,), x, jnp.float32) for x in (LOWEST_PEAK, 0))
    start = jnp.zeros(q.shape, jnp.float32), peak, total
    weighted, peak, total = _over_keys(spec, lists, k_segments, one_block, start)
    _store(spec, weighted_ref, weighted)
    peak_ref[...] = peak
    total_ref[...] = total


def queries_kernel(spec: KernelSpec, *refs):
    """Computes dq = Σ ds k with ds = w (d_weighted·v + d_total), w = exp(s − peak)."""
    lists, refs = refs[:LISTS], refs[LISTS:]
    q_ref, k_ref, v_ref, q_segments, k_segments, d_weighted_ref, peak_ref, d_total_ref, dq_ref = refs
    i, q, d_weighted = pl.program_id(0), _load(spec, q_ref), _load(spec, d_weighted_ref)
    segments, peak, d_total = q_segments[...], peak_ref[...], d_total_ref[...]

    def one_block(row, keys, j, own, key_segments, dq):
        k, v = (_load(spec, ref.at[row, keys, :]) for ref in (k_ref, v_ref))
        scores = _scores(spec, q, k, segments, key_segments, own, i, j, query_axis=0)
        weights = jnp.exp(scores - peak[:, None])
        d_scores = weights * (_dot(d_weighted, v, NT) + d_total[:, None])
        return dq + _dot(d_scores.astype(k.dtype), k, NN)

    _store(spec, dq_ref, _over_keys(spec, lists, k_segments, one_block, jnp.zeros(q.shape, jnp.float32)))


def keys_kernel(spec: KernelSpec, *refs):
    """Computes dv = Σ w d_weighted and dk = Σ ds q over all readers; scores are [key block, query block] here."""
    lists, refs = refs[:LISTS], refs[LISTS:]
    q_ref, k_ref, v_ref, q_segments, k_segments, d_weighted_ref, peak_ref, d_total_ref, dk_ref, dv_ref = refs
    j, g, b = (pl.program_id(axis) for axis in range(3))
    size = spec.query_block
    k, v, segments = _load(spec, k_ref), _load(spec, v_ref), k_segments[...]

    def one_pair(row, own, first, end, carry):
        def step(at, carry):
            dk, dv = carry
            head, i = g * spec.repeats + jax.lax.div(at, end - first), first + jax.lax.rem(at, end - first)
            queries = pl.ds(i * size, size)
            q, d_weighted = (_load(spec, ref.at[row, head, queries, :]) for ref in (q_ref, d_weighted_ref))
            peak, d_total = (ref[row, head, queries] for ref in (peak_ref, d_total_ref))
            scores = _scores(spec, q, k, q_segments[row, queries], segments, own, i, j, query_axis=1)
            weights = jnp.exp(scores - peak[None, :])
            d_scores = weights * (_dot(v, d_weighted, NT) + d_total[None, :])
            dv += _dot(weights.astype(d_weighted.dtype), d_weighted, NN)
            return dk + _dot(d_scores.astype(q.dtype), q, NN), dv

        return jax.lax.fori_loop(0, spec.repeats * (end - first), step, carry)

    start = jnp.zeros(k.shape, jnp.float32)
    dk, dv = _over_pairs(lists, j, b, one_pair, (start, start))
    _store(spec, dk_ref, dk)
    _store(spec, dv_ref, dv)
