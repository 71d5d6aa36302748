"""Memory attention at inference (FoT sec. 3.1, eq. 1): partials over an external memory.

    v = Σ_{(key,val) ∈ M_top(q) ∪ C_<q} softmax(<q,key>) · val

Each function gives the memory's `Partial`; `attention.merge` with the local one is the joint
softmax. Queries come scaled; a positive scale does not change which entries are nearest.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fot_jax.ops import attention
from fot_jax.ops.prefix import prefix_partial
from fot_jax.types import Partial


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
) -> Partial:
    """Attends to the k entries with the largest inner product, per query and head (exact kNN).

    Args:
      queries: scaled queries; head h searches the memory of key/value head h // (H // G).
      keys: memory keys, not rotated.
      values: memory values.
      valid: True where an entry exists.
      k: neighbours; all entries are read where M <= k.
    """
    B, L, H, D = queries.shape
    M, G = keys.shape[1], keys.shape[2]
    if M == 0:
        return attention.empty_partial(queries)
    with jax.named_scope("memory_topk"):
        grouped = queries.reshape(B, L, G, H // G, D)
        scores = jnp.einsum("BLGRD,BMGD->BGRLM", grouped, keys, preferred_element_type=jnp.float32)
        scores = jnp.where(valid[:, None, None, None, :], scores, attention.MASKED_SCORE)
        best, index = jax.lax.top_k(scores.reshape(-1, M), min(k, M))  # flat: several times faster on CPUs
        best, index = (x.reshape(*scores.shape[:-1], -1) for x in (best, index))
    take = jax.vmap(jax.vmap(lambda table, i: table[i]))  # over B and G
    neighbours = take(values.transpose(0, 2, 1, 3), index.reshape(B, G, -1))
    neighbours = neighbours.reshape(*index.shape, D)
    peak = jax.lax.stop_gradient(jnp.maximum(best[..., 0], attention.LOWEST_PEAK))
    weights = jnp.exp(best - peak[..., None])
    weighted = jnp.einsum("BGRLK,BGRLKD->BLGRD", weights, neighbours, preferred_element_type=jnp.float32)

    def to_heads(x):
        return jnp.moveaxis(x, 3, 1).reshape(B, L, H)

    return Partial(weighted=weighted.reshape(B, L, H, D), peak=to_heads(peak), total=to_heads(weights.sum(axis=-1)))


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
