"""Any backend in a mesh of several devices: each attends to its own part, inside `jax.shard_map`.

XLA cannot split a kernel over devices, so Pallas needs this wherever arrays are split.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from fot_jax.ops import softmax
from fot_jax.ops.backends import Backend, Gradients
from fot_jax.types import Partial, Plan, Rows, Upstream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sharded:
    """A backend on the parts of arrays [B, H, L, D] that are split over the mesh in context.

    Attributes:
      backend: attends to each device's part.
      layout: the mesh axes of the queries' four axes.
    """

    backend: Backend
    layout: PartitionSpec

    def local(self, queries, own: Rows) -> Partial:
        """See `Backend`.

        Positions of a row that are split over devices are pieces. Each device brings the row together and reads it as
        contexts of its queries: its own piece causally, those before it whole, those behind it not at all.

            devices along length      0         1         2
            own piece, causally       0         1         2
            as contexts               .         0         0 1
        """

        def part(queries, own: Rows) -> Partial:
            near = self.backend.local(queries, own)
            if jax.lax.axis_size(self.layout[2]) == 1:
                return near
            rows, plan = _earlier_pieces(self.layout[2], own)
            return softmax.merge(near, self.backend.contexts(queries, rows, plan, segments=own.segments))

        return on_devices(part, self.layout, partial_specs(self.layout))(queries, own)

    def local_gradients(self, queries, own: Rows, upstream: Upstream) -> Gradients:
        """See `Backend`; what a device finds for earlier pieces goes back to their devices."""

        def part(queries, own: Rows, upstream: Upstream) -> Gradients:
            dq, dk, dv = self.backend.local_gradients(queries, own, upstream)
            if jax.lax.axis_size(self.layout[2]) == 1:
                return dq, dk, dv
            rows, plan = _earlier_pieces(self.layout[2], own)
            more, *gathered = self.backend.context_gradients(queries, rows, plan, upstream, segments=own.segments)
            back = [jax.lax.psum_scatter(x, self.layout[2], tiled=True) for x in gathered]
            return dq + more, dk + back[0], dv + back[1]

        return on_devices(part, self.layout, (self.layout,) * 3)(queries, own, upstream)

    def contexts(self, queries, rows: Rows, plan: Plan, *, segments) -> Partial:
        """See `Backend`; heads are split, and every device has all rows of its heads, brought together if need be."""

        def part(queries, rows: Rows, segments, plan: Plan) -> Partial:
            return self.backend.contexts(queries, rows, plan, segments=segments)

        by_head = PartitionSpec(None, self.layout[1], None, None)
        return on_devices(part, by_head, partial_specs(by_head))(queries, rows, segments, plan)

    def context_gradients(self, queries, rows: Rows, plan: Plan, upstream: Upstream, *, segments) -> Gradients:
        """See `Backend`."""

        def part(queries, rows: Rows, upstream: Upstream, segments, plan: Plan) -> Gradients:
            return self.backend.context_gradients(queries, rows, plan, upstream, segments=segments)

        by_head = PartitionSpec(None, self.layout[1], None, None)
        return on_devices(part, by_head, (by_head,) * 3)(queries, rows, upstream, segments, plan)


def partial_specs(layout: PartitionSpec) -> Partial:
    """Returns the specs of a partial whose queries have this layout."""
    numbers = PartitionSpec(*layout[:3])
    return Partial(weighted=layout, peak=numbers, total=numbers)


def on_devices(function, layout: PartitionSpec, out_specs, *, plan: PartitionSpec = PartitionSpec()):
    """Returns `function` on each device's part of arrays [B, H, L, D], segments [B, L], and groups of them.

    Args:
      function: of parts.
      layout: the mesh axes of arrays [B, H, L, D].
      out_specs: of its results.
      plan: the mesh axes of a plan's rows; without them each device has the whole plan.
    """

    def specs(given):
        if isinstance(given, Plan):
            return jax.tree.map(lambda _: plan, given)
        if isinstance(given, Rows):
            return Rows(keys=layout, values=layout, segments=PartitionSpec(layout[0], layout[2]))
        if isinstance(given, Upstream):
            numbers = PartitionSpec(*layout[:3])
            return Upstream(peak=numbers, d_weighted=layout, d_total=numbers)
        return layout if given.ndim == 4 else PartitionSpec(layout[0], layout[2])

    def on_mesh(*given):
        # No check of what varies over the mesh: Pallas' interpreter does not follow it, and all results do.
        options = {"in_specs": tuple(map(specs, given)), "out_specs": out_specs, "check_vma": False}
        return jax.shard_map(function, **options)(*given)

    return on_mesh


def _earlier_pieces(length: str, own: Rows) -> tuple[Rows, Plan]:
    """All pieces as rows [pieces · r, …], and the plan that names those before one's own."""
    pieces, rows = jax.lax.axis_size(length), len(own.segments)
    together = jax.tree.map(functools.partial(jax.lax.all_gather, axis_name=length, tiled=True), own)
    earlier = np.arange(pieces - 1)[None] < jax.lax.axis_index(length)
    ids = np.arange(pieces - 1)[None] * rows + np.arange(rows)[:, None]
    plan = Plan(context_ids=jnp.where(earlier, ids, -1).astype(jnp.int32), own_document=jnp.ones(ids.shape, bool))
    return together, plan
