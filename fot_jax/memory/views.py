"""What a memory layer reads: one interface, `partial(queries, slot)`, and three retrievals behind it.

    DENSE   every entry                              on the device
    EXACT   the k entries of largest inner product   on the device
    SCANN   about those, by ScaNN                    on the host (scann_view.py)

Views are pytrees of fixed shapes: device memories have a capacity that is a power of two, so a
growing memory compiles the decoder once per doubling; a ScaNN view never changes shape. A store of
one stream serves any number of rows (a memory shared by a batch).
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from fot_jax.config import MemoryConfig, Retrieval, check
from fot_jax.memory.device_copy import DeviceCopy
from fot_jax.memory.query_blocks import over_query_blocks
from fot_jax.memory.scann_index import ScannIndex
from fot_jax.memory.scann_view import ScannView
from fot_jax.memory.store import MemoryStore
from fot_jax.ops.memory_attention import dense_memory_partial, topk_memory_partial
from fot_jax.types import Array, MemoryView, Partial

SCORES_AT_ONCE = 1 << 26  # exact top-k materialises at most about so many scores (float32)


@flax.struct.dataclass
class DeviceView:
    """A memory in device arrays.

    Attributes:
      keys: [P, B, M, G, D], M the capacity.
      values: [P, B, M, G, D].
      lengths: int32 [B], entries that exist.
      top_k: neighbours per query and head; None reads the whole memory (dense).
    """

    keys: jax.Array
    values: jax.Array
    lengths: jax.Array
    top_k: int | None = flax.struct.field(pytree_node=False)

    def partial(self, queries: Array, slot: Array) -> Partial:
        """See MemoryView. A view of one stream is read by every row of the queries."""
        B, L, H, D = queries.shape
        keys, values = (jax.lax.dynamic_index_in_dim(x, slot, 0, keepdims=False) for x in (self.keys, self.values))
        streams, M = keys.shape[:2]
        check(streams in (1, B), "memory", f"have one stream or as many as the batch has rows ({B})", streams)
        check(keys.shape[3] == D, "memory", f"have head_dim {D} as the queries", keys.shape[3])
        folded = jnp.asarray(queries).reshape(
            streams, B * L // streams, H, D
        )  # all rows become one row of a shared stream
        valid = jnp.arange(M)[None] < self.lengths[:, None]
        keys, values = keys.astype(queries.dtype), values.astype(queries.dtype)
        if self.top_k is None:
            part = dense_memory_partial(folded, keys, values, valid=valid)
        else:
            k = self.top_k
            part = over_query_blocks(
                lambda some: topk_memory_partial(some, keys, values, valid=valid, k=k),
                folded,
                max(1, SCORES_AT_ONCE // (streams * H * M)),
            )
        return jax.tree.map(lambda x: x.reshape(B, L, *x.shape[2:]), part)


class ViewSource:
    """Makes views of a store as it grows, keeping what was already copied or indexed.

    A view shows the store as it was when it was made, and only until the next `view()`: device
    buffers are reused, ScaNN indexes updated in place.
    """

    def __init__(self, store: MemoryStore, config: MemoryConfig):
        config.validate("memory")
        self.store, self.config = store, config
        self._copy: DeviceCopy | None = None
        self._index: ScannIndex | None = None

    @property
    def can_select(self) -> bool:
        """Whether `view` can show some of the streams: a stream a row, on the device."""
        return self.store.streams > 1 and self.config.retrieval is not Retrieval.SCANN

    def view(self, rows: np.ndarray | None = None) -> MemoryView:
        """The store's present entries as a pytree to hand to the decoder.

        Args:
          rows: streams to show, where `can_select`; by default, and where they are all, the store as it is.
        """
        if self.config.retrieval is Retrieval.SCANN:
            self._index = self._index or ScannIndex(self.store, self.config)
            self._index.refresh()
            return ScannView.of(self._index, top_k=self.config.top_k)
        self._copy = self._copy or DeviceCopy(self.store)
        self._copy.refresh()
        keys, values, lengths = self._copy.keys, self._copy.values, self.store.lengths.astype(np.int32)
        if rows is not None and len(rows) < self.store.streams:
            keys, values, lengths = keys[:, rows], values[:, rows], lengths[rows]
        return DeviceView(
            keys=keys,
            values=values,
            lengths=jnp.asarray(lengths),
            top_k=self.config.top_k if self.config.retrieval is Retrieval.EXACT else None,
        )


def make_view(store: MemoryStore, config: MemoryConfig) -> MemoryView:
    """A view of a store as it is now (see ViewSource for a store that grows)."""
    return ViewSource(store, config).view()
