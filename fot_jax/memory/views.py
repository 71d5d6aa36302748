"""Views, which memory layers read: one interface, `partial(queries, slot)`, with four retrievals.

    DENSE   every entry                              on the device, or over those of a mesh
    EXACT   the k entries of largest inner product   likewise
    APPROX  about those, by jax.lax.approx_max_k     likewise; exact but on TPUs
    SCANN   about those, by ScaNN                    on the host (scann_view.py); EXACT below the size of a tree

Views are pytrees of fixed shapes: the capacity of a device memory is a power of two, so a
growing memory compiles the decoder once per doubling, and once more for ScaNN's trees. A store of
one stream serves any number of rows (a memory shared by a batch).
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fot_jax.config import ConfigError, MemoryConfig, Retrieval, check
from fot_jax.logging import warn_once
from fot_jax.memory.device_copy import DeviceCopy, slot_of_place
from fot_jax.memory.query_blocks import over_query_blocks
from fot_jax.memory.scann_index import ScannIndex
from fot_jax.memory.scann_view import ScannView
from fot_jax.memory.store import MemoryStore
from fot_jax.ops.distributed.memory import sharded_dense_partial, sharded_topk_partial
from fot_jax.ops.memory_attention import dense_memory_partial, log_length_scale, topk_memory_partial
from fot_jax.sharding import memory_layout
from fot_jax.types import Array, LayerMemory, MemoryLayout, MemoryView, Partial

SCORES_AT_ONCE = 1 << 26  # about the most scores (float32) that top-k materialises on a device


@flax.struct.dataclass
class DeviceView:
    """A memory in device arrays.

    Attributes:
      layers: arrays of each memory layer, M the capacity; over devices in the order of `device_copy.slot_of_place`.
      lengths: int32 [B], entries that exist.
      top_k: neighbours per query and head; None reads the whole memory (dense).
      recall: share of the top_k to be found; None: all.
      layout: how the arrays are split over a mesh; None: on one device.
      log_length_scaling_from: see `query_scale`.
    """

    layers: tuple[LayerMemory, ...]
    lengths: jax.Array
    top_k: int | None = flax.struct.field(pytree_node=False)
    recall: float | None = flax.struct.field(pytree_node=False, default=None)
    layout: MemoryLayout | None = flax.struct.field(pytree_node=False, default=None)
    log_length_scaling_from: int = flax.struct.field(pytree_node=False, default=0)

    @classmethod
    def of(
        cls,
        layers: tuple[LayerMemory, ...],
        lengths: Array,
        *,
        config: MemoryConfig,
        layout: MemoryLayout | None = None,
    ) -> "DeviceView":
        """Returns the view that `config.retrieval` asks for; SCANN's is exact."""
        match config.retrieval:
            case Retrieval.DENSE:
                top_k, recall = None, None
            case Retrieval.EXACT | Retrieval.SCANN:
                top_k, recall = config.top_k, None
            case Retrieval.APPROX:
                top_k, recall = config.top_k, config.approx_recall
            case other:
                raise ValueError(f"memory.retrieval must be one of {[kind.value for kind in Retrieval]}, got {other!r}")
        return cls(
            layers=layers,
            lengths=lengths,
            top_k=top_k,
            recall=recall,
            layout=layout,
            log_length_scaling_from=config.log_length_scaling_from,
        )

    def any_entries(self) -> Array:
        """See MemoryView."""
        return jnp.any(self.lengths > 0)

    def query_scale(self, local: Array) -> Array | None:
        """See MemoryView: scales by log n of the entries in one softmax, from `log_length_scaling_from` on."""
        if not self.log_length_scaling_from:
            return None
        read = self.lengths if self.top_k is None else jnp.minimum(self.lengths, self.top_k)
        return log_length_scale(read[:, None] + local, start=self.log_length_scaling_from)

    def partial(self, queries: Array, slot: Array | int) -> Partial:
        """See MemoryView. A view of one stream is read by every row of the queries."""
        B, L, H, D = queries.shape
        streams, _, M, width = self.layers[0].values.shape
        check(streams in (1, B), "memory", f"have one stream or as many as the batch has rows ({B})", streams)
        check(width == D, "memory", f"have head_dim {D} as the queries", width)
        folded = jnp.asarray(queries).reshape(
            streams, B * L // streams, H, D
        )  # all rows become one row of a shared stream
        shards = 1 if self.layout is None else self.layout.shards
        valid = slot_of_place(M, shards=shards)[None] < self.lengths[:, None]
        attend = [functools.partial(self._attend, layer, valid=valid) for layer in self.layers]
        if len(attend) == 1:
            slot = 0
        if isinstance(slot, int | np.integer):
            part = attend[slot](folded)
        else:  # in a scan over layers; no array is copied into a branch
            part = jax.lax.switch(slot, attend, folded)
        return jax.tree.map(lambda x: x.reshape(B, L, *x.shape[2:]), part)

    def _attend(self, layer: LayerMemory, queries: jax.Array, *, valid: jax.Array) -> Partial:
        """Computes `partial` of one memory layer; row i reads stream i."""
        layout = self.layout
        split = {} if layout is None or layout.shards == 1 else {"layout": layout}
        given = {"keys": layer.keys, "values": layer.values, "scales": layer.scales, "valid": valid, **split}
        if self.top_k is None:
            return (sharded_dense_partial if split else dense_memory_partial)(queries, **given)
        topk = sharded_topk_partial if split else topk_memory_partial
        nearest = functools.partial(topk, **given, k=self.top_k, recall=self.recall)
        scores = valid.size * queries.shape[2] // (1 if layout is None else layout.devices)  # per position and device
        return over_query_blocks(nearest, queries, max(1, SCORES_AT_ONCE // scores))


class ViewSource:
    """Source of views of a growing store; it keeps what was already copied or indexed.

    A view shows the store as it was when the view was made, and is valid until the next `view()`: device
    buffers are reused, ScaNN indexes updated in place.
    """

    def __init__(self, store: MemoryStore, config: MemoryConfig, *, mesh: Mesh | None = None):
        """Splits the arrays over `mesh`, if one is given. Raises ConfigError if they cannot be split."""
        config.validate("memory")
        self.store, self.config, self.mesh = store, config, mesh
        self.layout = None
        if mesh is not None:
            if config.retrieval is Retrieval.SCANN:
                raise ConfigError(
                    "memory.retrieval must be 'dense', 'exact' or 'approx' for a memory on a mesh, got 'scann', which"
                    " searches on the host. Choose one of them, or give no mesh."
                )
            self.layout = memory_layout(mesh, streams=store.streams, kv_heads=store.kv_heads)
        self._copy: DeviceCopy | None = None
        self._index: ScannIndex | None = None
        self._origin: ViewSource | None = None
        self._forked_at: list[list[int]] = []

    def fork(self) -> "ViewSource":
        """Returns a source over a fork of the store; it shares this source's views until one of the stores grows.

        When it grows itself it begins with a copy of this source's device arrays, or with its ScaNN trees; when this
        one grows, it makes its own from all entries.
        """
        forked = ViewSource(self.store.fork(), self.config, mesh=self.mesh)
        forked._origin, forked._forked_at = self, _position(self.store)
        return forked

    def _forked_from(self) -> "ViewSource | None":
        """Returns the source whose views show this store too; None once one of the two stores has grown."""
        origin = self._origin
        if origin is None:
            return None
        grown, origin_grown = (_position(store) != self._forked_at for store in (self.store, origin.store))
        if grown or origin_grown:
            self._origin = None
        if grown and not origin_grown:
            while (older := origin._forked_from()) is not None:
                origin = older
            self._copy = origin._copy and origin._copy.fork(self.store)
            self._index = origin._index and origin._index.fork(self.store)
        return self._origin

    @property
    def can_select(self) -> bool:
        """True if `view` can show some of the streams: one stream per row, on devices, rows not split."""
        whole = self.layout is None or self.layout.parts(self.layout.rows) == 1
        return self.store.streams > 1 and self.config.retrieval is not Retrieval.SCANN and whole

    def view(self, rows: np.ndarray | None = None) -> MemoryView:
        """Returns the store's present entries as a pytree for the decoder.

        Args:
          rows: streams to show, if `can_select`; by default, or for as many as there are, the whole store.
        """
        if origin := self._forked_from():
            return origin.view(rows)
        if self.config.retrieval is Retrieval.SCANN and (index := self._index_with_trees()):
            index.refresh()
            return ScannView.from_index(
                index, top_k=self.config.top_k, log_length_scaling_from=self.config.log_length_scaling_from
            )
        copy = self._copy = self._copy or DeviceCopy(self.store, self.mesh)
        copy.refresh()
        layers, lengths = copy.layers, self.store.lengths.astype(np.int32)
        if rows is not None and len(rows) < self.store.streams:
            layers, lengths = copy.select(rows), lengths[rows]
        return DeviceView.of(layers, jnp.asarray(lengths), config=self.config, layout=self.layout)

    def _index_with_trees(self) -> ScannIndex | None:
        """Returns ScaNN's index of a store that is long enough for a tree; shorter ones are searched on the device."""
        index = self._index or ScannIndex(self.store, self.config)
        if index.has_trees:
            self._index, self._copy = index, None
            return index
        self._index = None  # with the trees of a text that was cleared
        warn_once("memory.retrieval=scann", f"exact below {index.seal_at} entries, ScaNN's trees from there on")
        return None


def _position(store: MemoryStore) -> list[list[int]]:
    """Returns a value that differs after every append and every clearing."""
    return [store.epochs.tolist(), store.appended.tolist()]


def make_view(store: MemoryStore, config: MemoryConfig) -> MemoryView:
    """Returns a view of a store as it is now (see ViewSource for a store that grows)."""
    return ViewSource(store, config).view()
