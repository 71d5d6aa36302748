"""Who sees what: every mask, and every rule by which a block of keys is skipped.

A key is visible by its document and by the slot through which it is read. A query of document 2, keys of documents
1 2 2 0 (0: padding):

    own chunk or own earlier chunk, MASKED    . 1 1 .    only its own document
    own chunk or own earlier chunk, JOINED    1 1 1 .    all that its stream held
    another row's chunk                       1 . . .    all but its own document: a chunk of it met again
                                                         elsewhere may be in its future

The own chunk is causal too. Contexts are not: they are past or elsewhere.

Source: FoT app. B.3. Differs: LongLLaMA lets padded keys through; here they are hidden.
"""

import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from fot_jax.config import Boundaries
from fot_jax.types import Plan

NO_SEGMENT = jnp.iinfo(jnp.int32).max


def visible(query_segments, key_segments, own, *, boundaries: Boundaries):
    """Returns whether queries see keys, by the table above; arguments broadcast, `own` is 0 or 1 as int32."""
    same = jnp.where(query_segments == key_segments, 1, 0)
    allowed = same == own if boundaries is Boundaries.MASKED else same <= own  # JOINED, own: both 0 and 1
    return allowed & (key_segments != 0)


def local_mask(
    query_segments: Int[Array, "B L"],
    key_segments: Int[Array, "B S"],
    *,
    boundaries: Boundaries,
    first_key: int | Int[Array, ""] = 0,
) -> Bool[Array, "B L S"]:
    """Returns the causal visibility inside a chunk.

    Segments 1 1 2 0 (0: padding), MASKED:      JOINED:
        1 . . .                                  1 . . .
        1 1 . .                                  1 1 . .
        . . 1 .                                  1 1 1 .
        . . . .                                  1 1 1 .

    Args:
      query_segments: document id of each query, 0 for padding.
      key_segments: document id of each key, 0 for padding.
      boundaries: whether a query sees earlier documents of its own row.
      first_key: index of the first key among the queries, in tokens.
    """
    L, S = query_segments.shape[1], key_segments.shape[1]
    causal = first_key + jnp.arange(S)[None, :] <= jnp.arange(L)[:, None]
    return causal[None] & visible(query_segments[:, :, None], key_segments[:, None, :], 1, boundaries=boundaries)


def context_mask(
    query_segments: Int[Array, "B L"],
    context_segments: Int[Array, "B S"],
    own: Bool[Array, " B"],
    filled: Bool[Array, " B"],
    *,
    boundaries: Boundaries,
) -> Bool[Array, "B L S"]:
    """Returns what each query sees through one slot.

    Args:
      query_segments: document id of each query.
      context_segments: document id of each key of the context.
      own: whether the context is an earlier chunk of the reader's own stream.
      filled: whether the slot holds a context.
      boundaries: whether an own context shows other documents.
    """
    own = jnp.asarray(own, jnp.int32)[:, None, None]
    seen = visible(query_segments[:, :, None], context_segments[:, None, :], own, boundaries=boundaries)
    return seen & filled[:, None, None]


def gathered_mask(
    plan: Plan, query_segments: Int[Array, "B L"], segments: Int[Array, "rows S"], *, boundaries: Boundaries
) -> Bool[Array, "B L C S"]:
    """Returns what each query sees through all slots of the plan."""

    def of_slot(ids, own):
        return context_mask(query_segments, segments[jnp.maximum(ids, 0)], own, ids >= 0, boundaries=boundaries)

    return jax.vmap(of_slot, in_axes=1, out_axes=2)(plan.context_ids, plan.own_document)


def sees_contexts(plan: Plan, segments: Int[Array, "B L"], *, boundaries: Boundaries) -> Bool[Array, "B L"]:
    """Returns whether each query sees any key of any context."""

    def of_slot(seen, slot):
        ids, own = slot
        mask = context_mask(segments, segments[jnp.maximum(ids, 0)], own, ids >= 0, boundaries=boundaries)
        return seen | mask.any(axis=2), None

    slots = plan.context_ids.T, plan.own_document.T
    return jax.lax.scan(of_slot, jnp.zeros(segments.shape, bool), slots)[0]


def keys_in_sight(plan: Plan, local: Int[Array, "#B L"]) -> Int[Array, "B L"]:
    """Counts the keys that a query of a memory layer has in sight: its chunk's so far and L for each filled slot.

    Whole rows are counted, as a memory counts its entries: padding and other documents of a row too.

        context_ids   0 -1  2     local 1 2 3     7 8 9
                     -1 -1 -1                     1 2 3

    Args:
      plan: which rows each row reads.
      local: the number of places up to and including each query's own in its chunk, L queries.
    """
    filled = jnp.sum(plan.context_ids >= 0, axis=1, dtype=jnp.int32)
    return local + filled[:, None] * local.shape[1]


class BlockRanges(NamedTuple):
    """The smallest and the largest document id of each block of positions, [B, blocks], and whether none is padding."""

    low: jax.Array
    high: jax.Array
    whole: jax.Array


def query_ranges(segments: Int[Array, "B L"], block: int) -> BlockRanges:
    """Returns the ranges of whole blocks of queries; padding counts as document 0."""
    blocks = segments.reshape(len(segments), -1, block)
    return BlockRanges(blocks.min(axis=2), blocks.max(axis=2), whole=blocks.min(axis=2) > 0)


def key_ranges(segments: Int[Array, "B S"], block: int) -> BlockRanges:
    """Returns the ranges of whole blocks of keys; padding does not count, a block of it alone is NO_SEGMENT to 0."""
    blocks = segments.reshape(len(segments), -1, block)
    low = jnp.where(blocks == 0, NO_SEGMENT, blocks).min(axis=2)
    return query_ranges(segments, block)._replace(low=low)


def nobody_sees(query_low, query_high, key_low, key_high, own, *, boundaries: Boundaries):
    """Whether no query of a range sees any key of another, by the documents alone; arguments broadcast.

    Queries of document 2 alone (N: nobody, E: everybody, S: ask the mask):

        keys of documents    2 2    3 3    1 3    2 0    0 0
        own slot, MASKED     E      N      S      S      N
        own slot, JOINED     E      E      E      S      N
        another's slot       N      E      S      N      N
    """
    apart, one = _compared(query_low, query_high, key_low, key_high)
    none = (jnp.logical_not(own) & one) | (key_high == 0)
    return none | (own & apart) if boundaries is Boundaries.MASKED else none


def everybody_sees(query_low, query_high, key_low, key_high, whole, own, *, boundaries: Boundaries):
    """Whether all queries of a range see all keys of another; see `nobody_sees`."""
    apart, one = _compared(query_low, query_high, key_low, key_high)
    shown_own = own & one if boundaries is Boundaries.MASKED else own
    return (shown_own | (jnp.logical_not(own) & apart)) & whole


def _compared(query_low, query_high, key_low, key_high):
    """(whether two ranges share no document, whether both are of one and the same document)."""
    apart = (query_high < key_low) | (key_high < query_low)
    one = (query_low == query_high) & (key_low == key_high) & (query_low == key_low)
    return apart, one


class Sight(enum.IntEnum):
    """Knowledge of one row's queries and one block of keys without a look at each pair."""

    NOBODY = 0
    SOME = 1  # ask the mask
    EVERYBODY = 2


def context_sights(
    plan: Plan,
    query_segments: Int[Array, "B L"],
    segments: Int[Array, "rows S"],
    *,
    block: int,
    boundaries: Boundaries,
) -> Int[Array, "B C blocks"]:
    """Returns the `Sight` of each reader on each block of keys of each slot."""
    queries, keys = query_ranges(query_segments, query_segments.shape[1]), key_ranges(segments, block)
    at = jnp.maximum(plan.context_ids, 0)
    read = jax.tree.map(lambda x: x[at], keys)
    given = queries.low[..., None], queries.high[..., None], read.low, read.high
    own = plan.own_document[..., None]
    none = nobody_sees(*given, own, boundaries=boundaries) | (plan.context_ids < 0)[..., None]
    every = everybody_sees(*given, read.whole, own, boundaries=boundaries)
    return jnp.where(none, Sight.NOBODY, jnp.where(every, Sight.EVERYBODY, Sight.SOME)).astype(jnp.int32)


def local_sights(
    query_segments: Int[Array, "B L"], key_segments: Int[Array, "B S"], *, block: int, boundaries: Boundaries
) -> Int[Array, "B 1 blocks"]:
    """Returns the `Sight` of each row on the blocks of its own chunk: never EVERYBODY, as the chunk is causal."""
    queries, keys = query_ranges(query_segments, query_segments.shape[1]), key_ranges(key_segments, block)
    none = nobody_sees(queries.low, queries.high, keys.low, keys.high, jnp.asarray(True), boundaries=boundaries)
    return jnp.where(none, Sight.NOBODY, Sight.SOME).astype(jnp.int32)[:, None]
