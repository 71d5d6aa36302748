"""Copy of a store's entries on a device or over a mesh; it receives new entries only, unless its capacity grows.

Over n devices slot i of a stream is on device i mod n, at place i // n of its part, so that all fill evenly and
an entry stays on its device as the memory grows:

    capacity 16 on 4 devices, 6 slots filled      places of the array  0  1  2  3 | 4  5  6  7 | 8 … | 12 …
                                                  slots                0  4  8 12 | 1  5  9 13 | 2 … |  3 …
                                                  filled               x  x       | x  x       | x   |  x
"""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Int

from fot_jax.memory.store import MemoryStore
from fot_jax.sharding import memory_layout
from fot_jax.types import MemoryLayout

SMALLEST_CAPACITY = 256  # entries; a power of two
MEMORY_AXES = "P B M G D"


def power_of_two(least: int) -> int:
    """Returns the smallest power of two >= least (1 for 0)."""
    return 1 << max(0, least - 1).bit_length()


def capacity_for(entries: int, *, shards: int = 1) -> int:
    """Returns the capacity of a memory of `entries` entries: the same power of two on each device."""
    return shards * power_of_two(-(-max(entries, 1) // shards))


def slot_of_place(capacity: int, *, shards: int) -> jax.Array:
    """Returns int32 [M], the slot at each place of the array (see the drawing above)."""
    places, each = jnp.arange(capacity, dtype=jnp.int32), capacity // shards
    return places % each * shards + places // each


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _write(layout: MemoryLayout | None, keys, values, new_keys, new_values, places):
    """Writes [P, B, T, G, D] at places [B, T] of a device's part [P, B, M, G, D]; nothing is written at place M."""

    def write(keys, values, new_keys, new_values, places):
        rows = jnp.arange(keys.shape[1])[:, None]
        return (
            keys.at[:, rows, places].set(new_keys, mode="drop"),
            values.at[:, rows, places].set(new_values, mode="drop"),
        )

    if layout is not None:
        far = layout.spec(MEMORY_AXES)
        given = (far, far, far, far, layout.spec("B M"))
        write = jax.shard_map(write, mesh=layout.mesh, in_specs=given, out_specs=(far, far), check_vma=False)
    return write(keys, values, new_keys, new_values, places)


class DeviceCopy:
    """Device arrays [P, B, M, G, D] that mirror a store; M is a power of two (on each device of a mesh).

    Slots are the store's own, so what a full ring overwrites is overwritten here too. With a mesh each device
    receives and holds only its own entries.
    """

    def __init__(self, store: MemoryStore, mesh: Mesh | None = None):
        self.store = store
        self.layout = self.sharding = self._over_entries = None
        if mesh is not None:
            self.layout = memory_layout(mesh, streams=store.streams, kv_heads=store.kv_heads)
            self.sharding = NamedSharding(mesh, self.layout.spec(MEMORY_AXES))
            self._over_entries = NamedSharding(mesh, self.layout.spec("B M"))
        self.shards = 1 if self.layout is None else self.layout.shards
        self._copied = np.zeros(store.streams, np.int64)
        self._epochs = store.epochs.copy()
        self._allocate(capacity_for(SMALLEST_CAPACITY, shards=self.shards))

    def fork(self, store: MemoryStore) -> "DeviceCopy":
        """Returns a copy of these arrays, made on the device, that mirrors a store forked from this one's."""
        forked = copy.copy(self)
        forked.store, forked._copied, forked._epochs = store, self._copied.copy(), self._epochs.copy()
        forked.keys, forked.values = jnp.copy(self.keys), jnp.copy(self.values)
        return forked

    def _shape(self, entries: int) -> tuple[int, ...]:
        store = self.store
        return len(store.memory_layers), store.streams, entries, store.kv_heads, store.head_dim

    def _allocate(self, capacity: int) -> None:
        self.capacity = capacity
        self.keys, self.values = (
            jnp.zeros(self._shape(capacity), self.store.dtype, device=self.sharding) for _ in range(2)
        )
        self._copied[:] = 0

    def refresh(self) -> None:
        """Brings the device arrays up to date; arrays handed out before must not be used again."""
        store, shards = self.store, self.shards
        need = capacity_for(int(store.lengths.max()), shards=shards)
        if need > self.capacity:
            self._allocate(need)
        self._copied[store.epochs != self._epochs] = 0  # cleared since: all of the stream is new
        self._epochs = store.epochs.copy()
        first = np.maximum(self._copied, store.appended - store.lengths)
        entries = [np.arange(start, end) for start, end in zip(first, store.appended, strict=True)]
        slots = [store.slots(new) for new in entries]
        widest = max(int(np.bincount(s % shards, minlength=1).max()) for s in slots)
        if widest == 0:
            return
        width = power_of_two(widest)  # new entries of one device, at most
        keys, values = (np.zeros(self._shape(shards * width), store.dtype) for _ in range(2))
        places = np.full((store.streams, shards * width), self.capacity // shards, np.int32)
        for stream, (new, at) in enumerate(zip(entries, slots, strict=True)):
            sent = at % shards * width + _rank_within(at % shards)
            new_keys, new_values = store.take(stream, new)
            keys[:, stream, sent] = np.swapaxes(new_keys, 1, 2)
            values[:, stream, sent] = np.swapaxes(new_values, 1, 2)
            places[stream, sent] = at // shards
        if self.layout is not None:
            keys, values = jax.device_put((keys, values), self.sharding)
            places = jax.device_put(places, self._over_entries)
        self.keys, self.values = _write(self.layout, self.keys, self.values, keys, values, places)
        self._copied = store.appended.copy()


def _rank_within(group: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Returns how many equal numbers precede each one: 1 0 1 1 -> 0 0 1 2."""
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], group[order])
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(group)) - starts
    return ranks
