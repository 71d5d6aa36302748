"""All scores of a layer in one array, and gradients by autodiff: the backend to read first."""

import dataclasses

import jax
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
        mask = local_mask(own.segments, own.segments, boundaries=self.boundaries)
        return softmax.attend(queries, own.keys, own.values, mask=mask)

    def contexts(self, queries, rows: Rows, plan: Plan, *, segments) -> Partial:
        """See `Backend`."""
        ids = jnp.maximum(plan.context_ids, 0)
        mask = gathered_mask(plan, segments, rows.segments, boundaries=self.boundaries)

        def gathered(x):
            found = x[ids].swapaxes(1, 2)  # [B, G, C, S, D]
            return found.reshape(*found.shape[:2], -1, found.shape[-1])

        arrays = gathered(rows.keys), gathered(rows.values)
        return softmax.attend(queries, *arrays, mask=mask.reshape(*mask.shape[:2], -1))

    def local_gradients(self, queries, own: Rows, upstream: Upstream) -> Gradients:
        """See `Backend`."""
        return _gradients(self.local, queries, own, upstream)

    def context_gradients(self, queries, rows: Rows, plan: Plan, upstream: Upstream, *, segments) -> Gradients:
        """See `Backend`."""

        def attend(queries, rows: Rows) -> Partial:
            return self.contexts(queries, rows, plan, segments=segments)

        return _gradients(attend, queries, rows, upstream)


def _gradients(attend, queries, rows: Rows, upstream: Upstream) -> Gradients:
    """Differentiates attend(queries, rows), whose partial is relative to its own peak instead of the upstream's."""

    def op(queries, keys, values):
        partial = attend(queries, Rows(keys, values, rows.segments))
        return (partial.weighted, partial.total), partial.peak

    arrays = (x.astype(jnp.float32) for x in (queries, rows.keys, rows.values))
    _, pullback, peak = jax.vjp(op, *arrays, has_aux=True)
    shrink = jnp.exp(peak - upstream.peak)
    return pullback((upstream.d_weighted * shrink[..., None], upstream.d_total * shrink))
