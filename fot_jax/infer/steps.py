"""The compiled programs of inference: one call of the decoder on a block of tokens of every row."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fot_jax.config import ModelConfig
from fot_jax.models.lower import first_layers
from fot_jax.models.transformer import run
from fot_jax.types import KeyValue, LocalCache, MemoryView


@functools.partial(jax.jit, static_argnums=1)
def absorb(params: Any, config: ModelConfig, tokens, counts, cache: LocalCache, view: MemoryView | None) -> LocalCache:
    """The cache after tokens [B, T], of which row b's first counts[b] count; no logits are computed.

    `config` may have fewer layers than `params`: the first ones are run.
    """
    params = first_layers(config, params)
    after = run(config, params, tokens, token_counts=counts, cache=cache, memory=view).cache
    assert after is not None
    return after


@functools.partial(jax.jit, static_argnums=1)
def advance(params: Any, config: ModelConfig, tokens, counts, cache: LocalCache, view: MemoryView | None, logits):
    """(logits [B, V] after each row's last counting token, cache); a row without tokens keeps its logits."""
    output = run(config, params, tokens, token_counts=counts, cache=cache, memory=view, last_logits=True)
    return jnp.where((counts > 0)[:, None], output.logits[:, 0], logits), output.cache


@functools.partial(jax.jit, static_argnums=0)
def memory_entries(config: ModelConfig, cache: LocalCache) -> KeyValue:
    """The memory layers' part [P, B, W, G, D] of a local cache."""
    layers = np.asarray(config.memory_layers, np.int32)
    return KeyValue(keys=cache.keys[layers], values=cache.values[layers])
