"""One softmax over several sets of keys: partials, their merge, and the gradient.

A `Partial` is attention before normalisation. Each set of keys that a query sees (its local chunk, crossbatch
contexts, a memory) gives one partial, and

    normalise(merge(a, b)) = softmax over the union of a's and b's keys        (exactly)

Arrays are heads first: queries [B, H, L, D], keys and values [B, G, S, D]; query head h reads key/value head
h // (H // G). Queries come scaled, so a score is the plain inner product. `peak` never carries a gradient: the
normalised result does not depend on it.

Source: FoT sec. 3.1, eq. (2); online softmax: Milakov & Gimelshein 2018; backward: Dao 2023, FlashAttention-2.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fot_jax.types import Partial, Upstream

JOINT_ATTENTION_CHECKPOINT = "joint_attention"  # what remat keeps of a layer's softmax, by `checkpoint_name`
MASKED_SCORE = -1e30
LOWEST_PEAK = -5e29  # above MASKED_SCORE, so that exp(masked - peak) is 0 even where nothing is visible


def by_key_head(x: Float[Array, "B H L *D"], G: int) -> Float[Array, "B G R L *D"]:
    """Splits heads into the R = H/G query heads of each of the G key/value heads. No copy."""
    B, H, *tail = x.shape
    return x.reshape(B, G, H // G, *tail)


def product(axes: str, a, b):
    """Returns an einsum summed in float32."""
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


def scores(queries, keys, mask: Bool[Array, "#B #L S"]) -> Float[Array, "B G R L S"]:
    """Returns the scores of all pairs, MASKED_SCORE where the query does not see the key."""
    found = product("BGRLD,BGSD->BGRLS", by_key_head(queries, keys.shape[1]), keys)
    return jnp.where(mask[:, None, None], found, MASKED_SCORE)


def weigh(scores: Float[Array, "*queries S"], peak: Float[Array, "*queries"]):
    """Returns the weights exp(scores − new peak), new peak = max(peak, scores), and the weights' sum."""
    new_peak = jax.lax.stop_gradient(jnp.maximum(peak, scores.max(axis=-1)))
    weights = jnp.exp(scores - new_peak[..., None])
    return weights, new_peak, weights.sum(axis=-1)


def empty_partial(queries: Float[Array, "*queries D"]) -> Partial:
    """Returns the partial of no keys: the neutral element of `merge`."""
    shape = queries.shape[:-1]
    return Partial(
        weighted=jnp.zeros(queries.shape, jnp.float32),
        peak=jnp.full(shape, LOWEST_PEAK, jnp.float32),
        total=jnp.zeros(shape, jnp.float32),
    )


def add(
    partial: Partial,
    queries: Float[Array, "B H L D"],
    keys: Float[Array, "B G S D"],
    values: Float[Array, "B G S D"],
    *,
    mask: Bool[Array, "#B L S"],
) -> Partial:
    """Adds keys to a partial, one step of the online softmax; it holds the scores of all pairs.

    Args:
      partial: attention to other keys.
      queries: scaled queries.
      keys: the keys to add.
      values: their values.
      mask: True where the query sees the key.
    """
    G = keys.shape[1]
    old = by_key_head(partial.peak, G)
    weights, peak, total = weigh(scores(queries, keys, mask), old)
    added = product("BGRLS,BGSD->BGRLD", weights.astype(values.dtype), values)
    shrink = jnp.exp(old - peak).reshape(partial.peak.shape)
    return Partial(
        weighted=partial.weighted * shrink[..., None] + added.reshape(queries.shape),
        peak=peak.reshape(shrink.shape),
        total=partial.total * shrink + total.reshape(shrink.shape),
    )


def attend(queries, keys, values, *, mask) -> Partial:
    """Attends to one set of keys; arguments as `add`.

        peak = max_s q·k_s,  total = Σ_s exp(q·k_s − peak),  weighted = Σ_s exp(q·k_s − peak) v_s

    Source: FoT sec. 3.1 (the numerator and denominator of its softmax).
    """
    return add(empty_partial(queries), queries, keys, values, mask=mask)


def attend_gradients(
    queries: Float[Array, "B H L D"],
    keys: Float[Array, "B G S D"],
    values: Float[Array, "B G S D"],
    upstream: Upstream,
    *,
    mask: Bool[Array, "#B L S"],
) -> tuple[Float[Array, "B H L D"], Float[Array, "B G S D"], Float[Array, "B G S D"]]:
    """Returns the float32 gradients of queries, keys and values; scores are computed again.

    w = exp(s − peak)    ds = w (d_weighted·v + d_total)    dq = ds k    dk = dsᵀ q    dv = wᵀ d_weighted
    """
    G = keys.shape[1]
    q = by_key_head(queries, G)
    peak, d_weighted, d_total = (by_key_head(x, G) for x in (upstream.peak, upstream.d_weighted, upstream.d_total))
    d_weighted = d_weighted.astype(values.dtype)
    weights = jnp.exp(scores(queries, keys, mask) - peak[..., None])
    through = product("BGRLD,BGSD->BGRLS", d_weighted, values)
    d_scores = (weights * (through + d_total[..., None])).astype(keys.dtype)
    dv = product("BGRLS,BGRLD->BGSD", weights.astype(values.dtype), d_weighted)
    dk = product("BGRLS,BGRLD->BGSD", d_scores, q)
    dq = product("BGRLS,BGSD->BGRLD", d_scores, keys)
    return dq.reshape(queries.shape), dk, dv


def merge(a: Partial, b: Partial) -> Partial:
    """Joins two sets of keys under one softmax (associative and commutative)."""
    peak = jnp.maximum(a.peak, b.peak)
    scale_a, scale_b = jnp.exp(a.peak - peak), jnp.exp(b.peak - peak)
    return Partial(
        weighted=a.weighted * scale_a[..., None] + b.weighted * scale_b[..., None],
        peak=peak,
        total=a.total * scale_a + b.total * scale_b,
    )


def normalise(partial: Partial) -> Float[Array, "*queries D"]:
    """Returns weighted / total, and 0 where no key is visible."""
    seen = partial.total > 0
    return jnp.asarray(partial.weighted) * (seen / jnp.where(seen, partial.total, 1.0))[..., None]


def normalise_gradients(
    out: Float[Array, "*queries D"],
    peak: Float[Array, "*queries"],
    total: Float[Array, "*queries"],
    d_out: Float[Array, "*queries D"],
) -> Upstream:
    """Returns what `normalise` hands to each set of keys, from its output; 0 where no key is visible.

    d weighted = d out / total        d total = −Σ_D d out · out / total
    """
    share = jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)
    d_out, out = d_out.astype(jnp.float32), out.astype(jnp.float32)
    return Upstream(peak=peak, d_weighted=d_out * share[..., None], d_total=-(d_out * out).sum(axis=-1) * share)


def heads_first(x: Float[Array, "B L H *D"]) -> Float[Array, "B H L *D"]:
    """Swaps the axes of positions and heads, from the model's order to the backends' or back."""
    return x.swapaxes(1, 2)
