"""Parts of a decoder, cut between layers.

Reading into memory needs the part up to the last memory layer, as nothing above it reaches the memory. Training of
memory layers alone needs gradients in the part from the first of them on.
"""

import dataclasses
import functools
from typing import Any

import jax

from fot_jax.config import ModelConfig, Remat


def up_to_last_memory_layer(config: ModelConfig) -> ModelConfig:
    """The config cut behind its last memory layer (24 of SmolLM2's 30 layers, 19 of LongLLaMA 3B's 26)."""
    return dataclasses.replace(config, num_layers=max(config.memory_layers) + 1)


def below_last_memory_layer(config: ModelConfig) -> ModelConfig:
    """The config cut below its last memory layer; it may have no layer left."""
    *others, last = config.memory_layers
    return dataclasses.replace(config, num_layers=last, memory_layers=tuple(others))


def first_layers(config: ModelConfig, params: Any) -> Any:
    """The parameters of the first `config.num_layers` layers, and all that belong to no layer.

    Stacked layers are copied unless all are wanted: call it once for a reading, not for every window.
    """
    if not config.scan_layers:
        return params  # a layer is looked up by its own name
    if all(leaf.shape[0] == config.num_layers for leaf in jax.tree.leaves(params["layers"])):
        return params
    return {**params, "layers": _between(0, config.num_layers, params["layers"])}


def below(config: ModelConfig, params: Any, first: int) -> tuple[ModelConfig, Any]:
    """The part below layer `first`, none of whose layers reads memory; it gives `DecoderOutput.hidden`.

    Raises:
      ValueError: a memory layer is below.
    """
    if any(layer < first for layer in config.memory_layers):
        raise ValueError(f"layers below {first} must hold no memory, got memory_layers={config.memory_layers}")
    lower = dataclasses.replace(config, num_layers=first, memory_layers=())
    return lower, first_layers(lower, params)


def above(config: ModelConfig, params: Any, first: int) -> tuple[ModelConfig, Any]:
    """The part from layer `first` on, which takes what `below` made as `hidden`."""
    layers = range(first, config.num_layers)
    memory_layers = tuple(layer - first for layer in config.memory_layers)
    upper = dataclasses.replace(config, num_layers=len(layers), memory_layers=memory_layers)
    if config.scan_layers:
        return upper, {**params, "layers": _between(first, config.num_layers, params["layers"])}
    others = {name: leaf for name, leaf in params.items() if not name.startswith("layer_")}
    return upper, {**others, **{f"layer_{layer - first}": params[f"layer_{layer}"] for layer in layers}}


def unscanned(config: ModelConfig, params: Any) -> tuple[ModelConfig, Any]:
    """Returns the model with a program and parameters of its own for each layer, as decoding on CPUs wants it.

    A scan over layers copies every layer's parameters out of the stacked ones, which on a CPU takes longer than a
    token's products. This copies them once.
    """
    single = dataclasses.replace(config, scan_layers=False, remat=Remat.NONE)
    if not config.scan_layers:
        return single, params
    others = {name: leaf for name, leaf in params.items() if name != "layers"}
    return single, {**others, **_apart(config.num_layers, params["layers"])}


@functools.partial(jax.jit, static_argnums=0)
def _apart(count: int, layers: Any) -> dict[str, Any]:
    return {f"layer_{n}": jax.tree.map(lambda leaf, n=n: leaf[n], layers) for n in range(count)}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _between(first: int, end: int, layers: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[first:end], layers)
