"""The loop of `blockwise.py` as CPUs like it: one row and key/value head after another.

The scores of a tile, the queries of one row and head and up to four blocks of keys, stay in caches. Blocks that
nobody sees cost nothing, a row's own empty slots among them. Those that all queries see, most contexts where rows hold
one document, come first and without a mask; large ones several in one tile, as products over a head dim of 64 are
quicker in large tiles (small ones slower: what is handed from core to core costs more than it brings).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fot_jax.ops import blocks
from fot_jax.ops.attention import LOWEST_PEAK, MASKED_SCORE
from fot_jax.ops.blocks import Rule, Sight

CACHE_BYTES = 1 << 21  # of a CPU core; scores that fit it gain nothing from being cut by head
TILED_FROM_BYTES = 1 << 17  # of the scores of a block: smaller ones are tiles of their own
TILE_BYTES = 1 << 22  # of the scores of a tile of several blocks, at most
TILE_BLOCKS = 4  # at most: each is two copies and two additions of the program


class _Order(NamedTuple):
    """In which order rows visit the places of `blocks.schedule`: [B, places], or [B] counts from the front."""

    slots: jax.Array
    starts: jax.Array
    clear: jax.Array  # those that all queries see
    seen: jax.Array  # those and the ones to ask `blocks.block_mask` about; the others are not visited


def _order(rule: Rule, plan, query_segments, segments) -> _Order:
    places = blocks.schedule(rule, plan.context_ids.shape[1], segments.shape[1])
    sights = blocks.sights(rule, plan, query_segments, segments, places)
    order = jnp.argsort(-sights, axis=1, stable=True)
    slots, starts = (x[order] for x in places)
    return _Order(slots, starts, clear=(sights == Sight.ALL).sum(1), seen=(sights != Sight.NOBODY).sum(1))


def _blocks_in_tile(rule: Rule, order: _Order, T: int, S: int) -> int:
    """How many blocks of S keys that T queries all see are one tile: a power of two."""
    scores = 4 * T * S
    if rule.causal or scores < TILED_FROM_BYTES:  # causal: the first query sees the first key alone
        return 1
    most = min(order.slots.shape[1], TILE_BLOCKS, TILE_BYTES // scores)
    return 1 << (max(most, 1).bit_length() - 1)


def _visit_all(visit, carry, order: _Order, b, together: int):
    """The carry after visit(carry, slots, starts, clear=…) of what row b sees: `together` places at once, then each.

    clear: a traced boolean, whether all queries see all keys; None: they do.
    """

    def places(i, count):
        return (jax.lax.dynamic_slice(x[b], (i,), (count,)) for x in (order.slots, order.starts))

    def single(i, carry):
        return visit(carry, *places(i, 1), clear=i < order.clear[b])

    def tile(i, carry):
        return visit(carry, *places(i * together, together), clear=None)

    if together == 1:
        return jax.lax.fori_loop(0, order.seen[b], single, carry)
    tiles = order.clear[b] // together
    carry = jax.lax.fori_loop(0, tiles, tile, carry)
    return jax.lax.fori_loop(tiles * together, order.seen[b], single, carry)


def forward(rule, queries, keys, values, plan, query_segments, segments):
    """(weighted, peak, total) of all rows and heads, in the layout of `blockwise.py`."""
    B, G, T, D = queries.shape
    order = _order(rule, plan, query_segments, segments)
    together = _blocks_in_tile(rule, order, T, min(rule.block, keys.shape[2]))

    def one(n):
        b, g = n // G, n % G

        def visit(carry, slots, starts, *, clear):
            k, v = _tile(rule, keys, values, plan, b, g, slots, starts)
            mask = functools.partial(_mask, rule, plan, query_segments, segments, b, slots[0], starts[0])
            return add_keys(carry, queries[b, g], k, v, mask, clear=clear)

        return _visit_all(visit, no_keys(T, D), order, b, together)

    parts = jax.lax.map(one, jnp.arange(B * G))
    return jax.tree.map(lambda x: x.reshape(B, G, *x.shape[1:]), parts)


def no_keys(T: int, D: int):
    """(weighted, peak, total) of T queries before any key."""
    return jnp.zeros((T, D), jnp.float32), jnp.full((T,), LOWEST_PEAK, jnp.float32), jnp.zeros((T,), jnp.float32)


def add_keys(carry, queries, keys, values, mask, *, clear):
    """One step of the online softmax: (weighted, peak, total) of queries [T, D] with keys [S, D] more.

    mask() is [T, S]; it is not asked where all queries see all keys: `clear`, a traced boolean, says so, or is None.
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
    if clear is None:
        return weigh(scores)
    return jax.lax.cond(clear, weigh, lambda scores: weigh(jnp.where(mask(), scores, MASKED_SCORE)), scores)


def _product(axes: str, a, b):
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


def _row(rule: Rule, plan, b, slot):
    """The row of keys that row b reads through a slot."""
    return b if rule.causal else jnp.maximum(plan.context_ids[b, slot], 0)


def _tile(rule: Rule, keys, values, plan, b, g, slots, starts):
    """Keys and values [blocks · S, D] of one head and the blocks that row b reads through slots."""
    length = min(rule.block, keys.shape[2])

    def cut(x, slot, start):
        return jax.lax.dynamic_slice(x, (_row(rule, plan, b, slot), g, start, 0), (1, 1, length, x.shape[3]))[0, 0]

    places = list(zip(slots, starts, strict=True))
    return tuple(jnp.concatenate([cut(x, *place) for place in places]) for x in (keys, values))


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
    order = _order(rule, plan, query_segments, segments)
    length = min(rule.block, keys.shape[2])
    together = _blocks_in_tile(rule, order, T, length)

    def one(carry, n):
        b, g = n // G, n % G
        q, d_out = queries[b, g], d_weighted[b, g].astype(values.dtype)

        def visit(carry, slots, starts, *, clear):
            dq, dk_all, dv_all = carry
            k, v = _tile(rule, keys, values, plan, b, g, slots, starts)

            def mask():
                return _mask(rule, plan, query_segments, segments, b, slots[0], starts[0]).T

            def weigh(scores):
                return jnp.exp(scores - peak[b, g][None])

            weights = _weighed(weigh, _product("SD,TD->ST", k, q), mask, clear=clear)
            through = _product("SD,TD->ST", v, d_out)
            d_scores = (weights * (through + d_total[b, g][None])).astype(k.dtype)
            dv = _product("ST,TD->SD", weights.astype(v.dtype), d_out)
            dk = _product("ST,TD->SD", d_scores, q)
            dq += _product("SD,ST->DT", k, d_scores)
            for i, (slot, start) in enumerate(zip(slots, starts, strict=True)):
                at, block = (_row(rule, plan, b, slot), g, start, 0), slice(i * length, (i + 1) * length)
                dk_all, dv_all = _add_tile(dk_all, dk[block], at), _add_tile(dv_all, dv[block], at)
            return dq, dk_all, dv_all

        dq, *grown = _visit_all(visit, (jnp.zeros((D, T), jnp.float32), *carry), order, b, together)
        return tuple(grown), dq.T

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (keys, values))
    (dk, dv), dq = jax.lax.scan(one, zeros, jnp.arange(B * G))
    return dq.reshape(queries.shape), dk, dv


def _add_tile(all_rows, tile, at):
    """all_rows [rows, G, S, D] with a tile [S', D] added at (row, head, start, 0)."""
    old = jax.lax.dynamic_slice(all_rows, at, (1, 1, *tile.shape))
    return jax.lax.dynamic_update_slice(all_rows, old + tile[None, None], at)
