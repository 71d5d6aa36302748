"""Passkey retrieval: a number hidden in filler of any length, to be repeated at the end.

The prompt is read window by window into memory (`fot_jax/infer`), the answer is generated greedily.
A trial is right when the first run of digits in the generated text is the key: models often put a
word before it, and the text after it does not matter.

Source: FoT fig. 1; the prompt is the paper's (`fot_jax/data/synthetic.py`).
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping

from fot_jax.data.seeds import generator
from fot_jax.data.synthetic import Passkey, passkey
from fot_jax.data.vocabulary import Vocabulary
from fot_jax.eval.answering import answer
from fot_jax.eval.journal import Memoize, digest, no_memo
from fot_jax.eval.reading import EvaluatedModel

ANSWER_TOKENS = 12  # a key has at most five digits; byte vocabularies and a word before it fit too


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One prompt and the model's answer.

    Attributes:
      length: tokens of the prompt.
      place: position of the key, as a share of the filler (0 start, 1 end).
      key: the number, as text.
      generated: the model's text.
    """

    length: int
    place: float
    key: str
    generated: str

    @property
    def right(self) -> bool:
        """True if the first digits generated are the key."""
        found = re.search(r"\d+", self.generated)
        return found is not None and found[0] == self.key


def make_trials(vocabulary: Vocabulary, *, length: int, trials: int, seed: int) -> list[Passkey]:
    """Returns the prompts of one length; trial i is the same whatever else is measured.

    Raises:
      UserError: the length leaves no room for the prompt.
    """
    return [
        passkey(generator(seed, "passkey", length, trial), length_tokens=length, vocabulary=vocabulary)
        for trial in range(trials)
    ]


def measure(
    evaluated: EvaluatedModel,
    *,
    vocabulary: Vocabulary,
    lengths: Mapping[int, int],
    batch: int,
    seed: int,
    progress: Callable[[int, int, int], None] = lambda length, done, right: None,
    memoize: Memoize = no_memo,
) -> list[list[Trial]]:
    """Generates the answers.

    Args:
      evaluated: the model and how its memory is read; without memory layers only the last window counts.
      vocabulary: the model's vocabulary.
      lengths: length of the prompts (tokens) -> number of prompts.
      batch: prompts read together.
      seed: seeds keys and places.
      progress: called with (length, trials done, trials right) after each batch.
      memoize: keeps the answers of each batch, see `fot_jax/eval/journal.py`.

    Returns:
      The trials of each length.

    Raises:
      UserError: a length leaves no room for the prompt.
    """
    found = []
    for length, trials in lengths.items():
        prompts = make_trials(vocabulary, length=length, trials=trials, seed=seed)
        done: list[Trial] = []
        for start in range(0, trials, batch):
            asked = prompts[start : start + batch]
            tokens = [prompt.tokens for prompt in asked]
            ask = functools.partial(answer, evaluated, tokens, vocabulary=vocabulary, max_new_tokens=ANSWER_TOKENS)
            texts = memoize((length, start, digest(*tokens)), ask)
            done += [
                Trial(length=len(prompt.tokens), place=prompt.place, key=prompt.answer.strip(), generated=text)
                for prompt, text in zip(asked, texts, strict=True)
            ]
            progress(length, len(done), sum(trial.right for trial in done))
        found.append(done)
    return found
