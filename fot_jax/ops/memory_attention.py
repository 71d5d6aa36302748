"""Memory attention at inference (FoT sec. 3.1, eq. 1): partials over an external memory.

    v = Σ_{(key,val) ∈ M_top(q) ∪ C_<q} softmax(<q,key>) · val

Each function gives the memory's `Partial`, with axes [B, L, H]; `softmax.merge` with the local one is the joint
softmax. Queries come scaled; a positive scale does not change which entries are nearest.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fot_jax.ops import softmax
from fot_jax.ops.backends.cpu import CACHE_BYTES
from fot_jax.ops.cache_attention import cache_attention, fold_heads, should_fold_heads, widen
from fot_jax.ops.softmax import heads_first
from fot_jax.types import Partial

SEARCH_BYTES = 1 << 25  # of scores that a search on CPUs holds at a time


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
    keys: Float[Array, "B M G D"],
    values: Float[Array, "B M G D"],
    *,
    valid: Bool[Array, "B M"],
    block: int = 1024,
) -> Partial:
    """Attends to the whole memory (LongLLaMA's own retrieval), a block of entries at a time.

    Args:
      queries: scaled queries.
      keys: memory keys, not rotated.
      values: memory values.
      valid: True where an entry exists.
      block: entries per block; blocks that are empty in every row are skipped.
    """
    counts = jnp.full(queries.shape[:2], keys.shape[1], jnp.int32)
    return cache_attention(queries, keys, values, valid=valid, counts=counts, block=block)


def topk_memory_partial(
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "B M G D"],
    values: Float[Array, "B M G D"],
    *,
    valid: Bool[Array, "B M"],
    k: int,
    recall: float | None = None,
) -> Partial:
    """Attends to the k entries with the largest inner product, per query and head (exact or approximate kNN).

    Args:
      queries: scaled queries; head h searches the memory of key/value head h // (H // G).
      keys: memory keys, not rotated.
      values: memory values.
      valid: True where an entry exists.
      k: neighbours; all entries are read where M <= k.
      recall: see `nearest`.
    """
    if keys.shape[1] == 0:
        return softmax.empty_partial(queries)
    best, index = nearest(queries, keys, valid=valid, k=k, recall=recall)
    weights, peak, total = softmax.weigh(best, jnp.full(best.shape[:-1], softmax.LOWEST_PEAK))
    return Partial(weighted=weighted_sum(weights, index, values), peak=to_heads(peak), total=to_heads(total))


def nearest(
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "B M G D"],
    *,
    valid: Bool[Array, "B M"],
    k: int,
    recall: float | None,
) -> tuple[Float[Array, "B G R L K"], Int[Array, "B G R L K"]]:
    """Finds the K = min(k, M) entries with the largest inner product, best first: scores and indices; R = H/G.

    Entries that are not valid score MASKED_SCORE. Of equal scores the lower index comes first.

    Args:
      queries: scaled queries; head h searches the memory of key/value head h // R.
      keys: memory keys, not rotated; M >= 1.
      valid: True where an entry exists.
      k: neighbours.
      recall: None, exact (`jax.lax.top_k`); else the share of the K that `jax.lax.approx_max_k` is to find on
        average. Only TPUs have its algorithm; elsewhere all are found.
    """
    B, L, H, _ = queries.shape
    everywhere = functools.partial(_nearest_at_once, k=k, recall=recall)
    with jax.named_scope("memory_topk"):
        if should_fold_heads(queries, keys):
            on_cpus = functools.partial(_nearest_folded, k=k)
        elif B * H * L * keys.shape[1] * 4 <= CACHE_BYTES:
            return everywhere(queries, keys, valid)
        else:
            on_cpus = functools.partial(_nearest_by_head, k=k)
        return jax.lax.platform_dependent(queries, keys, valid, cpu=on_cpus, default=everywhere)


def _nearest_at_once(queries, keys, valid, *, k: int, recall: float | None):
    M = keys.shape[1]
    scores = softmax.scores(heads_first(queries), heads_first(keys), valid[:, None, :])
    if recall is None:
        found = jax.lax.top_k(scores.reshape(-1, M), min(k, M))
    else:
        found = jax.lax.approx_max_k(scores.reshape(-1, M), min(k, M), recall_target=recall)
    best, index = (x.reshape(*scores.shape[:-1], -1) for x in found)
    return best, index


def _nearest_folded(queries, keys, valid, *, k: int):
    """`_nearest_at_once` for CPUs and few queries: all key/value heads as one, see `cache_attention`."""
    B, L, H, _ = queries.shape
    G = keys.shape[2]
    wide = widen(queries, key_heads=G)
    found = _nearest_at_once(wide, fold_heads(keys), valid, k=k, recall=None)
    best, index = (x.reshape(B, G, H // G, L, -1) for x in found)
    return best, index


def _nearest_by_head(queries, keys, valid, *, k: int):
    """`_nearest_at_once` for CPUs: queries of one row and key/value head at a time, SEARCH_BYTES of scores at most."""
    B, L, H, D = queries.shape
    M, G = keys.shape[1], keys.shape[2]
    R = H // G
    parts = -(-R * L // max(1, SEARCH_BYTES // (4 * M)))
    size = -(-R * L // parts)
    tiles = heads_first(queries).reshape(B * G, R * L, D)
    tiles = jnp.pad(tiles, [(0, 0), (0, -(R * L) % size), (0, 0)]).reshape(B * G, -1, size, D)
    tables = heads_first(keys).reshape(B * G, M, D)

    def of_head(n):
        table, exists = tables[n], valid[n // G]

        def search(tile):
            scores = jnp.einsum("TD,MD->TM", tile, table, preferred_element_type=jnp.float32)
            return jax.lax.top_k(jnp.where(exists, scores, softmax.MASKED_SCORE), min(k, M))

        return jax.lax.map(search, tiles[n])

    found = jax.lax.map(of_head, jnp.arange(B * G))
    best, index = (x.reshape(B * G, -1, min(k, M))[:, : R * L].reshape(B, G, R, L, -1) for x in found)
    return best, index


def to_heads(x: Float[Array, "B G R L"]) -> Float[Array, "B L H"]:
    """Puts numbers of each query and head in the order of a memory's Partial."""
    return heads_first(x.reshape(len(x), -1, x.shape[3]))


def weighted_sum(
    weights: Float[Array, "B G R L K"], index: Int[Array, "B G R L K"], values: Float[Array, "B M G D"]
) -> Float[Array, "B L H D"]:
    """Returns Σ_K weights · values[index], float32, by query and head."""
    B, G, R, L, _ = weights.shape
    places = index.reshape(B, G, -1, 1).swapaxes(1, 2)
    neighbours = jnp.take_along_axis(values, places, axis=1).swapaxes(1, 2).reshape(*index.shape, -1)
    weighted = jnp.einsum("BGRLK,BGRLKD->BLGRD", weights, neighbours, preferred_element_type=jnp.float32)
    return weighted.reshape(B, L, G * R, -1)


def neighbours_partial(
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "B L H K D"],
    values: Float[Array, "B L H K D"],
    *,
    valid: Bool[Array, "B L H K"],
) -> Partial:
    """Attends to neighbours that something else retrieved (ScaNN), each query to its own K.

    Scores are recomputed from the keys, so an approximate index only decides which entries are read.
    """
    scores = jnp.einsum("BLHD,BLHKD->BLHK", queries, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(valid, scores, softmax.MASKED_SCORE)
    weights, peak, total = softmax.weigh(scores, jnp.full(scores.shape[:-1], softmax.LOWEST_PEAK))
    weighted = jnp.einsum("BLHK,BLHKD->BLHD", weights, values, preferred_element_type=jnp.float32)
    return Partial(weighted=weighted, peak=peak, total=total)


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
