"""The three GPU kernels: attention over visited rows forward, dq, and dk with dv, written for Triton.

What `fot_jax/ops/pallas_kernels.py` computes, by the same rules of who sees whom. A GPU has no grid that walks in order
over one output block: here a program owns its output block and loops over its visits itself.

    kernel      program                             loops over
    forward     (query block, query head, reader)   the reader's visits, key blocks
    dq          (query block, query head, reader)   the reader's visits, key blocks
    dk, dv      (key block, key head, context)      the context's visits, query heads of the group, query blocks

Of a visit it reads the blocks from the first to the last that anyone sees; no branch is inside, so that Triton can load
one block while it multiplies another. A block's head dim is the next power of two; what lies beyond is masked.

Source: FoT eq. (2); online softmax: Milakov & Gimelshein 2018; backward: Dao 2023, FlashAttention-2.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from fot_jax.ops.attention import LOWEST_PEAK, MASKED_SCORE
from fot_jax.ops.kernel_rules import NN, NT, Sizes, block_mask
from fot_jax.ops.visits import OWN


def padded_head_dim(D: int) -> int:
    """The power of two that a block's head dim is; products want 16 at least."""
    return max(16, pl.next_power_of_2(D))


def _inside(sizes: Sizes, shape: tuple[int, ...]):
    """Which numbers of [block, padded head dim] are the array's."""
    return jax.lax.broadcasted_iota(jnp.int32, shape, 1) < sizes.D


def _load(sizes: Sizes, ref):
    """[block, padded head dim] with zeros beyond the head dim."""
    return plgpu.load(ref, mask=_inside(sizes, ref.shape), other=0.0)


def _store(sizes: Sizes, ref, value) -> None:
    plgpu.store(ref, value.astype(ref.dtype), mask=_inside(sizes, value.shape))


def _dot(a, b, numbers):
    return jax.lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)


def _scores(sizes: Sizes, q, k, q_segments, k_segments, own, i, j, *, query_axis: int):
    """Masked scores of one block, queries along `query_axis`."""
    query, key = ((slice(None), None), (None, slice(None)))[:: 1 if query_axis == 0 else -1]
    mask = block_mask(sizes.rule, q_segments[query], k_segments[key], own, i, j, query_axis=query_axis)
    return jnp.where(mask, _dot(q, k, NT) if query_axis == 0 else _dot(k, q, NT), MASKED_SCORE)


def _over_visits(visits, block, target, one_visit, carry):
    """`one_visit(row, own, first, end, carry)` over the visits of row `target`, of which `block` reads first to end."""
    starts, rows, flags, low, high = visits

    def step(n, carry):
        return one_visit(rows[n], flags[n] & OWN, low[n, block], high[n, block], carry)

    return jax.lax.fori_loop(starts[target], starts[target + 1], step, carry)


def _over_keys(sizes: Sizes, visits, k_segments, one_block, carry):
    """`one_block(row, keys, j, own, segments, carry)` over all that this program's queries see."""
    size = sizes.rule.key_block

    def one_visit(row, own, first, end, carry):
        def step(j, carry):
            keys = pl.ds(j * size, size)
            return one_block(row, keys, j, own, k_segments[row, keys], carry)

        return jax.lax.fori_loop(first, end, step, carry)

    return _over_visits(visits, pl.program_id(0), pl.program_id(2), one_visit, carry)


def forward_kernel(sizes: Sizes, *refs):
    """weighted, peak, total by online softmax over the reader's visits."""
    visits, (q_ref, k_ref, v_ref, q_segments, k_segments, weighted_ref, peak_ref, total_ref) = refs[:5], refs[5:]
    i, q, segments = pl.program_id(0), _load(sizes, q_ref), q_segments[...]

    def one_block(row, keys, j, own, key_segments, carry):
        weighted, peak, total = carry
        k, v = (_load(sizes, ref.at[row, keys, :]) for ref in (k_ref, v_ref))
        scores = _scores(sizes, q, k, segments, key_segments, own, i, j, query_axis=0)
        new_peak = jnp.maximum(peak, scores.max(axis=1))
        weights, shrink = jnp.exp(scores - new_peak[:, None]), jnp.exp(peak - new_peak)
        weighted = weighted * shrink[:, None] + _dot(weights.astype(v.dtype), v, NN)
        return weighted, new_peak, total * shrink + weights.sum(axis=1)

    rows = (sizes.rule.query_block,)
    start = (
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(rows, LOWEST_PEAK, jnp.float32),
        jnp.zeros(rows, jnp.float32),
    )
    weighted, peak, total = _over_keys(sizes, visits, k_segments, one_block, start)
    _store(sizes, weighted_ref, weighted)
    peak_ref[...] = peak
    total_ref[...] = total


def queries_kernel(sizes: Sizes, *refs):
    """dq = Σ ds k with ds = w (dweighted·v + dtotal), w = exp(s − peak)."""
    visits, refs = refs[:5], refs[5:]
    q_ref, k_ref, v_ref, q_segments, k_segments, d_weighted_ref, peak_ref, d_total_ref, dq_ref = refs
    i, q, d_weighted = pl.program_id(0), _load(sizes, q_ref), _load(sizes, d_weighted_ref)
    segments, peak, d_total = q_segments[...], peak_ref[...], d_total_ref[...]

    def one_block(row, keys, j, own, key_segments, dq):
        k, v = (_load(sizes, ref.at[row, keys, :]) for ref in (k_ref, v_ref))
        scores = _scores(sizes, q, k, segments, key_segments, own, i, j, query_axis=0)
        weights = jnp.exp(scores - peak[:, None])
        d_scores = weights * (_dot(d_weighted, v, NT) + d_total[:, None])
        return dq + _dot(d_scores.astype(k.dtype), k, NN)

    _store(sizes, dq_ref, _over_keys(sizes, visits, k_segments, one_block, jnp.zeros(q.shape, jnp.float32)))


def keys_kernel(sizes: Sizes, *refs):
    """dv = Σ w dweighted and dk = Σ ds q over all readers; scores are [key block, query block] here."""
    visits, refs = refs[:5], refs[5:]
    q_ref, k_ref, v_ref, q_segments, k_segments, d_weighted_ref, peak_ref, d_total_ref, dk_ref, dv_ref = refs
    j, g, b = (pl.program_id(axis) for axis in range(3))
    size, repeats = sizes.rule.query_block, sizes.H // sizes.G
    k, v, segments = _load(sizes, k_ref), _load(sizes, v_ref), k_segments[...]

    def one_visit(row, own, first, end, carry):
        def step(at, carry):
            dk, dv = carry
            head, i = g * repeats + jax.lax.div(at, end - first), first + jax.lax.rem(at, end - first)
            queries = pl.ds(i * size, size)
            q, d_weighted = (_load(sizes, ref.at[row, head, queries, :]) for ref in (q_ref, d_weighted_ref))
            peak, d_total = (ref[row, head, 0, queries] for ref in (peak_ref, d_total_ref))
            scores = _scores(sizes, q, k, q_segments[row, queries], segments, own, i, j, query_axis=1)
            weights = jnp.exp(scores - peak[None, :])
            d_scores = weights * (_dot(v, d_weighted, NT) + d_total[None, :])
            dv += _dot(weights.astype(d_weighted.dtype), d_weighted, NN)
            return dk + _dot(d_scores.astype(q.dtype), q, NN), dv

        return jax.lax.fori_loop(0, repeats * (end - first), step, carry)

    start = jnp.zeros(k.shape, jnp.float32)
    dk, dv = _over_visits(visits, j, b, one_visit, (start, start))
    _store(sizes, dk_ref, dk)
    _store(sizes, dv_ref, dv)
