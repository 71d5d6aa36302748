"""What the loops of `blockwise.py` and `by_head.py` share: the static rule, who sees what, the order of blocks."""

import dataclasses
import enum

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from fot_jax.config import Boundaries
from fot_jax.types import Plan


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is static about a call: who sees what, and the block length (a divisor of the keys' length)."""

    boundaries: Boundaries
    causal: bool  # True: slot 0 is the row's own chunk, causally; False: whole chunks of other rows
    block: int
    repeats: int  # R, query heads per key/value head


def block_visibility(
    query_segments: Int[Array, "B L"],
    key_segments: Int[Array, "B S"],
    own: Bool[Array, " B"],
    *,
    boundaries: Boundaries,
) -> Bool[Array, "B L S"]:
    """What queries see of one context: see `crossbatch.context_mask`."""
    same = query_segments[:, :, None] == key_segments[:, None, :]
    mine = same if boundaries is Boundaries.MASKED else jnp.ones_like(same)
    return (key_segments != 0)[:, None, :] & jnp.where(own[:, None, None], mine, ~same)


def block_mask(rule: Rule, query_segments, key_segments, own, filled, start, length):
    """[B, 1, R·L, block] visibility of one block of keys."""
    L = query_segments.shape[1]
    if rule.causal:
        inside = (start + jnp.arange(length))[None, :] <= jnp.arange(L)[:, None]
        mask = inside[None] & (key_segments != 0)[:, None, :]
        if rule.boundaries is Boundaries.MASKED:
            mask &= query_segments[:, :, None] == key_segments[:, None, :]
    else:
        mask = block_visibility(query_segments, key_segments, own, boundaries=rule.boundaries)
        mask &= filled[:, None, None]
    return jnp.tile(mask, (1, rule.repeats, 1))[:, None]


def schedule(rule: Rule, num_slots: int, S: int):
    """The (slot, first key) pairs of the loop."""
    starts = jnp.arange(0, S, min(rule.block, S), dtype=jnp.int32)
    slots = jnp.repeat(jnp.arange(num_slots, dtype=jnp.int32), len(starts))
    return slots, jnp.tile(starts, num_slots)


class Sight(enum.IntEnum):
    """What is known of one row's queries and one block of keys without looking at each pair."""

    NOBODY = 0  # no query sees any key
    SOME = 1  # ask `block_mask`
    ALL = 2  # every query sees every key


def sights(
    rule: Rule, plan: Plan, query_segments: Int[Array, "B L"], segments: Int[Array, "rows S"], places
) -> Int[Array, "B places"]:
    """The `Sight` of each reader on each of the places of `schedule`, from the ranges of document ids alone.

    A query block of document 2 alone:

        keys of documents    2 2     3 3     1 3     2 0     0 0
        own slot, MASKED     ALL     NOBODY  SOME    SOME    NOBODY
        own slot, JOINED     ALL     ALL     ALL     SOME    NOBODY
        another's slot       NOBODY  ALL     SOME    NOBODY  NOBODY

    The kernels skip by the same ranges (`visits.spans_of`).
    """
    slots, starts = places
    length = min(rule.block, segments.shape[1])
    ids = jnp.arange(len(segments))[:, None] if rule.causal else plan.context_ids[:, slots]
    by_block = segments.reshape(len(segments), -1, length)
    at = jnp.maximum(ids, 0), starts[None] // length
    high, whole = by_block.max(-1)[at], by_block.min(-1)[at] > 0
    low = jnp.where(by_block == 0, jnp.iinfo(by_block.dtype).max, by_block).min(-1)[at]  # of what is not padding
    least, most = query_segments.min(-1, keepdims=True), query_segments.max(-1, keepdims=True)
    apart = (most < low) | (high < least)
    same = (least == most) & (low == high) & (least == low)
    own = jnp.asarray(True) if rule.causal else plan.own_document[:, slots]
    if rule.boundaries is Boundaries.MASKED:
        every, none = jnp.where(own, same, apart), jnp.where(own, apart, same)
    else:
        every, none = own | apart, ~own & same
    if rule.causal:  # the first query sees the first key alone
        every = jnp.zeros_like(every)
    none |= (ids < 0) | (high == 0)
    return jnp.where(none, Sight.NOBODY, jnp.where(every & whole, Sight.ALL, Sight.SOME)).astype(jnp.int32)
