"""Reading every window of an input but the last into memory."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from fot_jax.config import ModelConfig
from fot_jax.infer.reading import Reading
from fot_jax.infer.shared_past import number_pasts, unique_rows
from fot_jax.infer.steps import absorb, memory_entries
from fot_jax.models.absorb import absorbing_params
from fot_jax.models.cache import init_cache
from fot_jax.models.layer_ranges import up_to_last_memory_layer
from fot_jax.types import KeyValue

TOKENS_AT_ONCE = 4096  # of windows that are processed as one batch


def read_past(
    params: Any, config: ModelConfig, tokens, cuts, reading: Reading, *, overlap: int, piece: int, report
) -> None:
    """Reads every window but the last of each row into memory; rows with fewer windows wait."""
    if not config.memory_layers:
        return
    reader = _PastReader(params, config, reading, piece=piece)
    windows, held, done = max(map(len, cuts)) - 1, None, 0
    for first in range(0, windows, reader.at_once):
        numbers = range(first, min(first + reader.at_once, windows))
        parts = [
            [
                _window(ids, cut, number, repeated=overlap if number else 0)
                for ids, cut in zip(tokens, cuts, strict=True)
            ]
            for number in numbers
        ]
        for number, own, entries in zip(numbers, parts, reader.entries(parts), strict=True):
            kept = np.array([overlap if number < len(cut) - 2 else 0 for cut in cuts])
            held = append_window(reading, entries, np.array([len(part) for part in own]), kept, held)
            done += sum(max(0, len(part) - (overlap if number else 0)) for part in own)
            report(done)


class _PastReader:
    """Computes the entries of windows.

    A window reads the memory of the windows before it if a layer below the last memory layer does. Otherwise windows do
    not depend on each other, and `at_once` of them are processed as one batch.
    """

    def __init__(self, params: Any, config: ModelConfig, reading: Reading, *, piece: int):
        self.config, self.reading, self.pasts = config, reading, reading.pasts()
        self.params, self.piece = absorbing_params(config, params), piece or config.local_context
        self.reads = len(config.memory_layers) > 1
        room = TOKENS_AT_ONCE // (len(self.pasts) * config.local_context)
        self.at_once = 1 if self.reads or piece else max(1, room)

    def entries(self, windows: list[list[Int[np.ndarray, " n"]]]) -> list[KeyValue]:
        """Returns the entries [P, B, W, G, D] of each window; windows: at most `at_once`, one part per row each."""
        config, reading, B = up_to_last_memory_layer(self.config), self.reading, len(self.pasts)
        parts = [part for window in windows for part in window]
        if self.reads:
            self.pasts = number_pasts(self.pasts, parts)
            unique = unique_rows(self.pasts)
        else:  # only the window itself matters
            unique = unique_rows(number_pasts(np.zeros(len(parts), int), parts))
        cache = reading.place(init_cache(config, len(unique.rows)))[0]
        view = reading.view(unique.rows) if self.reads else None
        layout = None if reading.source is None else reading.source.layout
        for block, counts in padded_blocks([parts[row] for row in unique.rows], self.piece):
            cache = absorb(self.params, self.config, block, counts, cache, view, layout)
        found = jax.tree.map(np.asarray, memory_entries(config, cache))
        places = [unique.place[first : first + B] for first in range(0, len(parts), B)]
        return [jax.tree.map(lambda x, place=place: x[:, place], found) for place in places]


def append_window(
    reading: Reading, entries: KeyValue, counts: np.ndarray, kept: np.ndarray, held: KeyValue | None
) -> KeyValue | None:
    """Pushes a window's entries except the newest `kept[b]` of each row; returns those for the next window.

    For tokens that this window read again, `held` has the entries of the first reading, which saw more of the past.
    """
    if held is not None:
        repeated = held.keys.shape[2]
        entries = jax.tree.map(lambda first, x: np.concatenate([first, x[:, :, repeated:]], axis=2), held, entries)
    reading.append_entries(entries, counts - kept)
    if not kept.any():
        return None
    place = np.maximum(counts - kept.max(), 0)[:, None] + np.arange(kept.max())
    return jax.tree.map(lambda x: np.take_along_axis(x, place[None, :, :, None, None], axis=2), entries)


def _window(ids: np.ndarray, cut: list[int], number: int, *, repeated: int) -> np.ndarray:
    """Returns window `number` of a row after the `repeated` tokens before it; nothing from the last window on."""
    start = sum(cut[:number])
    return ids[start - repeated : start + cut[number]] if number < len(cut) - 1 else ids[:0]


def padded_blocks(parts: list[Int[np.ndarray, " n"]], piece: int):
    """Yields rows of different lengths as padded blocks (tokens [B, piece], counts [B])."""
    for start in range(0, max(len(part) for part in parts), piece):
        rows = [part[start : start + piece] for part in parts]
        tokens = np.zeros((len(rows), piece), np.int32)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)] = ids
        yield tokens, np.array([len(ids) for ids in rows], np.int32)
