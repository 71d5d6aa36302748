"""One layer's attention: over its own chunk or cache, and in a memory layer over contexts or memory too.

Every layer of the scanned stack runs the same program; which of them hold memory is data (`LayerRole`). A memory layer
adds one more set of keys to the softmax: the rows of the crossbatch plan in training (eq. 2), the external memory at
inference (eq. 1).
"""

import dataclasses
import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from fot_jax.config import ContextGradients, MemoryPositions, ModelConfig
from fot_jax.models import layers
from fot_jax.models.cache import extend, newest
from fot_jax.models.inputs import Inputs, ReadInputs, TrainInputs
from fot_jax.ops import softmax, visibility
from fot_jax.ops.backends import Backend, ContextsAlone
from fot_jax.ops.cache_attention import cache_attention
from fot_jax.ops.crossbatch import context_queries, crossbatch_attention
from fot_jax.ops.linear import project
from fot_jax.ops.memory_attention import gated_mix, log_length_scale
from fot_jax.ops.rope import rope_frequencies, rotate
from fot_jax.ops.softmax import heads_first
from fot_jax.types import LayerCache, Partial, Rows


@flax.struct.dataclass
class Call:
    """The inputs that all layers of one call share (see `Decoder.__call__`).

    Attributes:
      inputs: of the decoder, without its cache: each layer gets its own.
      segments: int32 [B, L], document ids, 0 for padding.
      follows: bool [B, L], whether the token before each one is known and of the same text.
      lengths: int32 [B], tokens in the cache before these; None without a cache.
      sees_contexts: bool [B, L], whether each query sees any context; None without a gate.
      any_entries: bool scalar, whether the memory holds an entry; None without a memory.
      backend: attends to the own chunk and to contexts.
      capture: whether to return queries, keys and values.
    """

    inputs: Inputs
    segments: jax.Array
    follows: jax.Array
    lengths: jax.Array | None
    sees_contexts: jax.Array | None
    any_entries: jax.Array | None
    backend: Backend = flax.struct.field(pytree_node=False)
    capture: bool = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class LayerRole:
    """The role of one layer: traced where layers are scanned along N, else numbers, so that each has its own program.

    `slot` indexes the memory layers, 0 elsewhere.
    """

    is_memory: jax.Array | np.bool_
    slot: jax.Array | np.int32


def rotation(config: ModelConfig, is_memory: jax.Array | np.bool_ | bool):
    """Returns rotate(x, positions) and YARN's factor (None: 1); under NOPE it leaves memory layers' x as it is."""
    frequencies, factor = rope_frequencies(config.rope, config.head_dim, config.local_context)
    without_positions = {MemoryPositions.NOPE: True, MemoryPositions.ROPE0: False}[config.memory_positions]
    no_rope = is_memory & without_positions
    yarn_factor = None if factor == 1.0 else jnp.where(no_rope, 1.0, factor)
    rotate_by = functools.partial(rotate, frequencies=frequencies, factor=1.0 if yarn_factor is None else yarn_factor)
    return lambda x, positions: rotate_by(x, jnp.where(no_rope, 0, positions)), yarn_factor


def rotations(config: ModelConfig):
    """Returns rotate(x, positions) of each layer."""
    return tuple(rotation(config, layer in config.memory_layers)[0] for layer in range(config.num_layers))


class Attention(nn.Module):
    """Attention over local ∪ (contexts | memory), one softmax (or the gate of the Memorizing Transformer)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, call: Call, role: LayerRole, cache: LayerCache | None):
        """x [B, L, E] -> ([B, L, E], the cache's layer or None, (q, k, v) captured or None)."""
        config = self.config
        H, D, E = config.num_heads, config.head_dim, config.embed_dim
        before = None if cache is None else cache.products
        projections = layers.Projections(config, name="projections")
        queries, keys, values, products = projections(x, follows=call.follows, before=before)
        init = layers.residual_init(config, H * D)
        output = layers.weight(self, "output", (H, D, E), ("heads", "head_dim", "embed"), init)
        gate = None
        if config.memory_gate:
            gate = layers.weight(self, "gate", (H,), ("heads",), nn.initializers.zeros)
        inputs, (apply_rope, yarn_factor) = call.inputs, rotation(config, role.is_memory)
        positions = jnp.arange(x.shape[1])[None]
        if call.lengths is not None:
            positions = call.lengths[:, None] + positions
        queries = apply_rope(self._scaled(queries, positions + 1, inputs, role), positions)
        memory_queries = context_queries(queries, yarn_factor)
        if isinstance(inputs, TrainInputs):
            arrays = queries, apply_rope(keys, positions), keys, values
            mixed = self._train(inputs, arrays, call, role, yarn_factor, gate)
        else:
            if cache is not None:
                rotated = apply_rope(keys, positions)
                local, cache = self._cached(call, queries, (keys, rotated, values, products), positions, cache)
            else:
                own = Rows(heads_first(apply_rope(keys, positions)), heads_first(values), call.segments)
                with jax.named_scope("local_scores"):
                    local = jax.tree.map(heads_first, call.backend.local(heads_first(queries), own))
            mixed = self._with_memory(call, local, memory_queries, role, gate)
        captured = (memory_queries, keys, values) if call.capture else None
        return project(mixed.astype(x.dtype), output.astype(x.dtype), 2), cache, captured

    def _scaled(self, queries, local, inputs: Inputs, role: LayerRole) -> jax.Array:
        """Queries of a memory layer times the scale that the memory or the plan asks for, those of others as they are.

        local: int32 [#B, L], how many keys of the local context each query sees.
        """
        scale = None
        if isinstance(inputs, ReadInputs):
            scale = None if inputs.memory is None else inputs.memory.query_scale(local)
        elif inputs.plan is not None and inputs.log_length_scaling_from:
            count = visibility.keys_in_sight(inputs.plan, local)
            scale = log_length_scale(count, start=inputs.log_length_scaling_from)
        if scale is None:
            return queries
        scale = jnp.where(role.is_memory, scale, 1.0)[..., None, None]
        return (queries * scale).astype(queries.dtype)

    def _train(self, inputs: TrainInputs, arrays, call: Call, role: LayerRole, yarn_factor, gate) -> jax.Array:
        """Eq. (2): the own chunk and, in a memory layer, the contexts of the plan.

        arrays: queries, rotated keys, keys, values.
        """
        attend = functools.partial(
            crossbatch_attention, *arrays,
            segments=call.segments, reads=role.is_memory, yarn_factor=yarn_factor,
            stopped=inputs.gradients is ContextGradients.STOPPED,
        )  # fmt: skip
        if gate is None or inputs.plan is None:
            return attend(inputs.plan, backend=call.backend)
        local = attend(None, backend=call.backend)
        contexts = attend(inputs.plan, backend=ContextsAlone(call.backend))
        assert call.sees_contexts is not None
        seen = (call.sees_contexts & role.is_memory)[..., None]
        return gated_mix(contexts, local, seen=seen, gate_bias=gate)

    def _cached(self, call: Call, queries, new, positions, cache: LayerCache) -> tuple[Partial, LayerCache]:
        """(attention to the local cache with the new keys, as a partial; the cache).

        new: keys, rotated keys, values, bare products.
        """
        assert isinstance(call.inputs, ReadInputs) and call.lengths is not None
        counts = call.inputs.token_counts
        assert counts is not None
        keys, rotated, values, products = new
        if keys.shape[1] == 1:
            old = cache_attention(queries, cache.rotated, cache.values, counts=positions)
            own = rotated.transpose(0, 2, 3, 1), values.swapaxes(1, 2).astype(queries.dtype)
            local = softmax.merge(old, cache_attention(queries, *own, counts=jnp.ones_like(positions)))
            # Changes nothing, as a total is not negative. But XLA then knows that the old entries were read and writes
            # the new ones into their arrays, which it would copy first otherwise.
            totals = local.total.reshape(*keys.shape[:3], -1)[..., :1]  # of each key/value head, which a mesh may split
            rotated, values = (jnp.where(totals < 0, 0, x) for x in (rotated, values))
        cache = extend(cache, keys, values, rotated=rotated, lengths=call.lengths, counts=counts)
        if cache.products is not None:
            cache = dataclasses.replace(cache, products=newest(products, counts, cache.products))
        if keys.shape[1] > 1:
            local = cache_attention(queries, cache.rotated, cache.values, counts=positions + 1)
        return local, cache

    def _with_memory(self, call: Call, local: Partial, queries, role: LayerRole, gate) -> jax.Array:
        """Eq. (1): the local partial and, in a memory layer, the memory."""
        assert isinstance(call.inputs, ReadInputs)
        memory = call.inputs.memory
        if memory is None:
            return softmax.normalise(local)

        if isinstance(role.is_memory, np.bool_) and not role.is_memory:
            return softmax.normalise(local)

        def joined(local, queries):
            extra = memory.partial(queries, role.slot)
            with jax.named_scope("joint_softmax"):
                if gate is None:
                    return softmax.normalise(softmax.merge(local, extra))
                parts = softmax.normalise(extra), softmax.normalise(local)
                return gated_mix(*parts, seen=extra.total > 0, gate_bias=gate)

        # A branch at run time: where the stack of layers is scanned, any of them may hold memory. The joint softmax is
        # inside, so that the other layers pay nothing for it, and a memory layer nothing for an empty memory.
        with jax.named_scope("memory_branch"):
            return jax.lax.cond(
                role.is_memory & call.any_entries, joined, lambda local, _: softmax.normalise(local), local, queries
            )
