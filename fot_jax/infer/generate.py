"""Token-by-token generation after a reading, with a local cache that overflows into memory.

    W = 8, last context 4     cache  a b c d e f g h   full, one token is to be added
                              ->     memory … a b c d    cache  e f g h i

When a row's cache is full, its oldest W − c entries leave it. Entries of memory layers go to memory, the
other layers forget theirs. In every layer the remaining entries move to the front.

Differs: LongLLaMA moves the whole cache at once and leaves the other layers without any context; so does this module
where `memory.last_context = "exact"` and `memory.last_context_length = 0`.
"""

from collections.abc import Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fot_jax.config import ModelConfig, UserError, check
from fot_jax.infer.reading import Reading
from fot_jax.infer.sampling import SamplingConfig, sample
from fot_jax.infer.steps import decode_logits, slide
from fot_jax.models.layer_ranges import unscanned

FINISHED = -1  # yielded instead of a token by a row that has ended

_all_finite = jax.jit(lambda logits: jnp.isfinite(logits).all(axis=-1))


def make_room(config: ModelConfig, reading: Reading, wanted: np.ndarray) -> bool:
    """Slides the rows whose caches cannot take wanted[b] (0 or 1) more tokens; True if any slid."""
    W = config.local_context
    full = reading.lengths + wanted > W
    if not full.any():
        return False
    counts = np.where(full, W - min(reading.keep, W - 1), 0).astype(np.int32)
    slid, leaving = slide(config, reading.cache, counts)
    reading.cache, _ = reading.place(slid)
    reading.lengths = reading.lengths - counts
    reading.append_entries(leaving, counts)
    return True


def decoding_params(config: ModelConfig, params: Any) -> tuple[ModelConfig, Any]:
    """Returns model and parameters as `generate` wants them; on CPUs a copy, which one may keep for later calls."""
    if not config.scan_layers or jax.default_backend() != "cpu":
        return config, params  # on TPUs a scan takes less memory and traffic (experiments/performance.md)
    return unscanned(config, params)


def generate(
    params: Any,
    config: ModelConfig,
    reading: Reading,
    *,
    sampling: SamplingConfig,
    max_new_tokens: int,
    end_ids: Collection[int] = (),
) -> Iterator[np.ndarray]:
    """Yields the next token of every row, int32 [B], as soon as it is chosen.

    A row that has yielded one of `end_ids` yields FINISHED from then on; the iterator ends with the last row.
    Each token is written into the arrays of `reading.cache`, copied at the first one: from then on nothing else may
    hold them, and after an error (or Ctrl-C) within a step the reading cannot go on.
    A row's tokens do not depend on the other rows (beyond rounding), on their number or lengths;
    sampled tokens depend on the row's place in the batch, which seeds its draws.

    Args:
      params: unboxed parameters.
      config: the model.
      reading: from `read`; changed in place. The last token yielded is not in it.
      sampling: how tokens are chosen.
      max_new_tokens: most new tokens per row.
      end_ids: the tokens that end a row; none: rows end only by max_new_tokens.

    Raises:
      UserError: logits are not finite.
    """
    sampling.validate("sampling")
    check(max_new_tokens >= 1, "max_new_tokens", "be >= 1", max_new_tokens)
    alive = np.ones(len(reading.lengths), bool)
    view = reading.view()
    for step in range(max_new_tokens):
        finite = np.asarray(_all_finite(reading.logits))
        if not finite.all():
            where = f"row {np.argmin(finite)} at new token {step}"
            raise UserError(f"logits must be finite, got NaN or infinity in {where}. Check the model's parameters.")
        tokens = np.where(alive, np.asarray(sample(reading.logits, sampling, step=step)), FINISHED).astype(np.int32)
        yield tokens
        alive &= ~np.isin(tokens, list(end_ids))
        if not alive.any() or step == max_new_tokens - 1:
            return
        counts = alive.astype(np.int32)
        if step == 0:
            single, own = decoding_params(config, params)  # not for the first token: `read` has computed its logits
            reading.cache = jax.tree.map(jnp.copy, reading.cache)  # others may hold it; each step writes into its own
        if make_room(config, reading, counts):
            view = reading.view()
        fed = np.maximum(tokens, 0)[:, None]
        reading.logits, reading.cache = decode_logits(own, single, fed, counts, reading.cache, view, reading.logits)
        reading.lengths = reading.lengths + counts
