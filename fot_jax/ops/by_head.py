"""The loop of `blockwise.py` as CPUs like it: one row and key/value head after another.

The scores of a tile, the queries of one row and head and one block of keys, stay in a core's cache. Tiles that nobody
sees cost nothing, a row's own empty slots among them; those that all queries see cost no mask: most contexts where
rows hold one document, most of a memory, none of a row's own chunk.
"""

import jax
import jax.numpy as jnp

from fot_jax.ops import blocks
from fot_jax.ops.attention import LOWEST_PEAK, MASKED_SCORE
from fot_jax.ops.blocks import Rule, Sight

CACHE_BYTES = 1 << 21  # of a CPU core; scores that fit it gain nothing from being cut by head


def forward(rule, queries, keys, values, plan, query_segments, segments):
    """(weighted, peak, total) of all rows and heads, in the layout of `blockwise.py`."""
    B, G, T, D = queries.shape
    places = blocks.schedule(rule, plan.context_ids.shape[1], keys.shape[2])
    sights = blocks.sights(rule, plan, query_segments, segments, places)

    def one(n):
        b, g = n // G, n % G

        def visit(carry, entry):
            sight, *place = entry

            def attend(carry):
                k, v = _tile(rule, keys, values, plan, b, g, *place)

                def mask():
                    return _mask(rule, plan, query_segments, segments, b, *place)

                return add_keys(carry, queries[b, g], k, v, mask, clear=sight == Sight.ALL)

            return jax.lax.cond(sight != Sight.NOBODY, attend, lambda same: same, carry), None

        return jax.lax.scan(visit, no_keys(T, D), (sights[b], *places))[0]

    parts = jax.lax.map(one, jnp.arange(B * G))
    return jax.tree.map(lambda x: x.reshape(B, G, *x.shape[1:]), parts)


def no_keys(T: int, D: int):
    """(weighted, peak, total) of T queries before any key."""
    return jnp.zeros((T, D), jnp.float32), jnp.full((T,), LOWEST_PEAK, jnp.float32), jnp.zeros((T,), jnp.float32)


def add_keys(carry, queries, keys, values, mask, *, clear):
    """One step of the online softmax: (weighted, peak, total) of queries [T, D] with keys [S, D] more.

    mask() is [T, S]; it is not asked where `clear`, a traced boolean, says that all queries see all keys.
    """
    weighted, peak, total = carry

    def weigh(scores):
        new_peak = jnp.maximum(peak, scores.max(axis=-1))
        weights = jnp.exp(scores - new_peak[:, None])
        return weights.astype(values.dtype), new_peak, weights.sum(axis=-1)

    scores = _product("TD,SD->TS", queries, keys)
    weights, new_peak, here = _weighed(weigh, scores, mask, clear=clear)
    shrink = jnp.exp(peak - new_peak)
    return weighted * shrink[:, None] + _product("TS,SD->TD", weights, values), new_peak, total * shrink + here


def _weighed(weigh, scores, mask, *, clear):
    """weigh(scores), without mask() where `clear`; with it the backward pass of a tile took 1.3 times as long."""
    return jax.lax.cond(clear, weigh, lambda scores: weigh(jnp.where(mask(), scores, MASKED_SCORE)), scores)


def _product(axes: str, a, b):
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


def _row(rule: Rule, plan, b, slot):
    """The row of keys that row b reads through a slot."""
    return b if rule.causal else jnp.maximum(plan.context_ids[b, slot], 0)


def _tile(rule: Rule, keys, values, plan, b, g, slot, start):
    """Keys and values [S, D] of one head and block that row b reads through a slot."""
    at, shape = (_row(rule, plan, b, slot), g, start, 0), (1, 1, min(rule.block, keys.shape[2]), keys.shape[3])
    return tuple(jax.lax.dynamic_slice(x, at, shape)[0, 0] for x in (keys, values))


def _mask(rule: Rule, plan, query_segments, segments, b, slot, start):
    """[T, S]: which queries of row b see which keys of a block."""
    length = min(rule.block, segments.shape[1])
    s = jax.lax.dynamic_slice(segments, (_row(rule, plan, b, slot), start), (1, length))
    one = (query_segments[b][None], s, plan.own_document[b, slot][None], jnp.ones((1,), bool))
    return blocks.block_mask(rule, *one, start, length)[0, 0]


def gradients(rule, queries, keys, values, plan, query_segments, segments, peak, d_weighted, d_total):
    """As `blockwise.gradients`; those of keys and values grow where they were read from.

    Scores are held as [S, T] here: of the five products only that of the queries' gradient contracts the first axis of
    its left operand, the small keys, where with [T, S] two contracted that of the scores; timed 1.3 times faster.
    """
    B, G, T, D = queries.shape
    places = blocks.schedule(rule, plan.context_ids.shape[1], keys.shape[2])
    sights = blocks.sights(rule, plan, query_segments, segments, places)

    def one(carry, n):
        b, g = n // G, n % G
        q, d_out = queries[b, g], d_weighted[b, g].astype(values.dtype)

        def visit(carry, entry):
            sight, slot, start = entry

            def attend(carry):
                dq, dk_all, dv_all = carry
                k, v = _tile(rule, keys, values, plan, b, g, slot, start)

                def mask():
                    return _mask(rule, plan, query_segments, segments, b, slot, start).T

                def weigh(scores):
                    return jnp.exp(scores - peak[b, g][None])

                weights = _weighed(weigh, _product("SD,TD->ST", k, q), mask, clear=sight == Sight.ALL)
                through = _product("SD,TD->ST", v, d_out)
                d_scores = (weights * (through + d_total[b, g][None])).astype(k.dtype)
                dv = _product("ST,TD->SD", weights.astype(v.dtype), d_out)
                dk = _product("ST,TD->SD", d_scores, q)
                dq += _product("SD,ST->DT", k, d_scores)
                at = _row(rule, plan, b, slot), g, start, 0
                return dq, _add_tile(dk_all, dk, at), _add_tile(dv_all, dv, at)

            return jax.lax.cond(sight != Sight.NOBODY, attend, lambda same: same, carry), None

        (dq, *grown), _ = jax.lax.scan(visit, (jnp.zeros((D, T), jnp.float32), *carry), (sights[b], *places))
        return tuple(grown), dq.T

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (keys, values))
    (dk, dv), dq = jax.lax.scan(one, zeros, jnp.arange(B * G))
    return dq.reshape(queries.shape), dk, dv


def _add_tile(all_rows, tile, at):
    """all_rows [rows, G, S, D] with a tile [S', D] added at (row, head, start, 0)."""
    old = jax.lax.dynamic_slice(all_rows, at, (1, 1, *tile.shape))
    return jax.lax.dynamic_update_slice(all_rows, old + tile[None, None], at)
