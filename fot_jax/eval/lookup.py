"""Dictionary lookup: accuracy of answers against the size of the dictionary.

An episode is a dictionary of `<k> k1..k4 <v> v1..v4` definitions followed by question tokens
`<q> k1..k4 <v> v1..v4` about it. Definitions are read window by window (one local context at
a time) into memory; then the questions are one window, answered from local context and memory.
Answers are teacher-forced: the token before an answer's token is the right one, and a token counts
when it is the most likely of the vocabulary. An answer counts when all its tokens do.

The plain comparison ("no memory") sees the last local context of tokens of the episode and nothing
else. Source: FoT sec. 4.3, fig. 4, app. D.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int

from fot_jax.config import DictionaryConfig, UserError
from fot_jax.data.synthetic import entry_length, episode
from fot_jax.data.vocabulary import SymbolVocabulary
from fot_jax.eval.reading import EvaluatedModel, read_past, score_window
from fot_jax.memory.store import MemoryStore

_TOKENS_AT_ONCE = 2**16  # memory entries of all episodes that are read together

# (definitions [E, D], questions [E, Q]) -> for every question token the most likely next one [E, Q].
Predictor = Callable[[Int[np.ndarray, "E D"], Int[np.ndarray, "E Q"]], Int[np.ndarray, "E Q"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episodes:
    """Dictionaries of one size.

    Attributes:
      definitions: int32 [E, D], whole definitions only (at most the size asked for).
      questions: int32 [E, Q].
      answers: bool [E, Q], True at the value tokens of answers.
    """

    definitions: np.ndarray
    questions: np.ndarray
    answers: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lookup:
    """Accuracies of one model in one way of reading, [X, E]: per dictionary size and episode."""

    sizes: tuple[int, ...]
    token_accuracy: np.ndarray
    answer_accuracy: np.ndarray
    examples: tuple[dict[str, object], ...]


def make_episodes(config: DictionaryConfig, *, definition_tokens: int, count: int, seed: int) -> Episodes:
    """Returns `count` dictionaries of `definition_tokens` tokens; a pure function of its arguments."""
    drawn = [
        episode(
            np.random.default_rng((seed, definition_tokens, number)),
            config,
            definition_tokens=definition_tokens // entry_length(config) * entry_length(config),
            question_tokens=config.question_tokens,
        )
        for number in range(count)
    ]
    return Episodes(
        definitions=np.stack([one.definitions for one in drawn]),
        questions=np.stack([one.questions for one in drawn]),
        answers=np.stack([one.answers for one in drawn]),
    )


def grade(
    predicted: Int[np.ndarray, "E Q"],
    *,
    questions: Int[np.ndarray, "E Q"],
    answers: Bool[np.ndarray, "E Q"],
    value_length: int,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Grades the predictions of value tokens and of whole answers.

    Args:
      predicted: at each position the most likely NEXT token.
      questions: the tokens themselves.
      answers: True at value tokens, always `value_length` in a row.
      value_length: tokens of an answer.

    Returns:
      Per episode, True where predicted: bool [answers, value_length] and bool [answers].
    """
    right = predicted[:, :-1] == questions[:, 1:]
    by_answer = [row[mask].reshape(-1, value_length) for row, mask in zip(right, answers[:, 1:], strict=True)]
    return by_answer, [row.all(axis=1) for row in by_answer]


def with_memory(evaluated: EvaluatedModel) -> Predictor:
    """Returns a predictor that reads definitions into memory and questions as the local context."""

    def predict(definitions, questions):
        _require_fit(evaluated, questions)
        store = read_past(evaluated, past=definitions)
        return _most_likely(evaluated, store=store, tokens=questions)

    return predict


def without_memory(evaluated: EvaluatedModel) -> Predictor:
    """Returns a predictor that reads the last `local_context` tokens of the episode, without memory."""

    def predict(definitions, questions):
        _require_fit(evaluated, questions)
        tokens = np.concatenate([definitions, questions], axis=1)[:, -evaluated.model.local_context :]
        return _most_likely(evaluated, store=None, tokens=tokens)[:, -questions.shape[1] :]

    return predict


def _most_likely(evaluated: EvaluatedModel, *, store: MemoryStore | None, tokens: np.ndarray) -> np.ndarray:
    following = np.roll(tokens, -1, axis=1)  # only the most likely tokens are used, not the scores of these targets
    padding = tokens == SymbolVocabulary.pad_id
    return score_window(evaluated, store=store, tokens=tokens, targets=following, padding=padding).predicted


def _require_fit(evaluated: EvaluatedModel, questions: np.ndarray) -> None:
    if questions.shape[1] > evaluated.model.local_context:
        raise UserError(
            f"data.dictionary.question_tokens must fit into model.local_context={evaluated.model.local_context},"
            f" got {questions.shape[1]}."
        )


def measure(
    predict: Predictor, *, config: DictionaryConfig, sizes: tuple[int, ...], episodes: int, seed: int
) -> Lookup:
    """Measures accuracy at each dictionary size, on the same episodes for every model.

    Args:
      predict: the model and how it reads (`with_memory`, `without_memory`).
      config: symbols, key and value lengths, question tokens.
      sizes: dictionary sizes in tokens.
      episodes: dictionaries of each size.
      seed: seeds the dictionaries.
    """
    token_accuracy, answer_accuracy, examples = [], [], []
    for size in sizes:
        drawn = make_episodes(config, definition_tokens=size, count=episodes, seed=seed)
        batch = max(1, min(episodes, _TOKENS_AT_ONCE // size))
        parts = [slice(start, start + batch) for start in range(0, episodes, batch)]
        predicted = np.concatenate([predict(drawn.definitions[part], drawn.questions[part]) for part in parts])
        tokens, answers = grade(
            predicted, questions=drawn.questions, answers=drawn.answers, value_length=config.value_length
        )
        token_accuracy.append([row.mean() for row in tokens])
        answer_accuracy.append([row.mean() for row in answers])
        examples += _examples(drawn, predicted=predicted, right=answers, config=config)
    return Lookup(
        sizes=sizes,
        token_accuracy=np.asarray(token_accuracy),
        answer_accuracy=np.asarray(answer_accuracy),
        examples=tuple(examples),
    )


def _examples(
    drawn: Episodes, *, predicted: np.ndarray, right: list[np.ndarray], config: DictionaryConfig
) -> list[dict[str, object]]:
    """Returns one record per answer: its key, the value asked for, and the predicted value."""
    records = []
    for number, whole in enumerate(right):
        first = np.flatnonzero(drawn.answers[number])[:: config.value_length]
        for place, ok in zip(first, whole, strict=True):
            records.append(
                {
                    "definition_tokens": drawn.definitions.shape[1],
                    "episode": number,
                    "key": drawn.questions[number, place - 1 - config.key_length : place - 1].tolist(),
                    "value": drawn.questions[number, place : place + config.value_length].tolist(),
                    "predicted": predicted[number, place - 1 : place - 1 + config.value_length].tolist(),
                    "right": bool(ok),
                }
            )
    return records
