"""ScaNN's index: recall of its trees, what it does with eviction, and what it refuses."""

import dataclasses

import numpy as np
import pytest

from fot_jax.config import MemoryConfig, Retrieval, UserError
from fot_jax.memory import scann_index
from fot_jax.memory.scann_index import LONGEST, ScannIndex, build_segment
from fot_jax.memory.scann_view import ScannView
from fot_jax.memory.store import MemoryStore
from fot_jax.types import KeyValue

D, K = 16, 32
TREES = MemoryConfig(retrieval=Retrieval.SCANN, top_k=K, scann_brute_force_below=1000)


def clustered(rng: np.random.Generator, n: int) -> np.ndarray:
    """Keys as trained models have them: in clusters. [n, D] float32."""
    centres = np.random.default_rng(7).standard_normal((40, D))
    return (centres[rng.integers(0, 40, n)] + 0.3 * rng.standard_normal((n, D))).astype(np.float32)


def append(store: MemoryStore, keys: np.ndarray) -> None:
    entries = keys[None, None, :, None, :]
    store.append(KeyValue(keys=entries, values=entries), np.array([len(keys)]))


def search(index: ScannIndex, queries: np.ndarray, k: int = K) -> np.ndarray:
    return index.search(queries, slot=0, stream=0, kv_head=0, k=k)


def exact(keys: np.ndarray, queries: np.ndarray, k: int = K) -> np.ndarray:
    return np.argsort(-(queries @ keys.T), axis=1)[:, :k]


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.mean([len(set(f) & set(w)) / len(w) for f, w in zip(found.tolist(), wanted.tolist(), strict=True)]))


def test_trees_and_tail_recall_clustered_keys():
    """5,500 entries in uneven pieces: sealed into trees of 4,000 and 1,000 entries and a tail of 500."""
    rng = np.random.default_rng(0)
    keys, queries = clustered(rng, 5500), clustered(rng, 64)
    store = MemoryStore(memory_layers=(3,), streams=1, kv_heads=1, head_dim=D)
    index = ScannIndex(store, TREES)
    for piece in np.split(keys, [700, 1900, 4100, 4100, 5200]):
        append(store, piece)
        index.refresh()
    head = index._heads[0, 0, 0]
    assert [(s.first, s.size) for s in head.segments] == [(0, 4000), (4000, 1000)]
    assert (head.tail.first, head.tail.size) == (5000, 500)
    found = search(index, queries)
    assert all(len(set(row)) == K and min(row) >= 0 for row in found.tolist())
    assert recall(found, exact(keys, queries)) >= 0.95


def test_many_new_entries_are_indexed_once(monkeypatch):
    """Builds only the trees that stay; a key that is refused changes none of them."""
    rng, built = np.random.default_rng(0), []
    monkeypatch.setattr(
        scann_index, "build_segment", lambda keys, **how: built.append(len(keys)) or build_segment(keys, **how)
    )
    store = MemoryStore(memory_layers=(3,), streams=1, kv_heads=1, head_dim=D)
    index = ScannIndex(store, TREES)
    append(store, clustered(rng, 7500))
    index.refresh()
    assert built == [4000, 2000, 1000, 500]
    before = index._heads[0, 0, 0].segments
    append(store, np.concatenate([np.full((1, D), 1e20, np.float32), clustered(rng, 600)]))
    with pytest.raises(UserError, match="norms of at most"):
        index.refresh()
    assert index._heads[0, 0, 0].segments == before and [s.size for s in before] == [4000, 2000, 1000]


def test_evicted_entries_are_never_found_and_the_rest_still_is():
    rng = np.random.default_rng(1)
    keys, queries = clustered(rng, 6000), clustered(rng, 64)
    store = MemoryStore(memory_layers=(3,), streams=1, kv_heads=1, head_dim=D, budget=2500)
    index = ScannIndex(store, dataclasses.replace(TREES, scann_leaves_fraction=1.0))
    for start in range(0, 6000, 300):
        append(store, keys[start : start + 300])
        index.refresh()
        oldest = int(store.appended[0] - store.lengths[0])
        found = search(index, queries)
        assert np.all((found == -1) | (found >= oldest))
        wanted = exact(keys[oldest : store.appended[0]], queries) + oldest
        assert recall(found, wanted) >= 0.9
    store.clear(0)
    append(store, keys[:5])
    index.refresh()
    assert sorted(search(index, queries)[0].tolist()) == [-1] * (K - 5) + [0, 1, 2, 3, 4]


def test_below_the_size_it_is_exact():
    rng = np.random.default_rng(2)
    keys, queries = rng.standard_normal((900, D)).astype(np.float32), rng.standard_normal((20, D)).astype(np.float32)
    store = MemoryStore(memory_layers=(3,), streams=1, kv_heads=1, head_dim=D)
    for piece in np.split(keys, 3):
        append(store, piece)
        index = ScannIndex(store, TREES)
        index.refresh()
    np.testing.assert_array_equal(search(index, queries), exact(keys, queries))


@pytest.mark.parametrize("leaves", [None, 0.15])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_keys_that_are_not_finite_never_reach_scann(bad, leaves):
    keys = np.ones((100, D), np.float32)
    keys[42, 3] = bad
    with pytest.raises(UserError, match="memory keys must be finite, got NaN or infinity in entry 1042"):
        build_segment(keys, first=1000, top_k=K, tree_leaves=leaves)


@pytest.mark.parametrize("leaves", [None, 0.15])
@pytest.mark.parametrize(("size", "got"), [(1.01 * LONGEST, "1.01e\\+15"), (1e19, "1e\\+19"), (3e38, "3e\\+38")])
def test_long_keys_are_refused_before_scann_ends(size, got, leaves):
    """In ScaNN's k-means squared distances overflow: `Check failed: cluster_idx < num_clusters`."""
    keys = np.ones((100, D), np.float32)
    keys[42] = 0
    keys[42, 3] = size
    message = f"norms of at most 1e\\+15 for .*'scann', .* got {got} in entry 1042. Choose 'exact'"
    with pytest.raises(UserError, match=message):
        build_segment(keys, first=1000, top_k=K, tree_leaves=leaves)


def test_a_tree_of_keys_at_the_bound_is_built_and_searched():
    rng = np.random.default_rng(3)
    keys = clustered(rng, 3000)
    keys = (0.999e15 * keys / np.linalg.norm(keys, axis=1, keepdims=True)).astype(np.float32)
    store = MemoryStore(memory_layers=(3,), streams=1, kv_heads=1, head_dim=D)
    append(store, keys)
    index = ScannIndex(store, dataclasses.replace(TREES, scann_leaves_fraction=1.0))
    index.refresh()
    queries = clustered(rng, 16)
    assert recall(search(index, queries), exact(keys.astype(np.float64), queries)) >= 0.9


@pytest.mark.parametrize("below", [100, 1000])
def test_queries_of_any_length_find_the_same_keys(below):
    """A tree (below 100) answers a long query with NaN or not at all, and one that is not finite with an error."""
    rng = np.random.default_rng(4)
    keys, queries = clustered(rng, 500), clustered(rng, 8)
    store = MemoryStore(memory_layers=(3,), streams=1, kv_heads=1, head_dim=D)
    append(store, keys)
    index = ScannIndex(store, dataclasses.replace(TREES, scann_brute_force_below=below, scann_leaves_fraction=1.0))
    index.refresh()
    found = search(index, queries)
    assert recall(found, exact(keys, queries)) >= 0.9
    long = (queries.astype(np.float64) * (3e38 / np.abs(queries).max())).astype(np.float32)
    assert recall(search(index, long), found) >= 0.99
    broken = np.concatenate([queries[:1], np.full((2, D), [[np.nan], [-np.inf]]), queries[1:2]])
    np.testing.assert_array_equal(search(index, broken)[[0, 3]], found[:2])


def test_attention_is_nan_where_a_query_is_nan():
    """They give NaN as the other kinds of retrieval do, so that the logits' own check speaks."""
    store = MemoryStore(memory_layers=(3,), streams=1, kv_heads=1, head_dim=D)
    append(store, np.ones((5, D), np.float32))
    index = ScannIndex(store, TREES)
    index.refresh()
    queries = np.ones((1, 2, 1, D), np.float32)
    queries[0, 1, 0, 0] = np.nan
    part = ScannView.from_index(index, top_k=K).partial(queries, np.int32(0))
    finite = np.isfinite(np.asarray(part.total))[0, :, 0]
    assert finite.tolist() == [True, False]


def test_wrong_dimension_is_refused_and_no_queries_find_nothing():
    store = MemoryStore(memory_layers=(3,), streams=1, kv_heads=1, head_dim=D)
    append(store, np.ones((3, D), np.float32))
    index = ScannIndex(store, TREES)
    index.refresh()
    with pytest.raises(UserError, match="queries must have the memory's head_dim 16, got 15"):
        search(index, np.ones((2, D - 1), np.float32))
    assert search(index, np.ones((0, D), np.float32)).shape == (0, K)
