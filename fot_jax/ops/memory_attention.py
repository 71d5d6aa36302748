"""Memory attention at inference (FoT sec. 3.1, eq. 1): partials over an external memory.

    v = Σ_{(key,val) ∈ M_top(q) ∪ C_<q} softmax(<q,key>) · val

Each function gives the memory's `Partial`, with axes [B, L, H]; `softmax.merge` with the local one is the joint
softmax. Queries come scaled; a positive scale does not change which entries are nearest.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from fot_jax.ops import softmax
from fot_jax.ops.backends.cpu import CACHE_BYTES
from fot_jax.ops.cache_attention import cache_attention, scores_of
from fot_jax.ops.softmax import heads_first
from fot_jax.ops.top_k import kth_largest, top_k
from fot_jax.types import Partial

SEARCH_BYTES = 1 << 25  # of scores that a search on CPUs holds at a time
SUMMED_WHOLE = 64  # times k, entries of a memory whose values are summed whole for many queries
TILE_BYTES = 1 << 22  # of the scores of queries that are bisected together
Scales = tuple[Float[Array, "B G M"], Float[Array, "B G M"]]


def log_length_scale(count: Int[Array, "B L"], *, start: int) -> Float[Array, "B L"]:
    """Returns the factor of a query that sees `count` entries: max(1, log count / log start).

    The weight of one entry among n falls as 1/n unless its score grows as log n; so a key that is found in the longest
    context of training is diluted in longer ones.

    Args:
      count: entries in sight, local ones and those read of the memory.
      start: up to that many nothing changes; >= 2.

    Source: Chiang & Cholak 2022 (arXiv 2202.12172), sec. 5.3; Qwen's `use_logn_attn` has the same rule. Not in FoT.
    """
    return jnp.maximum(1.0, jnp.log(jnp.maximum(count, 1).astype(jnp.float32)) / math.log(start))


def dense_memory_partial(
    queries: Float[Array, "B L H D"],
    keys: Num[Array, "B G D M"],
    values: Num[Array, "B G M D"],
    *,
    valid: Bool[Array, "B M"],
    scales: Scales | None = None,
    block: int = 1024,
) -> Partial:
    """Attends to the whole memory (LongLLaMA's own retrieval), a block of entries at a time.

    Args:
      queries: scaled queries.
      keys: memory keys, not rotated, in the dtype of the queries or a narrower one.
      values: memory values.
      valid: True where an entry exists.
      scales: factors of keys and values [B, G, M] that are held as int8; None: 1.
      block: entries per block; blocks that are empty in every row are skipped.
    """
    counts = jnp.full(queries.shape[:2], values.shape[2], jnp.int32)
    return cache_attention(queries, keys, values, valid=valid, counts=counts, scales=scales, block=block)


def topk_memory_partial(
    queries: Float[Array, "B L H D"],
    keys: Num[Array, "B G D M"],
    values: Num[Array, "B G M D"],
    *,
    valid: Bool[Array, "B M"],
    k: int,
    scales: Scales | None = None,
    recall: float | None = None,
) -> Partial:
    """Attends to the k entries with the largest inner product, per query and head (exact or approximate kNN).

    Args:
      queries: scaled queries; head h searches the memory of key/value head h // (H // G).
      keys: memory keys, not rotated, in the dtype of the queries or a narrower one.
      values: memory values; of them the k of each query and head are read.
      valid: True where an entry exists.
      k: neighbours; all entries are read where M <= k.
      scales: factors of keys and values [B, G, M] that are held as int8; None: 1.
      recall: see `nearest`.
    """
    B, L, H, _ = queries.shape
    M = values.shape[2]
    if M == 0:
        return softmax.empty_partial(queries)
    gathered = functools.partial(_gathered_partial, k=k, recall=recall)
    arguments = queries, keys, values, valid, scales
    short = k < M <= SUMMED_WHOLE * k and recall is None and keys.dtype == queries.dtype
    if L == 1 or not short or 4 * B * H * L * M <= CACHE_BYTES:
        return gathered(*arguments)
    summed = functools.partial(_summed_partial, k=k)
    return jax.lax.platform_dependent(*arguments, cpu=summed, default=gathered)


def _gathered_partial(queries, keys, values, valid, scales, *, k: int, recall: float | None) -> Partial:
    """Reads the values of the k entries alone."""
    best, index = nearest(queries, keys, valid=valid, k=k, scale=None if scales is None else scales[0], recall=recall)
    weights, peak, total = softmax.weigh(best, jnp.full(best.shape[:-1], softmax.LOWEST_PEAK))
    weighted = weighted_sum(weights, index, values, scale=None if scales is None else scales[1])
    return Partial(weighted=weighted, peak=to_heads(peak), total=to_heads(total))


def _summed_partial(queries, keys, values, valid, scales, *, k: int) -> Partial:
    """`_gathered_partial` for many queries of a short memory on CPUs: sums all values, most of them with weight 0.

    The k-th largest score is found by bisection, which looks at the scores of many queries at once on all cores. To
    sort those of one query after another and to copy its values took three times as long.
    """
    assert scales is None
    B, L, H, D = queries.shape
    G, M = values.shape[1:3]
    size = max(1, min(TILE_BYTES // (4 * M), H // G * L))
    tiles = heads_first(queries).reshape(B * G, -1, D)
    T = tiles.shape[1]
    tiles = jnp.pad(tiles, [(0, 0), (0, -T % size), (0, 0)], mode="edge").reshape(B * G, -1, size, D)
    tables, contents = keys.reshape(B * G, D, M), values.reshape(B * G, M, D)

    def of_head(n):
        exists, table, content = valid[n // G], tables[n], contents[n]

        def attend(tile):
            scores = jnp.where(exists, softmax.product("TD,DM->TM", tile, table), softmax.MASKED_SCORE)
            threshold, found = kth_largest(scores, exists, k=k)
            peak = jnp.maximum(scores.max(axis=1), softmax.LOWEST_PEAK)

            def all_above():
                weights = jnp.where(scores >= threshold[:, None], jnp.exp(scores - peak[:, None]), 0.0)
                return softmax.product("TM,MD->TD", weights.astype(values.dtype), content), weights.sum(axis=1)

            def first_of_equals():
                best, index = jax.lax.top_k(scores, k)
                weights = jnp.exp(best - peak[:, None])
                return softmax.product("TK,TKD->TD", weights, content[index]), weights.sum(axis=1)

            weighted, total = jax.lax.cond(jnp.all(found), all_above, first_of_equals)
            return weighted, peak, total

        return jax.lax.map(attend, tiles[n])

    def whole(x):
        return heads_first(x.reshape(B * G, -1, *x.shape[3:])[:, :T].reshape(B, H, L, *x.shape[3:]))

    weighted, peak, total = map(whole, jax.lax.map(of_head, jnp.arange(B * G)))
    return Partial(weighted=weighted, peak=peak, total=total)


def nearest(
    queries: Float[Array, "B L H D"],
    keys: Num[Array, "B G D M"],
    *,
    valid: Bool[Array, "B M"],
    k: int,
    recall: float | None,
    scale: Float[Array, "B G M"] | None = None,
) -> tuple[Float[Array, "B G R L K"], Int[Array, "B G R L K"]]:
    """Finds the K = min(k, M) entries with the largest inner product, best first: scores and indices; R = H/G.

    Entries that are not valid score MASKED_SCORE. Of equal scores the lower index comes first.

    Args:
      queries: scaled queries; head h searches the memory of key/value head h // R.
      keys: memory keys, not rotated; M >= 1.
      valid: True where an entry exists.
      k: neighbours.
      recall: None, exact (`top_k`); else the share of the K that `jax.lax.approx_max_k` is to find on average. Only
        TPUs have its algorithm; elsewhere all are found.
      scale: factor of each key; None: 1.
    """
    B, L, H, _ = queries.shape
    M = keys.shape[3]
    everywhere = functools.partial(_nearest_at_once, k=k, recall=recall)
    with jax.named_scope("memory_topk"):
        score_bytes, narrow = 4 * B * H * L * M, keys.dtype != queries.dtype
        if not narrow and (score_bytes <= CACHE_BYTES or (L == 1 and recall is None)):
            return everywhere(queries, keys, valid, scale)
        by_head = functools.partial(_nearest_by_head, k=k)
        return jax.lax.platform_dependent(queries, keys, valid, scale, cpu=by_head, default=everywhere)


def _nearest_at_once(queries, keys, valid, scale, *, k: int, recall: float | None):
    scores = jnp.where(valid[:, None, None, None], scores_of(queries, keys, scale), softmax.MASKED_SCORE)
    if recall is None:
        return top_k(scores, k)
    best, index = jax.lax.approx_max_k(scores, min(k, scores.shape[-1]), recall_target=recall)
    return best, index


def _nearest_by_head(queries, keys, valid, scale, *, k: int):
    """`_nearest_at_once` for CPUs: queries of one row and key/value head at a time, SEARCH_BYTES of scores at most."""
    B, L, H, D = queries.shape
    G, M = keys.shape[1], keys.shape[3]
    R = H // G
    parts = -(-R * L // max(1, SEARCH_BYTES // (4 * M)))
    size = -(-R * L // parts)
    tiles = heads_first(queries).reshape(B * G, R * L, D)
    tiles = jnp.pad(tiles, [(0, 0), (0, -(R * L) % size), (0, 0)]).reshape(B * G, -1, size, D)
    tables = keys.reshape(B * G, D, M)
    scales = None if scale is None else scale.reshape(B * G, M)

    def of_head(n):
        table, exists = tables[n].astype(queries.dtype), valid[n // G]

        def search(tile):
            scores = softmax.product("TD,DM->TM", tile, table)
            scores = scores if scales is None else scores * scales[n][None]
            return top_k(jnp.where(exists, scores, softmax.MASKED_SCORE), k)

        return jax.lax.map(search, tiles[n])

    found = jax.lax.map(of_head, jnp.arange(B * G))
    best, index = (x.reshape(B * G, -1, min(k, M))[:, : R * L].reshape(B, G, R, L, -1) for x in found)
    return best, index


def to_heads(x: Float[Array, "B G R L"]) -> Float[Array, "B L H"]:
    """Puts numbers of each query and head in the order of a memory's Partial."""
    return heads_first(x.reshape(len(x), -1, x.shape[3]))


def weighted_sum(
    weights: Float[Array, "B G R L K"],
    index: Int[Array, "B G R L K"],
    values: Num[Array, "B G M D"],
    scale: Float[Array, "B G M"] | None = None,
) -> Float[Array, "B L H D"]:
    """Returns Σ_K weights · values[index] (· scale[index]), float32, by query and head."""
    B, G, R, L, _ = weights.shape
    places = index.reshape(B, G, -1)
    neighbours = jnp.take_along_axis(values, places[..., None], axis=2).reshape(*index.shape, -1)
    if scale is not None:
        weights = weights * jnp.take_along_axis(scale, places, axis=2).reshape(index.shape)
    if values.dtype == jnp.int8:
        neighbours = neighbours.astype(weights.dtype)
    weighted = jnp.einsum("BGRLK,BGRLKD->BLGRD", weights, neighbours, preferred_element_type=jnp.float32)
    return weighted.reshape(B, L, G * R, -1)


def gated_mix(
    memory: Float[Array, "B L H D"],
    local: Float[Array, "B L H D"],
    *,
    seen: Bool[Array, "B L #H"],
    gate_bias: Float[Array, " H"],
) -> Float[Array, "B L H D"]:
    """Mixes the Memorizing Transformer's two softmaxes: v = g·v_M + (1−g)·v_C, g = sigmoid(b_g) per head.

    Args:
      memory: attended values of the memory or the contexts.
      local: attended values of the local context.
      seen: whether the memory shows the query any key; else the local value is taken whole.
      gate_bias: b_g.

    Source: FoT app. B.2, MT sec. 3.2.
    """
    gate = (jax.nn.sigmoid(gate_bias)[None, None, :] * seen)[..., None]
    return gate * memory + (1 - gate) * local
