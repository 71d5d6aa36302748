"""The loop of `blockwise.py` as CPUs like it: one row and key/value head after another.

The scores of a block stay in a core's cache, and a row's own empty slots cost nothing.
"""

import functools

import jax
import jax.numpy as jnp

from fot_jax.ops import blocks
from fot_jax.ops.attention import LOWEST_PEAK, MASKED_SCORE
from fot_jax.ops.blocks import Rule

CACHE_BYTES = 1 << 21  # of a CPU core; scores that fit it gain nothing from being cut by head


def forward(rule, queries, keys, values, plan, query_segments, segments):
    """One row and key/value head after another: its scores stay in a CPU core's cache, its empty slots cost nothing."""
    B, G, T, D = queries.shape
    places = blocks.schedule(rule, plan.context_ids.shape[1], keys.shape[2])

    def one(n):
        b, g = n // G, n % G
        read = functools.partial(_tile, rule, keys, values, plan, query_segments, segments, b, g)

        def visit(carry, place):
            def attend(carry):
                k, v, mask = read(*place)
                return add_keys(carry, queries[b, g], k, v, mask)

            return jax.lax.cond(plan.context_ids[b, place[0]] >= 0, attend, lambda same: same, carry), None

        return jax.lax.scan(visit, no_keys(T, D), places)[0]

    parts = jax.lax.map(one, jnp.arange(B * G))
    return jax.tree.map(lambda x: x.reshape(B, G, *x.shape[1:]), parts)


def no_keys(T: int, D: int):
    """(weighted, peak, total) of T queries before any key."""
    return jnp.zeros((T, D), jnp.float32), jnp.full((T,), LOWEST_PEAK, jnp.float32), jnp.zeros((T,), jnp.float32)


def add_keys(carry, queries, keys, values, mask):
    """One step of the online softmax: (weighted, peak, total) of queries [T, D] with keys [S, D] more."""
    weighted, peak, total = carry
    scores = _tile_scores(queries, keys, mask)
    new_peak = jnp.maximum(peak, scores.max(axis=-1))
    weights = jnp.exp(scores - new_peak[:, None])
    shrink = jnp.exp(peak - new_peak)
    added = jnp.einsum("TS,SD->TD", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return weighted * shrink[:, None] + added, new_peak, total * shrink + weights.sum(axis=-1)


def _tile(rule: Rule, keys, values, plan, query_segments, segments, b, g, slot, start):
    """Keys and values [S, D] of one head and block that row b reads through a slot, and who sees them [T, S]."""
    length = min(rule.block, keys.shape[2])
    row = b if rule.causal else jnp.maximum(plan.context_ids[b, slot], 0)
    k, v = (jax.lax.dynamic_slice(x, (row, g, start, 0), (1, 1, length, x.shape[3]))[0, 0] for x in (keys, values))
    s = jax.lax.dynamic_slice(segments, (row, start), (1, length))
    one = (query_segments[b][None], s, plan.own_document[b, slot][None], jnp.ones((1,), bool))
    return k, v, blocks.block_mask(rule, *one, start, length)[0, 0]


def _tile_scores(queries, keys, mask):
    scores = jnp.einsum("TD,SD->TS", queries, keys, preferred_element_type=jnp.float32)
    return jnp.where(mask, scores, MASKED_SCORE)


def gradients(rule, queries, keys, values, plan, query_segments, segments, peak, d_weighted, d_total):
    """As `_forward_by_head`; the gradients of keys and values grow where they were read from."""
    B, G, T, D = queries.shape
    places = blocks.schedule(rule, plan.context_ids.shape[1], keys.shape[2])

    def one(carry, n):
        b, g = n // G, n % G
        read = functools.partial(_tile, rule, keys, values, plan, query_segments, segments, b, g)
        q, d_out = queries[b, g], d_weighted[b, g].astype(values.dtype)

        def visit(carry, place):
            slot, start = place

            def attend(carry):
                dq, dk_all, dv_all = carry
                k, v, mask = read(slot, start)
                weights = jnp.exp(_tile_scores(q, k, mask) - peak[b, g][:, None])
                through = jnp.einsum("TD,SD->TS", d_out, v, preferred_element_type=jnp.float32)
                d_scores = (weights * (through + d_total[b, g][:, None])).astype(k.dtype)
                dv = jnp.einsum("TS,TD->SD", weights.astype(v.dtype), d_out, preferred_element_type=jnp.float32)
                dk = jnp.einsum("TS,TD->SD", d_scores, q, preferred_element_type=jnp.float32)
                dq += jnp.einsum("TS,SD->TD", d_scores, k, preferred_element_type=jnp.float32)
                at = (b if rule.causal else plan.context_ids[b, slot], g, start, 0)
                return dq, _add_tile(dk_all, dk, at), _add_tile(dv_all, dv, at)

            return jax.lax.cond(plan.context_ids[b, slot] >= 0, attend, lambda same: same, carry), None

        (dq, *grown), _ = jax.lax.scan(visit, (jnp.zeros((T, D), jnp.float32), *carry), places)
        return tuple(grown), dq

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (keys, values))
    (dk, dv), dq = jax.lax.scan(one, zeros, jnp.arange(B * G))
    return dq.reshape(queries.shape), dk, dv


def _add_tile(all_rows, tile, at):
    """all_rows [B, G, S, D] with a tile [S', D] added at (row, head, start, 0)."""
    old = jax.lax.dynamic_slice(all_rows, at, (1, 1, *tile.shape))
    return jax.lax.dynamic_update_slice(all_rows, old + tile[None, None], at)
