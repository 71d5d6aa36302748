"""The three TPU kernels: attention over visited rows forward, dq, and dk with dv.

Scores live in VMEM only, one [query block, key block] at a time, and are computed again in the
backward kernels. Outputs are float32 and stay in VMEM from the FIRST visit of their row to the LAST.
Which blocks each step gets is in `fot_jax/ops/pallas_calls.py`.

Arrays, padded to whole blocks: queries [B, H, L, D], keys and values [rows, G, S, D], per-query
numbers (peaks, totals) [B, H, 1, L], segments both as columns [·, ·, 1] and as rows [·, 1, ·].

Source: FoT eq. (2); online softmax: Milakov & Gimelshein 2018; backward: Dao 2023, FlashAttention-2.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from fot_jax.ops.attention import LOWEST_PEAK, MASKED_SCORE
from fot_jax.ops.kernel_rules import NN, NT, Rule, Sizes, block_mask, visible_block
from fot_jax.ops.visits import FIRST, LAST, OWN

LANES = 128  # width of a TPU vector register; a column is kept that many times


def _dot(rule: Rule, a, b, numbers, dtype=None):
    """The float32 product of operands of one dtype, a's unless named; of float32 ones where the chip wants them."""
    dtype = jnp.float32 if rule.widen else dtype or a.dtype
    return jax.lax.dot_general(a.astype(dtype), b.astype(dtype), numbers, preferred_element_type=jnp.float32)


def _to_row(column):
    """[n, LANES], every lane the same -> [1, n]."""
    return column.T[:1]


def _to_column(row):
    """[1, n] -> [n, LANES]."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def forward_kernel(sizes: Sizes, *refs):
    """weighted, peak, total by online softmax over the grid (query head, query block, visit, key block)."""
    scalars, (q, k, v, q_segments, k_segments, weighted, peak_row, total_row, peak, total) = refs[:7], refs[7:]
    i, visit, j = (pl.program_id(axis) for axis in (1, 2, 3))
    flag = scalars[2][visit]

    @pl.when((flag & FIRST != 0) & (j == 0))
    def _():
        weighted[...] = jnp.zeros_like(weighted)
        peak[...] = jnp.full_like(peak, LOWEST_PEAK)
        total[...] = jnp.zeros_like(total)

    @pl.when(visible_block(sizes, visit, i, j, scalars))
    def _():
        mask = block_mask(sizes.rule, q_segments[...], k_segments[...], flag & OWN, i, j, query_axis=0)
        scores = jnp.where(mask, _dot(sizes.rule, q[...], k[...], NT), MASKED_SCORE)
        old_peak = peak[...]
        new_peak = jnp.maximum(old_peak, scores.max(axis=1, keepdims=True))
        weights = jnp.exp(scores - new_peak[:, :1])
        shrink = jnp.exp(old_peak - new_peak)
        peak[...] = new_peak
        total[...] = total[...] * shrink + weights.sum(axis=1, keepdims=True)
        weighted[...] = weighted[...] * shrink[:, :1] + _dot(sizes.rule, weights, v[...], NN, v.dtype)

    @pl.when((flag & LAST != 0) & (j == sizes.key_blocks - 1))
    def _():
        peak_row[...] = _to_row(peak[...])
        total_row[...] = _to_row(total[...])


def queries_kernel(sizes: Sizes, *refs):
    """dq = Σ ds k with ds = w (dweighted·v + dtotal), w = exp(s − peak)."""
    scalars, refs = refs[:7], refs[7:]
    q, k, v, q_segments, k_segments, d_weighted, peak_row, d_total_row, dq, peak, d_total = refs
    i, visit, j = (pl.program_id(axis) for axis in (1, 2, 3))
    flag = scalars[2][visit]

    @pl.when((flag & FIRST != 0) & (j == 0))
    def _():
        dq[...] = jnp.zeros_like(dq)
        peak[...] = _to_column(peak_row[...])
        d_total[...] = _to_column(d_total_row[...])

    @pl.when(visible_block(sizes, visit, i, j, scalars))
    def _():
        mask = block_mask(sizes.rule, q_segments[...], k_segments[...], flag & OWN, i, j, query_axis=0)
        scores = jnp.where(mask, _dot(sizes.rule, q[...], k[...], NT), MASKED_SCORE)
        weights = jnp.exp(scores - peak[:, :1])
        d_scores = weights * (_dot(sizes.rule, d_weighted[...], v[...], NT) + d_total[:, :1])
        dq[...] += _dot(sizes.rule, d_scores, k[...], NN, k.dtype)


def keys_kernel(sizes: Sizes, *refs):
    """dv = Σ w dweighted and dk = Σ ds q over all readers; scores are [key block, query block] here."""
    scalars, refs = refs[:7], refs[7:]
    q, k, v, q_segments, k_segments, d_weighted, peak_row, d_total_row, dk, dv = refs
    j, visit, head, i = (pl.program_id(axis) for axis in (1, 2, 3, 4))
    flag = scalars[2][visit]

    @pl.when((flag & FIRST != 0) & (head == 0) & (i == 0))
    def _():
        dk[...] = jnp.zeros_like(dk)
        dv[...] = jnp.zeros_like(dv)

    @pl.when(visible_block(sizes, visit, i, j, scalars))
    def _():
        mask = block_mask(sizes.rule, q_segments[...], k_segments[...], flag & OWN, i, j, query_axis=1)
        scores = jnp.where(mask, _dot(sizes.rule, k[...], q[...], NT), MASKED_SCORE)
        weights = jnp.exp(scores - peak_row[...])
        d_scores = weights * (_dot(sizes.rule, v[...], d_weighted[...], NT) + d_total_row[...])
        dv[...] += _dot(sizes.rule, weights, d_weighted[...], NN, v.dtype)
        dk[...] += _dot(sizes.rule, d_scores, q[...], NN, q.dtype)
