"""Needle tasks after RULER: the share of the strings asked for that the model repeats from a long prompt.

The prompt is read window by window into memory (`fot_jax/infer`), the answer is generated greedily.
A trial's recall is the share of the expected strings that occur in the generated text, in upper or
lower case; a trial is right when all of them occur.

Source: Hsieh et al. 2024, "RULER" (arXiv 2404.06654), its string match; the prompts are those of
`fot_jax/data/needles.py`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from fot_jax.config import NeedleKind, UserError
from fot_jax.data.needles import NeedlePrompt, needle_prompt
from fot_jax.data.seeds import generator
from fot_jax.data.vocabulary import Vocabulary
from fot_jax.eval.answering import answer
from fot_jax.eval.journal import Memoize, digest, no_memo
from fot_jax.eval.reading import EvaluatedModel

# A number takes about as many bytes as sub-words with single digits; a word takes more bytes than sub-words.
ANSWER_TOKENS = {
    NeedleKind.SINGLE: 32,
    NeedleKind.MULTI_KEY: 32,
    NeedleKind.MULTI_VALUE: 96,
    NeedleKind.MULTI_QUERY: 96,
    NeedleKind.VARIABLE_TRACKING: 64,
    NeedleKind.COMMON_WORDS: 192,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One prompt and the model's answer.

    Attributes:
      kind: kind of the prompt.
      length: tokens of the prompt.
      places: positions of the statements asked about, as shares of the filler (0 start, 1 end).
      answers: the strings expected.
      generated: the model's text.
    """

    kind: NeedleKind
    length: int
    places: tuple[float, ...]
    answers: tuple[str, ...]
    generated: str

    @property
    def recall(self) -> float:
        """Share of the expected strings found in the text."""
        text = self.generated.lower()
        return sum(expected.lower() in text for expected in self.answers) / len(self.answers)

    @property
    def right(self) -> bool:
        """True if all expected strings are found."""
        return self.recall == 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleResult:
    """The trials of one kind and length.

    Attributes:
      kind: kind of the prompts.
      length: tokens wanted; a prompt is at most that long, and as near to it as its filler allows.
      trials: at least one.
    """

    kind: NeedleKind
    length: int
    trials: tuple[Trial, ...]

    @property
    def recalls(self) -> list[float]:
        """Recall of each trial."""
        return [trial.recall for trial in self.trials]

    @property
    def num_right(self) -> int:
        """Number of right trials."""
        return sum(trial.right for trial in self.trials)


Prompts = Mapping[tuple[NeedleKind, int], Sequence[NeedlePrompt]]  # by kind and length


def make_prompts(
    vocabulary: Vocabulary, *, kinds: Sequence[NeedleKind], lengths: Sequence[int], trials: int, seed: int
) -> Prompts:
    """Returns the prompts of every kind and length; trial i is the same whatever else is measured.

    Args:
      vocabulary: counts the tokens.
      kinds: kinds of prompts.
      lengths: tokens of the prompts.
      trials: prompts of each kind and length.
      seed: seeds keys, values and places.

    Raises:
      UserError: a length leaves no room for a kind's prompt.
    """
    try:
        return {
            (kind, length): [
                needle_prompt(
                    generator(seed, "needle", kind.value, length, trial),
                    kind=kind,
                    length_tokens=length,
                    vocabulary=vocabulary,
                )
                for trial in range(trials)
            ]
            for kind in kinds
            for length in lengths
        }
    except UserError as error:
        fix = "Change evaluation.needle_tokens, or leave the kind out of evaluation.needle_kinds."
        raise UserError(f"{error} {fix}") from error


def measure(
    evaluated: EvaluatedModel,
    *,
    vocabulary: Vocabulary,
    prompts: Prompts,
    batch: int,
    progress: Callable[[NeedleResult], None] = lambda found: None,
    memoize: Memoize = no_memo,
) -> list[NeedleResult]:
    """Generates the answers.

    Args:
      evaluated: the model and how its memory is read; without memory layers only the last window counts.
      vocabulary: the model's vocabulary.
      prompts: from `make_prompts`.
      batch: prompts read together.
      progress: called after each batch with the trials of its kind and length so far.
      memoize: keeps the answers of each batch, see `fot_jax/eval/journal.py`.

    Returns:
      The trials of each kind and length, in the order of `prompts`.
    """
    results = []
    for (kind, length), asked in prompts.items():
        found = NeedleResult(kind=kind, length=length, trials=())
        for start in range(0, len(asked), batch):
            batched = asked[start : start + batch]
            ask = functools.partial(_ask, evaluated, batched, vocabulary=vocabulary)
            texts = memoize((kind.value, length, start, digest(*(prompt.tokens for prompt in batched))), ask)
            found = dataclasses.replace(found, trials=found.trials + _trials(batched, texts))
            progress(found)
        results.append(found)
    return results


def _ask(evaluated: EvaluatedModel, prompts: Sequence[NeedlePrompt], *, vocabulary: Vocabulary) -> list[str]:
    """Answers prompts of one kind."""
    tokens = [prompt.tokens for prompt in prompts]
    return answer(evaluated, tokens, vocabulary=vocabulary, max_new_tokens=ANSWER_TOKENS[prompts[0].kind])


def _trials(prompts: Sequence[NeedlePrompt], texts: Sequence[str]) -> tuple[Trial, ...]:
    return tuple(
        Trial(kind=prompt.kind, length=len(prompt.tokens), places=prompt.places, answers=prompt.answers, generated=text)
        for prompt, text in zip(prompts, texts, strict=True)
    )
