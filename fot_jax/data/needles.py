"""Draws retrieval prompts after RULER: needles in filler, chains of variables, common words. Pure numpy.

    kind               the text holds                                     the question asks for
    single             one key with one value                             the value
    multi_key          several keys with a value each                     the value of one key
    multi_value        one key with several values                        all values
    multi_query        several keys with a value each                     the values of all keys
    variable_tracking  VAR X1 = 12345, VAR X2 = VAR X1, …; other chains   every variable with a value
    common_words       a list of words                                    the most frequent words

Source: Hsieh et al. 2024, "RULER" (arXiv 2404.06654): the prompts' wording and the counts are the paper's, with the
haystack "noise" and the one example that variable_tracking and common_words begin with.
Differs: common words are pairs like the keys, not single words of a dictionary; no variable is a part of the
prompt's own words; a second chain distracts; no space ends a prompt; the wanted length is the prompt's alone,
without room for the answer.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence

import numpy as np

from fot_jax.config import NeedleKind
from fot_jax.data.filling import fill_prompt
from fot_jax.data.synthetic import FILLER
from fot_jax.data.vocabulary import Vocabulary, encode_text
from fot_jax.data.words import WORD_COUNT, word

TEMPLATES_VERSION = 1  # changes with every change of a prompt: figures of two versions are not comparable

NEEDLE = "One of the special magic numbers for {key} is: {value}."
ONE_NUMBER = (
    "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the"
    " number afterwards.\n",
    "What is the special magic number for {query} mentioned in the provided text? The special magic number for {query}"
    " mentioned in the provided text is",
)
SOME_NUMBERS = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. I will quiz you about"
    " the numbers afterwards.\n",
    "What are all the special magic numbers for {query} mentioned in the provided text? The special magic numbers for"
    " {query} mentioned in the provided text are",
)
VARIABLES = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n",
    "Question: Find all variables that are assigned the value {value} in the text above. Answer: According to the"
    " chain(s) of variable assignment in the text above, {count} variables are assigned the value {value}, they are:",
)
WORDS = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that"
    " appear most often.\n",
    "\nQuestion: What are the {count} most common words in the above list? Answer: The top {count} words that appear"
    " most often in the list are:",
)

NEEDLES = 4  # keys or values where there are several
VALUE_DIGITS = 7
CHAINS = 2
HOPS = 4  # assignments of a variable to a variable in a chain
NAME_LETTERS, EXAMPLE_LETTERS = 5, 3
COMMON_WORDS = 10
LONG = 4096  # tokens; prompts of this length or more use LONG_REPEATS
REPEATS, LONG_REPEATS, EXAMPLE_REPEATS = (6, 1), (30, 3), (3, 1)  # of a common word, of any other


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedlePrompt:
    """A needle trial.

    Attributes:
      kind: the kind of its question.
      prompt: the text up to the answer.
      answers: texts that the answer must hold, distinct and none a part of another.
      tokens: int32 [T], ids of the prompt.
      places: for each statement asked about, the share of the filler before it, ascending; empty for
        common_words.
    """

    kind: NeedleKind
    prompt: str
    answers: tuple[str, ...]
    tokens: np.ndarray
    places: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _PromptDraft:
    """A trial before its length is known.

    Attributes:
      text: gives the prompt for a number of fillers.
      answers: see NeedlePrompt.
      shares: share of the filler before each statement asked about.
      fillers: the most fillers there are.
    """

    text: Callable[[int], str]
    answers: tuple[str, ...]
    shares: tuple[float, ...] = ()
    fillers: int = sys.maxsize


def needle_prompt(
    rng: np.random.Generator, *, kind: NeedleKind, length_tokens: int, vocabulary: Vocabulary
) -> NeedlePrompt:
    """Draws a trial with as much filler as fits `length_tokens`.

    Args:
      rng: source of keys, values, names, words and places.
      kind: the kind of question.
      length_tokens: the most tokens the prompt may have.
      vocabulary: counts the tokens.

    Raises:
      UserError: not even a prompt without filler fits, or there are not enough words to fill it.
    """
    if kind is NeedleKind.VARIABLE_TRACKING:
        draft = _variables(rng)
    elif kind is NeedleKind.COMMON_WORDS:
        draft = _common_words(rng, repeats=LONG_REPEATS if length_tokens >= LONG else REPEATS)
    elif kind in (NeedleKind.SINGLE, NeedleKind.MULTI_KEY, NeedleKind.MULTI_VALUE, NeedleKind.MULTI_QUERY):
        draft = _numbers(rng, kind=kind)
    else:
        raise ValueError(f"a needle prompt must be of a known kind, got {kind!r}")
    filled = fill_prompt(
        lambda fillers: encode_text(vocabulary, draft.text(fillers)),
        length_tokens=length_tokens,
        what=f"a needle prompt of kind '{kind.value}'",
        most=draft.fillers,
    )
    count = filled.fillers
    return NeedlePrompt(
        kind=kind,
        prompt=draft.text(count),
        answers=draft.answers,
        tokens=np.asarray(filled.tokens, np.int32),
        places=tuple(round(share * count) / count if count else 0.0 for share in draft.shares),
    )


def _haystack(statements: Sequence[str], shares: Sequence[float], fillers: int) -> str:
    """Writes filler with each statement on its own line, after its share (ascending) of the filler."""
    before = [round(share * fillers) for share in shares]
    gaps = np.diff([0, *before, fillers])
    lines = [FILLER * gap + statement + "\n" for gap, statement in zip(gaps, statements, strict=False)]
    return "".join(lines) + FILLER * gaps[-1]


def _distinct_numbers(rng: np.random.Generator, *, count: int, digits: int) -> list[int]:
    least = 10 ** (digits - 1)
    return [least + int(drawn) for drawn in rng.choice(9 * least, size=count, replace=False)]


def _numbers(rng: np.random.Generator, *, kind: NeedleKind) -> _PromptDraft:
    """Drafts a trial of keys with numbers; the question asks for the first key or keys drawn."""
    keys_count = NEEDLES if kind in (NeedleKind.MULTI_KEY, NeedleKind.MULTI_QUERY) else 1
    each = NEEDLES if kind is NeedleKind.MULTI_VALUE else 1
    asked = NEEDLES if kind is NeedleKind.MULTI_QUERY else 1
    keys = [word(int(number)) for number in rng.choice(WORD_COUNT, size=keys_count, replace=False)]
    values = _distinct_numbers(rng, count=keys_count * each, digits=VALUE_DIGITS)
    needles = [NEEDLE.format(key=keys[i // each], value=value) for i, value in enumerate(values)]
    order = rng.permutation(len(needles))
    shares = np.sort(rng.random(len(needles)))
    opening, closing = ONE_NUMBER if asked * each == 1 else SOME_NUMBERS
    query = keys[0] if asked == 1 else ", ".join(keys[: asked - 1]) + ", and " + keys[asked - 1]

    def text(fillers: int) -> str:
        hay = _haystack([needles[i] for i in order], shares, fillers)
        return opening + hay + closing.format(query=query)

    wanted = asked * each
    return _PromptDraft(
        text=text,
        answers=tuple(map(str, values[:wanted])),
        shares=tuple(float(share) for share, i in zip(shares, order, strict=True) if i < wanted),
    )


def _variables(rng: np.random.Generator) -> _PromptDraft:
    """Drafts interleaved chains, each in order; the question asks for the variables with the first chain's value."""
    length = HOPS + 1
    *values, shown = _distinct_numbers(rng, count=CHAINS + 1, digits=5)
    names = _names(rng, count=CHAINS * length, letters=NAME_LETTERS)
    example = _names(rng, count=length, letters=EXAMPLE_LETTERS)
    chains = [_chain(names[c * length : (c + 1) * length], values[c]) for c in range(CHAINS)]
    owners = rng.permutation(np.repeat(np.arange(CHAINS), length))
    remaining = [iter(chain) for chain in chains]
    statements = [next(remaining[owner]) for owner in owners]
    shares = np.sort(rng.random(len(statements)))
    opening, closing = VARIABLES
    shown_whole = opening + "\n".join(_chain(example, shown)) + "\n" + closing.format(value=shown, count=length)
    shown_whole += " " + ", ".join(example) + "\n\n"

    def text(fillers: int) -> str:
        return (
            shown_whole
            + opening
            + _haystack(statements, shares, fillers)
            + closing.format(value=values[0], count=length)
        )

    return _PromptDraft(
        text=text,
        answers=tuple(names[:length]),
        shares=tuple(float(share) for share, owner in zip(shares, owners, strict=True) if owner == 0),
    )


def _chain(names: Sequence[str], value: int) -> list[str]:
    """Writes VAR names[0] = value, then assigns every name the one before it."""
    return [f"VAR {name} = {f'VAR {names[i - 1]}' if i else value}" for i, name in enumerate(names)]


def _names(rng: np.random.Generator, *, count: int, letters: int) -> list[str]:
    """Draws distinct variables in capitals that the prompt's own words do not hold."""
    taken = (FILLER + "".join(VARIABLES)).upper()
    names: list[str] = []
    while len(names) < count:
        name = "".join(chr(ord("A") + letter) for letter in rng.integers(26, size=letters))
        if name not in names and name not in taken:
            names.append(name)
    return names


def _common_words(rng: np.random.Generator, *, repeats: tuple[int, int]) -> _PromptDraft:
    """Drafts a list of words, each repeated as `repeats` says, after one example with another list.

    A filler is one more word that is not common; no word is in both lists.
    """
    drawn = rng.permutation(WORD_COUNT)
    common, shown, others = np.split(drawn, [COMMON_WORDS, 3 * COMMON_WORDS])
    opening, closing = WORDS[0], WORDS[1].format(count=COMMON_WORDS)
    example = _numbered_list(shown, rng.random((len(shown), EXAMPLE_REPEATS[0])), repeats=EXAMPLE_REPEATS)
    answer = " ".join(f"{i}. {word(int(number))}" for i, number in enumerate(shown[:COMMON_WORDS], start=1))
    shown_whole = f"{opening}{example}{closing} {answer}\n"
    words = np.concatenate([common, others])
    ranks = rng.random((len(words), repeats[0]))

    def text(fillers: int) -> str:
        count = COMMON_WORDS + fillers
        return shown_whole + opening + _numbered_list(words[:count], ranks[:count], repeats=repeats) + closing

    return _PromptDraft(text=text, answers=tuple(word(int(number)) for number in common), fillers=len(others))


def _numbered_list(words: np.ndarray, ranks: np.ndarray, *, repeats: tuple[int, int]) -> str:
    """Writes the numbered list, "1. word 2. word …", in the order of the ranks.

    Args:
      words: numbers of the words, int [W]; the first COMMON_WORDS are the common ones.
      ranks: float [W, repeats[0]], one for each time that a word may occur.
      repeats: how often a common word and any other word occur.
    """
    times = np.where(np.arange(len(words)) < COMMON_WORDS, *repeats)
    counted = np.arange(repeats[0]) < times[:, None]
    order = np.argsort(ranks[counted])
    entries = np.repeat(words, times)[order]
    return " ".join(f"{i}. {word(int(number))}" for i, number in enumerate(entries, start=1))
