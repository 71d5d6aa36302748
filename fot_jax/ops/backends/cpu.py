"""The online softmax as CPUs like it: one row and key/value head after another.

The scores of a tile, the queries of one row and head and up to four blocks of keys, stay in caches. Blocks that
nobody sees cost nothing, a row's own empty slots among them. Those that all queries see, most contexts where rows hold
one document, come first and without a mask; large ones several in one tile, as products over a head dim of 64 are
quicker in large tiles (small ones slower: what is handed from core to core costs more than it brings).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fot_jax.ops.backends import Gradients
from fot_jax.ops.backends.xla import Loop, Xla
from fot_jax.ops.softmax import LOWEST_PEAK, MASKED_SCORE, product, weigh
from fot_jax.ops.visibility import Sight, context_sights, local_sights
from fot_jax.types import Partial, Plan, Rows, Upstream

CACHE_BYTES = 1 << 21  # of a CPU core; scores that fit it gain nothing from being cut by head
TILED_FROM_BYTES = 1 << 17  # of the scores of a block: smaller ones are tiles of their own
TILE_BYTES = 1 << 22  # of the scores of a tile of several blocks, at most
TILE_BLOCKS = 4  # at most: each is two copies and two additions of the program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cpu(Xla):
    """By row and head where the program is compiled for a CPU, by `Xla` for any other device.

    A CPU too takes the own chunk of all rows and heads at once if the scores fit its cache.
    """

    def forward(self, loop: Loop, queries, rows: Rows, plan: Plan, segments) -> Partial:
        """See `Xla`."""
        return self._dispatch(_forward, super().forward, loop, queries, rows, plan, segments)

    def gradients(self, loop: Loop, queries, rows: Rows, plan: Plan, segments, upstream: Upstream) -> Gradients:
        """See `Xla`."""
        return self._dispatch(_gradients, super().gradients, loop, queries, rows, plan, segments, upstream)

    def _dispatch(self, by_head, together, loop: Loop, *arguments):
        B, H, L, _ = arguments[0].shape
        if loop.local and B * H * L * loop.block * 4 <= CACHE_BYTES:
            return together(loop, *arguments)
        cpu, default = functools.partial(by_head, loop), functools.partial(together, loop)
        return jax.lax.platform_dependent(*arguments, cpu=cpu, default=default)


class _Order(NamedTuple):
    """In which order rows visit the places of the loop: [B, places], or [B] counts from the front."""

    slots: jax.Array
    starts: jax.Array
    clear: jax.Array  # those that all queries see
    seen: jax.Array  # those and the ones to ask the mask about; the others are not visited


def _order(loop: Loop, plan: Plan, segments, key_segments) -> _Order:
    options = {"block": loop.block, "boundaries": loop.boundaries}
    if loop.local:
        sights = local_sights(segments, key_segments, **options)
    else:
        sights = context_sights(plan, segments, key_segments, **options)
    sights = sights.reshape(len(segments), -1)
    order = jnp.argsort(-sights, axis=1, stable=True)
    slots, starts = (x[order] for x in loop.places(plan, key_segments.shape[1]))
    return _Order(slots, starts, clear=(sights == Sight.EVERYBODY).sum(1), seen=(sights != Sight.NOBODY).sum(1))


def _blocks_in_tile(loop: Loop, order: _Order, T: int) -> int:
    """How many blocks of keys that T queries all see are one tile: a power of two."""
    scores = 4 * T * loop.block
    if loop.local or scores < TILED_FROM_BYTES:  # the own chunk is causal: no block of it is seen by all
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


def _forward(loop: Loop, queries, rows: Rows, plan: Plan, segments) -> Partial:
    G = rows.keys.shape[1]
    grouped = _stacked(queries, G)
    B, _, T, D = grouped.shape
    order = _order(loop, plan, segments, rows.segments)
    together = _blocks_in_tile(loop, order, T)

    def one(n):
        b, g = n // G, n % G

        def visit(carry, slots, starts, *, clear):
            k, v = _tile(loop, rows, plan, b, g, slots, starts)
            mask = functools.partial(_mask, loop, plan, segments, rows.segments, b, slots[0], starts[0], T)
            return add_keys(carry, grouped[b, g], k, v, mask, clear=clear)

        return _visit_all(visit, no_keys(T, D), order, b, together)

    weighted, peak, total = jax.lax.map(one, jnp.arange(B * G))
    numbers = queries.shape[:3]
    return Partial(weighted=weighted.reshape(queries.shape), peak=peak.reshape(numbers), total=total.reshape(numbers))


def _stacked(x, G: int):
    """[B, H, L, …] -> [B, G, T, …]: the T = H/G · L queries of each key/value head."""
    B, _, _, *tail = x.shape
    return x.reshape(B, G, -1, *tail)


def no_keys(T: int, D: int):
    """Returns (weighted, peak, total) of T queries before any key."""
    return jnp.zeros((T, D), jnp.float32), jnp.full((T,), LOWEST_PEAK, jnp.float32), jnp.zeros((T,), jnp.float32)


def add_keys(carry, queries, keys, values, mask, *, clear):
    """Adds keys [S, D] to (weighted, peak, total) of queries [T, D]: one step of the online softmax.

    mask() is [T, S]; it is not asked where all queries see all keys: `clear`, a traced boolean, says so, or is None.
    """
    weighted, peak, total = carry

    def weighed(scores):
        weights, new_peak, here = weigh(scores, peak)
        return weights.astype(values.dtype), new_peak, here

    weights, new_peak, here = _masked(weighed, product("TD,SD->TS", queries, keys), mask, clear=clear)
    shrink = jnp.exp(peak - new_peak)
    return weighted * shrink[:, None] + product("TS,SD->TD", weights, values), new_peak, total * shrink + here


def _masked(weighed, scores, mask, *, clear):
    """weighed(scores), masked unless `clear`; masking made the backward pass of a tile take 1.3 times as long."""
    if clear is None:
        return weighed(scores)
    return jax.lax.cond(clear, weighed, lambda scores: weighed(jnp.where(mask(), scores, MASKED_SCORE)), scores)


def _row(loop: Loop, plan: Plan, b, slot):
    """The row of keys that row b reads through a slot."""
    return b if loop.local else jnp.maximum(plan.context_ids[b, slot], 0)


def _tile(loop: Loop, rows: Rows, plan: Plan, b, g, slots, starts):
    """Keys and values [blocks · S, D] of one head and the blocks that row b reads through slots."""

    def cut(x, slot, start):
        at = (_row(loop, plan, b, slot), g, start, 0)
        return jax.lax.dynamic_slice(x, at, (1, 1, loop.block, x.shape[3]))[0, 0]

    places = list(zip(slots, starts, strict=True))
    return tuple(jnp.concatenate([cut(x, *place) for place in places]) for x in (rows.keys, rows.values))


def _mask(loop: Loop, plan: Plan, segments, key_segments, b, slot, start, T: int):
    """[T, S]: which queries of row b see which keys of a block."""
    block = jax.lax.dynamic_slice(key_segments, (_row(loop, plan, b, slot), start), (1, loop.block))
    mask = loop.mask(segments[b][None], block, plan.own_document[b, slot][None], jnp.ones((1,), bool), start)[0]
    return jnp.tile(mask, (T // len(mask), 1))


def _gradients(loop: Loop, queries, rows: Rows, plan: Plan, segments, upstream: Upstream) -> Gradients:
    """Computes what `softmax.attend_gradients` does; gradients of keys and values grow where these were read from.

    Scores are held as [S, T] here: of the five products only that of the queries' gradient contracts the first axis of
    its left operand, the small keys, where with [T, S] two contracted that of the scores; timed 1.3 times faster.
    """
    G = rows.keys.shape[1]
    grouped, d_weighted = _stacked(queries, G), _stacked(upstream.d_weighted, G)
    peaks, d_totals = _stacked(upstream.peak, G), _stacked(upstream.d_total, G)
    B, _, T, D = grouped.shape
    order = _order(loop, plan, segments, rows.segments)
    together = _blocks_in_tile(loop, order, T)

    def one(carry, n):
        b, g = n // G, n % G
        q, d_out = grouped[b, g], d_weighted[b, g].astype(rows.values.dtype)

        def visit(carry, slots, starts, *, clear):
            dq, dk_all, dv_all = carry
            k, v = _tile(loop, rows, plan, b, g, slots, starts)

            def mask():
                return _mask(loop, plan, segments, rows.segments, b, slots[0], starts[0], T).T

            def weighed(scores):
                return jnp.exp(scores - peaks[b, g][None])

            weights = _masked(weighed, product("SD,TD->ST", k, q), mask, clear=clear)
            through = product("SD,TD->ST", v, d_out)
            d_scores = (weights * (through + d_totals[b, g][None])).astype(k.dtype)
            dv = product("ST,TD->SD", weights.astype(v.dtype), d_out)
            dk = product("ST,TD->SD", d_scores, q)
            dq += product("SD,ST->DT", k, d_scores)
            for i, (slot, start) in enumerate(zip(slots, starts, strict=True)):
                at, block = (_row(loop, plan, b, slot), g, start, 0), slice(i * loop.block, (i + 1) * loop.block)
                dk_all, dv_all = _add_tile(dk_all, dk[block], at), _add_tile(dv_all, dv[block], at)
            return dq, dk_all, dv_all

        dq, *grown = _visit_all(visit, (jnp.zeros((D, T), jnp.float32), *carry), order, b, together)
        return tuple(grown), dq.T

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (rows.keys, rows.values))
    (dk, dv), dq = jax.lax.scan(one, zeros, jnp.arange(B * G))
    return dq.reshape(queries.shape), dk, dv


def _add_tile(all_rows, tile, at):
    """all_rows [rows, G, S, D] with a tile [S', D] added at (row, head, start, 0)."""
    old = jax.lax.dynamic_slice(all_rows, at, (1, 1, *tile.shape))
    return jax.lax.dynamic_update_slice(all_rows, old + tile[None, None], at)
