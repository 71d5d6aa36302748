"""Generates tasks: dictionary lookup (fig. 4, app. D) and passkey retrieval (fig. 1). Pure numpy."""

import dataclasses

import numpy as np

from fot_jax.config import ConfigError, DictionaryConfig
from fot_jax.data.filling import fill_prompt
from fot_jax.data.vocabulary import SymbolVocabulary, Vocabulary, encode_text

INSTRUCTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.\n"
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
KEY = "The pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "What is the pass key? The pass key is"
LARGEST_KEY = 50_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
    """One dictionary and questions about it.

    Attributes:
      definitions: int32 [definition_tokens], `<k> key <v> value` again and again, <pad> at the tail.
      questions: int32 [question_tokens], `<q> key <v> value` again and again, <pad> at the tail.
      answers: bool [question_tokens], True on the value tokens (the loss on each is one position
        earlier, where the model predicts it).
    """

    definitions: np.ndarray
    questions: np.ndarray
    answers: np.ndarray


def entry_length(config: DictionaryConfig) -> int:
    """Counts the tokens of one definition or question: two marks, a key and a value."""
    return 2 + config.key_length + config.value_length


def episode(
    rng: np.random.Generator, config: DictionaryConfig, *, definition_tokens: int, question_tokens: int
) -> Episode:
    """Draws a dictionary of distinct keys with random values, and questions about random keys of it.

    Tokens that do not fill a whole entry are <pad> at the tail (segment 0 in a batch).
    Source: FoT fig. 4, app. D.

    Raises:
      ConfigError: not one entry fits, or there are fewer keys than definitions.
    """
    entry = entry_length(config)
    defined, asked = definition_tokens // entry, question_tokens // entry
    for name, count, tokens in (("definition", defined, definition_tokens), ("question", asked, question_tokens)):
        if count < 1:
            raise ConfigError(f"data.dictionary.{name}_tokens must be >= {entry}, one entry, got {tokens}.")
    keys = _distinct_keys(rng, count=defined, config=config)
    values = rng.integers(config.num_symbols, size=(defined, config.value_length))
    chosen = rng.integers(defined, size=asked)
    definitions = _entries(SymbolVocabulary.key_id, keys, values, tokens=definition_tokens)
    questions = _entries(SymbolVocabulary.question_id, keys[chosen], values[chosen], tokens=question_tokens)
    place = np.arange(question_tokens)
    answers = (place % entry >= entry - config.value_length) & (place < asked * entry)
    return Episode(definitions=definitions, questions=questions, answers=answers)


def _distinct_keys(rng: np.random.Generator, *, count: int, config: DictionaryConfig) -> np.ndarray:
    """Draws distinct keys, int64 [count, key_length], letters from 0."""
    possible = config.num_symbols**config.key_length
    if count > possible:
        raise ConfigError(
            f"data.dictionary.key_length must give at least {count} distinct keys, one a definition,"
            f" got {possible} from {config.num_symbols} symbols. Raise key_length or num_symbols."
        )
    drawn = rng.choice(min(possible, 1 << 62), size=count, replace=False)
    powers = config.num_symbols ** np.arange(config.key_length, dtype=object)
    return np.stack([(drawn // int(power)) % config.num_symbols for power in powers], axis=1)


def _entries(mark: int, keys: np.ndarray, values: np.ndarray, *, tokens: int) -> np.ndarray:
    letter = SymbolVocabulary.first_letter
    marks = np.full((len(keys), 1), mark)
    value_marks = np.full((len(keys), 1), SymbolVocabulary.value_id)
    entries = np.concatenate([marks, keys + letter, value_marks, values + letter], axis=1).reshape(-1)
    padding = np.full(tokens - len(entries), SymbolVocabulary.pad_id)
    return np.concatenate([entries, padding]).astype(np.int32)


def dictionary(
    rng: np.random.Generator, config: DictionaryConfig, *, definition_tokens: int, question_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a training document, definitions first: int32 tokens and the bool mask of its answers' value tokens.

    Raises the errors of `episode`.
    """
    made = episode(rng, config, definition_tokens=definition_tokens, question_tokens=question_tokens)
    tokens = np.concatenate([made.definitions, made.questions])
    return tokens, np.concatenate([np.zeros(definition_tokens, bool), made.answers])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passkey:
    """A passkey trial.

    Attributes:
      prompt: the text up to the answer.
      answer: the text that must follow, its leading space included.
      tokens: ids of the prompt.
      place: share of the filler before the key (0 start, 1 end).
    """

    prompt: str
    answer: str
    tokens: list[int]
    place: float


def passkey(rng: np.random.Generator, *, length_tokens: int, vocabulary: Vocabulary) -> Passkey:
    """Draws a trial with a random key at a random place and as much filler as fits `length_tokens`.

    Source: FoT sec. 4.2, fig. 1.

    Args:
      rng: source of the key and its place.
      length_tokens: the most tokens the prompt may have.
      vocabulary: counts the tokens.

    Raises:
      UserError: not even a prompt without filler fits.
    """
    key = int(rng.integers(1, LARGEST_KEY + 1))
    share = float(rng.random())

    def prompt(fillers: int) -> str:
        before = round(share * fillers)
        return INSTRUCTION + FILLER * before + KEY.format(key=key) + FILLER * (fillers - before) + QUESTION

    filled = fill_prompt(
        lambda fillers: encode_text(vocabulary, prompt(fillers)), length_tokens=length_tokens, what="a passkey prompt"
    )
    fillers = filled.fillers
    place = round(share * fillers) / fillers if fillers else 0.0
    return Passkey(prompt=prompt(fillers), answer=f" {key}", tokens=filled.tokens, place=place)
