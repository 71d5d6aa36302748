"""The part of a decoder that reading into memory needs: nothing above the last memory layer reaches the memory."""

import dataclasses
import functools
from typing import Any

import jax

from fot_jax.config import ModelConfig


def up_to_last_memory_layer(config: ModelConfig) -> ModelConfig:
    """The config cut behind its last memory layer (24 of SmolLM2's 30 layers, 19 of LongLLaMA 3B's 26)."""
    return dataclasses.replace(config, num_layers=max(config.memory_layers) + 1)


def first_layers(config: ModelConfig, params: Any) -> Any:
    """The parameters of the first `config.num_layers` layers, and all that belong to no layer.

    Stacked layers are copied unless all are wanted: call it once for a reading, not for every window.
    """
    if not config.scan_layers:
        return params  # a layer is looked up by its own name
    if all(leaf.shape[0] == config.num_layers for leaf in jax.tree.leaves(params["layers"])):
        return params
    return {**params, "layers": _first(config.num_layers, params["layers"])}


@functools.partial(jax.jit, static_argnums=0)
def _first(count: int, layers: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[:count], layers)
