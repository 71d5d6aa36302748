"""The kernels in a mesh of several devices, which XLA cannot split them over: each attends to its own part."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from fot_jax.config import Boundaries
from fot_jax.ops import attention
from fot_jax.ops.pallas_attention import pallas_gradients, pallas_partial
from fot_jax.types import Partial, Plan


def local_on_mesh(
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "B L G D"],
    values: Float[Array, "B L G D"],
    *,
    segments: Int[Array, "B L"],
    boundaries: Boundaries,
    block: int,
    layout: PartitionSpec,
) -> Partial:
    """`pallas_partial` of each row's own chunk, causally, in the mesh in context.

    Positions of a row that lie on several devices are pieces. Each device brings the row together and reads it as
    contexts of its queries: its own piece causally, those before it whole, those behind it not at all.

        devices along length      0         1         2
        own piece, causally       0         1         2
        as contexts               .         0         0 1

    Args:
      queries: scaled queries.
      keys: the rows' own.
      values: as keys.
      segments: document ids, 0 for padding.
      boundaries: MASKED or JOINED documents.
      block: keys per block, in tokens.
      layout: mesh axes of the queries' four axes; those of rows, positions and heads are all that is split.
    """
    part = functools.partial(_own_part, layout[1], {"boundaries": boundaries, "block": block})
    return _mapped(part, layout, _partial_of(layout))(queries, keys, values, segments)


def local_gradients(
    queries, keys, values, *, segments, boundaries: Boundaries, block: int, layout: PartitionSpec,
    peak, d_weighted, d_total,
):  # fmt: skip
    """Float32 gradients of `local_on_mesh`'s queries, keys and values; see `pallas_gradients`."""
    part = functools.partial(_own_gradients, layout[1], {"boundaries": boundaries, "block": block})
    return _mapped(part, layout, (layout,) * 3)(queries, keys, values, segments, peak, d_weighted, d_total)


def contexts_on_mesh(
    queries: Float[Array, "B L H D"],
    keys: Float[Array, "B S G D"],
    values: Float[Array, "B S G D"],
    plan: Plan,
    *,
    segments: Int[Array, "B S"],
    boundaries: Boundaries,
    block: int,
    layout: PartitionSpec,
) -> Partial:
    """`pallas_partial` of a plan without a route: heads are split, and every device has all rows of its heads.

    Args as `local_on_mesh`; rows that lie over devices after all are brought together.
    """
    by_head = PartitionSpec(None, None, layout[2], None)

    def part(queries, keys, values, segments, plan):
        options = {"query_segments": segments, "key_segments": segments, "boundaries": boundaries, "block": block}
        return pallas_partial(queries, keys, values, plan, **options)

    return _mapped(part, by_head, _partial_of(by_head))(queries, keys, values, segments, plan)


def contexts_gradients(
    queries, keys, values, plan: Plan, *, segments, boundaries: Boundaries, block: int, layout: PartitionSpec,
    peak, d_weighted, d_total,
):  # fmt: skip
    """Float32 gradients of `contexts_on_mesh`'s queries, keys and values; see `pallas_gradients`."""
    by_head = PartitionSpec(None, None, layout[2], None)

    def part(queries, keys, values, segments, peak, d_weighted, d_total, plan):
        options = {"query_segments": segments, "key_segments": segments, "boundaries": boundaries, "block": block}
        upstream = {"peak": peak, "d_weighted": d_weighted, "d_total": d_total}
        return pallas_gradients(queries, keys, values, plan, **options, **upstream)

    arguments = queries, keys, values, segments, peak, d_weighted, d_total, plan
    return _mapped(part, by_head, (by_head,) * 3)(*arguments)


def _partial_of(layout: PartitionSpec) -> Partial:
    numbers = PartitionSpec(*layout[:3])
    return Partial(weighted=layout, peak=numbers, total=numbers)


def _mapped(function, layout: PartitionSpec, out_specs):
    """`function` on each device's part of arrays [B, L, heads, …] and [B, L]; a plan lies whole on each."""

    def on_mesh(*given):
        specs = tuple(PartitionSpec() if isinstance(x, Plan) else PartitionSpec(*layout[: x.ndim]) for x in given)
        # No check of what varies over the mesh: Pallas' interpreter does not follow it, and all results do.
        return jax.shard_map(function, in_specs=specs, out_specs=out_specs, check_vma=False)(*given)

    return on_mesh


def _own_part(length: str, options: dict, queries, keys, values, segments) -> Partial:
    """One device's part: rows [r, L / pieces, heads, D]."""
    near = pallas_partial(queries, keys, values, None, query_segments=segments, key_segments=segments, **options)
    if jax.lax.axis_size(length) == 1:
        return near
    keys, values, plan, key_segments = _earlier_pieces(length, keys, values, segments)
    far = pallas_partial(queries, keys, values, plan, query_segments=segments, key_segments=key_segments, **options)
    return attention.merge(near, far)


def _own_gradients(length: str, options: dict, queries, keys, values, segments, peak, d_weighted, d_total):
    """Of one device's part; what the pieces before it gather goes back to their devices."""
    options = options | {"query_segments": segments, "peak": peak, "d_weighted": d_weighted, "d_total": d_total}
    dq, dk, dv = pallas_gradients(queries, keys, values, None, key_segments=segments, **options)
    if jax.lax.axis_size(length) == 1:
        return dq, dk, dv
    keys, values, plan, key_segments = _earlier_pieces(length, keys, values, segments)
    more, *gathered = pallas_gradients(queries, keys, values, plan, key_segments=key_segments, **options)
    back = (jax.lax.psum_scatter(x, length, tiled=True) for x in gathered)
    return dq + more, *(own + other for own, other in zip((dk, dv), back, strict=True))


def _earlier_pieces(length: str, keys, values, segments):
    """Keys, values of all pieces as rows [pieces · r, …], the plan that names those before one's own, and segments."""
    pieces, rows = jax.lax.axis_size(length), len(keys)
    together = functools.partial(jax.lax.all_gather, axis_name=length, tiled=True)
    earlier = np.arange(pieces - 1)[None] < jax.lax.axis_index(length)
    ids = np.arange(pieces - 1)[None] * rows + np.arange(rows)[:, None]
    plan = Plan(context_ids=jnp.where(earlier, ids, -1).astype(jnp.int32), own_document=jnp.ones(ids.shape, bool))
    return together(keys), together(values), plan, together(segments)
