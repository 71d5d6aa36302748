"""What the loops of `blockwise.py` and `by_head.py` share: the static rule, who sees what, the order of blocks."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from fot_jax.config import Boundaries


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
