"""Window-by-window reading of long inputs, as in LongLLaMA.

    |<---- W ---->|<---- W ---->|<-- rest -->|<-- last >= c -->|
       to memory     to memory     to memory    stays in the local cache, for generation

Every window but the last is pushed to memory once it is processed; while it is processed, its memory
layers read the windows before it. Other layers see their own window only. So the result depends on
the cuts: a token near the start of a window has little local context, and knows the past only
through the memory layers. The cuts depend only on the input's length, W (`model.local_context`),
c (`memory.last_context_length`), `memory.last_context` (at least c tokens, or exactly c, as in LongLLaMA)
and o (`memory.overlap`): see `window_lengths_at_least`, `window_lengths_exact` (cuts.py).
Neither the batch nor the piece length changes the cuts, or the result beyond rounding; another c does,
and so does reading a text in two halves.

With an overlap every window but the first and the last begins with the newest o tokens of the one before, read
again so that all layers see them. They go to memory once, as first read, after the window that reads them again:

    W = 8, o = 3    reads a b c d e f g h    memory a b c d e
                          f g h i j k l m    memory a b c d e f g h i j

So every token but the first o of the text and of the last window has o tokens or more of local context. The last
window is the same with and without overlap. Keeping tokens in the cache instead would cost layers without memory
the first token of a window, on which language models put much attention (Xiao et al. 2023, StreamingLLM).

Windows that go to memory are processed up to the keys and values of the last memory layer, as nothing above them
writes to memory (models/absorb.py), and once for all rows that have read the same so far (shared_past.py). A model
with one memory layer does not read the memory while it fills it, so its windows are processed several at once.

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
from fot_jax.config import MemoryConfig, ModelConfig, UserError, check
from fot_jax.infer.cuts import window_lengths
from fot_jax.infer.past import padded_blocks, read_past
from fot_jax.infer.progress import Progress, ReadProgress
from fot_jax.infer.reading import Reading, start_reading
from fot_jax.infer.steps import memory_entries, next_logits
from fot_jax.logging import warn_once
from fot_jax.memory.device_copy import power_of_two
from fot_jax.memory.store import MemoryStore
from fot_jax.memory.views import ViewSource


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
        read_past(params, config, tokens, cuts, reading, overlap=memory.overlap, piece=piece, report=report)
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


def _read_last(params: Any, config: ModelConfig, parts: list[np.ndarray], reading: Reading, *, piece: int) -> None:
    """Reads the last windows into the local cache."""
    reading.lengths = np.array([len(part) for part in parts])
    view, width = reading.view(), min(config.local_context, power_of_two(int(reading.lengths.max())))
    for block, counts in padded_blocks(parts, piece or width):
        reading.logits, reading.cache = next_logits(params, config, block, counts, reading.cache, view, reading.logits)
    jax.block_until_ready(reading.logits)
