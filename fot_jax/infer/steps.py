"""The compiled programs of inference: one call of the decoder on a block of tokens of every row."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fot_jax.config import ModelConfig
from fot_jax.models.transformer import run
from fot_jax.types import KeyValue, LocalCache, MemoryView


def _apply(params: Any, config: ModelConfig, tokens, counts, cache: LocalCache, view) -> tuple[jax.Array, LocalCache]:
    output = run(config, params, tokens, token_counts=counts, cache=cache, memory=view)
    assert output.cache is not None
    return jnp.asarray(output.logits), output.cache


@functools.partial(jax.jit, static_argnums=1)
def absorb(params: Any, config: ModelConfig, tokens, counts, cache: LocalCache, view: MemoryView | None) -> LocalCache:
    """The cache after tokens [B, T], of which row b's first counts[b] count; no logits are computed."""
    return _apply(params, config, tokens, counts, cache, view)[1]


@functools.partial(jax.jit, static_argnums=1)
def advance(params: Any, config: ModelConfig, tokens, counts, cache: LocalCache, view: MemoryView | None, logits):
    """(logits [B, V] after each row's last counting token, cache); a row without tokens keeps its logits."""
    every, cache = _apply(params, config, tokens, counts, cache, view)
    last = jnp.maximum(counts - 1, 0)[:, None, None]
    new = jnp.take_along_axis(every, last, axis=1)[:, 0]
    return jnp.where((counts > 0)[:, None], new, logits), cache


@functools.partial(jax.jit, static_argnums=0)
def memory_entries(config: ModelConfig, cache: LocalCache) -> KeyValue:
    """The memory layers' part [P, B, W, G, D] of a local cache."""
    layers = np.asarray(config.memory_layers, np.int32)
    return KeyValue(keys=cache.keys[layers], values=cache.values[layers])
