"""The decoder: LLaMA and paper families, memory layers anywhere in one scanned stack.

    embed → N × [x += attend(norm(x));  x += feed_forward(norm(x))] → norm → unembed

One block serves every layer. A memory layer adds one more set of keys to the softmax: the rows of
the crossbatch plan in training (eq. 2), the external memory at inference (eq. 1).
"""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from fot_jax.config import AttentionForm, Boundaries, ContextGradients, MemoryPositions, ModelConfig, Remat
from fot_jax.models import layers
from fot_jax.models.cache import extend, newest
from fot_jax.ops import attention, crossbatch, forms, joint_kernels
from fot_jax.ops.linear import project, unembed
from fot_jax.ops.memory_attention import gated_merge
from fot_jax.ops.prefix import prefix_partial
from fot_jax.ops.rope import rope_frequencies, rotate
from fot_jax.sharding import constrain, spec
from fot_jax.types import DecoderOutput, LocalCache, MemoryView, Partial, Plan


@flax.struct.dataclass
class Call:
    """What every layer of one call shares (see `Decoder.__call__`)."""

    segments: jax.Array
    follows: jax.Array
    plan: Plan | None
    lengths: jax.Array | None
    token_counts: jax.Array | None
    memory: Any
    boundaries: Boundaries = flax.struct.field(pytree_node=False)
    gradients: ContextGradients = flax.struct.field(pytree_node=False)
    capture: bool = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class LayerRole:
    """What one layer is: scanned along N. `slot` indexes the memory layers, 0 elsewhere."""

    is_memory: jax.Array
    slot: jax.Array


class Attention(nn.Module):
    """Attention over local ∪ (contexts | memory), one softmax (or the MT baseline's gate)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, call: Call, role: LayerRole, cache):
        """x [B, L, E] -> ([B, L, E], (keys, values, products) of the cache or None, (q, k, v) captured or None)."""
        config = self.config
        H, D, E = config.num_heads, config.head_dim, config.embed_dim
        before = None if cache is None else cache[2]
        projections = layers.Projections(config, name="projections")
        queries, keys, values, products = projections(x, follows=call.follows, before=before)
        init = layers.residual_init(config, H * D)
        output = layers.weight(self, "output", (H, D, E), ("heads", "head_dim", "embed"), init)
        frequencies, factor = rope_frequencies(config.rope, D, config.local_context)
        still = role.is_memory & (config.memory_positions is MemoryPositions.NOPE)
        if factor != 1.0:  # YARN's; nothing is rotated where there are no positions
            factor = jnp.where(still, 1.0, factor)
        turn = functools.partial(rotate, frequencies=frequencies, factor=factor)
        local = joint = None
        if cache is None:
            index = jnp.arange(x.shape[1])[None]
            rotated = turn(queries, jnp.where(still, 0, index))
            turned = turn(keys, jnp.where(still, 0, index))
            if self._by_kernels(call):
                stretch = None if isinstance(factor, float) else factor
                joint = self._joint(rotated, turned, keys, values, call, role, stretch)
            else:
                local = crossbatch.local_partial(rotated, turned, values, form=config.attention, **self._options(call))
        else:
            assert call.lengths is not None
            cached_keys, cached_values = extend(cache[:2], keys, values, call.lengths, call.token_counts)
            kept = None if before is None else newest(products, call.token_counts, before)
            cache = cached_keys, cached_values, kept
            index = call.lengths[:, None] + jnp.arange(x.shape[1])[None]
            rotated = turn(queries, jnp.where(still, 0, index))
            places = jnp.arange(cached_keys.shape[1])[None]
            local = prefix_partial(
                rotated,
                turn(cached_keys.astype(x.dtype), jnp.where(still, 0, places)),
                cached_values.astype(x.dtype),
                valid=jnp.ones(cached_keys.shape[:2], bool),
                counts=index + 1,
            )
        # Far keys are unrotated, as if at position 0; YARN's factor, which they lack, goes to the queries.
        far = rotated if isinstance(factor, float) else (rotated * factor).astype(x.dtype)
        mixed = self._join(local, far, keys, values, call, role) if joint is None else joint
        captured = (far, keys, values) if call.capture else None
        return project(mixed.astype(x.dtype), output.astype(x.dtype), 2), cache, captured

    def _options(self, call: Call) -> dict[str, Any]:
        """What attention to the row's own chunk and to contexts have in common."""
        return {
            "segments": call.segments,
            "boundaries": call.boundaries,
            "block": self.config.attention_block,
            "layout": spec("batch", "length", "heads", "head_dim"),
        }

    def _by_kernels(self, call: Call) -> bool:
        """Whether the kernels attend to all keys there are, and one softmax holds them."""
        alone = call.memory is None and not self.config.memory_gate
        return alone and forms.resolve(self.config.attention) is AttentionForm.PALLAS

    def _joint(self, queries, keys, far_keys, values, call: Call, role: LayerRole, stretch) -> jax.Array:
        """The same as the softmax of `_join`, differentiated as a whole."""
        stopped = call.gradients is ContextGradients.STOPPED
        return joint_kernels.joint_attention(
            queries, keys, far_keys, values, call.plan,
            reads=role.is_memory, stretch=stretch, stopped=stopped, **self._options(call),
        )  # fmt: skip

    def _join(self, local: Partial | None, queries, keys, values, call: Call, role: LayerRole) -> jax.Array:
        """Adds the far keys in a memory layer; elsewhere the local softmax alone."""
        config = self.config
        assert local is not None
        if config.memory_gate:
            bias = layers.weight(self, "gate", (config.num_heads,), ("heads",), nn.initializers.zeros)
        if call.plan is None and call.memory is None:
            return attention.normalise(local)

        def far(queries, keys, values):
            if call.memory is not None:
                return call.memory.partial(queries, role.slot)
            if call.gradients is ContextGradients.STOPPED:
                keys, values = jax.lax.stop_gradient((keys, values))
            return crossbatch.crossbatch_partial(
                queries, keys, values, call.plan, form=config.attention, **self._options(call)
            )

        def nothing(queries, keys, values):
            return attention.empty_partial(queries)

        # Branch on the layer's role at run time: the stack is scanned, any layer may hold memory.
        extra = jax.lax.cond(role.is_memory, far, nothing, queries, keys, values)
        with jax.named_scope("joint_softmax"):
            if config.memory_gate:
                return gated_merge(extra, local, gate_bias=bias)
            return attention.normalise(attention.merge(local, extra))


class Block(nn.Module):
    """One pre-norm layer; scanned, so its carry is x and the rest rides along N."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, call: Call, role: LayerRole, cache):
        """x [B, L, E] -> (x, (cache, captured))."""
        x = constrain(x, "batch", "length", "activation_embed")
        normed = layers.Norm(self.config, name="attention_norm")(x)
        mixed, cache, captured = Attention(self.config, name="attention")(normed, call, role, cache)
        x = x + mixed
        normed = layers.Norm(self.config, name="feed_forward_norm")(x)
        x = x + layers.FeedForward(self.config, name="feed_forward")(normed)
        return x, (cache, captured)


def _follows(segments: jax.Array, boundaries: Boundaries, lengths: jax.Array | None) -> jax.Array:
    """Whether the token before each one is known and of the same text (any, where JOINED), bool [B, L]."""
    first = jnp.zeros_like(segments[:, :1], bool) if lengths is None else (lengths > 0)[:, None]
    same = (segments[:, 1:] == segments[:, :-1]) | (boundaries is Boundaries.JOINED)
    return jnp.concatenate([first, same], axis=1)


def _block_class(config: ModelConfig) -> type[nn.Module]:
    if config.remat is Remat.NONE:
        return Block
    policies = jax.checkpoint_policies
    policy = policies.save_only_these_names(joint_kernels.KEPT)
    if config.remat is Remat.DOTS:
        policy = policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, policy)
    return nn.remat(Block, policy=policy, prevent_cse=not config.scan_layers)


class Decoder(nn.Module):
    """A decoder-only language model with memory layers.

    Source: FoT sec. 3, app. B.1 (PAPER family); LLaMA and LongLLaMA (LLAMA family).
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        *,
        segments: jax.Array | None = None,
        plan: Plan | None = None,
        boundaries: Boundaries = Boundaries.MASKED,
        gradients: ContextGradients = ContextGradients.FLOW,
        cache: LocalCache | None = None,
        token_counts: jax.Array | None = None,
        memory: MemoryView | None = None,
        capture: bool = False,
        last_logits: bool = False,
    ) -> DecoderOutput:
        """Logits of the next token at every position.

        Args:
          tokens: int32 [B, L].
          segments: int32 [B, L] document ids, 0 for padding; None: one document a row.
          plan: the crossbatch plan; memory layers then read other rows of the batch.
          boundaries: whether documents of one row see each other.
          gradients: whether the loss reaches the keys and values that other rows read.
          cache: the local context so far; tokens are appended at `cache.lengths` of each row.
          token_counts: int32 [B], how many of the tokens count (the rest is padding); with a cache.
          memory: the external memory that memory layers read.
          capture: also return queries, keys and values of every layer.
          last_logits: only those after each row's last counting token, [B, 1, V].

        Raises:
          ValueError: both a plan and a memory or cache were given, or a plan without segments.
        """
        if plan is not None and (memory is not None or cache is not None):
            raise ValueError("a crossbatch plan excludes memory and cache: contexts come from the batch itself")
        if plan is not None and segments is None:
            raise ValueError("a crossbatch plan needs segments: without them every row is one document to the others")
        config = self.config
        dtype = layers.DTYPES[config.dtype]
        embedding = layers.weight(
            self, "embedding", (config.vocab_size, config.embed_dim), ("vocab", "embed"), layers.embedding_init(config)
        )
        table = constrain(embedding, "vocab", "activation_embed")  # gathered over fsdp as other weights are
        x = constrain(jnp.take(table, tokens, axis=0).astype(dtype), "batch", "length", "activation_embed")
        if token_counts is None:
            token_counts = jnp.full(tokens.shape[:1], tokens.shape[1], jnp.int32)
        if segments is None:
            segments = jnp.ones_like(tokens)
        call = Call(
            segments=segments,
            follows=_follows(segments, boundaries, None if cache is None else cache.lengths),
            plan=plan,
            lengths=None if cache is None else cache.lengths,
            token_counts=token_counts,
            memory=memory,
            boundaries=boundaries,
            gradients=gradients,
            capture=capture,
        )
        stored = None if cache is None else (cache.keys, cache.values, cache.products)
        x, kept, captured = self._stack(x, call, stored)
        if last_logits:
            x = jnp.take_along_axis(x, jnp.maximum(token_counts - 1, 0)[:, None, None], axis=1)
        x = layers.Norm(config, name="final_norm")(x)
        if config.tie_embeddings:
            logits = unembed(x, embedding.astype(dtype), tied=True)
        else:
            axes, init = ("embed", "vocab"), layers.scaled_normal(config.embed_dim)
            unembedding = layers.weight(self, "unembedding", (config.embed_dim, config.vocab_size), axes, init)
            logits = unembed(x, unembedding.astype(dtype), tied=False)
        new_cache = None
        if cache is not None:
            keys, values, products = kept
            lengths = cache.lengths + call.token_counts
            new_cache = LocalCache(keys=keys, values=values, lengths=lengths, products=products)
        queries, keys, values = captured if capture else (None, None, None)
        return DecoderOutput(logits=logits, cache=new_cache, queries=queries, keys=keys, values=values)

    def _stack(self, x, call: Call, cache):
        """Runs the N layers, scanned or one by one; caches and captures are stacked along N."""
        config = self.config
        is_memory = np.isin(np.arange(config.num_layers), config.memory_layers)
        roles = LayerRole(is_memory=is_memory, slot=np.maximum(np.cumsum(is_memory) - 1, 0).astype(np.int32))
        block = _block_class(config)
        if config.scan_layers:
            scanned = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, 0, 0),
                length=config.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x, (kept, captured) = scanned(config, name="layers")(x, call, jax.tree.map(jnp.asarray, roles), cache)
            return x, kept, captured
        outputs = []
        for n in range(config.num_layers):
            role, own = jax.tree.map(lambda leaf, n=n: jnp.asarray(leaf[n]), (roles, cache))
            x, output = block(config, name=f"layer_{n}")(x, call, role, own)
            outputs.append(output)
        kept, captured = jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
        return x, kept, captured


def run(config: ModelConfig, params: Any, tokens: jax.Array, **inputs: Any) -> DecoderOutput:
    """`Decoder(config)` on given parameters; `inputs` as `Decoder.__call__`."""
    output = Decoder(config).apply({"params": params}, tokens, **inputs)
    assert isinstance(output, DecoderOutput)
    return output
