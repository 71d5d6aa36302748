"""Log-probabilities of given tokens: of a text read window by window, or of a continuation forced after a reading.

score_windows    a b c d | e f g h | i j    each token by its window and the memory of the windows before it;
a b c   d e f g   h i    the first of a window by the last of the window before; a is only read
score_forced     prompt -> x y z            each token as `generate` would have scored it after the ones before
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from fot_jax.config import MemoryConfig, ModelConfig, UserError
from fot_jax.infer.cuts import window_lengths
from fot_jax.infer.generate import make_room
from fot_jax.infer.past import append_window
from fot_jax.infer.progress import Progress
from fot_jax.infer.reading import Reading
from fot_jax.infer.steps import memory_entries, score_tokens
from fot_jax.infer.windows import check_inputs, progress_reports
from fot_jax.memory.device_copy import power_of_two
from fot_jax.models.cache import init_cache

_log_softmax = jax.jit(jax.nn.log_softmax)


def score_windows(
    params: Any,
    config: ModelConfig,
    tokens: Int[np.ndarray, " n"],
    reading: Reading,
    *,
    memory: MemoryConfig,
    progress: Progress = lambda _: None,
) -> Float[np.ndarray, " n-1"]:
    """Returns log p(tokens[i + 1] | tokens[: i + 1], memory) in nats, for each i, cut as `windows.read` cuts.

    With `memory.overlap` the tokens that a window reads again keep the score of their first reading.

    Args:
      params: unboxed parameters.
      config: the model.
      tokens: one text.
      reading: of one row, from `start_reading`; its memory grows by all windows but the last.
      memory: options of windows.
      progress: called after each window.

    Raises:
      UserError: ids that the model lacks, or a score is not finite.
    """
    check_inputs(config, [tokens])
    cuts, scores, start, held = window_lengths(len(tokens), config, memory), [], 0, None
    following = np.append(tokens[1:], tokens[:1])  # the last one's is dropped
    with progress_reports(reading, progress, total=len(tokens)) as report:
        for number, cut in enumerate(cuts):
            last = number == len(cuts) - 1
            again = memory.overlap if number > 0 and not last else 0
            window, counts = slice(start - again, start + cut), np.array([again + cut], np.int32)
            block, targets = (_padded(ids[window], config.local_context) for ids in (tokens, following))
            cache, _ = reading.place(init_cache(config, 1))
            found, cache = score_tokens(params, config, block, targets, counts, cache, reading.view())
            scores.append(np.asarray(found)[0, again : again + cut])
            if not last and config.memory_layers:
                kept = np.array([memory.overlap if number < len(cuts) - 2 else 0])
                entries = jax.tree.map(np.asarray, memory_entries(config, cache))
                held = append_window(reading, entries, counts, kept, held)
            start += cut
            report(start)
    return _finite(np.concatenate(scores)[:-1])


def score_forced(
    params: Any, config: ModelConfig, tokens: Int[np.ndarray, " n"], reading: Reading
) -> Float[np.ndarray, " n"]:
    """Returns log p(tokens[i] | what was read, tokens[:i]) in nats, for each i, as `generate` computes it.

    Tokens are fed as many at once as fit the local cache, which slides where that of `generate` does.

    Args:
      params: unboxed parameters.
      config: the model.
      tokens: the continuation.
      reading: of one row, from `read`; changed in place. The last token is not in it.

    Raises:
      UserError: ids that the model lacks, or a score is not finite.
    """
    check_inputs(config, [tokens])
    scores = [np.asarray(_log_softmax(reading.logits))[0, tokens[:1]]]
    fed = 0
    while fed < len(tokens) - 1:
        make_room(config, reading, np.array([1]))
        count = min(config.local_context - int(reading.lengths[0]), len(tokens) - 1 - fed)
        width = min(config.local_context, power_of_two(count))
        block, targets = (_padded(ids[:count], width) for ids in (tokens[fed:], tokens[fed + 1 :]))
        counts = np.array([count], np.int32)
        found, reading.cache = score_tokens(params, config, block, targets, counts, reading.cache, reading.view())
        scores.append(np.asarray(found)[0, :count])
        reading.lengths = reading.lengths + count
        fed += count
    return _finite(np.concatenate(scores))


def _padded(ids: np.ndarray, width: int) -> Int[np.ndarray, "1 width"]:
    """Returns the tokens as one row of a fixed width."""
    return np.pad(ids, (0, width - len(ids))).astype(np.int32)[None]


def _finite(scores: np.ndarray) -> np.ndarray:
    """Returns the scores. Raises UserError if one is NaN or infinite."""
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise UserError(f"scores must be finite, got {scores[bad[0]]} at place {bad[0]}. Check the model's parameters.")
    return scores
