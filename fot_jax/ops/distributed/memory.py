"""Attention to a memory whose entries are split over devices: each reads its own, and small results are merged.

    device        0        1        2        3          entries of one stream, an equal part each
    dense         Partial  Partial  Partial  Partial    peaks by pmax, weighted values and totals by psum
    top-k         k best   k best   k best   k best     SCORES gathered: devices · k numbers a query and head
                  of them the k best of all, alike on every device; each weighs its own among them; psum

Keys and values never travel. The result is that of `memory_attention` on one device: one softmax over all entries,
or over exactly the k best of all. Of equal scores those of the earlier device count, and on one device the earlier
entry, so that ties leave k entries too. Queries are whole along the axes of the entries.

Source: FoT eq. (1), sec. 3.1. Differs: the paper keeps each memory on one device.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from fot_jax.ops import softmax
from fot_jax.ops.memory_attention import Scales, dense_memory_partial, nearest, to_heads, weighted_sum
from fot_jax.types import MemoryLayout, Partial


def sharded_dense_partial(
    queries: Float[Array, "B L H D"],
    keys: Num[Array, "B G D M"],
    values: Num[Array, "B G M D"],
    *,
    valid: Bool[Array, "B M"],
    layout: MemoryLayout,
    scales: Scales | None = None,
    block: int = 1024,
) -> Partial:
    """Attends to the whole of a memory that is split over devices, as `dense_memory_partial`.

    Args:
      queries: scaled queries.
      keys: memory keys, not rotated.
      values: memory values.
      valid: True where an entry exists; a device may have none.
      layout: how rows, entries and heads are split; they divide over their mesh axes.
      scales: factors of keys and values that are held as int8; None: 1.
      block: entries per block, of one device.
    """

    def local(queries, keys, values, valid, scales):
        part = dense_memory_partial(queries, keys, values, valid=valid, scales=scales, block=block)
        with jax.named_scope("memory_merge"):
            peak = jax.lax.pmax(part.peak, layout.entries)
            scale = jnp.exp(part.peak - peak)
            sums = part.weighted * scale[..., None], part.total * scale
            weighted, total = jax.lax.psum(sums, layout.entries)
        return Partial(weighted=weighted, peak=peak, total=total)

    return _on_devices(local, layout, scales)(queries, keys, values, valid, scales)


def sharded_topk_partial(
    queries: Float[Array, "B L H D"],
    keys: Num[Array, "B G D M"],
    values: Num[Array, "B G M D"],
    *,
    valid: Bool[Array, "B M"],
    k: int,
    layout: MemoryLayout,
    scales: Scales | None = None,
    recall: float | None = None,
) -> Partial:
    """Attends to the k best entries of a memory that is split over devices, as `topk_memory_partial`.

    Args:
      queries: scaled queries; head h searches the memory of key/value head h // (H // G).
      keys: memory keys, not rotated.
      values: memory values.
      valid: True where an entry exists; a device may have none.
      k: neighbours of all devices together; all entries are read where M <= k.
      layout: how rows, entries and heads are split; they divide over their mesh axes.
      scales: factors of keys and values that are held as int8; None: 1.
      recall: None, exact; else the target of each device for the k best of its own entries. Those of the k best of
        all that it holds are the first of these and are found no less often.
    """

    def local(queries, keys, values, valid, scales):
        key_scale, value_scale = (None, None) if scales is None else scales
        best, index = nearest(queries, keys, valid=valid, k=k, scale=key_scale, recall=recall)
        with jax.named_scope("memory_merge"):
            own = best.shape[-1]  # of each device, k or all that it has room for
            everywhere = jax.lax.all_gather(best, layout.entries, axis=best.ndim - 1, tiled=True)
            count = min(k, everywhere.shape[-1])
            found = jax.lax.top_k(everywhere.reshape(-1, everywhere.shape[-1]), count)  # of equal ones the first
            scores, place = (x.reshape(*best.shape[:-1], count) for x in found)
            mine = place // own == jax.lax.axis_index(layout.entries)
            index = jnp.take_along_axis(index, jnp.where(mine, place % own, 0), axis=-1)
            weights, peak, total = softmax.weigh(scores, jnp.full(scores.shape[:-1], softmax.LOWEST_PEAK))
            own_weights = jnp.where(mine, weights, 0.0)
            weighted = jax.lax.psum(weighted_sum(own_weights, index, values, value_scale), layout.entries)
        return Partial(weighted=weighted, peak=to_heads(peak), total=to_heads(total))

    return _on_devices(local, layout, scales)(queries, keys, values, valid, scales)


def _on_devices(local, layout: MemoryLayout, scales: Scales | None):
    """`local(queries, keys, values, valid, scales) -> Partial` on each device's part."""
    queries, sums = layout.spec("B L H D"), layout.spec("B L H")
    keys, values, scale = layout.spec("B G D M"), layout.spec("B G M D"), layout.spec("B G M")
    return jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(queries, keys, values, layout.spec("B M"), None if scales is None else (scale, scale)),
        out_specs=Partial(weighted=queries, peak=sums, total=sums),
        check_vma=False,  # the results are alike along the entries' axes, which gathered scores do not show
    )
