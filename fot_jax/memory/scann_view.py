"""The decoder's side of ScaNN: a callback to the host, some query positions at a time.

Under plain sharded jit a callback gathers its arguments to one device: wrap the decoder in
shard_map when the batch is sharded.
"""

import itertools
import weakref

import jax
import jax.numpy as jnp
import numpy as np

from fot_jax.config import check
from fot_jax.memory.device_copy import power_of_two
from fot_jax.memory.query_blocks import over_query_blocks
from fot_jax.memory.scann_index import ScannIndex
from fot_jax.ops.memory_attention import log_length_scale, neighbours_partial
from fot_jax.types import Array, Partial

MOST_NEIGHBOURS = 1 << 16  # a larger top_k grows with the memory, as places without an entry take memory too
NEIGHBOUR_BYTES = 1 << 24  # about the bytes of keys and values per callback; larger results are slow to hand over

# A view travels through jit as a number; the callback finds its index here.
_indexes: "weakref.WeakValueDictionary[int, ScannIndex]" = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def _search(place, queries, *, top_k: int):
    number, slot = np.asarray(place).tolist()
    index = _indexes.get(number)
    if index is None:
        raise RuntimeError("the ScaNN index of this view is gone: keep the view (or its ViewSource) while it is in use")
    return index.neighbours(np.asarray(queries), slot=slot, k=top_k)


@jax.tree_util.register_pytree_node_class
class ScannView:
    """A memory searched by ScaNN. Its pytree is a number and the streams' lengths, so that growth compiles nothing.

    The view made by `from_index` keeps its index alive; copies made by jax.tree.map do not.
    """

    def __init__(self, number, lengths, head_dim: int, top_k: int, log_length_scaling_from: int):
        self.number, self.lengths = number, lengths
        self.head_dim, self.top_k, self.log_length_scaling_from = head_dim, top_k, log_length_scaling_from
        self._index: ScannIndex | None = None

    @classmethod
    def from_index(cls, index: ScannIndex, *, top_k: int, log_length_scaling_from: int = 0) -> "ScannView":
        """Returns a view that reads the index as it is when the search runs."""
        number = next((n for n, known in _indexes.items() if known is index), None) or next(_numbers)
        _indexes[number] = index
        lengths = index.store.lengths.astype(np.int32)
        top_k = min(top_k, max(MOST_NEIGHBOURS, power_of_two(int(lengths.max()))))
        view = cls(np.int32(number), lengths, index.store.head_dim, top_k, log_length_scaling_from)
        view._index = index
        return view

    def tree_flatten(self):
        """See jax.tree_util."""
        return (self.number, self.lengths), (self.head_dim, self.top_k, self.log_length_scaling_from)

    @classmethod
    def tree_unflatten(cls, static, leaves):
        """See jax.tree_util."""
        return cls(*leaves, *static)

    def any_entries(self) -> Array:
        """See MemoryView."""
        return jnp.any(self.lengths > 0)

    def query_scale(self, local: Array) -> Array | None:
        """See MemoryView."""
        if not self.log_length_scaling_from:
            return None
        return log_length_scale(
            jnp.minimum(self.lengths, self.top_k)[:, None] + local, start=self.log_length_scaling_from
        )

    def partial(self, queries: Array, slot: Array | int) -> Partial:
        """See MemoryView. Keys, values and queries have no gradient through the search."""
        B, _, H, D = queries.shape
        streams = self.lengths.shape[0]
        check(streams in (1, B), "memory", f"have one stream or as many as the batch has rows ({B})", streams)
        check(self.head_dim == D, "memory", f"have head_dim {D} as the queries", self.head_dim)
        place = jnp.stack([jnp.asarray(x, jnp.int32) for x in (self.number, slot)])  # each argument takes its time
        per_position = B * H * self.top_k * D * 2 * 4

        def attend(some: jax.Array) -> Partial:
            shape = (*some.shape[:3], self.top_k)
            neighbours = jax.ShapeDtypeStruct((2, *shape, D), jnp.float32)
            with jax.named_scope("memory_topk"):
                found, valid = jax.pure_callback(
                    lambda *arguments: _search(*arguments, top_k=self.top_k),
                    (neighbours, jax.ShapeDtypeStruct(shape, jnp.bool_)),
                    place,
                    jax.lax.stop_gradient(some).astype(jnp.float32),
                )
            return neighbours_partial(some.astype(jnp.float32), *found, valid=valid)

        return over_query_blocks(attend, jnp.asarray(queries), max(1, NEIGHBOUR_BYTES // per_position))
