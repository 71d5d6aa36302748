"""The three TPU kernels: attention over visited rows forward, dq, and dk with dv.

Rows are read where they lie: the index maps look the row of a visit up in scalar memory
(`fot_jax/ops/visits.py`), so that no context is ever copied in HBM. Scores live in VMEM only, one
[query block, key block] at a time, and are computed again in the backward kernels.

Arrays, padded to whole blocks: queries [B, H, L, D], keys and values [rows, G, S, D], per-query
numbers (peaks, totals) [B, H, 1, L], segments both as columns [·, ·, 1] and as rows [·, 1, ·].

Source: FoT eq. (2); online softmax: Milakov & Gimelshein 2018; backward: Dao 2023, FlashAttention-2.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from fot_jax.config import Boundaries
from fot_jax.ops.attention import LOWEST_PEAK, MASKED_SCORE
from fot_jax.ops.visits import FILLED, FIRST, LAST, OWN, Spans, Visits

LANES = 128  # width of a TPU vector register; a column is kept that many times
NT = (((1,), (1,)), ((), ()))  # a · bᵀ
NN = (((1,), (0,)), ((), ()))  # a · b


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is static about a call: who sees what, sizes, and how the kernels run."""

    boundaries: Boundaries
    causal: bool  # True: each row reads its own chunk, causally
    query_block: int
    key_block: int
    interpret: bool | pltpu.InterpretParams = False


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Sizes read off the padded arrays."""

    rule: Rule
    B: int
    H: int
    L: int
    D: int
    rows: int
    G: int
    S: int
    itemsize: int

    @property
    def query_blocks(self) -> int:
        return self.L // self.rule.query_block

    @property
    def key_blocks(self) -> int:
        return self.S // self.rule.key_block

    def last_key_block(self, i):
        """The last key block that a query of block i sees in its own chunk."""
        return jax.lax.div(i * self.rule.query_block + self.rule.query_block - 1, self.rule.key_block)

    def key_block_read(self, i, j):
        """Block j, or the block already in VMEM where j lies above the diagonal."""
        return jnp.minimum(j, self.last_key_block(i)) if self.rule.causal else j

    def query_block_read(self, i, j):
        """Block i, or the first block that sees key block j where i lies above the diagonal."""
        first = jax.lax.div(j * self.rule.key_block, self.rule.query_block)
        return jnp.maximum(i, first) if self.rule.causal else i

    def cost(self, visits: Visits, *, products: int, extra_bytes: int) -> pl.CostEstimate:
        """Counted as if every slot of the plan were filled; `products` matrix products per block."""
        pairs = visits.readers.shape[0] - (0 if self.rule.causal else self.B)
        scores = pairs * self.H * self.L * self.S // (2 if self.rule.causal else 1)
        reads = 2 * pairs * self.H * self.query_blocks * self.S * self.D * self.itemsize
        return pl.CostEstimate(
            flops=2 * products * scores * self.D, transcendentals=scores, bytes_accessed=reads + extra_bytes
        )


def _sizes(rule: Rule, queries, keys) -> _Sizes:
    B, H, L, D = queries.shape
    rows, G, S, _ = keys.shape
    return _Sizes(rule=rule, B=B, H=H, L=L, D=D, rows=rows, G=G, S=S, itemsize=keys.dtype.itemsize)


def _visible_block(sizes: _Sizes, visit, i, j, scalars):
    """False where no query of block i can see a key of block j: such blocks are skipped."""
    readers, contexts, flags, query_low, query_high, key_low, key_high = scalars
    query, key = readers[visit] * sizes.query_blocks + i, contexts[visit] * sizes.key_blocks + j
    q_low, q_high, k_low, k_high = query_low[query], query_high[query], key_low[key], key_high[key]
    own = flags[visit] & OWN != 0
    overlap = (q_low <= k_high) & (k_low <= q_high)
    if sizes.rule.boundaries is Boundaries.JOINED:
        overlap = k_high > 0
    one_document = (q_low == q_high) & (k_low == k_high) & (q_low == k_low)
    seen = (own & overlap) | (jnp.logical_not(own) & jnp.logical_not(one_document))
    seen &= (k_high > 0) & (flags[visit] & FILLED != 0)
    return seen & (j <= sizes.last_key_block(i)) if sizes.rule.causal else seen


def _mask(rule: Rule, query_segments, key_segments, own, i, j, *, query_axis: int):
    """`blockwise.block_visibility` of one block, queries along `query_axis`; `own` is 0 or 1."""
    shape = (rule.query_block, rule.key_block) if query_axis == 0 else (rule.key_block, rule.query_block)
    query_segments, key_segments = jnp.broadcast_to(query_segments, shape), jnp.broadcast_to(key_segments, shape)
    same = jnp.where(query_segments == key_segments, 1, 0)
    allowed = same == own if rule.boundaries is Boundaries.MASKED else same <= own
    mask = allowed & (key_segments != 0)
    if rule.causal:
        places = i * rule.query_block + jax.lax.broadcasted_iota(jnp.int32, shape, query_axis)
        mask &= j * rule.key_block + jax.lax.broadcasted_iota(jnp.int32, shape, 1 - query_axis) <= places
    return mask


def _dot(a, b, numbers):
    return jax.lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)


def _to_row(column):
    """[n, LANES], every lane the same -> [1, n]."""
    return column.T[:1]


def _to_column(row):
    """[1, n] -> [n, LANES]."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def _forward_kernel(sizes: _Sizes, *refs):
    scalars, (q, k, v, q_segments, k_segments, weighted, peak_row, total_row, peak, total) = refs[:7], refs[7:]
    i, visit, j = (pl.program_id(axis) for axis in (1, 2, 3))
    flag = scalars[2][visit]

    @pl.when((flag & FIRST != 0) & (j == 0))
    def _():
        weighted[...] = jnp.zeros_like(weighted)
        peak[...] = jnp.full_like(peak, LOWEST_PEAK)
        total[...] = jnp.zeros_like(total)

    @pl.when(_visible_block(sizes, visit, i, j, scalars))
    def _():
        mask = _mask(sizes.rule, q_segments[...], k_segments[...], flag & OWN, i, j, query_axis=0)
        scores = jnp.where(mask, _dot(q[...], k[...], NT), MASKED_SCORE)
        old_peak = peak[...]
        new_peak = jnp.maximum(old_peak, scores.max(axis=1, keepdims=True))
        weights = jnp.exp(scores - new_peak[:, :1])
        shrink = jnp.exp(old_peak - new_peak)
        peak[...] = new_peak
        total[...] = total[...] * shrink + weights.sum(axis=1, keepdims=True)
        weighted[...] = weighted[...] * shrink[:, :1] + _dot(weights.astype(v.dtype), v[...], NN)

    @pl.when((flag & LAST != 0) & (j == sizes.key_blocks - 1))
    def _():
        peak_row[...] = _to_row(peak[...])
        total_row[...] = _to_row(total[...])


def _queries_kernel(sizes: _Sizes, *refs):
    """dq = Σ ds k with ds = w (dweighted·v + dtotal), w = exp(s − peak)."""
    scalars, refs = refs[:7], refs[7:]
    q, k, v, q_segments, k_segments, d_weighted, peak_row, d_total_row, dq, sum_, peak, d_total = refs
    i, visit, j = (pl.program_id(axis) for axis in (1, 2, 3))
    flag = scalars[2][visit]

    @pl.when((flag & FIRST != 0) & (j == 0))
    def _():
        sum_[...] = jnp.zeros_like(sum_)
        peak[...] = _to_column(peak_row[...])
        d_total[...] = _to_column(d_total_row[...])

    @pl.when(_visible_block(sizes, visit, i, j, scalars))
    def _():
        mask = _mask(sizes.rule, q_segments[...], k_segments[...], flag & OWN, i, j, query_axis=0)
        scores = jnp.where(mask, _dot(q[...], k[...], NT), MASKED_SCORE)
        weights = jnp.exp(scores - peak[:, :1])
        d_scores = weights * (_dot(d_weighted[...], v[...], NT) + d_total[:, :1])
        sum_[...] += _dot(d_scores.astype(k.dtype), k[...], NN)

    @pl.when((flag & LAST != 0) & (j == sizes.key_blocks - 1))
    def _():
        dq[...] = sum_[...].astype(dq.dtype)


def _keys_kernel(sizes: _Sizes, *refs):
    """dv = Σ w dweighted and dk = Σ ds q over all readers; scores are [key block, query block] here."""
    scalars, refs = refs[:7], refs[7:]
    q, k, v, q_segments, k_segments, d_weighted, peak_row, d_total_row, dk, dv, sum_k, sum_v = refs
    j, visit, head, i = (pl.program_id(axis) for axis in (1, 2, 3, 4))
    flag = scalars[2][visit]

    @pl.when((flag & FIRST != 0) & (head == 0) & (i == 0))
    def _():
        sum_k[...] = jnp.zeros_like(sum_k)
        sum_v[...] = jnp.zeros_like(sum_v)

    @pl.when(_visible_block(sizes, visit, i, j, scalars))
    def _():
        mask = _mask(sizes.rule, q_segments[...], k_segments[...], flag & OWN, i, j, query_axis=1)
        scores = jnp.where(mask, _dot(k[...], q[...], NT), MASKED_SCORE)
        weights = jnp.exp(scores - peak_row[...])
        d_scores = weights * (_dot(v[...], d_weighted[...], NT) + d_total_row[...])
        sum_v[...] += _dot(weights.astype(v.dtype), d_weighted[...], NN)
        sum_k[...] += _dot(d_scores.astype(q.dtype), q[...], NN)

    @pl.when((flag & LAST != 0) & (head == sizes.H // sizes.G - 1) & (i == sizes.query_blocks - 1))
    def _():
        dk[...] = sum_k[...].astype(dk.dtype)
        dv[...] = sum_v[...].astype(dv.dtype)


def _query_specs(sizes: _Sizes, place):
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


def _key_specs(sizes: _Sizes, place):
    """Blocks of keys, and of their segments as column and row; `place` gives (row, key head, key block)."""
    block, D = sizes.rule.key_block, sizes.D

    def at(index):
        return lambda *ids: index(*place(*ids))

    return (
        pl.BlockSpec((None, None, block, D), at(lambda b, g, j: (b, g, j, 0))),
        pl.BlockSpec((None, block, 1), at(lambda b, g, j: (b, j, 0))),
        pl.BlockSpec((None, 1, block), at(lambda b, g, j: (b, 0, j))),
    )


def _reader_specs(sizes: _Sizes):
    """Specs of a grid (query head, query block, visit, key block)."""
    repeats = sizes.H // sizes.G
    queries = _query_specs(sizes, lambda h, i, visit, j, readers, *_: (readers[visit], h, i))

    def key_place(h, i, visit, j, readers, contexts, *_):
        return contexts[visit], jax.lax.div(h, repeats), sizes.key_block_read(i, j)

    return queries, _key_specs(sizes, key_place)


def _call(kernel, sizes: _Sizes, visits: Visits, spans: Spans, *, name, grid, in_specs, out_specs, out, scratch, cost):
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


def _like(x, shape, dtype) -> jax.ShapeDtypeStruct:
    """An output that varies over the same mesh axes as x (inside `shard_map`)."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def forward(rule: Rule, visits: Visits, spans: Spans, queries, keys, values, query_segments, key_segments):
    """(weighted [B, H, L, D], peak [B, H, 1, L], total [B, H, 1, L]), float32; visits by reader."""
    sizes = _sizes(rule, queries, keys)
    (q, q_column, _, q_numbers), (k, _, k_row) = _reader_specs(sizes)
    numbers = _like(queries, (sizes.B, sizes.H, 1, sizes.L), jnp.float32)
    lanes = pltpu.VMEM((rule.query_block, LANES), jnp.float32)
    call = _call(
        _forward_kernel, sizes, visits, spans,
        name="visited_attention_forward",
        grid=(sizes.H, sizes.query_blocks, visits.count, sizes.key_blocks),
        in_specs=[q, k, k, q_column, k_row],
        out_specs=[q, q_numbers, q_numbers],
        out=[_like(queries, queries.shape, jnp.float32), numbers, numbers],
        scratch=[lanes, lanes],
        cost=sizes.cost(visits, products=2, extra_bytes=queries.nbytes + 4 * queries.size),
    )  # fmt: skip
    return call(queries, keys, values, query_segments[:, :, None], key_segments[:, None, :])


def queries_gradient(
    rule: Rule, visits: Visits, spans: Spans, queries, keys, values, query_segments, key_segments,
    d_weighted, peak, d_total,
):  # fmt: skip
    """dq [B, H, L, D] in the dtype of the queries; visits by reader."""
    sizes = _sizes(rule, queries, keys)
    (q, q_column, _, q_numbers), (k, _, k_row) = _reader_specs(sizes)
    lanes = pltpu.VMEM((rule.query_block, LANES), jnp.float32)
    call = _call(
        _queries_kernel, sizes, visits, spans,
        name="visited_attention_queries_gradient",
        grid=(sizes.H, sizes.query_blocks, visits.count, sizes.key_blocks),
        in_specs=[q, k, k, q_column, k_row, q, q_numbers, q_numbers],
        out_specs=q,
        out=_like(queries, queries.shape, queries.dtype),
        scratch=[pltpu.VMEM((rule.query_block, sizes.D), jnp.float32), lanes, lanes],
        cost=sizes.cost(visits, products=3, extra_bytes=3 * queries.nbytes),
    )  # fmt: skip
    segments = query_segments[:, :, None], key_segments[:, None, :]
    return call(queries, keys, values, *segments, d_weighted, peak, d_total)


def keys_gradient(
    rule: Rule, visits: Visits, spans: Spans, queries, keys, values, query_segments, key_segments,
    d_weighted, peak, d_total,
):  # fmt: skip
    """(dk, dv) [rows, G, S, D] in the dtypes of keys and values; visits by context."""
    sizes = _sizes(rule, queries, keys)
    repeats = sizes.H // sizes.G

    def query_place(g, j, visit, head, i, readers, *_):
        return readers[visit], g * repeats + head, sizes.query_block_read(i, j)

    q, _, q_row, q_numbers = _query_specs(sizes, query_place)
    k, k_column, _ = _key_specs(sizes, lambda g, j, visit, head, i, readers, contexts, *_: (contexts[visit], g, j))
    sums = pltpu.VMEM((rule.key_block, sizes.D), jnp.float32)
    call = _call(
        _keys_kernel, sizes, visits, spans,
        name="visited_attention_keys_gradient",
        grid=(sizes.G, sizes.key_blocks, visits.count, repeats, sizes.query_blocks),
        in_specs=[q, k, k, q_row, k_column, q, q_numbers, q_numbers],
        out_specs=[k, k],
        out=[_like(keys, keys.shape, keys.dtype), _like(values, values.shape, values.dtype)],
        scratch=[sums, sums],
        cost=sizes.cost(visits, products=4, extra_bytes=4 * keys.nbytes),
    )  # fmt: skip
    segments = query_segments[:, None, :], key_segments[:, :, None]
    return call(queries, keys, values, *segments, d_weighted, peak, d_total)
