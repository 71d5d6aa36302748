"""Window-by-window reading of long inputs, as in LongLLaMA.

    |<---- W ---->|<---- W ---->|<-- rest -->|<-- last >= c -->|
       to memory     to memory     to memory    stays in the local cache, for generation

Every window but the last is pushed to memory once it is processed; while it is processed, its memory
layers read the windows before it. Other layers see their own window only. So the result depends on
the cuts: a token near the start of a window has little local context, and knows the past only
through the memory layers. The cuts depend only on the input's length, W (`model.local_context`),
c (`memory.last_context_length`), `memory.last_context` (at least c tokens, or exactly c, as in LongLLaMA)
and o (`memory.overlap`): see `window_lengths_at_least`, `window_lengths_exact`.
Neither the batch nor the piece length changes the cuts, or the result beyond rounding; another c does,
and so does reading a text in two halves.

With an overlap every window but the first and the last begins with the newest o tokens of the one before, read
again so that all layers see them. They go to memory once, as first read, after the window that reads them again:

    W = 8, o = 3    reads a b c d e f g h    memory a b c d e
                          f g h i j k l m    memory a b c d e f g h i j

So every token but the first o of the text and of the last window has o tokens or more of local context. The last
window is the same with and without overlap. Keeping tokens in the cache instead would cost layers without memory
the first token of a window, on which language models put much attention (Xiao et al. 2023, StreamingLLM).

Windows that go to memory are processed up to the last memory layer, as no layer above it writes to
memory, and once for all rows that have read the same so far (shared_past.py).

Source: FoT sec. 3.1, LongLLaMA's inference code.
Differs: LongLLaMA has no overlap; its last window holds exactly c tokens (`memory.last_context = "exact"`); it runs
every layer on every token of the input and computes its logits; here only the last window runs every layer, and only
its last token gets logits.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from fot_jax.compile_time import CompileTime
from fot_jax.config import LastContext, MemoryConfig, ModelConfig, UserError, check
from fot_jax.infer.progress import Progress, ReadProgress
from fot_jax.infer.shared_past import number_pasts, unique_rows
from fot_jax.infer.steps import extend_cache, memory_entries, next_logits, place_on_mesh
from fot_jax.logging import warn_once
from fot_jax.memory.device_copy import power_of_two
from fot_jax.memory.store import MemoryStore
from fot_jax.memory.views import ViewSource
from fot_jax.models.cache import init_cache
from fot_jax.models.layer_ranges import first_layers, up_to_last_memory_layer
from fot_jax.types import KeyValue, LocalCache, MemoryView


@dataclasses.dataclass(kw_only=True)
class Reading:
    """State of a reading, ready to continue; `generate` and `flush_local_cache` change it in place.

    Attributes:
      store: the memory; None for a model without memory layers.
      source: the views of that store.
      cache: the local context.
      lengths: int64 [B], tokens in the local context of each row (the host's copy of cache.lengths).
      logits: float32 [B, V], the next token's.
      keep: tokens a row keeps in the local cache when it overflows.
    """

    store: MemoryStore | None
    source: ViewSource | None
    cache: LocalCache
    lengths: np.ndarray
    logits: jax.Array
    keep: int

    def view(self, rows: np.ndarray | None = None) -> MemoryView | None:
        """Returns a view of the memory as it is now; with `rows`, of these rows alone."""
        return None if self.source is None else self.source.view(rows)

    def place(self, cache: LocalCache, logits: Any = None) -> tuple[LocalCache, Any]:
        """Splits a local cache and logits like a memory on a mesh; returns them unchanged without a mesh."""
        if self.source is None or self.source.layout is None or self.source.mesh is None:
            return cache, logits
        return place_on_mesh(cache, logits, layout=self.source.layout, mesh=self.source.mesh)

    def pasts(self) -> np.ndarray:
        """Returns int [B], a number for each row's past: one for all in a new memory with one stream per row."""
        rows = np.arange(len(self.lengths))
        alike = self.source is not None and self.source.can_select and not self.source.store.appended.any()
        return 0 * rows if alike else rows

    def append_entries(self, entries: KeyValue, counts: np.ndarray) -> None:
        """Appends the first counts[b] entries of each row to its stream (or to the shared one)."""
        if self.store is not None:
            shared = [0] * len(counts) if self.store.streams == 1 else None
            self.store.append(entries, counts, streams=shared)


def window_lengths_at_least(length: int, *, window: int, last: int, overlap: int = 0) -> list[int]:
    """Returns the number of new tokens of each window: full ones, a rest, and a last one of at least `last` tokens.

    With window 8, last 4:   8 -> [8]   13 -> [8, 5]   9 -> [5, 4]   18 -> [8, 6, 4]
    and overlap 3:           8 -> [8]   13 -> [8, 5]   9 -> [5, 4]   18 -> [8, 5, 1, 4]

    An input that fits one window is not cut. The last window has the tokens that full windows without overlap
    would leave, or `last` if that is more; the windows before it are the fewest that hold the rest.

    Args:
      length: tokens of the input, >= 1.
      window: tokens of the local context W.
      last: least length of the last window, 1..W.
      overlap: tokens that each window except the first and the last reads again, < W.
    """
    if length <= window:
        return [length]
    final = max(1 + (length - 1) % window, last)
    first, step = min(length - final, window), window - overlap
    full, rest = divmod(length - final - first, step)
    return [first, *[step] * full, *[rest] * (rest > 0), final]


def window_lengths_exact(length: int, *, window: int, last: int, overlap: int = 0) -> list[int]:
    """Returns the number of new tokens of each window: full ones, a rest, and a last one of exactly `last` tokens.

    With window 8, last 4:   3 -> [3]   8 -> [4, 4]   13 -> [8, 1, 4]
                   last 0:   3 -> [3]   8 -> [8]      13 -> [8, 5]      the last one goes to memory too
    and overlap 3, last 4:   8 -> [4, 4]   18 -> [8, 5, 1, 4]

    Args: as in `window_lengths_at_least`, except `last`: 0..W.

    Source: `_handle_long_input` in LongLLaMA's modeling_longllama.py.
    """
    past = length - min(length, last)
    first, step = min(past, window), window - overlap
    full, rest = divmod(past - first, step)
    cuts = [first, *[step] * full, rest, length - past]
    return [cut for cut in cuts if cut]


def window_lengths(length: int, config: ModelConfig, memory: MemoryConfig) -> list[int]:
    """Returns the cuts that `memory.last_context` asks for."""
    how = {"window": config.local_context, "last": last_context(config, memory), "overlap": memory.overlap}
    return {LastContext.AT_LEAST: window_lengths_at_least, LastContext.EXACT: window_lengths_exact}[
        memory.last_context
    ](length, **how)


def reads_memory(length: int, config: ModelConfig, memory: MemoryConfig) -> bool:
    """True if a memory is read before the local context overflows.

    So it is where an input of this length is cut, and where all of it goes to memory before the first new token.
    """
    cut = len(window_lengths(length, config, memory)) > 1 or last_context(config, memory) == 0
    return bool(config.memory_layers) and cut


def last_context(config: ModelConfig, memory: MemoryConfig) -> int:
    """Returns `memory.last_context_length`; 0 means half of the local context under AT_LEAST, nothing under EXACT."""
    half = max(1, config.local_context // 2) if memory.last_context is LastContext.AT_LEAST else 0
    return memory.last_context_length or half


def check_inputs(config: ModelConfig, tokens: Sequence[np.ndarray]) -> None:
    """Raises UserError unless there are inputs and each holds tokens of the model."""
    check(len(tokens) >= 1, "inputs", "hold at least one input", len(tokens))
    for row, ids in enumerate(tokens):
        if len(ids) == 0:
            raise UserError(f"input {row} must hold at least one token, got an empty one.")
        if min(ids) < 0 or max(ids) >= config.vocab_size:
            bad = next(int(i) for i in ids if not 0 <= i < config.vocab_size)
            allowed = f"token ids in 0..{config.vocab_size - 1}"
            raise UserError(f"input {row} must hold {allowed}, got {bad}. Encode it with the model's vocabulary.")


def _check_devices(params: Any, mesh: Mesh | None) -> None:
    """Raises UserError if parameters are committed to other devices than the mesh's."""
    wanted = None if mesh is None else set(mesh.devices.flat)
    for leaf in jax.tree.leaves(params):
        if wanted is not None and isinstance(leaf, jax.Array) and leaf.committed and leaf.sharding.device_set != wanted:
            held = len(leaf.sharding.device_set)
            raise UserError(
                f"params must be on the {len(wanted)} devices of the mesh, got some on {held}. Move them there:"
                " jax.device_put(params, param_shardings(abstract_params(experiment), mesh))."
            )


def _blocks(parts: list[Int[np.ndarray, " n"]], piece: int):
    """Yields rows of different lengths as padded blocks (tokens [B, piece], counts [B])."""
    for start in range(0, max(len(part) for part in parts), piece):
        rows = [part[start : start + piece] for part in parts]
        tokens = np.zeros((len(rows), piece), np.int32)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)] = ids
        yield tokens, np.array([len(ids) for ids in rows], np.int32)


def read(
    params: Any,
    config: ModelConfig,
    tokens: Sequence[Int[np.ndarray, " n"]],
    *,
    memory: MemoryConfig,
    store: MemoryStore | ViewSource | None = None,
    piece: int = 0,
    mesh: Mesh | None = None,
    progress: Progress = lambda _: None,
) -> Reading:
    """Reads a batch of inputs of different lengths; each row is cut by its own length.

    Args:
      params: unboxed parameters.
      config: the model.
      tokens: one array of token ids per row.
      memory: options of retrieval, budget and windows.
      store: a memory to continue (one stream per row, or one that all rows share and extend, in
        row order: rows then see each other's earlier windows), or its source, with what that has copied or
        indexed already; a new one by default.
      piece: tokens processed at once; 0: a whole window. Smaller pieces need less memory.
      mesh: devices of this process over which the memory, and rows and heads of the local cache, are split
        (`sharding.memory_layout`); parameters must be on it already, or not be committed to any device.
      progress: called after each window.

    Raises:
      UserError: an input is empty or holds ids the model lacks; the store does not fit.
      ConfigError: rows or heads do not divide over the mesh; a memory of ScaNN is not on devices;
        `memory.log_length_scaling_from` would change what fits the local context.
    """
    check_inputs(config, tokens)
    memory.validate_window("memory", config.local_context)
    _check_devices(params, mesh)
    tokens = [np.asarray(ids, np.int32) for ids in tokens]
    reading = start_reading(config, memory, store, batch=len(tokens), mesh=mesh)
    cuts = [window_lengths(len(ids), config, memory) for ids in tokens]
    if not config.memory_layers and max(map(len, cuts)) > 1:
        warn_once("model.memory_layers", "none, so only the last window of a long input counts")
    total = sum(map(len, tokens))
    with progress_reports(reading, progress, total=total) as report:
        _read_past(params, config, tokens, cuts, reading, overlap=memory.overlap, piece=piece, report=report)
        last = [ids[len(ids) - cut[-1] :] for ids, cut in zip(tokens, cuts, strict=True)]
        _read_last(params, config, last, reading, piece=piece)
        if reading.keep == 0 and config.memory_layers:
            flush_local_cache(config, reading)
        report(total)
    return reading


@contextlib.contextmanager
def progress_reports(reading: Reading, progress: Progress, *, total: int) -> Iterator[Callable[[int], None]]:
    """Holds a function that reports that many tokens as read; its clock starts now and stops while JAX compiles."""
    started = time.monotonic()
    with CompileTime() as compiling:

        def report(done: int) -> None:
            seconds = time.monotonic() - started - compiling.seconds
            held = 0 if reading.store is None else reading.store.bytes()
            progress(ReadProgress(tokens_read=done, tokens_total=total, seconds=seconds, memory_bytes=held))

        yield report


def flush_local_cache(config: ModelConfig, reading: Reading) -> None:
    """Pushes the rest of the local cache to memory, at the end of a text, and empties the cache."""
    reading.append_entries(memory_entries(config, reading.cache), reading.lengths)
    cache = reading.cache
    reading.cache = dataclasses.replace(cache, lengths=jnp.zeros_like(cache.lengths))
    reading.lengths = np.zeros_like(reading.lengths)


def _read_past(
    params: Any, config: ModelConfig, tokens, cuts, reading: Reading, *, overlap: int, piece: int, report
) -> None:
    """Reads every window but the last of each row into memory; rows with fewer windows wait."""
    if not config.memory_layers:
        return
    lower, pasts, done = up_to_last_memory_layer(config), reading.pasts(), 0
    params, held = first_layers(lower, params), None
    for number in range(max(map(len, cuts)) - 1):
        repeated = overlap if number else 0
        parts = [_window(ids, cut, number, repeated=repeated) for ids, cut in zip(tokens, cuts, strict=True)]
        pasts = number_pasts(pasts, parts)
        unique = unique_rows(pasts)
        view, cache = reading.view(unique.rows), reading.place(init_cache(lower, len(unique.rows)))[0]
        for block, counts in _blocks([parts[row] for row in unique.rows], piece or config.local_context):
            cache = extend_cache(params, lower, block, counts, cache, view)
        entries = jax.tree.map(lambda x, place=unique.place: np.asarray(x)[:, place], memory_entries(lower, cache))
        kept = np.array([overlap if number < len(cut) - 2 else 0 for cut in cuts])
        held = append_window(reading, entries, np.array([len(part) for part in parts]), kept, held)
        done += sum(max(0, len(part) - repeated) for part in parts)
        report(done)


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


def _read_last(params: Any, config: ModelConfig, parts: list[np.ndarray], reading: Reading, *, piece: int) -> None:
    """Reads the last windows into the local cache."""
    reading.lengths = np.array([len(part) for part in parts])
    view, width = reading.view(), min(config.local_context, power_of_two(int(reading.lengths.max())))
    for block, counts in _blocks(parts, piece or width):
        reading.logits, reading.cache = next_logits(params, config, block, counts, reading.cache, view, reading.logits)
    jax.block_until_ready(reading.logits)


def _window(ids: np.ndarray, cut: list[int], number: int, *, repeated: int) -> np.ndarray:
    """Returns window `number` of a row after the `repeated` tokens before it; nothing from the last window on."""
    start = sum(cut[:number])
    return ids[start - repeated : start + cut[number]] if number < len(cut) - 1 else ids[:0]


def start_reading(
    config: ModelConfig,
    memory: MemoryConfig,
    store: MemoryStore | ViewSource | None,
    *,
    batch: int,
    mesh: Mesh | None = None,
) -> Reading:
    """Returns a reading of `batch` rows that has read nothing yet; arguments and errors as in `read`."""
    source, store = (store, store.store) if isinstance(store, ViewSource) else (None, store)
    if store is None and config.memory_layers:
        store = MemoryStore.for_model(config, streams=batch, budget=memory.budget)
    if store is not None:
        wanted = (config.memory_layers, config.num_kv_heads, config.head_dim)
        got = (store.memory_layers, store.kv_heads, store.head_dim)
        if got != wanted:
            raise UserError(f"memory must have this model's (memory layers, kv heads, head dim) = {wanted}, got {got}.")
        if store.streams not in (1, batch):
            raise UserError(f"memory must have one stream or one per input ({batch}), got {store.streams} streams.")
    reading = Reading(
        store=store,
        source=source if source or store is None else ViewSource(store, memory, mesh=mesh),
        cache=init_cache(config, batch),
        lengths=np.zeros(batch, np.int64),
        logits=jnp.zeros((batch, config.vocab_size), jnp.float32),
        keep=last_context(config, memory),
    )
    reading.cache, reading.logits = reading.place(reading.cache, reading.logits)
    return reading
