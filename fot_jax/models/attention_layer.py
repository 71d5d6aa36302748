"""One layer's attention: over its own chunk or cache, and in a memory layer over contexts or memory too.

Every layer of the scanned stack runs the same program; which of them hold memory is data (`LayerRole`). A memory layer
adds one more set of keys to the softmax: the rows of the crossbatch plan in training (eq. 2), the external memory at
inference (eq. 1).
"""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from fot_jax.config import AttentionForm, Boundaries, ContextGradients, MemoryPositions, ModelConfig
from fot_jax.models import layers
from fot_jax.models.cache import extend, newest
from fot_jax.ops import attention, crossbatch, forms, joint_blocks, joint_kernels
from fot_jax.ops.linear import project
from fot_jax.ops.memory_attention import gated_merge, logn_scale
from fot_jax.ops.prefix import prefix_partial
from fot_jax.ops.rope import rope_frequencies, rotate
from fot_jax.sharding import spec
from fot_jax.types import Partial, Plan

LAYOUT = spec("batch", "length", "heads", "head_dim")  # of queries, keys and values on a mesh


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
    logn_from: int = flax.struct.field(pytree_node=False)
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
        queries = self._sharpened(queries, call, role)
        init = layers.residual_init(config, H * D)
        output = layers.weight(self, "output", (H, D, E), ("heads", "head_dim", "embed"), init)
        frequencies, factor = rope_frequencies(config.rope, D, config.local_context)
        without = {MemoryPositions.NOPE: True, MemoryPositions.ROPE0: False}[config.memory_positions]
        still = role.is_memory & without
        if factor != 1.0:  # YARN's; nothing is rotated where there are no positions
            factor = jnp.where(still, 1.0, factor)
        turn = functools.partial(rotate, frequencies=frequencies, factor=factor)
        local = joint = None
        if cache is None:
            index = jnp.arange(x.shape[1])[None]
            rotated = turn(queries, jnp.where(still, 0, index))
            turned = turn(keys, jnp.where(still, 0, index))
            if self._by(AttentionForm.PALLAS, call):
                stretch = None if isinstance(factor, float) else factor
                joint = self._joint(rotated, turned, keys, values, call, role, stretch)
            else:
                local = crossbatch.local_partial(
                    rotated, turned, values, form=config.attention, layout=LAYOUT, **self._options(call)
                )
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

    def _sharpened(self, queries, call: Call, role: LayerRole) -> jax.Array:
        """Queries of a memory layer by the scale that the memory or the plan asks for, those of others as they are."""
        before = 0 if call.lengths is None else call.lengths[:, None]
        local = before + jnp.arange(1, queries.shape[1] + 1)[None]
        scale = None
        if call.memory is not None:
            scale = call.memory.query_scale(local)
        elif call.plan is not None and call.logn_from:
            scale = logn_scale(crossbatch.in_sight(call.plan, local), start=call.logn_from)
        if scale is None:
            return queries
        scale = jnp.where(role.is_memory, scale, 1.0)[..., None, None]
        return (queries * scale).astype(queries.dtype)

    def _options(self, call: Call) -> dict[str, Any]:
        """What attention to the row's own chunk and to contexts have in common."""
        return {
            "segments": call.segments,
            "boundaries": call.boundaries,
            "block": self.config.attention_block,
        }

    def _by(self, form: AttentionForm, call: Call) -> bool:
        """Whether this form attends to all keys there are beside the own chunk, and one softmax holds them all."""
        alone = call.memory is None and not self.config.memory_gate
        return alone and forms.resolve(self.config.attention) is form

    def _joint(self, queries, keys, far_keys, values, call: Call, role: LayerRole, stretch) -> jax.Array:
        """The same as the softmax of `_join`, differentiated as a whole."""
        stopped = call.gradients is ContextGradients.STOPPED
        return joint_kernels.joint_attention(
            queries, keys, far_keys, values, call.plan,
            reads=role.is_memory, stretch=stretch, stopped=stopped, layout=LAYOUT, **self._options(call),
        )  # fmt: skip

    def _join(self, local: Partial | None, queries, keys, values, call: Call, role: LayerRole) -> jax.Array:
        """Adds the far keys in a memory layer; elsewhere the local softmax alone."""
        config = self.config
        assert local is not None
        if config.memory_gate:
            bias = layers.weight(self, "gate", (config.num_heads,), ("heads",), nn.initializers.zeros)
        if call.plan is None and call.memory is None:
            return attention.normalise(local)
        if self._by(AttentionForm.BLOCKWISE, call):
            return joint_blocks.joined(
                local, queries, keys, values, call.plan,
                reads=role.is_memory, stopped=call.gradients is ContextGradients.STOPPED, **self._options(call),
            )  # fmt: skip

        def far(queries, keys, values) -> Partial:
            if call.memory is not None:
                return call.memory.partial(queries, role.slot)
            if call.gradients is ContextGradients.STOPPED:
                keys, values = jax.lax.stop_gradient((keys, values))
            return crossbatch.crossbatch_partial(
                queries, keys, values, call.plan, form=config.attention, layout=LAYOUT, **self._options(call)
            )

        def joined(local, *arrays):
            extra = far(*arrays)
            with jax.named_scope("joint_softmax"):
                if config.memory_gate:
                    return gated_merge(extra, local, gate_bias=bias)
                return attention.normalise(attention.merge(local, extra))

        def alone(local, *_):
            return attention.normalise(local)

        # Branch on the layer's role at run time: the stack is scanned, any layer may hold memory. The joint softmax is
        # inside, so that the other layers pay nothing for it.
        return jax.lax.cond(role.is_memory, joined, alone, local, queries, keys, values)
