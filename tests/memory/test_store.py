"""The store against Python lists: append, clear, evict, share, refuse."""

import itertools

import numpy as np
import pytest

from fot_jax.config import UserError
from fot_jax.memory.store import MemoryStore
from fot_jax.types import KeyValue

P, G, D = 2, 3, 4


def make_store(*, streams: int = 2, budget: int = 0) -> MemoryStore:
    return MemoryStore(memory_layers=(1, 5), streams=streams, kv_heads=G, head_dim=D, budget=budget)


def random_entries(rng: np.random.Generator, *, rows: int, length: int) -> KeyValue:
    keys, values = (rng.standard_normal((P, rows, length, G, D)).astype(np.float32) for _ in range(2))
    return KeyValue(keys=keys, values=values)


@pytest.mark.parametrize("budget", [0, 1, 7, 300])
def test_store_holds_what_lists_hold(budget):
    """Random appends of unequal counts and clears; 300 passes the first capacity without being a power of two."""
    rng = np.random.default_rng(budget)
    store, lists = make_store(budget=budget), [[], []]
    for _ in range(60):
        if rng.random() < 0.05:
            stream = int(rng.integers(2))
            store.clear(stream)
            lists[stream] = []
        entries, counts = random_entries(rng, rows=2, length=12), rng.integers(0, 13, size=2)
        store.append(entries, counts)
        for stream in range(2):
            lists[stream] += [(entries.keys[:, stream, l], entries.values[:, stream, l]) for l in range(counts[stream])]
            if budget:
                lists[stream] = lists[stream][-budget:]
            keys, values = store.take(stream, store.live(stream))
            assert keys.shape == (P, G, len(lists[stream]), D)
            for m, (key, value) in enumerate(lists[stream]):
                np.testing.assert_array_equal(keys[:, :, m], key)
                np.testing.assert_array_equal(values[:, :, m], value)
    lengths = [len(entries) for entries in lists]
    assert store.lengths.tolist() == lengths
    assert store.bytes() == sum(lengths) * P * G * D * 2 * 4


def test_rows_can_share_a_stream_in_row_order():
    rng = np.random.default_rng(0)
    store, entries = make_store(streams=1), random_entries(rng, rows=3, length=2)
    store.append(entries, np.array([2, 0, 1]), streams=[0, 0, 0])
    keys, _ = store.take(0, store.live(0))
    np.testing.assert_array_equal(keys.swapaxes(1, 2), np.concatenate([entries.keys[:, 0], entries.keys[:, 2, :1]], 1))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["keys", "values"])
def test_entries_that_are_not_finite_are_named_and_refused(bad, name):
    entries, store = random_entries(np.random.default_rng(0), rows=2, length=3), make_store()
    getattr(entries, name)[1, 1, 2, 0, 3] = bad
    store.append(entries, np.array([3, 2]))  # the bad entry is behind row 1's count
    message = f"memory {name} must be finite, got {bad} in memory layer 5, key/value head 0, stream 1, entry 4"
    with pytest.raises(UserError, match=message):
        store.append(entries, np.array([3, 3]))
    assert store.lengths.tolist() == [3, 2]


@pytest.mark.parametrize(
    ("entries_shape", "counts", "message"),
    [
        ((P, 2, 3, G, D + 1), [3, 3], r"entries must have shape \[P, R, L, G, D\]"),
        ((P, 2, 3, G, D), [3, 4], r"token_counts must hold 2 numbers in 0..3, got \[3, 4\]"),
        ((P, 3, 3, G, D), [1, 1, 1], "streams must name one of the store's 2 streams"),
    ],
)
def test_wrong_shapes_are_refused(entries_shape, counts, message):
    array = np.zeros(entries_shape, np.float32)
    with pytest.raises(UserError, match=message):
        make_store().append(KeyValue(keys=array, values=array), np.array(counts))


@pytest.mark.parametrize("budget", [0, 70])
def test_a_fork_and_its_origin_grow_apart(budget):
    """Appends to either within the capacity, past it and past the budget; the other holds what it held."""
    rng = np.random.default_rng(2)
    store = make_store(streams=3, budget=budget)
    store.append(random_entries(rng, rows=3, length=50), np.array([50, 20, 9]))
    fork, last = store.fork(), store.fork([2])
    np.testing.assert_array_equal(last.take(0, last.live(0))[0], store.take(2, store.live(2))[0])
    turns = ((fork, (store, last)), (store, (fork, last)), (last, (store, fork)))
    for length, (grown, others) in itertools.product((5, 60), turns):
        before = [[x.copy() for x in one.take(s, one.live(s))] for one in others for s in range(one.streams)]
        lengths = [one.appended.tolist() for one in others]
        grown.append(random_entries(rng, rows=grown.streams, length=length), np.full(grown.streams, length))
        after = [list(one.take(s, one.live(s))) for one in others for s in range(one.streams)]
        assert [one.appended.tolist() for one in others] == lengths
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(old[0], new[0])
            np.testing.assert_array_equal(old[1], new[1])
    assert store.appended.tolist() == fork.appended.tolist() == [115, 85, 74]
    with pytest.raises(UserError, match=r"stream must be in 0\.\.2, got 3"):
        store.fork([3])


def test_a_fork_shares_arrays_until_one_of_them_grows():
    store = make_store(streams=1)
    store.append(random_entries(np.random.default_rng(3), rows=1, length=9), np.array([9]))
    fork = store.fork()
    assert fork._arrays[0] is store._arrays[0]
    fork.append(random_entries(np.random.default_rng(4), rows=1, length=1), np.array([1]))
    assert fork._arrays[0] is not store._arrays[0]
