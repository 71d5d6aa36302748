"""The memory itself: keys and values per memory layer, key/value head and stream, in host arrays.

A stream is one reader (a batch row) or one memory that many rows share. Its entries are counted
from its last clearing: entry i sits in slot i, or in slot i mod budget when a budget is set, so
that the newest entry overwrites the oldest:

    budget 4, six tokens appended    slot    0  1  2  3
                                     entry   4  5  2  3      entries 0 and 1 are evicted

Source: FoT sec. 3.1, app. B.2. A store that is cleared at a document's end is the paper's
single-doc memory, one that is kept its multi-doc memory.
"""

from collections.abc import Sequence

import numpy as np

from fot_jax.config import MemoryDtype, ModelConfig, UserError, check
from fot_jax.models.layers import DTYPES
from fot_jax.types import KeyValue

SMALLEST_CAPACITY = 64  # slots of a stream's first allocation


class MemoryStore:
    """Append-only memory of several streams, oldest entries evicted under a budget.

    Attributes:
      memory_layers: layer numbers of the model, one per index p.
      streams: number of streams B.
      dtype: of the entries held; int8 has a float32 scale per entry and head, for keys and for values.
      budget: largest number of entries of a stream (per layer and head), 0 for no limit.
      appended: int64 [B], entries appended since the stream was last cleared, evicted ones included.
      epochs: int64 [B], how often the stream was cleared.
    """

    def __init__(
        self,
        *,
        memory_layers: Sequence[int],
        streams: int,
        kv_heads: int,
        head_dim: int,
        dtype: np.dtype = np.dtype(np.float32),
        budget: int = 0,
    ):
        check(len(memory_layers) >= 1, "model.memory_layers", "name at least one layer", tuple(memory_layers))
        check(streams >= 1, "streams", "be >= 1", streams)
        check(budget >= 0, "memory.budget", "be >= 0 (0: unbounded)", budget)
        self.memory_layers = tuple(memory_layers)
        self.streams, self.kv_heads, self.head_dim = streams, kv_heads, head_dim
        self.dtype, self.budget = np.dtype(dtype), budget
        self.appended = np.zeros(streams, np.int64)
        self.epochs = np.zeros(streams, np.int64)
        # For each stream keys and values, with int8 their scales too.
        self._arrays = [self._allocate(0) for _ in range(streams)]
        self._shared: set[int] = set()  # streams whose arrays another store holds too

    @classmethod
    def for_model(
        cls, config: ModelConfig, *, streams: int, budget: int = 0, dtype: MemoryDtype = MemoryDtype.MODEL
    ) -> "MemoryStore":
        """Returns an empty store of a model's shape; MODEL is the dtype in which the model computes."""
        return cls(
            memory_layers=config.memory_layers,
            streams=streams,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=np.dtype(DTYPES[config.dtype] if dtype is MemoryDtype.MODEL else dtype.value),
            budget=budget,
        )

    def fork(self, streams: Sequence[int] | None = None) -> "MemoryStore":
        """Returns a store of the same entries; afterwards each of the two grows without the other.

        Arrays are not copied before one of the two stores appends to their stream.

        Args:
          streams: the streams to take, in order; all by default.
        """
        chosen = list(range(self.streams) if streams is None else streams)
        for stream in chosen:
            check(0 <= stream < self.streams, "stream", f"be in 0..{self.streams - 1}", stream)
        forked = MemoryStore(
            memory_layers=self.memory_layers,
            streams=len(chosen),
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
            budget=self.budget,
        )
        forked.appended, forked.epochs = self.appended[chosen], self.epochs[chosen]
        forked._arrays = [self._arrays[stream] for stream in chosen]
        forked._shared = set(range(len(chosen)))
        self._shared.update(chosen)
        return forked

    def _allocate(self, slots: int) -> tuple[np.ndarray, ...]:
        shape = len(self.memory_layers), self.kv_heads, slots
        entries = tuple(np.zeros((*shape, self.head_dim), self.dtype) for _ in range(2))
        return entries + tuple(np.zeros((*shape, 1), np.float32) for _ in range(2 * self.quantised))

    @property
    def quantised(self) -> bool:
        """Whether entries are held as int8 with scales."""
        return self.dtype == np.int8

    @property
    def lengths(self) -> np.ndarray:
        """int64 [B], entries each stream holds (per layer and head)."""
        return np.minimum(self.appended, self.budget) if self.budget else self.appended.copy()

    @property
    def entry_bytes(self) -> int:
        """Bytes of one token in all memory layers and heads: 2 · P · G · (D · itemsize, and 4 of an int8 scale)."""
        return 2 * len(self.memory_layers) * self.kv_heads * (self.head_dim * self.dtype.itemsize + 4 * self.quantised)

    def bytes(self) -> int:
        """Bytes of the entries held (allocations are at most twice that)."""
        return int(self.lengths.sum()) * self.entry_bytes

    def append(self, entries: KeyValue, token_counts: np.ndarray, *, streams: Sequence[int] | None = None) -> None:
        """Appends the first `token_counts[r]` entries of each row r to its stream, oldest first.

        Args:
          entries: keys and values [P, R, L, G, D], keys not rotated.
          token_counts: int [R], at most L; the tokens after them are padding and not read.
          streams: the stream of each row; row r goes to stream r by default. Rows of one stream
            are appended in row order.

        Raises:
          UserError: shapes are not this store's, or an entry holds NaN or infinity (nothing is
            appended then).
        """
        keys, values = np.asarray(entries.keys), np.asarray(entries.values)
        streams = range(keys.shape[1]) if streams is None else streams
        counts = np.asarray(token_counts)
        self._check_shapes(keys, values, counts, streams)
        for row, stream in enumerate(streams):
            self._check_finite(keys[:, row, : counts[row]], values[:, row, : counts[row]], stream)
        for row, stream in enumerate(streams):
            self._append_row(keys[:, row, : counts[row]], values[:, row, : counts[row]], stream)

    def _check_shapes(self, keys: np.ndarray, values: np.ndarray, counts: np.ndarray, streams: Sequence[int]) -> None:
        rows = keys.shape[1] if keys.ndim == 5 else -1
        want = (len(self.memory_layers), rows, keys.shape[2] if keys.ndim == 5 else -1, self.kv_heads, self.head_dim)
        fits = keys.shape == want and values.shape == want
        check(fits, "entries", f"have shape [P, R, L, G, D] = {want}", keys.shape)
        check(
            counts.shape == (rows,) and bool(np.all((counts >= 0) & (counts <= keys.shape[2]))),
            "token_counts",
            f"hold {rows} numbers in 0..{keys.shape[2]}",
            counts.tolist(),
        )
        check(
            len(streams) == rows and all(0 <= stream < self.streams for stream in streams),
            "streams",
            f"name one of the store's {self.streams} streams for each of {rows} rows",
            list(streams),
        )

    def _check_finite(self, keys: np.ndarray, values: np.ndarray, stream: int) -> None:
        for name, array in (("keys", keys), ("values", values)):
            finite = np.isfinite(array.astype(np.float32, copy=False))
            if not finite.all():
                p, token, head, _ = np.argwhere(~finite)[0]
                got = array[p, token, head][~finite[p, token, head]][0]
                raise UserError(
                    f"memory {name} must be finite, got {got} in memory layer {self.memory_layers[p]}, key/value head "
                    f"{head}, stream {stream}, entry {self.appended[stream] + token}. Check the model's parameters."
                )

    def _append_row(self, keys: np.ndarray, values: np.ndarray, stream: int) -> None:
        first, count = int(self.appended[stream]), keys.shape[1]
        if count == 0:
            return
        self._reserve(stream, first + count)
        kept = min(count, self.budget) if self.budget else count
        slots = self.slots(np.arange(first + count - kept, first + count))
        newest = (np.swapaxes(x[:, count - kept :], 1, 2) for x in (keys, values))
        for held, new in zip(self._arrays[stream], self._encoded(*newest), strict=True):
            held[:, :, slots] = new
        self.appended[stream] = first + count

    def _encoded(self, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, ...]:
        if not self.quantised:
            return keys, values
        (keys, key_scales), (values, value_scales) = quantise(keys), quantise(values)
        return keys, values, key_scales, value_scales

    def _reserve(self, stream: int, entries: int) -> None:
        need = min(entries, self.budget) if self.budget else entries
        have = self._arrays[stream][0].shape[2]
        if need <= have and stream not in self._shared:
            return
        grown = have if need <= have else max(need, 2 * have, SMALLEST_CAPACITY)
        grown = min(grown, self.budget) if self.budget else grown
        larger = self._allocate(grown)
        for new, old in zip(larger, self._arrays[stream], strict=True):
            new[:, :, :have] = old
        self._arrays[stream] = larger
        self._shared.discard(stream)

    def clear(self, stream: int) -> None:
        """Forgets a stream (the end of a document in single-doc use) and frees its arrays."""
        check(0 <= stream < self.streams, "stream", f"be in 0..{self.streams - 1}", stream)
        self.appended[stream] = 0
        self.epochs[stream] += 1
        self._arrays[stream] = self._allocate(0)

    def slots(self, entries: np.ndarray) -> np.ndarray:
        """Returns the slots of entries (counted from the last clearing)."""
        return entries % self.budget if self.budget else entries

    def live(self, stream: int) -> np.ndarray:
        """int64 [M], the entries a stream holds, oldest first."""
        return np.arange(self.appended[stream] - self.lengths[stream], self.appended[stream])

    def take(self, stream: int, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns keys and values [P, G, n, D] of some live entries of a stream, in float32 where they are int8."""
        keys, values, *scales = self.stored(stream, slice(None), entries)
        return (keys * scales[0], values * scales[1]) if scales else (keys, values)

    def stored(self, stream: int, layers: int | slice, entries: np.ndarray) -> tuple[np.ndarray, ...]:
        """Returns what is held of some live entries: keys and values [P, G, n, D], of int8 their scales [P, G, n, 1].

        Args:
          stream: the stream.
          layers: all memory layers as slice(None), or one by its number p; results then lack the axis P.
          entries: counted from the last clearing.
        """
        slots = self.slots(entries)
        return tuple(array[layers][..., slots, :] for array in self._arrays[stream])

    def restore(self, stream: int, *arrays: np.ndarray) -> None:
        """Makes what `stored` returned of all layers the entries of an empty stream; of them the newest fit a budget.

        Raises:
          UserError: an entry holds NaN or infinity.
        """
        assert not self.appended[stream]
        count = arrays[0].shape[2]
        kept = min(count, self.budget) if self.budget else count
        keys, values = (np.swapaxes(x, 1, 2) for x in (arrays[2:] or arrays))
        self._check_finite(keys, values, stream)
        self._reserve(stream, count)
        slots = self.slots(np.arange(count - kept, count))
        for held, new in zip(self._arrays[stream], arrays, strict=True):
            held[:, :, slots] = new[:, :, count - kept :]
        self.appended[stream] = count

    def keys(self, slot: int, stream: int, kv_head: int, slots: np.ndarray) -> np.ndarray:
        """Returns the keys of `head` alone."""
        keys, _, *scales = self._arrays[stream]
        found = keys[slot, kv_head][slots]
        return found * scales[0][slot, kv_head][slots] if scales else found

    def head(self, slot: int, stream: int, kv_head: int, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns keys and values [n, D] of one memory layer, stream and head at some slots; of int8 in float32."""
        keys, values, *scales = (array[slot, kv_head][slots] for array in self._arrays[stream])
        return (keys * scales[0], values * scales[1]) if scales else (keys, values)


def quantise(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns int8 codes and float32 scales [..., 1] with x ≈ codes · scales: the largest of a vector is ±127.

    The error of each component is at most half a scale, 1/254 of the vector's largest component.
    """
    x = x.astype(np.float32, copy=False)
    scales = np.abs(x).max(axis=-1, keepdims=True, initial=0) / np.float32(127)
    steps = np.divide(x, scales, out=np.zeros_like(x), where=scales > 0)
    return np.clip(np.rint(steps), -127, 127).astype(np.int8), scales
