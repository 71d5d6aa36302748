"""Identity of a model, so that a memory is read only by the model that wrote it."""

import hashlib
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from fot_jax.config import ModelConfig

SAMPLES = 4096  # values read of each parameter; smaller ones are read whole
SHAPING_FIELDS = (
    "family",
    "num_layers",
    "embed_dim",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "mlp_dim",
    "vocab_size",
    "memory_layers",
    "memory_positions",
    "rope",
    "norm_epsilon",
    "dtype",
)


def fingerprint(params: Any, config: ModelConfig) -> str:
    """Returns 16 hex digits, a digest of the model's shape and evenly spaced values of every parameter.

    Two checkpoints of one run differ (training moves nearly every parameter); how attention is
    computed, rematerialised or sharded does not matter.

    Args:
      params: the parameter pytree, boxed or not.
      config: the model.
    """
    digest = hashlib.sha256()
    for name in SHAPING_FIELDS:
        digest.update(f"{name}={getattr(config, name)!r};".encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(nn.unbox(params)):
        digest.update(f"{jax.tree_util.keystr(path)}{leaf.shape}".encode())
        places = np.unique(np.linspace(0, leaf.size - 1, min(leaf.size, SAMPLES)).astype(np.int64))
        if isinstance(leaf, jax.Array) and leaf.is_fully_addressable and next(iter(leaf.devices())).platform == "cpu":
            leaf = np.asarray(leaf)  # no copy; a gather would be compiled for each shape
        values = np.asarray(leaf.reshape(-1)[places]).astype(np.float32)
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]
