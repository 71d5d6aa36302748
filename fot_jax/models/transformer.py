"""The decoder: LLaMA and paper families, memory layers anywhere in one scanned stack.

    embed → N × [x += attend(norm(x));  x += feed_forward(norm(x))] → norm → unembed

One block serves every layer; `attention_layer` has what a memory layer adds to its softmax.
"""

import dataclasses
from typing import Any, assert_never

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fot_jax.config import Boundaries, ModelConfig, Remat
from fot_jax.models import attention_layer, layers
from fot_jax.models.attention_layer import Call, LayerRole
from fot_jax.models.inputs import Inputs, ReadInputs, TrainInputs
from fot_jax.ops import visibility
from fot_jax.ops.backends.choose import choose
from fot_jax.ops.linear import unembed
from fot_jax.ops.softmax import JOINT_ATTENTION_CHECKPOINT
from fot_jax.sharding import constrain, spec
from fot_jax.types import DecoderOutput, LayerCache, LocalCache


class Block(nn.Module):
    """One pre-norm layer; scanned, so its carry is x and the rest rides along N."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, call: Call, role: LayerRole, cache):
        """x [B, L, E] -> (x, (cache, captured))."""
        x = constrain(x, "batch", "length", "activation_embed")
        normed = layers.Norm(self.config, name="attention_norm")(x)
        mixed, cache, captured = attention_layer.Attention(self.config, name="attention")(normed, call, role, cache)
        x = x + mixed
        normed = layers.Norm(self.config, name="feed_forward_norm")(x)
        x = x + layers.FeedForward(self.config, name="feed_forward")(normed)
        return x, (cache, captured)


def follows(segments: jax.Array, boundaries: Boundaries, lengths: jax.Array | None) -> jax.Array:
    """Whether the token before each one is known and of the same text (any, where JOINED), bool [B, L]."""
    first = jnp.zeros_like(segments[:, :1], bool) if lengths is None else (lengths > 0)[:, None]
    joined = {Boundaries.MASKED: False, Boundaries.JOINED: True}[boundaries]
    same = (segments[:, 1:] == segments[:, :-1]) | joined
    return jnp.concatenate([first, same], axis=1)


def _block_class(config: ModelConfig) -> type[nn.Module]:
    if config.remat is Remat.NONE:
        return Block
    policies = jax.checkpoint_policies
    policy = policies.save_only_these_names(JOINT_ATTENTION_CHECKPOINT)
    if config.remat is Remat.DOTS:
        policy = policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, policy)
    elif config.remat is not Remat.FULL:
        assert_never(config.remat)
    looped = config.scan_layers and config.num_layers > 1  # XLA unrolls a loop of one layer
    return nn.remat(Block, policy=policy, prevent_cse=not looped)


class Decoder(nn.Module):
    """A decoder-only language model with memory layers.

    Source: FoT sec. 3, app. B.1 (PAPER family); LLaMA and LongLLaMA (LLAMA family).
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        inputs: Inputs = TrainInputs(),
        *,
        capture: bool = False,
        last_logits: bool = False,
        hidden: jax.Array | None = None,
    ) -> DecoderOutput:
        """Computes the logits of the next token at every position.

        Args:
          tokens: int32 [B, L].
          inputs: those of training, or those of reading.
          capture: also return queries, keys and values of every layer.
          last_logits: only those after each row's last counting token, [B, 1, V].
          hidden: [B, L, E], what layers below these made of the tokens (`layer_ranges.py`); None: their embeddings.

        Raises:
          ValueError: a plan was given without segments, or a cache with them.
        """
        config = self.config
        embedding = layers.weight(
            self, "embedding", (config.vocab_size, config.embed_dim), ("vocab", "embed"), layers.embedding_init(config)
        )
        if hidden is None:
            table = constrain(embedding, "vocab", "activation_embed")  # gathered over fsdp as other weights are
            hidden = jnp.take(table, tokens, axis=0).astype(layers.DTYPES[config.dtype])
        x = constrain(hidden, "batch", "length", "activation_embed")
        cache = inputs.cache if isinstance(inputs, ReadInputs) else None
        counts = jnp.full(tokens.shape[:1], tokens.shape[1], jnp.int32)
        if isinstance(inputs, ReadInputs) and inputs.token_counts is not None:
            counts = inputs.token_counts
        call = self._call(tokens, inputs, counts, capture)
        x, kept, captured = self._stack(x, call, None if cache is None else cache.layers)
        hidden = x
        if last_logits:
            x = jnp.take_along_axis(x, jnp.maximum(counts - 1, 0)[:, None, None], axis=1)
        x = layers.Norm(config, name="final_norm")(x)
        if config.tie_embeddings:
            logits = unembed(x, embedding.astype(x.dtype), tied=True)
        else:
            axes, init = ("embed", "vocab"), layers.scaled_normal(config.embed_dim)
            unembedding = layers.weight(self, "unembedding", (config.embed_dim, config.vocab_size), axes, init)
            logits = unembed(x, unembedding.astype(x.dtype), tied=False)
        new_cache = None
        if cache is not None:
            new_cache = LocalCache(layers=kept, lengths=cache.lengths + counts)
        queries, keys, values = captured if capture else (None, None, None)
        return DecoderOutput(logits=logits, hidden=hidden, cache=new_cache, queries=queries, keys=keys, values=values)

    def _call(self, tokens, inputs: Inputs, counts, capture: bool) -> Call:
        """Collects the inputs of all layers; the backend is chosen here, once for each trace."""
        plan = inputs.plan if isinstance(inputs, TrainInputs) else None
        if plan is not None and inputs.segments is None:
            raise ValueError("a crossbatch plan needs segments: without them every row is one document to the others")
        if plan is not None:
            plan = jax.tree.map(jnp.asarray, plan)
            inputs = dataclasses.replace(inputs, plan=plan)
        segments = jnp.ones_like(tokens) if inputs.segments is None else inputs.segments
        lengths = None
        if isinstance(inputs, ReadInputs) and inputs.cache is not None:
            if inputs.segments is not None:
                raise ValueError("a cache excludes segments: all tokens of a row are of one text, got both")
            lengths = inputs.cache.lengths
            inputs = dataclasses.replace(inputs, cache=None, token_counts=counts)
        backend = choose(
            self.config.attention,
            boundaries=inputs.boundaries,
            block=self.config.attention_block,
            layout=spec("batch", "heads", "length", "head_dim"),
            ring=None if plan is None else plan.ring,
        )
        known = follows(segments, inputs.boundaries, lengths)
        seen = None
        if plan is not None and self.config.memory_gate:
            seen = visibility.sees_contexts(plan, segments, boundaries=inputs.boundaries)
        memory = inputs.memory if isinstance(inputs, ReadInputs) else None
        return Call(
            inputs=inputs, segments=segments, follows=known, lengths=lengths, sees_contexts=seen,
            any_entries=None if memory is None else memory.any_entries(), backend=backend, capture=capture,
        )  # fmt: skip

    def _stack(self, x, call: Call, cache: tuple[LayerCache, ...] | None) -> tuple[jax.Array, Any, Any]:
        """Runs the N layers, scanned or one by one; returns x, a cache of each layer, captures stacked along N."""
        config = self.config
        if config.num_layers == 0:  # the part below a memory layer 0
            return x, cache, None
        is_memory = np.isin(np.arange(config.num_layers), config.memory_layers)
        roles = LayerRole(is_memory=is_memory, slot=np.maximum(np.cumsum(is_memory) - 1, 0).astype(np.int32))
        block = _block_class(config)
        if config.scan_layers or isinstance(call.inputs, TrainInputs):  # else each layer's program has its own role
            roles = jax.tree.map(jnp.asarray, roles)
        if config.scan_layers:
            scanned = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, 0, 0),
                length=config.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            stacked = None if cache is None else jax.tree.map(lambda *leaves: jnp.stack(leaves), *cache)
            x, (kept, captured) = scanned(config, name="layers")(x, call, roles, stacked)
            if kept is not None:
                kept = tuple(jax.tree.map(lambda leaf, n=n: leaf[n], kept) for n in range(config.num_layers))
            return x, kept, captured
        kept, captured = [], []
        for n in range(config.num_layers):
            role = jax.tree.map(lambda leaf, n=n: leaf[n], roles)
            own = None if cache is None else cache[n]
            x, (layer, tensors) = block(config, name=f"layer_{n}")(x, call, role, own)
            kept.append(layer)
            captured.append(tensors)
        return x, tuple(kept), jax.tree.map(lambda *leaves: jnp.stack(leaves), *captured)


def run(
    config: ModelConfig, params: Any, tokens: jax.Array, inputs: Inputs = TrainInputs(), **outputs: Any
) -> DecoderOutput:
    """Applies `Decoder(config)` to given parameters; `outputs` are the keyword arguments of `Decoder.__call__`."""
    output = Decoder(config).apply({"params": params}, tokens, inputs, **outputs)
    assert isinstance(output, DecoderOutput)
    return output
