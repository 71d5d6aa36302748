"""All scores of a layer in one array: the backend to read first, and to compare the others with."""

import dataclasses

import jax.numpy as jnp

from fot_jax.config import Boundaries
from fot_jax.ops import softmax
from fot_jax.ops.backends import Gradients
from fot_jax.ops.visibility import gathered_mask, local_mask
from fot_jax.types import Partial, Plan, Rows, Upstream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """Gathers the contexts of each row, [B, G, C·S, D], and attends to them at once."""

    boundaries: Boundaries

    def local(self, queries, own: Rows) -> Partial:
        """See `Backend`."""
        return softmax.attend(queries, own.keys, own.values, mask=self._local_mask(own))

    def local_gradients(self, queries, own: Rows, upstream: Upstream) -> Gradients:
        """See `Backend`."""
        return softmax.attend_gradients(queries, own.keys, own.values, upstream, mask=self._local_mask(own))

    def contexts(self, queries, rows: Rows, plan: Plan, *, segments) -> Partial:
        """See `Backend`."""
        keys, values, mask = self._gathered(rows, plan, segments)
        return softmax.attend(queries, keys, values, mask=mask)

    def context_gradients(self, queries, rows: Rows, plan: Plan, upstream: Upstream, *, segments) -> Gradients:
        """See `Backend`; the gradients of keys and values are added where the plan gathered them."""
        keys, values, mask = self._gathered(rows, plan, segments)
        dq, *gathered = softmax.attend_gradients(queries, keys, values, upstream, mask=mask)
        B, C = plan.context_ids.shape
        dk, dv = (
            jnp.zeros(rows.keys.shape, jnp.float32)
            .at[jnp.maximum(plan.context_ids, 0)]
            .add(x.reshape(B, x.shape[1], C, -1, x.shape[-1]).swapaxes(1, 2))
            for x in gathered
        )
        return dq, dk, dv

    def _local_mask(self, own: Rows):
        return local_mask(own.segments, own.segments, boundaries=self.boundaries)

    def _gathered(self, rows: Rows, plan: Plan, segments):
        """Keys and values [B, G, C·S, D] and the mask [B, L, C·S]."""
        ids = jnp.maximum(plan.context_ids, 0)
        mask = gathered_mask(plan, segments, rows.segments, boundaries=self.boundaries)

        def gathered(x):
            found = x[ids].swapaxes(1, 2)  # [B, G, C, S, D]
            return found.reshape(*found.shape[:2], -1, found.shape[-1])

        return gathered(rows.keys), gathered(rows.values), mask.reshape(*mask.shape[:2], -1)
