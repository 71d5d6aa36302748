"""Trains a part of the model: selects the parameters that the optimizer may change, layer by layer."""

from typing import Any, assert_never

import jax
import jax.numpy as jnp
import numpy as np

from fot_jax.config import ModelConfig, Trainable
from fot_jax.train.optimizer import STACKED


def trainable_mask(config: ModelConfig, params: Any, trainable: Trainable) -> Any:
    """Returns masks of the trained entries of every parameter.

    Args:
      config: the model; MEMORY_LAYERS and MEMORY_ATTENTION mean its `memory_layers`.
      params: unboxed parameters or their shapes.
      trainable: the part that is trained.

    Returns:
      A tree like `params` of NumPy bool arrays that broadcast with them: [N, 1, …] for layers stacked along N,
      a scalar elsewhere.
    """

    def mask(path, leaf) -> np.ndarray:
        if trainable is Trainable.ALL:
            return np.array(True)
        names = [key.key for key in path]
        if trainable is Trainable.MEMORY_LAYERS:
            inside = True
        elif trainable is Trainable.MEMORY_ATTENTION:
            inside = names[1:2] in (["attention"], ["attention_norm"])
        else:
            assert_never(trainable)
        if names[0] == STACKED:
            chosen = np.isin(np.arange(config.num_layers), config.memory_layers) & inside
            return chosen.reshape(-1, *[1] * (len(leaf.shape) - 1))
        return np.array(inside and names[0] in {f"layer_{n}" for n in config.memory_layers})

    return jax.tree_util.tree_map_with_path(mask, params)


def first_trained(config: ModelConfig, trainable: Trainable) -> int:
    """Returns the lowest trained layer; lower layers and the embedding take no part in the backward pass."""
    return 0 if trainable is Trainable.ALL else min(config.memory_layers)


def frozen(params: Any, mask: Any) -> Any:
    """Returns `params` with gradients stopped for those without a trained entry (none is computed for them)."""
    return jax.tree.map(lambda leaf, chosen: leaf if chosen.any() else jax.lax.stop_gradient(leaf), params, mask)


def only(tree: Any, mask: Any) -> Any:
    """Returns gradients or updates of the trained entries, zero elsewhere."""
    return jax.tree.map(lambda leaf, chosen: leaf if chosen.all() else jnp.where(chosen, leaf, 0), tree, mask)
