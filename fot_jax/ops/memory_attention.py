"""Memory attention at inference (FoT sec. 3.1, eq. 1): partials over an external memory.

    v = Σ_{(key,val) ∈ M_top(q) ∪ C_<q} softmax(<q,key>) · val

Each function gives the memory's `Partial`; `attention.merge` with the local one is the joint
softmax. Queries come scaled; a positive scale does not change which entries are nearest.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fot_jax.ops import attention, few_queries
from fot_jax.ops.by_head import CACHE_BYTES
from fot_jax.ops.prefix import prefix_partial
from fot_jax.types import Partial

SEARCH_BYTES = 1 << 25  # of scores that a search on CPUs holds at a time


def logn_scale(count: Int[Array, "B L"], *, start: int) -> Float[Array, "B L"]:
    """max(1, log count / log start): what a query that sees `count` entries is multiplied by.

    The weight of one entry among n falls as 1/n unless its score grows as log n; so a key that is found in the longest
    context of training is diluted in longer ones.

    Args:
      count: entries in sight, local ones and those read of the memory.
      start: up to so many nothing changes; >= 2.

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
    return prefix_partial(queries, keys, values, valid=valid, counts=counts, block=block)


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
        return attention.empty_partial(queries)
    best, index = nearest(queries, keys, valid=valid, k=k, recall=recall)
    peak = jax.lax.stop_gradient(jnp.maximum(best[..., 0], attention.LOWEST_PEAK))
    weights = jnp.exp(best - peak[..., None])
    return Partial(weighted=weigh(weights, index, values), peak=to_heads(peak), total=to_heads(weights.sum(axis=-1)))


def nearest(
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "B M G D"],
    *,
    valid: Bool[Array, "B M"],
    k: int,
    recall: float | None,
) -> tuple[Float[Array, "B G R L K"], Int[Array, "B G R L K"]]:
    """Scores and indices of the K = min(k, M) entries with the largest inner product, best first; R = H/G.

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
        if few_queries.pays(queries, keys):
            on_cpus = functools.partial(_nearest_of_one_head, k=k)
        elif B * H * L * keys.shape[1] * 4 <= CACHE_BYTES:
            return everywhere(queries, keys, valid)
        else:
            on_cpus = functools.partial(_nearest_by_head, k=k)
        return jax.lax.platform_dependent(queries, keys, valid, cpu=on_cpus, default=everywhere)


def _nearest_at_once(queries, keys, valid, *, k: int, recall: float | None):
    B, L, H, D = queries.shape
    M, G = keys.shape[1], keys.shape[2]
    grouped = queries.reshape(B, L, G, H // G, D)
    scores = jnp.einsum("BLGRD,BMGD->BGRLM", grouped, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(valid[:, None, None, None, :], scores, attention.MASKED_SCORE)
    if recall is None:
        found = jax.lax.top_k(scores.reshape(-1, M), min(k, M))
    else:
        found = jax.lax.approx_max_k(scores.reshape(-1, M), min(k, M), recall_target=recall)
    best, index = (x.reshape(*scores.shape[:-1], -1) for x in found)
    return best, index


def _nearest_of_one_head(queries, keys, valid, *, k: int):
    """The same for CPUs and few queries: keys are read where they lie, see `few_queries`."""
    B, L, H, _ = queries.shape
    G = keys.shape[2]
    wide = few_queries.widen(queries, key_heads=G)
    found = _nearest_at_once(wide, few_queries.as_one_head(keys), valid, k=k, recall=None)
    best, index = (x.reshape(B, G, H // G, L, -1) for x in found)
    return best, index


def _nearest_by_head(queries, keys, valid, *, k: int):
    """The same for CPUs: queries of one row and key/value head at a time, as many as SEARCH_BYTES of scores hold."""
    B, L, H, D = queries.shape
    M, G = keys.shape[1], keys.shape[2]
    R = H // G
    parts = -(-R * L // max(1, SEARCH_BYTES // (4 * M)))
    size = -(-R * L // parts)
    tiles = queries.reshape(B, L, G, R, D).transpose(0, 2, 3, 1, 4).reshape(B * G, R * L, D)
    tiles = jnp.pad(tiles, [(0, 0), (0, -(R * L) % size), (0, 0)]).reshape(B * G, -1, size, D)
    tables = keys.transpose(0, 2, 1, 3).reshape(B * G, M, D)

    def of_head(n):
        table, exists = tables[n], valid[n // G]

        def search(tile):
            scores = jnp.einsum("TD,MD->TM", tile, table, preferred_element_type=jnp.float32)
            return jax.lax.top_k(jnp.where(exists, scores, attention.MASKED_SCORE), min(k, M))

        return jax.lax.map(search, tiles[n])

    found = jax.lax.map(of_head, jnp.arange(B * G))
    best, index = (x.reshape(B * G, -1, min(k, M))[:, : R * L].reshape(B, G, R, L, -1) for x in found)
    return best, index


def to_heads(x: Float[Array, "B G R L"]) -> Float[Array, "B L H"]:
    """Numbers of each query and head, in the order of a Partial."""
    B, G, R, L = x.shape
    return jnp.moveaxis(x, 3, 1).reshape(B, L, G * R)


def weigh(
    weights: Float[Array, "B G R L K"], index: Int[Array, "B G R L K"], values: Float[Array, "B M G D"]
) -> Float[Array, "B L H D"]:
    """Σ_K weights · values[index], float32, by query and head."""
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
    scores = jnp.where(valid, scores, attention.MASKED_SCORE)
    peak = jax.lax.stop_gradient(jnp.maximum(scores.max(axis=-1), attention.LOWEST_PEAK))
    weights = jnp.exp(scores - peak[..., None])
    weighted = jnp.einsum("BLHK,BLHKD->BLHD", weights, values, preferred_element_type=jnp.float32)
    return Partial(weighted=weighted, peak=peak, total=weights.sum(axis=-1))


def gated_merge(memory: Partial, local: Partial, *, gate_bias: Float[Array, " H"]) -> Float[Array, "B L H D"]:
    """The Memorizing Transformer's two softmaxes: v = g·v_M + (1−g)·v_C, g = sigmoid(b_g) per head.

    Where the memory shows nothing the local value is taken whole. Source: FoT app. B.2, MT sec. 3.2.
    """
    gate = jax.nn.sigmoid(gate_bias)[None, None, :] * (memory.total > 0)
    return gate[..., None] * attention.normalise(memory) + (1 - gate[..., None]) * attention.normalise(local)
