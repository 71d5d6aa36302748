"""Perplexity of held-out documents against context, for models that read their past in different ways.

The SAME target windows (W tokens each) are scored at every context n·W, the target included:

    MEMORY   windows t−n+1 … t−1 are read one after another into memory, then the target is scored
    SLIDING  n > 1: the target in STRIDES pieces, each at the end of its own window of W tokens, so that
             every token has at least W − W/STRIDES tokens before it; no more context is read
    FULL     one pass of ordinary causal attention over n·W tokens

At n = 1 all three score the target alone. Source: FoT sec. 5.4, table 4.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from fot_jax.config import ModelConfig, PastReading
from fot_jax.eval.journal import Memoize, digest, no_memo
from fot_jax.eval.perplexity import Sweep, chunk_nats, target_bytes
from fot_jax.eval.reading import EvaluatedModel, check_losses, read_past, score_window
from fot_jax.eval.targets import Documents, choose_targets, gather_tokens
from fot_jax.infer.steps import extend_cache
from fot_jax.models.cache import init_cache
from fot_jax.models.inputs import ReadInputs
from fot_jax.models.transformer import run
from fot_jax.types import LocalCache

STRIDES = 8  # pieces of a target under SLIDING
Nats = Float[np.ndarray, " B"]
Tokens = Int[np.ndarray, "B T"]


def measure(
    evaluated: EvaluatedModel,
    *,
    reading: PastReading,
    documents: Documents,
    token_bytes: Int[np.ndarray, " V"],
    windows: tuple[int, ...],
    most_documents: int,
    per_document: int,
    seed: int,
    batch: int,
    progress: Callable[[int, int], None] = lambda windows, done: None,
    memoize: Memoize = no_memo,
) -> Sweep:
    """Measures the loss of the same targets at each context.

    Args:
      evaluated: the model; FULL and SLIDING leave its memory layers without memory.
      reading: how the model reads the text before the target.
      documents: held-out documents; those with room for the largest context are used.
      token_bytes: UTF-8 bytes of each token id.
      windows: contexts n, in windows of `local_context` tokens, the target included.
      most_documents: documents to use.
      per_document: targets per document.
      seed: seeds the choice of documents.
      batch: targets read together.
      progress: called with (n, targets scored) after each batch.
      memoize: keeps the losses of each batch, see `fot_jax/eval/journal.py`.

    Raises:
      UserError: no document is long enough.
    """
    W, history = evaluated.model.local_context, max(windows) - 1
    targets = choose_targets(
        documents, length=W, history=history, most=most_documents, per_document=per_document, seed=seed
    )
    past, window = gather_tokens(documents, targets=targets, length=W, history=history)
    nats = np.zeros((len(windows), len(targets)))
    for index, n in enumerate(windows):
        for start in range(0, len(targets), batch):
            rows = slice(start, start + batch)
            text = past[rows, (history - n + 1) * W :], window[rows]
            score = functools.partial(_losses, evaluated, *text, reading=reading)
            nats[index, rows] = memoize((n, start, digest(*text)), score)
            progress(n, min(start + batch, len(targets)))
    return Sweep(
        sizes=windows,
        nats=nats,
        num_bytes=target_bytes(window[:, 1:], token_bytes=token_bytes),
        tokens=W,
        targets=tuple(targets),
    )


def _losses(evaluated: EvaluatedModel, past: Tokens, window: Tokens, *, reading: PastReading) -> list[float]:
    return SCORERS[reading](evaluated, past, window).tolist()


def _with_memory(evaluated: EvaluatedModel, past: Tokens, window: Tokens) -> Nats:
    store = read_past(evaluated, past=past)
    return chunk_nats(score_window(evaluated, store=store, tokens=window[:, :-1], targets=window[:, 1:]))


def _sliding(evaluated: EvaluatedModel, past: Tokens, window: Tokens) -> Nats:
    if past.shape[1] == 0:
        return _with_memory(evaluated, past, window)
    W = evaluated.model.local_context
    piece = -(-W // STRIDES)
    text = np.concatenate([past[:, -W:], window], axis=1)  # the target's first token is at W
    total = np.zeros(len(window))
    for start in range(0, W, piece):
        count = min(piece, W - start)
        first = start + count  # the piece's last token is the last of a window of W
        tokens, targets = text[:, first : first + W], text[:, first + 1 : first + W + 1]
        scores = score_window(evaluated, store=None, tokens=tokens, targets=targets)
        total += scores.nats[:, W - count :].astype(np.float64).sum(axis=1)
    return total


def _full(evaluated: EvaluatedModel, past: Tokens, window: Tokens) -> Nats:
    W = evaluated.model.local_context
    length = past.shape[1] + W
    # `dynamic` scaling depends on the context: the model is told how long this one is.
    model = dataclasses.replace(evaluated.model, local_context=length, memory_layers=())
    cache = init_cache(model, len(window))
    counts = np.full(len(window), W, np.int32)
    for start in range(0, past.shape[1], W):
        cache = extend_cache(evaluated.params, model, past[:, start : start + W], counts, cache, None)
    nats = np.asarray(_score_after(evaluated.params, window[:, :-1], window[:, 1:], cache, config=model))
    check_losses(evaluated, nats)
    return nats.astype(np.float64).sum(axis=1)


@functools.partial(jax.jit, static_argnames=("config",))
def _score_after(params, tokens, targets, cache: LocalCache, *, config: ModelConfig):
    """Returns -log p of each target [B, L], given the tokens in the cache."""
    logits = run(config, params, tokens, ReadInputs(cache=cache)).logits
    return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


SCORERS: dict[PastReading, Callable[[EvaluatedModel, Tokens, Tokens], Nats]] = {
    PastReading.MEMORY: _with_memory,
    PastReading.SLIDING: _sliding,
    PastReading.FULL: _full,
}
