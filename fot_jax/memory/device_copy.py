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
from fot_jax.types import LayerMemory, MemoryLayout

SMALLEST_CAPACITY = 256  # entries; a power of two


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


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _write(layout: MemoryLayout | None, memory: LayerMemory, new: LayerMemory, places) -> LayerMemory:
    """Writes entries at places [B, T] of a device's part; nothing is written at place M."""

    def write(memory, new, places):
        rows = jnp.arange(places.shape[0])[:, None]

        def put(array, entries, *, axis: int):
            """Writes along the axis of the entries; indexed by rows and places, numpy has these two first."""
            where = (rows, *(slice(None),) * (axis - 1), places)
            return array.at[where].set(jnp.moveaxis(entries, axis, 1), mode="drop")

        return LayerMemory(
            keys=put(memory.keys, new.keys, axis=3),
            values=put(memory.values, new.values, axis=2),
            scales=jax.tree.map(functools.partial(put, axis=2), memory.scales, new.scales),
        )

    if layout is not None:
        far = specs(layout, scaled=memory.scales is not None)
        write = jax.shard_map(
            write, mesh=layout.mesh, in_specs=(far, far, layout.spec("B M")), out_specs=far, check_vma=False
        )
    return write(memory, new, places)


def specs(layout: MemoryLayout, *, scaled: bool) -> LayerMemory:
    """Returns the specs of the arrays of one memory layer."""
    scale = layout.spec("B G M")
    return LayerMemory(
        keys=layout.spec("B G D M"), values=layout.spec("B G M D"), scales=(scale, scale) if scaled else None
    )


def abstract_layers(store: MemoryStore, capacity: int, *, layout: MemoryLayout, mesh: Mesh) -> tuple[LayerMemory, ...]:
    """Returns shapes and shardings of the arrays of each memory layer of a store, at some capacity."""
    lead, D = (store.streams, store.kv_heads), store.head_dim
    scale = jax.ShapeDtypeStruct((*lead, capacity), np.float32)
    layer = LayerMemory(
        keys=jax.ShapeDtypeStruct((*lead, D, capacity), store.dtype),
        values=jax.ShapeDtypeStruct((*lead, capacity, D), store.dtype),
        scales=(scale, scale) if store.quantised else None,
    )
    placed = jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)),
        layer, specs(layout, scaled=store.quantised),
    )  # fmt: skip
    return (placed,) * len(store.memory_layers)


class DeviceCopy:
    """Device arrays that mirror a store, separate ones for each memory layer.

    Their capacity M is a power of two (on each device of a mesh). Slots are the store's own, so what a full ring
    overwrites is overwritten here too. With a mesh each device receives and holds only its own entries.
    """

    def __init__(self, store: MemoryStore, mesh: Mesh | None = None):
        self.store = store
        self.layout = self._over_entries = self._shardings = None
        if mesh is not None:
            self.layout = memory_layout(mesh, streams=store.streams, kv_heads=store.kv_heads)
            self._shardings = jax.tree.map(
                lambda spec: NamedSharding(mesh, spec), specs(self.layout, scaled=store.quantised)
            )
            self._over_entries = NamedSharding(mesh, self.layout.spec("B M"))
        self.shards = 1 if self.layout is None else self.layout.shards
        self._epochs = store.epochs.copy()
        self._send_all(capacity_for(max(SMALLEST_CAPACITY, int(store.lengths.max())), shards=self.shards))

    def fork(self, store: MemoryStore) -> "DeviceCopy":
        """Returns a copy of these arrays, made on the device, that mirrors a store forked from this one's."""
        forked = copy.copy(self)
        forked.store, forked._copied, forked._epochs = store, self._copied.copy(), self._epochs.copy()
        forked.layers = jax.tree.map(jnp.copy, self.layers)
        return forked

    def select(self, rows: np.ndarray) -> tuple[LayerMemory, ...]:
        """Returns the arrays of some streams alone."""
        return tuple(self._put(jax.tree.map(lambda x: x[rows], layer)) for layer in self.layers)

    def _put(self, layer: LayerMemory) -> LayerMemory:
        """Hands numpy arrays over: to each device of a mesh its own part alone."""
        return jax.tree.map(jnp.asarray, layer) if self._shardings is None else jax.device_put(layer, self._shardings)

    def _send_all(self, capacity: int) -> None:
        """Makes the arrays anew from all entries of the store."""
        store, shards = self.store, self.shards
        live = [store.live(stream) for stream in range(store.streams)]
        at = [slots % shards * (capacity // shards) + slots // shards for slots in map(store.slots, live)]
        # The old arrays go before larger ones are made; should that fail, capacity 0 has the next call send all again.
        self.layers, self.capacity = (), 0
        self.layers = tuple(
            self._put(self._gathered(slot, live, at, capacity)) for slot in range(len(store.memory_layers))
        )
        self.capacity, self._copied = capacity, store.appended.copy()

    def _gathered(self, slot: int, entries: list[np.ndarray], at: list[np.ndarray], width: int) -> LayerMemory:
        """Returns some entries of each stream at places of arrays of `width` places."""
        store = self.store
        shape = store.streams, store.kv_heads, width
        arrays = [np.zeros((*shape, store.head_dim), store.dtype) for _ in range(2)]
        arrays += [np.zeros((*shape, 1), np.float32) for _ in range(2 * store.quantised)]
        for stream, (ids, places) in enumerate(zip(entries, at, strict=True)):
            for array, held in zip(arrays, store.stored(stream, slot, ids), strict=True):
                array[stream][:, places] = held
        keys, values, *scales = arrays
        return LayerMemory(
            keys=np.ascontiguousarray(keys.swapaxes(2, 3)),
            values=values,
            scales=(scales[0][..., 0], scales[1][..., 0]) if scales else None,
        )

    def refresh(self) -> None:
        """Brings the device arrays up to date; arrays handed out before must not be used again."""
        store, shards = self.store, self.shards
        need = capacity_for(int(store.lengths.max()), shards=shards)
        self._copied[store.epochs != self._epochs] = 0  # cleared since: all of the stream is new
        self._epochs = store.epochs.copy()
        if need > self.capacity:
            self._send_all(need)
            return
        first = np.maximum(self._copied, store.appended - store.lengths)
        entries = [np.arange(start, end) for start, end in zip(first, store.appended, strict=True)]
        slots = [store.slots(new) for new in entries]
        widest = max(int(np.bincount(s % shards, minlength=1).max()) for s in slots)
        if widest == 0:
            return
        width = power_of_two(widest)  # new entries of one device, at most
        places = np.full((store.streams, shards * width), self.capacity // shards, np.int32)
        sent = [s % shards * width + _rank_within(s % shards) for s in slots]
        for stream, at in enumerate(slots):
            places[stream, sent[stream]] = at // shards
        if self.layout is not None:
            places = jax.device_put(places, self._over_entries)
        self.layers = tuple(
            _write(self.layout, layer, self._put(self._gathered(slot, entries, sent, shards * width)), places)
            for slot, layer in enumerate(self.layers)
        )
        self._copied = store.appended.copy()


def _rank_within(group: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Returns how many equal numbers precede each one: 1 0 1 1 -> 0 0 1 2."""
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], group[order])
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(group)) - starts
    return ranks
