"""The local key/value cache of all layers: fixed width, rows of different lengths, sliding."""

import jax
import jax.numpy as jnp

from fot_jax.config import ModelConfig
from fot_jax.models.layers import DTYPES
from fot_jax.types import KeyValue, LocalCache


def init_cache(config: ModelConfig, batch: int) -> LocalCache:
    """An empty cache of `local_context` tokens for `batch` rows, in the compute dtype."""
    shape = (config.num_layers, batch, config.local_context, config.num_kv_heads, config.head_dim)
    zeros = jnp.zeros(shape, DTYPES[config.dtype])
    products = zeros[:, :, 0] if config.smear_keys else None
    return LocalCache(keys=zeros, values=zeros, lengths=jnp.zeros((batch,), jnp.int32), products=products)


def newest(products: jax.Array, token_counts: jax.Array, before: jax.Array) -> jax.Array:
    """The last counting one of products [B, T, G, D] of each row; `before` [B, G, D] where none counts."""
    last = jnp.clip(token_counts - 1, 0, products.shape[1] - 1)[:, None, None, None]
    picked = jnp.take_along_axis(products, last, axis=1)[:, 0].astype(before.dtype)
    return jnp.where((token_counts > 0)[:, None, None], picked, before)


def extend(layer_cache, keys: jax.Array, values: jax.Array, lengths: jax.Array, token_counts: jax.Array):
    """Writes T new keys and values of one layer behind each row's entries.

    Args:
      layer_cache: (keys, values), both [B, W, G, D].
      keys: [B, T, G, D], not rotated.
      values: [B, T, G, D].
      lengths: int32 [B], entries each row holds; lengths + token_counts <= W.
      token_counts: int32 [B], how many of the T entries count; the rest is not written.
    """
    W, T = layer_cache[0].shape[1], keys.shape[1]
    places = jnp.arange(W)[None] - lengths[:, None]  # index into the new entries, [B, W]
    fresh = (places >= 0) & (places < jnp.minimum(token_counts, T)[:, None])
    picked = jnp.clip(places, 0, T - 1)[:, :, None, None]

    def write(old, new):
        return jnp.where(fresh[:, :, None, None], jnp.take_along_axis(new, picked, axis=1).astype(old.dtype), old)

    return write(layer_cache[0], keys), write(layer_cache[1], values)


def slide(config: ModelConfig, cache: LocalCache, counts: jax.Array) -> tuple[LocalCache, KeyValue]:
    """Takes the oldest `counts[b]` entries of each row out of the local context.

    Every layer slides; what leaves the memory layers is returned for the memory. As keys are
    rotated at their index when used, the remaining entries move to the front unchanged.

    Args:
      config: names the memory layers.
      cache: the local cache.
      counts: int32 [B], at most `cache.lengths`.

    Returns:
      The slid cache, and the memory layers' entries [P, B, W, G, D] of which the first
      `counts[b]` of row b left.
    """
    W = cache.keys.shape[2]
    source = jnp.minimum(jnp.arange(W)[None] + counts[:, None], W - 1)[None, :, :, None, None]
    memory_layers = jnp.asarray(config.memory_layers, jnp.int32)
    leaving = KeyValue(keys=cache.keys[memory_layers], values=cache.values[memory_layers])
    moved = LocalCache(
        keys=jnp.take_along_axis(cache.keys, source, axis=2),
        values=jnp.take_along_axis(cache.values, source, axis=2),
        lengths=cache.lengths - counts,
        products=cache.products,
    )
    return moved, leaving
