"""Greedy answers to batches of prompts, each read window by window into memory."""

from collections.abc import Sequence

from fot_jax.data.vocabulary import Vocabulary
from fot_jax.eval.reading import EvaluatedModel
from fot_jax.library import Model


def answer(
    evaluated: EvaluatedModel, prompts: Sequence[Sequence[int]], *, vocabulary: Vocabulary, max_new_tokens: int
) -> list[str]:
    """Returns the text that the model generates after each prompt, read as one batch.

    Args:
      evaluated: the model and how its memory is read; without memory layers only the last window counts.
      prompts: token ids, of any lengths.
      vocabulary: the model's vocabulary.
      max_new_tokens: most new tokens per prompt; an end token of the vocabulary ends the text earlier.
    """
    model = Model(
        config=evaluated.model,
        memory=evaluated.memory,
        params=evaluated.params,
        vocabulary=vocabulary,
        fingerprint=evaluated.label,
    )
    return model.new_memory().ask_each(prompts, max_new_tokens=max_new_tokens)
