"""The three TPU kernels: attention over visited rows forward, dq, and dk with dv.

Scores live in VMEM only, one [query block, key block] at a time, and are computed again in the
backward kernels. Outputs are float32 and stay in VMEM from the FIRST visit of their row to the LAST.
Which blocks each step gets is in `fot_jax/ops/pallas_calls.py`.

Arrays, padded to whole blocks: queries [B, H, L, D], keys and values [rows, G, S, D], per-query
numbers (peaks, totals) [B, H, 1, L], segments both as columns [·, ·, 1] and as rows [·, 1, ·].

Source: FoT eq. (2); online softmax: Milakov & Gimelshein 2018; backward: Dao 2023, FlashAttention-2.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from fot_jax.config import Boundaries
from fot_jax.ops.attention import LOWEST_PEAK, MASKED_SCORE
from fot_jax.ops.visits import FILLED, FIRST, LAST, OWN, Visits

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
    widen: bool = False  # matrix products of the chip (TPU v2, v3) take float32 only, and round it themselves


@dataclasses.dataclass(frozen=True)
class Sizes:
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
        """Blocks of queries in a row."""
        return self.L // self.rule.query_block

    @property
    def key_blocks(self) -> int:
        """Blocks of keys in a row."""
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

    def cost(self, visits: Visits, *, products: int, reads: int, arrays: int) -> pl.CostEstimate:
        """Counted as if every slot were filled, half of the scores where causal.

        Args:
          visits: the list walked over.
          products: matrix products per block of scores.
          reads: numbers of D read anew for each visit and head.
          arrays: bytes read or written once.
        """
        half = 2 if self.rule.causal else 1
        scores = visits.slots * self.H * self.L * self.S // half
        moved = visits.slots * self.H * reads * self.D * self.itemsize // half
        return pl.CostEstimate(
            flops=2 * products * scores * self.D, transcendentals=scores, bytes_accessed=moved + arrays
        )


def sizes_of(rule: Rule, queries, keys) -> Sizes:
    """Sizes of a call on padded arrays."""
    B, H, L, D = queries.shape
    rows, G, S, _ = keys.shape
    return Sizes(rule=rule, B=B, H=H, L=L, D=D, rows=rows, G=G, S=S, itemsize=keys.dtype.itemsize)


def visible_block(sizes: Sizes, visit, i, j, scalars):
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
    """`blocks.block_visibility` of one block, queries along `query_axis`; `own` is 0 or 1."""
    shape = (rule.query_block, rule.key_block) if query_axis == 0 else (rule.key_block, rule.query_block)
    query_segments, key_segments = jnp.broadcast_to(query_segments, shape), jnp.broadcast_to(key_segments, shape)
    same = jnp.where(query_segments == key_segments, 1, 0)
    allowed = same == own if rule.boundaries is Boundaries.MASKED else same <= own
    mask = allowed & (key_segments != 0)
    if rule.causal:
        places = i * rule.query_block + jax.lax.broadcasted_iota(jnp.int32, shape, query_axis)
        mask &= j * rule.key_block + jax.lax.broadcasted_iota(jnp.int32, shape, 1 - query_axis) <= places
    return mask


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
        mask = _mask(sizes.rule, q_segments[...], k_segments[...], flag & OWN, i, j, query_axis=0)
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
        mask = _mask(sizes.rule, q_segments[...], k_segments[...], flag & OWN, i, j, query_axis=0)
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
        mask = _mask(sizes.rule, q_segments[...], k_segments[...], flag & OWN, i, j, query_axis=1)
        scores = jnp.where(mask, _dot(sizes.rule, k[...], q[...], NT), MASKED_SCORE)
        weights = jnp.exp(scores - peak_row[...])
        d_scores = weights * (_dot(sizes.rule, v[...], d_weighted[...], NT) + d_total_row[...])
        dv[...] += _dot(sizes.rule, weights, d_weighted[...], NN, v.dtype)
        dk[...] += _dot(sizes.rule, d_scores, q[...], NN, q.dtype)
