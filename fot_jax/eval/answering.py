"""Greedy answers to batches of prompts, each read window by window into memory."""

from collections.abc import Sequence

import numpy as np

from fot_jax.data.vocabulary import Vocabulary
from fot_jax.eval.reading import EvaluatedModel
from fot_jax.infer.generate import FINISHED, generate
from fot_jax.infer.sampling import SamplingConfig
from fot_jax.infer.windows import read


def answer(
    evaluated: EvaluatedModel, prompts: Sequence[Sequence[int]], *, vocabulary: Vocabulary, max_new_tokens: int
) -> list[str]:
    """Returns the text that the model generates after each prompt.

    Args:
      evaluated: the model and how its memory is read; without memory layers only the last window counts.
      prompts: token ids, of any lengths.
      vocabulary: the model's vocabulary.
      max_new_tokens: most new tokens per prompt; an end token of the vocabulary ends the text earlier.
    """
    tokens = [np.asarray(prompt, np.int32) for prompt in prompts]
    reading = read(evaluated.params, evaluated.model, tokens, memory=evaluated.memory)
    steps = generate(
        evaluated.params,
        evaluated.model,
        reading,
        sampling=SamplingConfig(vocab_limit=vocabulary.size),
        max_new_tokens=max_new_tokens,
        end_ids=vocabulary.end_ids,
    )
    columns = np.stack(list(steps), axis=1)
    stop = (FINISHED, *vocabulary.end_ids)
    return [vocabulary.decode([int(token) for token in row if token not in stop]) for row in columns]
