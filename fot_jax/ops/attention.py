"""Attention over sets of keys that can be merged into one softmax.

A `Partial` is attention before normalisation. Whatever a query sees (its local chunk, crossbatch
contexts, a memory) is one partial each, and

    normalise(merge(a, b)) = softmax over the union of a's and b's keys        (exactly)

Queries come already scaled, so a score is the plain inner product. `peak` never carries a
gradient: the normalised result does not depend on it.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fot_jax.config import Boundaries
from fot_jax.types import Partial

KEPT = "joint_attention"  # name of what remat is to keep of a joint softmax: no contexts are read forward twice
MASKED_SCORE = -1e30
LOWEST_PEAK = -5e29  # above MASKED_SCORE, so that exp(masked - peak) is 0 even where nothing is visible


def partial_attention(
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "B S G D"],
    values: Float[Array, "B S G D"],
    *,
    mask: Bool[Array, "#B L S"],
) -> Partial:
    """Attends to one set of keys, materialising the scores [B, H, L, S].

        peak = max_s q·k_s,  total = Σ_s exp(q·k_s − peak),  weighted = Σ_s exp(q·k_s − peak) v_s

    Args:
      queries: scaled queries; query head h reads key/value head h // (H // G).
      keys: keys of the set.
      values: values of the set.
      mask: True where the query sees the key.

    Source: FoT sec. 3.1 (the numerator and denominator of its softmax).
    """
    B, L, H, D = queries.shape
    G = keys.shape[2]
    grouped = queries.reshape(B, L, G, H // G, D)
    scores = jnp.einsum("BLGRD,BSGD->BGRLS", grouped, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores, MASKED_SCORE)
    peak = jax.lax.stop_gradient(jnp.maximum(scores.max(axis=-1), LOWEST_PEAK))
    weights = jnp.exp(scores - peak[..., None])
    total = weights.sum(axis=-1)
    weighted = jnp.einsum("BGRLS,BSGD->BLGRD", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    to_heads = functools.partial(jnp.einsum, "BGRL->BLGR")
    return Partial(
        weighted=weighted.reshape(B, L, H, D),
        peak=to_heads(peak).reshape(B, L, H),
        total=to_heads(total).reshape(B, L, H),
    )


def empty_partial(queries: Float[Array, "B L H D"]) -> Partial:
    """The partial of no keys: the neutral element of `merge`."""
    shape = queries.shape[:-1]
    return Partial(
        weighted=jnp.zeros(queries.shape, jnp.float32),
        peak=jnp.full(shape, LOWEST_PEAK, jnp.float32),
        total=jnp.zeros(shape, jnp.float32),
    )


def merge(a: Partial, b: Partial) -> Partial:
    """Joins two sets of keys under one softmax (associative and commutative)."""
    peak = jnp.maximum(a.peak, b.peak)
    scale_a, scale_b = jnp.exp(a.peak - peak), jnp.exp(b.peak - peak)
    return Partial(
        weighted=a.weighted * scale_a[..., None] + b.weighted * scale_b[..., None],
        peak=peak,
        total=a.total * scale_a + b.total * scale_b,
    )


def normalise(partial: Partial) -> Float[Array, "B L H D"]:
    """weighted / total, and 0 where no key is visible."""
    seen = partial.total > 0
    return jnp.asarray(partial.weighted) * (seen / jnp.where(seen, partial.total, 1.0))[..., None]


def normalise_backward(
    out: Float[Array, "B L H D"], total: Float[Array, "B L H"], d_out: Float[Array, "B L H D"]
) -> tuple[Float[Array, "B L H D"], Float[Array, "B L H"]]:
    """Gradients of `normalise`'s weighted and total by those of its output, in float32; 0 where no key is visible.

        d weighted = d out / total        d total = −Σ_D d out · out / total

    Source: Dao 2023, FlashAttention-2 (the output is kept, the weighted sum is not).
    """
    share = jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)
    d_out, out = d_out.astype(jnp.float32), out.astype(jnp.float32)
    return d_out * share[..., None], -(d_out * out).sum(axis=-1) * share


def local_mask(
    query_segments: Int[Array, "B L"],
    key_segments: Int[Array, "B S"],
    *,
    boundaries: Boundaries,
    query_offset: int = 0,
) -> Bool[Array, "B L S"]:
    """Causal visibility inside a chunk, cut at document borders when they are MASKED.

    Segments 1 1 2 0 (0: padding), MASKED:      JOINED:
        1 . . .                                  1 . . .
        1 1 . .                                  1 1 . .
        . . 1 .                                  1 1 1 .
        . . . .                                  1 1 1 .

    Args:
      query_segments: document id of each query, 0 for padding.
      key_segments: document id of each key, 0 for padding.
      boundaries: whether a query sees earlier documents of its own row.
      query_offset: index of the first query among the keys, in tokens.
    """
    L, S = query_segments.shape[1], key_segments.shape[1]
    causal = jnp.arange(S)[None, :] <= jnp.arange(L)[:, None] + query_offset
    mask = causal[None] & (key_segments != 0)[:, None, :]
    if boundaries is Boundaries.MASKED:
        mask &= query_segments[:, :, None] == key_segments[:, None, :]
    return mask


def attention(
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "B S G D"],
    values: Float[Array, "B S G D"],
    *,
    mask: Bool[Array, "#B L S"],
) -> Float[Array, "B L H D"]:
    """Plain softmax attention: `normalise(partial_attention(...))`."""
    return normalise(partial_attention(queries, keys, values, mask=mask))
