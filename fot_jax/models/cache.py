"""The local key/value cache of all layers: fixed width, rows of different lengths, sliding."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from fot_jax.config import ModelConfig
from fot_jax.models.layers import DTYPES
from fot_jax.types import KeyValue, LayerCache, LocalCache


def init_cache(config: ModelConfig, batch: int) -> LocalCache:
    """Returns an empty cache of `local_context` tokens for `batch` rows, in the compute dtype."""
    W, G, D, dtype = config.local_context, config.num_kv_heads, config.head_dim, DTYPES[config.dtype]

    def layer() -> LayerCache:
        return LayerCache(
            keys=jnp.zeros((batch, W, G, D), dtype),
            rotated=jnp.zeros((batch, G, D, W), dtype),
            values=jnp.zeros((batch, G, W, D), dtype),
            products=jnp.zeros((batch, G, D), dtype) if config.smear_keys else None,
        )

    return LocalCache(layers=tuple(layer() for _ in range(config.num_layers)), lengths=jnp.zeros((batch,), jnp.int32))


def memory_entries(config: ModelConfig, cache: LocalCache) -> KeyValue:
    """Returns the memory layers' part [P, B, W, G, D] of a local cache."""
    layers = [cache.layers[layer] for layer in config.memory_layers]
    if not layers:
        none = jnp.zeros((0, *cache.layers[0].keys.shape), cache.layers[0].keys.dtype)
        return KeyValue(keys=none, values=none)
    return KeyValue(
        keys=jnp.stack([layer.keys for layer in layers]),
        values=jnp.stack([layer.values.swapaxes(1, 2) for layer in layers]),
    )


def newest(products: jax.Array, token_counts: jax.Array, before: jax.Array) -> jax.Array:
    """The last counting one of products [B, T, G, D] of each row; `before` [B, G, D] where none counts."""
    last = jnp.clip(token_counts - 1, 0, products.shape[1] - 1)[:, None, None, None]
    picked = jnp.take_along_axis(products, last, axis=1)[:, 0].astype(before.dtype)
    return jnp.where((token_counts > 0)[:, None, None], picked, before)


def extend(
    layer: LayerCache,
    keys: jax.Array,
    values: jax.Array,
    *,
    rotated: jax.Array | None,
    lengths: jax.Array,
    counts: jax.Array,
) -> LayerCache:
    """Writes T new keys and values behind each row's entries; one token of each row in place, where `layer` is donated.

    Args:
      layer: the cache of one layer.
      keys: [B, T, G, D], not rotated.
      values: [B, T, G, D].
      rotated: [B, T, G, D], the same keys rotated by their index in the cache; None where no query reads them.
      lengths: int32 [B], entries each row holds; lengths + counts <= W.
      counts: int32 [B], how many of the T entries count; the rest is not written.
    """
    write = functools.partial(_write_one if keys.shape[1] == 1 else _write_several, lengths=lengths, counts=counts)
    return dataclasses.replace(
        layer,
        keys=write(layer.keys, keys, (0, 1, 2, 3)),
        rotated=layer.rotated if rotated is None else write(layer.rotated, rotated, (0, 2, 3, 1)),
        values=write(layer.values, values, (0, 2, 1, 3)),
    )


def _write_one(old, new, order, *, lengths, counts):
    """Writes new [B, 1, G, D], with its axes in `order`, as those of `old` are."""
    axis, new = order.index(1), new.transpose(order).astype(old.dtype)

    def write(row, token, place, count):
        at = [0] * row.ndim
        at[axis - 1] = jnp.minimum(place, row.shape[axis - 1] - 1)
        kept = jax.lax.dynamic_slice(row, at, token.shape)  # of a row that has ended
        return jax.lax.dynamic_update_slice(row, jnp.where(count > 0, token, kept), at)

    if len(old) == 1:  # vmap would make a loop of it
        return write(old[0], new[0], lengths[0], counts[0])[None]
    return jax.vmap(write)(old, new, lengths, counts)


def _write_several(old, new, order, *, lengths, counts):
    axis = order.index(1)
    W, T = old.shape[axis], new.shape[1]
    places = jnp.arange(W)[None] - lengths[:, None]  # index into the new entries, [B, W]
    fresh = (places >= 0) & (places < jnp.minimum(counts, T)[:, None])
    picked = jnp.take_along_axis(new, jnp.clip(places, 0, T - 1)[:, :, None, None], axis=1)
    fresh = jnp.expand_dims(fresh, tuple(other for other in (1, 2, 3) if other != axis))
    return jnp.where(fresh, picked.transpose(order).astype(old.dtype), old)


def slide(
    config: ModelConfig, cache: LocalCache, counts: jax.Array, *, rotate: Sequence[Callable]
) -> tuple[LocalCache, KeyValue]:
    """Takes the oldest `counts[b]` entries of each row out of the local context.

    Every layer slides; what leaves the memory layers is returned for the memory. The remaining entries move to the
    front, where their keys are rotated anew.

    Args:
      config: names the memory layers.
      cache: the local cache.
      counts: int32 [B], at most `cache.lengths`.
      rotate: for each layer, (keys [B, W, G, D], positions [1, W]) -> rotated keys (`attention_layer.rotations`).

    Returns:
      The slid cache, and the memory layers' entries [P, B, W, G, D] of which the first
      `counts[b]` of row b left.
    """
    W = config.local_context
    source = jnp.minimum(jnp.arange(W)[None] + counts[:, None], W - 1)

    def moved(layer: LayerCache, rotate) -> LayerCache:
        keys = jnp.take_along_axis(layer.keys, source[:, :, None, None], axis=1)
        rotated = rotate(keys, jnp.arange(W)[None]).transpose(0, 2, 3, 1)
        values = jnp.take_along_axis(layer.values, source[:, None, :, None], axis=2)
        return dataclasses.replace(layer, keys=keys, rotated=rotated, values=values)

    layers = tuple(moved(layer, own) for layer, own in zip(cache.layers, rotate, strict=True))
    return LocalCache(layers=layers, lengths=cache.lengths - counts), memory_entries(config, cache)
