"""The decoder's side of ScaNN: a callback to the host, which finds the entries and attends to them.

The partial alone is handed back: keys and values of what was found are K times as large.

Under plain sharded jit a callback gathers its arguments to one device: wrap the decoder in
shard_map when the batch is sharded.
"""

import functools
import itertools
import os
import weakref
from concurrent.futures import ThreadPoolExecutor, wait

import jax
import jax.numpy as jnp
import numpy as np

from fot_jax.config import check
from fot_jax.memory.query_blocks import over_query_blocks
from fot_jax.memory.scann_index import ScannIndex
from fot_jax.ops.memory_attention import log_length_scale
from fot_jax.ops.softmax import LOWEST_PEAK, MASKED_SCORE
from fot_jax.types import Array, Partial

# Of queries handed over at once: JAX copies more than about 100 KB on a thread of its own, for which a callback on
# one core waits forever.
QUERY_BYTES = 1 << 16
GATHERED_BYTES = 1 << 21  # of keys (and as many of values) that a thread gathers at once, at least for one query

# A view travels through jit as a number; the callback finds its index here.
_indexes: "weakref.WeakValueDictionary[int, ScannIndex]" = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def attend(index: ScannIndex, queries: np.ndarray, *, slot: int, top_k: int) -> Partial:
    """Attends on the host to the `top_k` entries that ScaNN finds for each of the queries [B, L, H, D] (float32).

    Scores are computed from the keys, so that ScaNN only decides which entries are read. Query head h searches the
    memory of key/value head h // (H // G); row b searches stream b, or the only stream. Several threads
    work: neither ScaNN nor numpy's loops hold Python's lock.

    Returns:
      The partial in numpy arrays, with axes [B, L, H].
    """
    B, L, H, D = queries.shape
    store, G = index.store, index.store.kv_heads
    flat = np.ascontiguousarray(queries.reshape(B, L, G, H // G, D).swapaxes(1, 2)).reshape(-1, D)
    total, of_head = len(flat), L * H // G
    found = np.zeros((total, D), np.float32), np.full(total, LOWEST_PEAK, np.float32), np.zeros(total, np.float32)
    lengths = store.lengths.tolist()
    most = max(1, GATHERED_BYTES // (4 * D * min(top_k, max(1, *lengths))))
    spans = _spans(total, of_head, most)
    left = iter(spans)  # shared by the threads, for which `next` of it is one step

    def fill() -> None:
        for first, last in left:
            row, kv_head = divmod(first // of_head, G)
            stream = row if store.streams > 1 else 0
            if k := min(top_k, lengths[stream]):
                some = flat[first:last]
                entries = index.search(some, slot=slot, stream=stream, kv_head=kv_head, k=k)
                keys, values = store.head(slot, stream, kv_head, store.slots(np.maximum(entries, 0)))
                for whole, part in zip(found, _softmax(some, keys, values, entries >= 0), strict=True):
                    whole[first:last] = part

    others = [_threads().submit(fill) for _ in range(min(_cores(), len(spans)) - 1)]
    try:
        fill()
    finally:
        wait(others)
    for other in others:
        other.result()
    return Partial(
        *(x.reshape(B, G, L, H // G, *x.shape[1:]).swapaxes(1, 2).reshape(B, L, H, *x.shape[1:]) for x in found)
    )


def _spans(total: int, of_head: int, most: int) -> list[tuple[int, int]]:
    """Cuts queries into spans of one head each, of at most `most` queries."""
    heads = range(0, total, of_head or 1)
    return [(at, min(at + most, start + of_head)) for start in heads for at in range(start, start + of_head, most)]


def _softmax(queries, keys, values, valid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns weighted [n, D], peak [n] and total [n] of queries [n, D], each over K keys and values of its own."""
    keys, values = (x.astype(np.float32, copy=False) for x in (keys, values))
    with np.errstate(over="ignore", invalid="ignore"):  # of a broken model; its logits are checked
        scores = np.where(valid, np.matmul(keys, queries[:, :, None])[:, :, 0], np.float32(MASKED_SCORE))
        peak = np.maximum(scores.max(axis=1), np.float32(LOWEST_PEAK))
        weights = np.exp(scores - peak[:, None])
        return np.matmul(weights[:, None], values)[:, 0], peak, weights.sum(axis=1)


def _cores() -> int:
    return len(os.sched_getaffinity(0))  # on Linux, ScaNN's only system


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_cores(), thread_name_prefix="scann")


def _attend(place, queries, *, top_k: int) -> Partial:
    number, slot = np.asarray(place).tolist()
    index = _indexes.get(number)
    if index is None:
        raise RuntimeError("the ScaNN index of this view is gone: keep the view (or its ViewSource) while it is in use")
    return attend(index, np.asarray(queries), slot=slot, top_k=top_k)


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
        """See MemoryView. Nothing has a gradient through the search, queries neither, unlike those of a DeviceView."""
        B, _, H, D = queries.shape
        streams = self.lengths.shape[0]
        check(streams in (1, B), "memory", f"have one stream or as many as the batch has rows ({B})", streams)
        check(self.head_dim == D, "memory", f"have head_dim {D} as the queries", self.head_dim)
        place = jnp.stack([jnp.asarray(x, jnp.int32) for x in (self.number, slot)])  # each argument takes its time

        def search(some: jax.Array) -> Partial:
            numbers = jax.ShapeDtypeStruct(some.shape[:3], jnp.float32)
            with jax.named_scope("memory_topk"):
                return jax.pure_callback(
                    functools.partial(_attend, top_k=self.top_k),
                    Partial(weighted=jax.ShapeDtypeStruct(some.shape, jnp.float32), peak=numbers, total=numbers),
                    place,
                    jax.lax.stop_gradient(some).astype(jnp.float32),
                )

        return over_query_blocks(search, jnp.asarray(queries), max(1, QUERY_BYTES // (4 * B * H * D)))
