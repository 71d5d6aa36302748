"""A store's entries on the device, updated by what is new rather than copied anew."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fot_jax.memory.store import MemoryStore

SMALLEST_CAPACITY = 256  # entries; a power of two


def power_of_two(least: int) -> int:
    """The smallest power of two >= least (1 for 0)."""
    return 1 << max(0, least - 1).bit_length()


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _write(keys, values, new_keys, new_values, slots):
    """Writes [P, B, T, G, D] at slots [B, T] of [P, B, M, G, D]; a slot M means nowhere."""
    rows = jnp.arange(keys.shape[1])[:, None]
    return (
        keys.at[:, rows, slots].set(new_keys, mode="drop"),
        values.at[:, rows, slots].set(new_values, mode="drop"),
    )


class DeviceCopy:
    """Device arrays [P, B, M, G, D] that mirror a store; M is a power of two.

    Slots are the store's own, so what a full ring overwrites is overwritten here too.
    """

    def __init__(self, store: MemoryStore):
        self.store = store
        self._copied = np.zeros(store.streams, np.int64)
        self._epochs = store.epochs.copy()
        self._allocate(SMALLEST_CAPACITY)

    def _allocate(self, capacity: int) -> None:
        store = self.store
        shape = (len(store.memory_layers), store.streams, capacity, store.kv_heads, store.head_dim)
        self.capacity = capacity
        self.keys, self.values = jnp.zeros(shape, store.dtype), jnp.zeros(shape, store.dtype)
        self._copied[:] = 0

    def refresh(self) -> None:
        """Brings the device arrays up to date; arrays handed out before must not be used again."""
        store = self.store
        need = power_of_two(int(store.lengths.max()))
        if need > self.capacity:
            self._allocate(need)
        self._copied[store.epochs != self._epochs] = 0  # cleared since: all of the stream is new
        self._epochs = store.epochs.copy()
        first = np.maximum(self._copied, store.appended - store.lengths)
        widest = int((store.appended - first).max())
        if widest == 0:
            return
        shape = (len(store.memory_layers), store.streams, power_of_two(widest), store.kv_heads, store.head_dim)
        keys, values = np.zeros(shape, store.dtype), np.zeros(shape, store.dtype)
        slots = np.full(shape[1:3], self.capacity, np.int32)
        for stream in range(store.streams):
            entries = np.arange(first[stream], store.appended[stream])
            new_keys, new_values = store.take(stream, entries)
            keys[:, stream, : len(entries)] = np.swapaxes(new_keys, 1, 2)
            values[:, stream, : len(entries)] = np.swapaxes(new_values, 1, 2)
            slots[stream, : len(entries)] = store.slots(entries)
        self.keys, self.values = _write(self.keys, self.values, keys, values, slots)
        self._copied = store.appended.copy()
