"""The part of a decoder that reads a text into memory: all layers below the last memory layer, and its projections.

    layer 0 … m-1    run whole; memory layers among them read the memory
    layer m          the last memory layer: its norm, and the projections of its keys and values
    layer m+1 …      not run

Nothing that layer m attends to, and nothing above it, reaches the memory: its entries are projections of what it takes
in. So a model with one memory layer never searches the memory while it reads, and reads at the speed of a model without
memory however much it has read.

Source: follows from FoT sec. 3.1.
Differs: LongLLaMA runs every layer on every token that it reads.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from fot_jax.config import ModelConfig
from fot_jax.models import layers
from fot_jax.models.cache import extend, newest
from fot_jax.models.inputs import ReadInputs
from fot_jax.models.layer_ranges import below_last_memory_layer
from fot_jax.models.transformer import follows, run
from fot_jax.sharding import constrain
from fot_jax.types import KeyValue, LocalCache


@flax.struct.dataclass
class AbsorbingParams:
    """Parameters that reading into memory needs; unboxed.

    Attributes:
      lower: of the layers below the last memory layer, and all that belong to no layer.
      last: of the last memory layer's norm and projections.
    """

    lower: Any
    last: Any


def absorbing_params(config: ModelConfig, params: Any) -> AbsorbingParams:
    """Splits a decoder's parameters. Stacked layers are copied: call it once for a reading, not for every window."""
    last = config.memory_layers[-1]
    if not config.scan_layers:
        return AbsorbingParams(lower=params, last=projecting(params[f"layer_{last}"]))
    lower, layer = _split(last, params["layers"])
    return AbsorbingParams(lower={**params, "layers": lower}, last=layer)


def projecting(layer: Any) -> Any:
    """Returns the part of a layer's tree that `_LastLayer` takes."""
    return {"attention_norm": layer["attention_norm"], "projections": layer["attention"]["projections"]}


@functools.partial(jax.jit, static_argnums=0)
def _split(last: int, stacked: Any) -> tuple[Any, Any]:
    return jax.tree.map(lambda leaf: leaf[:last], stacked), jax.tree.map(lambda leaf: leaf[last], projecting(stacked))


class _LastLayer(nn.Module):
    """The norm and the projections of the last memory layer, under the names that `models.transformer.Block` has."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, *, follows: jax.Array, before: jax.Array | None):
        """x [B, L, E] -> keys, values, bare products, all [B, L, G, D]; arguments as in `layers.Projections`."""
        x = constrain(x, "batch", "length", "activation_embed")
        normed = layers.Norm(self.config, name="attention_norm")(x)
        projections = layers.Projections(self.config, name="projections")
        return projections(normed, follows=follows, before=before)[1:]


def absorb_window(config: ModelConfig, params: AbsorbingParams, tokens: jax.Array, inputs: ReadInputs) -> KeyValue:
    """Returns the memory layers' entries [P, B, L, G, D] of whole windows, tokens int32 [B, L], without a cache."""
    lower = below_last_memory_layer(config)
    below = run(lower, params.lower, tokens, inputs, capture=bool(lower.memory_layers))
    segments = jnp.ones_like(tokens) if inputs.segments is None else inputs.segments
    keys, values, _ = _project(config, params, below.hidden, follows(segments, inputs.boundaries, None), None)
    found = KeyValue(keys=keys[None], values=values[None])
    if not lower.memory_layers:
        return found
    others = jnp.asarray(lower.memory_layers)
    assert below.keys is not None and below.values is not None
    captured = KeyValue(keys=below.keys[others], values=below.values[others])
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), captured, found)


def absorb_tokens(config: ModelConfig, params: AbsorbingParams, tokens: jax.Array, inputs: ReadInputs) -> LocalCache:
    """Returns the cache after some tokens of a window.

    Args:
      config: the model.
      params: from `absorbing_params`.
      tokens: int32 [B, T].
      inputs: with a cache of the layers up to the last memory layer (`layer_ranges.up_to_last_memory_layer`).
    """
    cache, counts = inputs.cache, inputs.token_counts
    assert cache is not None and counts is not None
    last = config.memory_layers[-1]
    own = cache.layers[last]
    lower_cache = dataclasses.replace(cache, layers=cache.layers[:last])
    below = run(below_last_memory_layer(config), params.lower, tokens, dataclasses.replace(inputs, cache=lower_cache))
    near = follows(jnp.ones_like(tokens), inputs.boundaries, cache.lengths)
    keys, values, products = _project(config, params, below.hidden, near, own.products)
    layer = extend(own, keys, values, rotated=None, lengths=cache.lengths, counts=counts)
    if own.products is not None:
        layer = dataclasses.replace(layer, products=newest(products, counts, own.products))
    assert below.cache is not None
    return LocalCache(layers=(*below.cache.layers, layer), lengths=below.cache.lengths)


def _project(
    config: ModelConfig, params: AbsorbingParams, x, follows, before
) -> tuple[jax.Array, jax.Array, jax.Array]:
    found: Any = _LastLayer(config).apply({"params": params.last}, x, follows=follows, before=before)
    return found
