"""Reading for every measurement: past text window by window into memory, then one scored window.

Windows are read as LongLLaMA reads them (`fot_jax/infer`), except that all of the past goes to memory and
the scored window starts with an empty local context. So a token sees exactly its own window and the
memory, and a memory of m contexts holds m contexts. For the same reason windows do not overlap here:
`memory.overlap` is for inputs that `fot_jax/infer` reads (passkey, needle).
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from fot_jax.config import MemoryConfig, MemoryPositions, ModelConfig, UserError
from fot_jax.logging import warn_once
from fot_jax.memory.store import MemoryStore
from fot_jax.memory.views import ViewSource, make_view
from fot_jax.models.absorb import AbsorbingParams, absorb_window, absorbing_params
from fot_jax.models.inputs import ReadInputs
from fot_jax.models.transformer import run
from fot_jax.types import KeyValue, MemoryView


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model under measurement.

    Attributes:
      label: its name in tables and plots.
      params: its parameters, unboxed.
      model: its config; `memory_layers` are those that read memory while it is measured.
      memory: how it retrieves. `budget` is not applied, as the measurements set the memory's size; nor is
        `overlap` in `read_past`.
    """

    label: str
    params: Any
    model: ModelConfig
    memory: MemoryConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenScores:
    """Teacher-forced scores of a window.

    Attributes:
      nats: float32 [B, L], -log p(target) at each position.
      predicted: int32 [B, L], the most likely token at each position.
    """

    nats: np.ndarray
    predicted: np.ndarray


def borrow_memory_layers(model: ModelConfig, *, lender: ModelConfig) -> ModelConfig:
    """Returns the config that measures a model without memory layers with memory, in another model's layers.

    Such a model was trained with positions everywhere, so its memory is read at position 0 (`rope0`);
    nothing changes while no memory is given. A model with memory layers of its own keeps them.
    """
    if model.memory_layers:
        return model
    if max(lender.memory_layers, default=-1) >= model.num_layers:
        raise UserError(
            f"the baseline has {model.num_layers} layers and none of its own reads memory; it cannot borrow"
            f" memory_layers={lender.memory_layers}. Set model.memory_layers in its config."
        )
    return dataclasses.replace(model, memory_layers=lender.memory_layers, memory_positions=MemoryPositions.ROPE0)


@functools.partial(jax.jit, static_argnames=("config",))
def _window_entries(
    params: AbsorbingParams, tokens, segments, memory: MemoryView | None, *, config: ModelConfig
) -> KeyValue:
    """Returns keys and values of one window in the memory layers."""
    return absorb_window(config, params, tokens, ReadInputs(segments=segments, memory=memory))


@functools.partial(jax.jit, static_argnames=("config",))
def _score(params, tokens, targets, segments, memory: MemoryView | None, *, config: ModelConfig):
    """Returns (nats, most likely tokens), both [B, L]."""
    logits = run(config, params, tokens, ReadInputs(segments=segments, memory=memory)).logits
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked, jnp.argmax(logits, axis=-1).astype(jnp.int32)


def read_past(evaluated: EvaluatedModel, *, past: Int[np.ndarray, "B T"]) -> MemoryStore | None:
    """Reads T tokens per row, `local_context` at a time from an empty memory; None where T = 0.

    Each window reads with the memory that the windows before it left. The last one may be shorter. `memory.overlap`
    is not applied, which is logged once.
    """
    if past.shape[1] == 0:
        return None
    if evaluated.memory.overlap:
        warn_once("memory.overlap", "not applied: in this task the windows of the past do not overlap")
    store = MemoryStore.for_model(evaluated.model, streams=past.shape[0], dtype=evaluated.memory.dtype)
    source = ViewSource(store, evaluated.memory)
    length, params = evaluated.model.local_context, absorbing_params(evaluated.model, evaluated.params)
    reads = len(evaluated.model.memory_layers) > 1  # else nothing that the memory gives reaches an entry
    for start in range(0, past.shape[1], length):
        window = past[:, start : start + length]
        count = window.shape[1]
        padding = ((0, 0), (0, length - count))
        entries = _window_entries(
            params,
            np.pad(window, padding),
            np.pad(np.ones_like(window), padding),
            source.view() if start and reads else None,
            config=evaluated.model,
        )
        store.append(entries, np.full(past.shape[0], count))
    return store


def score_window(
    evaluated: EvaluatedModel,
    *,
    store: MemoryStore | None,
    tokens: Int[np.ndarray, "B L"],
    targets: Int[np.ndarray, "B L"],
    padding: Bool[np.ndarray, "B L"] | None = None,
) -> TokenScores:
    """Scores one window of at most `local_context` tokens with its local context and a memory.

    Args:
      evaluated: the model.
      store: one stream per row, or one stream for all; None: no memory.
      tokens: the window.
      targets: the token that follows at each position.
      padding: True where a token is padding, which no other token sees.

    Raises:
      UserError: a loss is NaN or infinite.
    """
    segments = np.ones_like(tokens) if padding is None else (~padding).astype(tokens.dtype)
    view = None if store is None else make_view(store, evaluated.memory)
    nats, predicted = _score(evaluated.params, tokens, targets, segments, view, config=evaluated.model)
    nats = np.asarray(nats)
    check_losses(evaluated, np.where(segments > 0, nats, 0))
    return TokenScores(nats=nats, predicted=np.asarray(predicted))


def check_losses(evaluated: EvaluatedModel, nats: Float[np.ndarray, "B L"]) -> None:
    """Raises UserError if a loss is NaN or infinite, as a mean over it says nothing."""
    bad = np.argwhere(~np.isfinite(nats))
    if len(bad):
        row, place = bad[0]
        raise UserError(
            f"losses of {evaluated.label} must be finite, got {nats[row, place]} at token {place} of row {row}."
            " Check the model's parameters."
        )


def join_rows(evaluated: EvaluatedModel, *, store: MemoryStore, shifts: Iterable[int]) -> MemoryStore | None:
    """Returns a memory whose row i holds the entries of rows i + shift (mod rows) in turn; None if it is empty."""
    joined = MemoryStore.for_model(evaluated.model, streams=store.streams, dtype=evaluated.memory.dtype)
    for shift in shifts:
        for stream in range(store.streams):
            entries = store.live((stream + shift) % store.streams)
            keys, values = store.take((stream + shift) % store.streams, entries)  # [P, G, n, D]
            rows = KeyValue(keys=keys.swapaxes(1, 2)[:, None], values=values.swapaxes(1, 2)[:, None])
            joined.append(rows, np.asarray([len(entries)]), streams=[stream])
    return joined if joined.lengths.any() else None
