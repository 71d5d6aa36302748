"""Views: every retrieval against a float64 loop and against each other, as the memory grows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import MemoryConfig, Retrieval, UserError
from fot_jax.logging import warn_once
from fot_jax.memory import query_blocks, scann_index, scann_view, views
from fot_jax.memory.store import MemoryStore
from fot_jax.memory.views import ViewSource, make_view
from fot_jax.ops.softmax import normalise
from tests.memory.stores import (
    QUERIES,
    B,
    D,
    G,
    H,
    L,
    P,
    append_random,
    attend_by_loops,
    check_view,
    make_store,
    read_all_layers,
)

KINDS = [*((retrieval, False) for retrieval in Retrieval), (Retrieval.SCANN, True)]
KIND_NAMES = [*(retrieval.value for retrieval in Retrieval), "scann on the host"]


@pytest.fixture
def on_host(request, monkeypatch):
    """Has ScaNN's index searched whatever its size, if the test's parameter says so."""
    if request.param:
        monkeypatch.setattr(scann_index.ScannIndex, "has_trees", True)
    return request.param


@pytest.mark.parametrize(("retrieval", "on_host"), KINDS, ids=KIND_NAMES, indirect=["on_host"])
@pytest.mark.parametrize("top_k", [3, 4096])
def test_retrieval_equals_the_loop_while_the_memory_grows(retrieval, on_host, top_k, monkeypatch):
    """Empty, shorter than k, unequal streams, past an eviction, after clearing; 4096 reads all (K = M)."""
    monkeypatch.setattr(scann_view, "GATHERED_BYTES", 2 * (H // G) * min(top_k, 90) * D * 4)  # some positions at a time
    monkeypatch.setattr(views, "SCORES_AT_ONCE", 2 * B * H * 256)
    rng, store = np.random.default_rng(0), make_store(budget=100)
    source = ViewSource(store, MemoryConfig(retrieval=retrieval, top_k=top_k))
    compiled = read_all_layers._cache_size()
    for step, counts in enumerate([[0, 0], [2, 1], [40, 3], [70, 9], [20, 70], [7, 90]]):
        if step == 4:
            store.clear(0)
        if max(counts):
            append_random(store, rng, counts)
        view = source.view()
        assert isinstance(view, scann_view.ScannView) == on_host
        check_view(view, store, None if retrieval is Retrieval.DENSE else top_k)
    assert store.lengths.tolist() == [27, 100]
    assert read_all_layers._cache_size() - compiled <= 1  # dense shares one program whatever top_k says


@pytest.mark.parametrize("on_host", [True], indirect=True)
def test_device_capacity_doubles_and_scann_never_recompiles(on_host):
    rng, store = np.random.default_rng(0), make_store()
    configs = [MemoryConfig(retrieval=retrieval, top_k=2) for retrieval in (Retrieval.EXACT, Retrieval.SCANN)]
    sources = [ViewSource(store, config) for config in configs]
    shapes = set()
    for _ in range(10):
        append_random(store, rng, [100, 30])
        device, host = (source.view() for source in sources)
        shapes.add(device.layers[0].keys.shape[3])
        assert jax.tree.map(jnp.shape, host).number == ()
    assert shapes == {256, 512, 1024}


@pytest.mark.parametrize(("retrieval", "on_host"), KINDS, ids=KIND_NAMES, indirect=["on_host"])
def test_one_stream_serves_every_row(retrieval, on_host):
    """A memory shared by the batch reads as if each row held a copy."""
    rng, store = np.random.default_rng(0), make_store(streams=1)
    append_random(store, rng, [50])
    view = make_view(store, MemoryConfig(retrieval=retrieval, top_k=50))
    got = np.asarray(normalise(view.partial(QUERIES, 1)))
    np.testing.assert_allclose(got, attend_by_loops(store, QUERIES, 1, 50), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("retrieval", "on_host"), KINDS, ids=KIND_NAMES, indirect=["on_host"])
def test_a_view_that_does_not_fit_the_queries_is_refused(retrieval, on_host):
    store = make_store()
    append_random(store, np.random.default_rng(0), [2, 2])
    view = make_view(store, MemoryConfig(retrieval=retrieval))
    with pytest.raises(UserError, match="memory must have head_dim 6 as the queries, got 8"):
        view.partial(QUERIES[..., :6], 0)
    with pytest.raises(UserError, match=r"memory must have one stream or as many as the batch has rows \(3\), got 2"):
        view.partial(np.repeat(QUERIES[:1], 3, axis=0), 0)


def test_query_blocks_pad_and_join():
    rows = jnp.asarray(QUERIES)
    whole = query_blocks.over_query_blocks(lambda x: {"sum": x.sum(-1)}, rows, L)
    parts = query_blocks.over_query_blocks(lambda x: {"sum": x.sum(-1)}, rows, 2)
    np.testing.assert_array_equal(whole["sum"], parts["sum"])


@pytest.mark.parametrize(("retrieval", "on_host"), KINDS, ids=KIND_NAMES, indirect=["on_host"])
def test_a_forked_source_shows_its_own_entries(retrieval, on_host):
    """It shares the first view; then both grow by equally many entries, unseen, and by more, one after the other."""
    rng, store = np.random.default_rng(0), make_store()
    append_random(store, rng, [50, 20])
    source = ViewSource(store, MemoryConfig(retrieval=retrieval, top_k=4096))
    forks = [source.fork() for _ in range(2)]
    views = [one.view() for one in (source, *forks)]
    if on_host:
        assert len({int(view.number) for view in views}) == 1
    else:
        assert all(view.layers is views[0].layers for view in views)
    append_random(forks[0].store, rng, [3, 3])
    append_random(store, rng, [3, 3])
    for counts in ([0, 0], [5, 0]):
        for one in (source, *forks):
            if max(counts):
                append_random(one.store, rng, counts)
            got = np.asarray(read_all_layers(one.view(), QUERIES))
            want = np.stack([attend_by_loops(one.store, QUERIES, slot, 4096) for slot in range(P)])
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("retrieval", [Retrieval.EXACT, Retrieval.SCANN])
def test_a_growing_fork_sends_and_indexes_its_own_entries_alone(retrieval, monkeypatch):
    """Sends or indexes none of 300 entries, in two trees and a tail with ScaNN, a second time; the origin stays."""
    rng, store = np.random.default_rng(0), make_store()
    append_random(store, rng, [300, 300])
    config = MemoryConfig(retrieval=retrieval, top_k=4096, scann_brute_force_below=128, scann_leaves_fraction=1.0)
    source = ViewSource(store, config)
    before = np.asarray(read_all_layers(source.view(), QUERIES))
    fork = source.fork()
    fork = fork.fork()  # of a fork that made no view
    append_random(fork.store, rng, [3, 2])
    taken, built = [], []
    stored, build = MemoryStore.stored, scann_index.build_segment
    monkeypatch.setattr(MemoryStore, "stored", lambda self, *args: taken.append(len(args[2])) or stored(self, *args))
    monkeypatch.setattr(
        scann_index, "build_segment", lambda keys, **how: built.append(how["tree_leaves"]) or build(keys, **how)
    )
    view = fork.view()
    assert taken == ([] if retrieval is Retrieval.SCANN else [3, 2] * P) and not any(built)
    monkeypatch.undo()
    want = np.stack([attend_by_loops(fork.store, QUERIES, slot, 4096) for slot in range(P)])
    np.testing.assert_allclose(np.asarray(read_all_layers(view, QUERIES)), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(read_all_layers(source.view(), QUERIES)), before)


def test_the_host_reads_only_what_a_search_found(monkeypatch):
    """Where it found fewer than asked for, nothing, or nothing for one query."""
    rng, store = np.random.default_rng(0), make_store(streams=1)
    append_random(store, rng, [50])
    index = scann_index.ScannIndex(store, MemoryConfig(retrieval=Retrieval.SCANN))
    found = np.where(rng.random((B * L * H, 5)) < 0.5, -1, rng.integers(0, 50, (B * L * H, 5)))
    found[3] = -1
    left = iter(np.split(found, B * G))
    monkeypatch.setattr(scann_view, "_cores", lambda: 1)
    monkeypatch.setattr(index, "search", lambda queries, **place: next(left))
    got = scann_view.attend(index, QUERIES, slot=1, top_k=5)
    keys, values = (x[1].astype(np.float64) for x in store.take(0, store.live(0)))
    for number, entries in enumerate(found):
        b, g, l, r = np.unravel_index(number, (B, G, L, H // G))
        place, read = (b, l, g * (H // G) + r), entries[entries >= 0]
        weights = np.exp(keys[g, read] @ QUERIES[place] - got.peak[place])
        np.testing.assert_allclose(got.total[place], weights.sum(), rtol=1e-5)
        np.testing.assert_allclose(got.weighted[place], weights @ values[g, read], rtol=1e-4, atol=1e-5)


def test_many_queries_go_to_the_host_in_small_arrays(monkeypatch):
    """JAX copies large ones on a thread that a process on one core does not have, and would wait forever."""
    sizes, attend = [], scann_view.attend
    monkeypatch.setattr(scann_index.ScannIndex, "has_trees", True)
    monkeypatch.setattr(scann_view, "attend", lambda index, q, **how: sizes.append(q.nbytes) or attend(index, q, **how))
    store = make_store(streams=1)
    append_random(store, np.random.default_rng(0), [5])
    view = make_view(store, MemoryConfig(retrieval=Retrieval.SCANN, top_k=3))
    jax.block_until_ready(view.partial(jnp.ones((1, 1000, H, D)), 0))
    assert sum(sizes) >= 4 * 1000 * H * D and max(sizes) <= 1 << 16


def test_scann_searches_short_memories_on_the_device(caplog):
    """Below the size of a tree it reads exactly and says so once; then ScaNN's view; after clearing as at first."""
    warn_once.cache_clear()
    rng, store = np.random.default_rng(0), make_store()
    config = MemoryConfig(retrieval=Retrieval.SCANN, top_k=3, scann_brute_force_below=100, scann_leaves_fraction=1.0)
    source = ViewSource(store, config)
    kinds = []
    for counts in ([0, 0], [99, 7], [1, 1], None, [5, 2]):
        if counts is None:
            store.clear(0)
        elif max(counts):
            append_random(store, rng, counts)
        view = source.view()
        kinds.append(type(view).__name__)
        check_view(view, store, 3)
        assert (source._index is None) == (source._copy is not None) == (kinds[-1] == "DeviceView")
    assert kinds == ["DeviceView", "DeviceView", "ScannView", "DeviceView", "DeviceView"]
    assert [record.message for record in caplog.records] == [
        "memory.retrieval=scann: exact below 100 entries, ScaNN's trees from there on"
    ]
