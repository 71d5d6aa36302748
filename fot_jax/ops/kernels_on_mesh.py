"""The kernels in a mesh of several devices, which XLA cannot split them over: each attends to its own part."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from fot_jax.config import Boundaries
from fot_jax.ops import attention
from fot_jax.ops.pallas_attention import pallas_partial
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
    **kernel_options,
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
      **kernel_options: `query_block` and `interpret`, as `pallas_partial`.
    """
    options = {"boundaries": boundaries, "block": block, **kernel_options}
    part = functools.partial(_own_part, layout[1], options)
    numbers = PartitionSpec(*layout[:3])
    # No check of what varies over the mesh: Pallas' interpreter does not follow it, and all results do.
    return jax.shard_map(
        part,
        in_specs=(layout, layout, layout, PartitionSpec(*layout[:2])),
        out_specs=Partial(weighted=layout, peak=numbers, total=numbers),
        check_vma=False,
    )(queries, keys, values, segments)


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
    **kernel_options,
) -> Partial:
    """`pallas_partial` of a plan without a route: heads are split, and every device has all rows of its heads.

    Args as `local_on_mesh`; rows that lie over devices after all are brought together.
    """
    options = {"boundaries": boundaries, "block": block, **kernel_options}
    by_head, whole = PartitionSpec(None, None, layout[2], None), PartitionSpec()
    numbers = PartitionSpec(None, None, layout[2])

    def part(queries, keys, values, plan, segments):
        return pallas_partial(queries, keys, values, plan, query_segments=segments, key_segments=segments, **options)

    return jax.shard_map(
        part,
        in_specs=(by_head, by_head, by_head, whole, whole),
        out_specs=Partial(weighted=by_head, peak=numbers, total=numbers),
        check_vma=False,
    )(queries, keys, values, plan, segments)


def _own_part(length: str, options: dict, queries, keys, values, segments) -> Partial:
    """One device's part: rows [r, L / pieces, heads, D]."""
    near = pallas_partial(queries, keys, values, None, query_segments=segments, key_segments=segments, **options)
    pieces, rows = jax.lax.axis_size(length), len(queries)
    if pieces == 1:
        return near
    together = functools.partial(jax.lax.all_gather, axis_name=length, tiled=True)
    earlier = np.arange(pieces - 1)[None] < jax.lax.axis_index(length)
    ids = np.arange(pieces - 1)[None] * rows + np.arange(rows)[:, None]
    plan = Plan(context_ids=jnp.where(earlier, ids, -1).astype(jnp.int32), own_document=jnp.ones(ids.shape, bool))
    far = pallas_partial(
        queries, together(keys), together(values), plan,
        query_segments=segments, key_segments=together(segments), **options,
    )  # fmt: skip
    return attention.merge(near, far)
