"""Approximate nearest keys on the host by ScaNN: sealed trees and an exact tail, per layer, stream and head.

    entries  0 ………………………… 512k ………… 768k … 800k
             [ tree of 512k ][ tree 256k ][ tail: brute force ]

Building a tree takes longer than searching it many times over, so it is amortised: the tail is
sealed into a tree when it reaches `memory.scann_brute_force_below` entries, and neighbouring trees
of one rank are merged into the next, as a binary counter carries. An entry is thus indexed O(log M)
times as a memory grows, and once when a whole one is loaded. Trees are approximate and their
building takes no seed; brute force is exact.
The only module that imports scann.
"""

import dataclasses
import importlib
import math
import sys
from typing import Any

import numpy as np

from fot_jax.config import MemoryConfig, UserError, check
from fot_jax.extras import needs
from fot_jax.memory.store import MemoryStore

LEAST_IN_LEAF = 8  # entries, on average
SMALLEST_TREE = 64  # ScaNN's tree needs at least 16 entries
TRAINING_SAMPLE = 250_000  # entries a tree's partition is learnt from
# What learning a tree takes: a third of the time of ScaNN's defaults, and the same recall (experiments/performance.md).
PARTITION_ITERATIONS, HASH_SAMPLE, HASH_ITERATIONS = 6, 8192, 6
REORDER = 4  # exact scores are computed for REORDER · k candidates, at least REORDER_AT_LEAST
REORDER_AT_LEAST = 256
# Largest norm of keys and queries given to ScaNN. A tree's k-means adds squared distances in float32; if they overflow
# (seen from norms of 2e19 on), the process ends in native code. 1e15² times 1e8 entries is still finite.
LONGEST = 1e15


def _scann() -> Any:
    """Imports scann without its TensorFlow ops, which are not used here and take 10-20 s to import.

    Raises:
      UserError: the extra `scann` is not installed.
    """
    hide = "tensorflow" not in sys.modules and "scann" not in sys.modules
    if hide:
        sys.modules["tensorflow"] = None  # type: ignore[assignment]  # makes `import tensorflow` raise
    try:
        with needs("scann", "memory.retrieval='scann' (Linux x86-64)", otherwise="choose 'exact'"):
            return importlib.import_module("scann").scann_ops_pybind
    finally:
        if hide:
            del sys.modules["tensorflow"]


@dataclasses.dataclass(frozen=True)
class Segment:
    """One searcher over the entries first .. first + size - 1 of a head's memory; rank 0: just sealed.

    `searcher` is None before it is built.
    """

    first: int
    size: int
    rank: int
    searcher: Any


def build_segment(keys: np.ndarray, *, first: int, top_k: int, tree_leaves: float | None, rank: int = 0) -> Segment:
    """Indexes keys [n, D]; checks them first, since ScaNN ends the process on NaN, infinity and very long keys.

    Args:
      keys: the keys, n >= 1.
      first: number of the first entry.
      top_k: neighbours wanted.
      tree_leaves: share of a tree's leaves to search; None: brute force (exact).
      rank: see Segment.

    Raises:
      UserError: a key is not finite, or its norm is above LONGEST.
    """
    keys = np.ascontiguousarray(keys, np.float32)
    _check_keys(keys, first)
    n = len(keys)
    k = min(top_k, n)
    builder = _scann().builder(keys, k, "dot_product")
    if tree_leaves is None:
        return Segment(first, n, rank, builder.score_brute_force().build())
    leaves = max(1, min(2 * math.isqrt(n), n // LEAST_IN_LEAF))
    searched = max(1, math.ceil(leaves * tree_leaves))
    builder = builder.tree(
        leaves, searched, training_sample_size=min(n, TRAINING_SAMPLE), training_iterations=PARTITION_ITERATIONS
    )
    builder = builder.score_ah(
        2, anisotropic_quantization_threshold=0.2, training_sample_size=min(n, HASH_SAMPLE),
        training_iterations=HASH_ITERATIONS,
    )  # fmt: skip
    return Segment(first, n, rank, builder.reorder(min(n, max(REORDER * k, REORDER_AT_LEAST))).build())


def _norms(vectors: np.ndarray) -> np.ndarray:
    """Returns Euclidean norms [n] in float64, in which the squares of float32 do not overflow."""
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))


def _check_keys(keys: np.ndarray, first: int) -> None:
    """Raises UserError if a key is not finite or longer than LONGEST."""
    norms = _norms(keys)
    bad = np.flatnonzero(~np.isfinite(norms))
    if len(bad):
        raise UserError(f"memory keys must be finite, got NaN or infinity in entry {first + bad[0]}. Check the model.")
    longest = int(norms.argmax())
    if norms[longest] > LONGEST:
        raise UserError(
            f"memory keys must have norms of at most {LONGEST:g} for memory.retrieval='scann', whose sums overflow"
            f" above, got {norms[longest]:g} in entry {first + longest}. Choose 'exact', and check the model."
        )


def searchable(queries: np.ndarray) -> np.ndarray:
    """Returns queries [n, D] that ScaNN can search for: a query's length does not change its order of keys.

    Queries longer than LONGEST are shortened to it. Queries with NaN or infinity become zeros, for which any entries
    are found; attention scores the original query, and so is NaN, as with the other kinds of retrieval.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    norms = _norms(queries)
    if (norms <= LONGEST).all():
        return queries
    finite = np.isfinite(norms)
    scale = LONGEST / np.where(finite, np.maximum(norms, LONGEST), LONGEST)
    return np.ascontiguousarray(np.where(finite[:, None], queries, 0.0) * scale[:, None], np.float32)


class HeadIndex:
    """The segments and the tail of one memory layer, stream and key/value head."""

    def __init__(self, config: MemoryConfig, seal_at: int):
        self.config, self.seal_at = config, seal_at
        self.segments: list[Segment] = []
        self.tail: Segment | None = None

    def refresh(self, keys_of: Any, *, oldest: int, appended: int) -> None:
        """Indexes new entries.

        Args:
          keys_of: (first, stop) -> keys [stop - first, D] of live entries.
          oldest: first entry that still exists.
          appended: number of the next entry.
        """
        trees = self._not_evicted(oldest)
        sealed = max(trees[-1].first + trees[-1].size if trees else oldest, oldest)
        while appended - sealed >= self.seal_at:
            first, rank = sealed, 0
            while trees and trees[-1].rank == rank:
                first, rank = max(trees.pop().first, oldest), rank + 1
            sealed += self.seal_at
            trees.append(Segment(first, sealed - first, rank, None))  # built below: it may be merged before
        self.segments = [self._built(tree, keys_of) for tree in trees]
        stale = self.tail is None or self.tail.first < sealed or self.tail.first + self.tail.size < appended
        if appended == sealed:
            self.tail = None
        elif stale:
            self.tail = build_segment(
                keys_of(sealed, appended), first=sealed, top_k=self.config.top_k, tree_leaves=None
            )

    def _not_evicted(self, oldest: int) -> list[Segment]:
        """Returns the trees that were not evicted whole; one of which more than half was, as its rest, to be built."""
        kept = [s for s in self.segments if s.first + s.size > oldest]
        if kept and 2 * (oldest - kept[0].first) > kept[0].size:
            kept[0] = Segment(oldest, kept[0].first + kept[0].size - oldest, kept[0].rank, None)
        return kept

    def _built(self, tree: Segment, keys_of: Any) -> Segment:
        if tree.searcher is not None:
            return tree
        leaves = self.config.scann_leaves_fraction if tree.size >= SMALLEST_TREE else None
        keys = keys_of(tree.first, tree.first + tree.size)
        return build_segment(keys, first=tree.first, top_k=self.config.top_k, tree_leaves=leaves, rank=tree.rank)

    def search(self, queries: np.ndarray, k: int, *, oldest: int) -> np.ndarray:
        """Returns int64 [n, k]: the entries of largest inner product, best first, -1 where there are fewer.

        Evicted entries of a tree are found and then dropped, so a tree that holds some is asked for twice
        as many; it can still return fewer than k.
        """
        found, scores = [], []
        for segment in (*self.segments, *((self.tail,) if self.tail else ())):
            wanted = min(2 * k if segment.first < oldest else k, segment.size)
            ids, values = segment.searcher.search_batched_parallel(queries, final_num_neighbors=wanted)
            entries = ids.astype(np.int64) + segment.first
            missing = np.isnan(values) | (entries < oldest)  # ScaNN pads with id 0 and NaN
            found.append(np.where(missing, -1, entries))
            scores.append(np.where(missing, -np.inf, values))
        if len(found) == 1 and found[0].shape[1] == k:  # in order already
            return found[0]
        found.append(np.full((len(queries), k), -1, np.int64))
        scores.append(np.full((len(queries), k), -np.inf, np.float32))
        ids, values = np.concatenate(found, axis=1), np.concatenate(scores, axis=1)
        best = np.argsort(-values, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(ids, best, axis=1)


class ScannIndex:
    """Index of a store: one HeadIndex per memory layer, stream and key/value head."""

    def __init__(self, store: MemoryStore, config: MemoryConfig):
        """Begins an empty index. Raises UserError without ScaNN, before anything is read."""
        _scann()
        self.store, self.config = store, config
        self.seal_at = max(config.scann_brute_force_below, SMALLEST_TREE)
        self._epochs = store.epochs.copy()
        places = np.ndindex(len(store.memory_layers), store.streams, store.kv_heads)
        self._heads = {place: HeadIndex(config, self.seal_at) for place in places}

    @property
    def has_trees(self) -> bool:
        """Whether a stream is long enough for a tree; the index of shorter ones would be exact, and slow."""
        return int(self.store.lengths.max()) >= self.seal_at

    def fork(self, store: MemoryStore) -> "ScannIndex":
        """Returns an index of a store forked from this one's, with the same segments until it is refreshed."""
        forked = ScannIndex(store, self.config)
        forked._epochs = self._epochs.copy()
        for place, head in self._heads.items():
            forked._heads[place].segments, forked._heads[place].tail = list(head.segments), head.tail
        return forked

    def refresh(self) -> None:
        """Indexes the entries appended since the last call; a cleared stream starts anew."""
        store = self.store
        oldest = store.appended - store.lengths
        for (slot, stream, kv_head), head in self._heads.items():
            if store.epochs[stream] != self._epochs[stream]:
                head.segments, head.tail = [], None
            place = slot, stream, kv_head

            def keys_of(first: int, stop: int, place: tuple[int, int, int] = place) -> np.ndarray:
                return store.keys(*place, store.slots(np.arange(first, stop)))

            head.refresh(keys_of, oldest=int(oldest[stream]), appended=int(store.appended[stream]))
        self._epochs = store.epochs.copy()

    def search(self, queries: np.ndarray, *, slot: int, stream: int, kv_head: int, k: int) -> np.ndarray:
        """Returns int64 [n, k]: the store's entries nearest to queries [n, D] (see HeadIndex.search).

        Raises:
          UserError: the queries' dimension is not the memory's.
        """
        store = self.store
        D = queries.shape[-1]
        check(store.head_dim == D, "queries", f"have the memory's head_dim {store.head_dim}", D)
        queries = searchable(queries)
        if not len(queries):
            return np.zeros((0, k), np.int64)
        oldest = int(store.appended[stream] - store.lengths[stream])
        return self._heads[slot, stream, kv_head].search(queries, k, oldest=oldest)
