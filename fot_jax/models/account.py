"""The cost of a config, in closed form: parameters, FLOPs, bytes. Nothing is compiled or allocated.

Symbols as everywhere: N layers, P memory layers, E, H, G, D, F, V, L tokens of a row, C contexts of a row.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from fot_jax.config import ExperimentConfig, Family, MemoryDtype, ModelConfig, OptimizerKind, Remat
from fot_jax.models.layer_ranges import below_last_memory_layer
from fot_jax.types import Plan

FLOAT32_BYTES = 4
MIN_FACTORED = 128  # as fot_jax/train/optimizer.py gives Adafactor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameters of each part, all layers together.

    Attributes:
      embedding: V·E.
      unembedding: E·V, 0 where tied to the embedding.
      attention: N·(E·H·D + 2·E·G·D + H·D·E).
      feed_forward: N·3·E·F (LLAMA) or N·2·E·F (PAPER).
      norms: (2·N + 1)·E (LLAMA) or twice that (PAPER: scale and bias).
      per_head: N·H temperatures (PAPER), N·H gates (memory_gate), N·G shares (smear_keys).
    """

    embedding: int
    unembedding: int
    attention: int
    feed_forward: int
    norms: int
    per_head: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.layers + self.embedding + self.unembedding

    @property
    def layers(self) -> int:
        """Without the embeddings: the number by which the paper names its 37M, 600M and 1.2B models."""
        return self.attention + self.feed_forward + self.norms + self.per_head


def count_parameters(model: ModelConfig) -> Parameters:
    """Parameters of a decoder, by part."""
    N, E, F, V = model.num_layers, model.embed_dim, model.mlp_dim, model.vocab_size
    H, G, D = model.num_heads, model.num_kv_heads, model.head_dim
    paper = {Family.LLAMA: False, Family.PAPER: True}[model.family]
    return Parameters(
        embedding=V * E,
        unembedding=0 if model.tie_embeddings else E * V,
        attention=N * (2 * E * H * D + 2 * E * G * D),
        feed_forward=N * (2 if paper else 3) * E * F,
        norms=(2 * N + 1) * E * (2 if paper else 1),
        per_head=N * H * (int(paper) + int(model.memory_gate)) + N * G * int(model.smear_keys),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flops:
    """Forward FLOPs of one token, by part; a multiplication and an addition are two.

    Attributes:
      projections: queries, keys, values, output.
      local_attention: scores and weighted values over the (L+1)/2 keys that a causal query sees on average.
      crossbatch: the same over the L keys of each context, in the memory layers.
      feed_forward: its matrices.
      unembedding: the logits.
    """

    projections: float
    local_attention: float
    crossbatch: float
    feed_forward: float
    unembedding: float

    @property
    def forward(self) -> float:
        """All parts."""
        return sum(getattr(self, field.name) for field in dataclasses.fields(self))

    @property
    def train(self) -> float:
        """Forward and backward: three times forward. What remat or blockwise attention compute again is not counted."""
        return 3 * self.forward


def flops_per_token(model: ModelConfig, *, contexts_per_row: float = 0.0) -> Flops:
    """FLOPs of one token of a batch.

    Args:
      model: the decoder; rows are `local_context` tokens long.
      contexts_per_row: mean number of filled context slots of a row, see `mean_contexts`. A row of
        C_prev counts as a row: it is computed too.
    """
    N, P, E, L = model.num_layers, len(model.memory_layers), model.embed_dim, model.local_context
    H, D = model.num_heads, model.head_dim
    parameters = count_parameters(model)
    per_key = 2 * 2 * H * D  # one inner product and one weighted sum
    return Flops(
        projections=2.0 * parameters.attention,
        local_attention=N * per_key * (L + 1) / 2,
        crossbatch=P * per_key * L * contexts_per_row,
        feed_forward=2.0 * parameters.feed_forward,
        unembedding=2.0 * E * model.vocab_size,
    )


def inference_flops(model: ModelConfig, *, memory: int, logits: bool) -> float:
    """Forward FLOPs of one token read with a cache: all its W keys are scored, and all of the memory.

    Args:
      model: the layers that are run.
      memory: entries that each memory layer reads, all of them (dense).
      logits: whether the token's are computed.
    """
    flops = flops_per_token(model)
    per_key = 2 * 2 * model.num_heads * model.head_dim
    attention = per_key * (model.num_layers * model.local_context + len(model.memory_layers) * memory)
    return flops.projections + flops.feed_forward + attention + (flops.unembedding if logits else 0.0)


def absorbing_flops(model: ModelConfig, *, memory: int) -> float:
    """Forward FLOPs of one token that is read into memory: layers below the last memory layer, and its keys and values.

    memory: entries that each memory layer reads, all of them (dense).
    """
    projections = 2.0 * model.embed_dim * 2 * model.num_kv_heads * model.head_dim
    return inference_flops(below_last_memory_layer(model), memory=memory, logits=False) + projections


def mean_contexts(plan: Plan) -> float:
    """Filled context slots of a row, on average."""
    return float(np.sum(np.asarray(plan.context_ids) >= 0)) / plan.context_ids.shape[0]


def memory_entry_bytes(model: ModelConfig, dtype: MemoryDtype = MemoryDtype.MODEL) -> int:
    """Bytes that one token takes in the external memory, as `memory.dtype` holds it: all memory layers and heads."""
    itemsize, scale = {
        MemoryDtype.MODEL: (model.dtype.itemsize, 0),
        MemoryDtype.FLOAT32: (4, 0),
        MemoryDtype.BFLOAT16: (2, 0),
        MemoryDtype.INT8: (1, 4),
    }[dtype]
    return 2 * len(model.memory_layers) * model.num_kv_heads * (model.head_dim * itemsize + scale)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryBytes:
    """Bytes of a training step, all devices together.

    Attributes:
      params: float32 parameters.
      gradients: float32 gradients.
      optimizer: AdamW: two moments. Adafactor: momentum, and second moments where they are not factored
        (the vectors of the factored ones are left out, below 1 %).
      activations: an ESTIMATE of what one micro-batch keeps for the backward pass, see `activation_bytes`.
    """

    params: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.params + self.gradients + self.optimizer + self.activations


def activation_bytes(model: ModelConfig, *, tokens: int) -> int:
    """An ESTIMATE of what the forward pass keeps of `tokens` tokens, from the arrays each remat policy names.

        per token and layer   NONE  6·E + 2·(H + 2·G)·D + 2·H·D + 4·F (PAPER: 2·F)   values of the compute dtype
                              DOTS  2·E + (H + 2·G)·D + H·D + 2·F (PAPER: F)
                              FULL  E + H·D
        in addition           2·H float32 per token and layer: peaks and totals of the softmax
                              one layer as under NONE while it is differentiated (DOTS, FULL)
                              2·V float32 per token: logits and their gradient

    XLA fuses and reuses: expect the compiler's figure within a factor of two. Scores add L·attention_block·H per row
    of a layer at work.
    """
    E, F, N = model.embed_dim, model.mlp_dim, model.num_layers
    heads, kv = model.num_heads * model.head_dim, 2 * model.num_kv_heads * model.head_dim
    gated = 1 if model.family is Family.PAPER else 2
    whole = 6 * E + 2 * (heads + kv) + 2 * heads + 2 * gated * F
    dots = 2 * E + heads + kv + heads + gated * F
    kept = {Remat.NONE: N * whole, Remat.DOTS: N * dots + whole, Remat.FULL: N * (E + heads) + whole}[model.remat]
    numbers = 2 * model.vocab_size + 2 * N * model.num_heads
    return tokens * (kept * model.dtype.itemsize + numbers * FLOAT32_BYTES)


def _unfactored(model: ModelConfig) -> int:
    """Matrix entries whose second moments Adafactor keeps whole: two axes of 128 or more are needed to factor."""
    N, E, H, G, D = model.num_layers, model.embed_dim, model.num_heads, model.num_kv_heads, model.head_dim
    matrices = [(2 * N, (E, H, D)), (2 * N, (E, G, D))]
    matrices += [(N * (2 if model.family is Family.PAPER else 3), (E, model.mlp_dim))]
    matrices += [(1 if model.tie_embeddings else 2, (model.vocab_size, E))]
    return sum(count * math.prod(shape) for count, shape in matrices if sorted(shape)[-2] < MIN_FACTORED)


def memory_bytes(config: ExperimentConfig) -> MemoryBytes:
    """Bytes of a training step of an experiment, over all devices together."""
    params = count_parameters(config.model).total * FLOAT32_BYTES
    adamw = {OptimizerKind.ADAMW: True, OptimizerKind.ADAFACTOR: False}[config.optimizer.kind]
    second_moments = params if adamw else _unfactored(config.model) * FLOAT32_BYTES
    tokens = config.train.batch_rows // config.train.accumulation * config.model.local_context
    return MemoryBytes(
        params=params,
        gradients=params,
        optimizer=params + second_moments,
        activations=activation_bytes(config.model, tokens=tokens),
    )


def as_dict(part: Any) -> dict[str, float]:
    """The fields of an account, in order, for printing."""
    return {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
