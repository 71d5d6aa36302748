"""Tiny models and documents to measure."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fot_jax.config import AttentionBackend, Family, MemoryConfig, MemoryPositions, ModelConfig, Retrieval
from fot_jax.eval.reading import EvaluatedModel
from fot_jax.models.transformer import Decoder

MODEL = ModelConfig(
    num_layers=2,
    embed_dim=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=32,
    vocab_size=40,
    local_context=8,
    memory_layers=(1,),
    attention=AttentionBackend.REFERENCE,  # compiles fastest
)
# Every layer reads memory and none has positions: windows with memory are then plain causal attention.
POSITIONLESS = dataclasses.replace(
    MODEL, family=Family.PAPER, memory_layers=(0, 1), memory_positions=MemoryPositions.NOPE
)


@functools.cache
def random_params(model: ModelConfig):
    """Parameters three times as large as a fresh model's, so that attention is far from uniform."""
    fresh = jax.jit(lambda: nn.unbox(Decoder(model).init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]))()
    return jax.tree.map(lambda leaf: 3 * np.asarray(leaf), fresh)


def tiny_model(
    model: ModelConfig = MODEL, *, zeros: bool = False, memory: MemoryConfig | None = None
) -> EvaluatedModel:
    """A random model, or one of zeros (uniform over tokens and over keys); dense memory by default."""
    params = random_params(model)
    params = jax.tree.map(np.zeros_like, params) if zeros else params
    memory = memory or MemoryConfig(retrieval=Retrieval.DENSE)
    return EvaluatedModel(label="tiny", params=params, model=model, memory=memory)


class RandomDocuments:
    """Documents of random tokens, of the lengths given."""

    def __init__(self, lengths: list[int], *, vocab_size: int = MODEL.vocab_size):
        rng = np.random.default_rng(1)
        self._tokens = [rng.integers(3, vocab_size, length) for length in lengths]
        self.lengths = np.asarray(lengths)
        self.num_documents = len(lengths)
        self.content_ids = np.arange(len(lengths))

    def tokens(self, i: int) -> np.ndarray:
        """All tokens of one document."""
        return self._tokens[i]

    def name(self, i: int) -> str:
        """Its number."""
        return f"document {i}"
