"""A memory over the devices of a mesh: where entries are, that it reads as one memory, and what growing compiles."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import ConfigError, MemoryConfig, Retrieval
from fot_jax.memory import device_copy, views
from fot_jax.memory.device_copy import DeviceCopy, capacity_for, slot_of_place
from fot_jax.memory.views import DeviceView, ViewSource
from fot_jax.ops.softmax import normalise
from tests.memory.stores import (
    QUERIES,
    B,
    D,
    G,
    H,
    P,
    append_random,
    attend_by_loops,
    check_view,
    make_store,
    read_all_layers,
)
from tests.scale.memory_cases import collectives, mesh_of

ON_DEVICES = [Retrieval.DENSE, Retrieval.EXACT, Retrieval.APPROX]
SPLIT = {"data": 2, "fsdp": 2, "context": 2}


@pytest.fixture
def compilations():
    """The number of programs compiled so far, as a list that grows."""
    seen: list[str] = []

    def listen(event: str, *_, **__) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def test_slots_lie_as_drawn():
    assert slot_of_place(16, shards=4).tolist() == [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]
    assert slot_of_place(4, shards=1).tolist() == [0, 1, 2, 3]
    assert [capacity_for(n, shards=4) for n in (0, 1, 4, 5, 16, 17)] == [4, 4, 4, 8, 16, 32]
    assert [capacity_for(n, shards=3) for n in (3, 7, 13)] == [3, 12, 24]


def test_devices_fill_evenly_and_hold_no_more_than_their_part():
    """50 and 9 entries of two rows over 2 x 4 devices: 13, 13, 12, 12 and 3, 2, 2, 2."""
    store = make_store()
    append_random(store, np.random.default_rng(0), [50, 9])
    copy = DeviceCopy(store, mesh_of(data=2, fsdp=2, context=2))
    copy.refresh()
    filled = {}
    for shard in copy.layers[0].keys.addressable_shards:
        assert shard.data.shape == (1, G, D, 64)
        filled[shard.index[0].start, shard.index[3].start] = int(np.any(np.asarray(shard.data) != 0, (0, 1, 2)).sum())
    assert filled == {
        (0, 0): 13, (0, 64): 13, (0, 128): 12, (0, 192): 12, (1, 0): 3, (1, 64): 2, (1, 128): 2, (1, 192): 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("retrieval", "mesh"),
    [*((retrieval, SPLIT) for retrieval in ON_DEVICES), (Retrieval.EXACT, {"data": 1, "fsdp": 3})],
)
def test_it_reads_as_one_memory_while_it_grows(retrieval, mesh, monkeypatch):
    """Empty, shorter than k, unequal streams, past two doublings and an eviction, after clearing."""
    monkeypatch.setattr(device_copy, "SMALLEST_CAPACITY", 16)
    monkeypatch.setattr(views, "SCORES_AT_ONCE", 2 * B * H * 8)  # blocks of some queries once it has grown
    rng, store = np.random.default_rng(0), make_store(budget=50)
    source = ViewSource(store, MemoryConfig(retrieval=retrieval, top_k=3), mesh=mesh_of(**mesh))
    for step, counts in enumerate([[0, 0], [2, 1], [20, 3], [35, 9], [10, 45], [7, 20]]):
        if step == 4:
            store.clear(0)
        if max(counts):
            append_random(store, rng, counts)
        check_view(source.view(), store, None if retrieval is Retrieval.DENSE else 3)
    assert store.lengths.tolist() == [17, 50]


@pytest.mark.parametrize("retrieval", [Retrieval.DENSE, Retrieval.EXACT])
def test_one_stream_of_all_rows_lies_over_every_device(retrieval):
    store = make_store(streams=1)
    append_random(store, np.random.default_rng(0), [50])
    source = ViewSource(store, MemoryConfig(retrieval=retrieval, top_k=9), mesh=mesh_of(data=2, fsdp=2, context=2))
    view = source.view()
    assert isinstance(view, DeviceView)
    assert {shard.data.shape for shard in view.layers[0].values.addressable_shards} == {(1, G, 32, D)}
    got = np.asarray(jax.jit(lambda view, queries: normalise(view.partial(queries, 1)))(view, QUERIES))
    k = 50 if retrieval is Retrieval.DENSE else 9
    np.testing.assert_allclose(got, attend_by_loops(store, QUERIES, 1, k), rtol=1e-5, atol=1e-5)


def test_growing_within_a_capacity_compiles_nothing(compilations, monkeypatch):
    """Eight entries at a time through capacity 64, then into the next: reading and writing."""
    monkeypatch.setattr(device_copy, "SMALLEST_CAPACITY", 64)
    rng, store = np.random.default_rng(0), make_store()
    source = ViewSource(store, MemoryConfig(retrieval=Retrieval.EXACT, top_k=4), mesh=mesh_of(data=1, fsdp=8))
    programs, made = read_all_layers._cache_size(), []
    for _ in range(9):
        append_random(store, rng, [8, 8])
        before = len(compilations)
        jax.block_until_ready(read_all_layers(source.view(), QUERIES))
        made.append(len(compilations) - before)
    assert made[0] > 0  # reading
    assert made[1] > 0  # writing
    assert made[2:8] == [0] * 6
    assert made[8] > 0
    assert read_all_layers._cache_size() - programs == 2


def test_no_device_is_sent_keys_or_values():
    """The compiled read of all layers, and what refresh hands over: each device its own entries."""
    store = make_store()
    append_random(store, np.random.default_rng(0), [50, 9])
    source = ViewSource(store, MemoryConfig(retrieval=Retrieval.EXACT, top_k=3), mesh=mesh_of(data=1, fsdp=8))
    view = source.view()
    found = collectives(read_all_layers.lower(view, jnp.asarray(QUERIES)).compile().as_text())
    largest = max(itertools.chain(*found.values()))
    assert largest <= QUERIES.size // D * 4 * max(D, 8 * 3)
    assert largest < view.layers[0].keys.nbytes // 8


def test_rows_are_selected_where_they_lie_whole():
    store = make_store()
    append_random(store, np.random.default_rng(0), [30, 9])
    config = MemoryConfig(retrieval=Retrieval.EXACT, top_k=3)
    whole, split = (ViewSource(store, config, mesh=mesh_of(**m)) for m in ({"data": 1, "fsdp": 4}, SPLIT))
    assert whole.can_select
    assert not split.can_select
    view = whole.view(np.array([1]))
    assert isinstance(view, DeviceView)
    assert view.layers[0].keys.sharding == whole.view().layers[0].keys.sharding
    got = np.asarray(normalise(view.partial(QUERIES[1:], 0)))
    np.testing.assert_allclose(got[0], attend_by_loops(store, QUERIES, 0, 3)[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("streams", "mesh", "retrieval", "message"),
    [
        (3, {"data": 2, "fsdp": 2}, "exact", r"one stream or a multiple of mesh\.data=2, got 3 streams\. Change"),
        (2, {"data": 1, "tensor": 4}, "exact", r"mesh\.tensor must divide the 2 key/value heads .*, got 4\. Change"),
        (2, {"data": 1, "fsdp": 2}, "scann", r"memory\.retrieval must be 'dense', .*got 'scann', which searches on"),
    ],
)
def test_a_mesh_that_a_memory_does_not_fit(streams, mesh, retrieval, message):
    config = MemoryConfig(retrieval=Retrieval(retrieval))
    with pytest.raises(ConfigError, match=message):
        ViewSource(make_store(streams=streams), config, mesh=mesh_of(**mesh))


def test_a_layer_is_on_no_device_whole(monkeypatch):
    """Hands numpy arrays to device_put, at first and at every doubling."""
    given = []
    put = jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda tree, *args: given.extend(jax.tree.leaves(tree)) or put(tree, *args))
    monkeypatch.setattr(device_copy, "SMALLEST_CAPACITY", 16)
    rng, store = np.random.default_rng(0), make_store()
    source = ViewSource(store, MemoryConfig(retrieval=Retrieval.DENSE), mesh=mesh_of(data=2, fsdp=2))
    for _ in range(3):
        append_random(store, rng, [20, 9])
        source.view()
    assert len(given) > 3 * 2 * P
    assert not any(isinstance(array, jax.Array) for array in given)
