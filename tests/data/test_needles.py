"""Needle prompts: the wording, what a plain reader finds in them, and their lengths."""

import collections
import re

import numpy as np
import pytest

from fot_jax.config import NeedleKind, UserError, VocabularyKind
from fot_jax.data import needles, words
from fot_jax.data.needles import needle_prompt
from fot_jax.data.vocabulary import ByteVocabulary, open_tokenizer_json

BYTES = ByteVocabulary()
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
KINDS = pytest.mark.parametrize("kind", list(NeedleKind), ids=lambda kind: kind.value)


def made(kind, length, *, seed=0, vocabulary=BYTES):
    return needle_prompt(np.random.default_rng(seed), kind=kind, length_tokens=length, vocabulary=vocabulary)


def read_numbers(text):
    """The numbers of the keys that the question names, in its order."""
    table = collections.defaultdict(list)
    for key, value in re.findall(r"^One of the special magic numbers for ([a-z-]+) is: (\d{7})\.$", text, re.M):
        table[key].append(value)
    question, prefix = re.search(r"magic numbers? for (.*) mentioned in .*\? .* for (.*) mentioned", text).groups()
    assert question == prefix
    return [value for key in re.findall(r"[a-z]+-[a-z]+", question) for value in table[key]], table


def read_variables(text):
    """The variables that hold the value asked, followed statement by statement as a program."""
    values = {}
    for name, value in re.findall(r"^VAR ([A-Z]+) = (?:VAR )?(\w+)$", text, re.M):
        values[name] = values[value] if value.isalpha() else value
    asked, count = re.search(r"assigned the value (\d+) in .* text above, (\d+) variables", text).groups()
    held = [name for name, value in values.items() if value == asked]
    assert len(held) == int(count)
    return held, values


def read_words(text):
    """The ten words that are most often in the numbered list, and how often each word is."""
    listed = re.findall(r"(\d+)\. (\S+)", text.split("\nQuestion")[0])
    assert [int(number) for number, _ in listed] == list(range(1, len(listed) + 1))
    counts = collections.Counter(word for _, word in listed)
    top = counts.most_common(11)
    assert top[9][1] > top[10][1]
    return [word for word, _ in top[:10]], counts


def read(kind, text):
    """(the answers, everything an answer could be mistaken for) by whoever reads the prompt."""
    if kind is NeedleKind.VARIABLE_TRACKING:
        *_, last = text.split("Memorize and track")
        return read_variables(last)
    if kind is NeedleKind.COMMON_WORDS:
        *_, last = text.split("Below is")
        return read_words(last)
    answers, table = read_numbers(text)
    return answers, [value for values in table.values() for value in values]


@KINDS
@pytest.mark.parametrize("vocabulary", ["bytes", "bpe"])
def test_the_prompt_holds_its_answers_and_fills_its_length(kind, vocabulary, vocabulary_files):
    chosen = BYTES if vocabulary == "bytes" else open_tokenizer_json(vocabulary_files[VocabularyKind.HF_TOKENIZER])
    for seed, length in enumerate((2500, 3001, 4095, 7000, 9999)):
        trial = made(kind, length, seed=seed, vocabulary=chosen)
        answers, possible = read(kind, trial.prompt)
        assert sorted(answers) == sorted(trial.answers)
        assert chosen.decode(trial.tokens.tolist()) == trial.prompt
        distractors = [text for text in possible if text not in trial.answers]
        assert len(set(possible)) == len(distractors) + len(trial.answers)
        others = [*trial.answers, *distractors]
        assert not any(a in b for a in trial.answers for b in others if a != b)
        assert not any(answer.lower() in FILLER.lower() for answer in trial.answers)
        filler = FILLER
        if kind is NeedleKind.COMMON_WORDS:  # one more word, as often as it is in the list, longer numbers
            filler = "1000. robust-elephant " * 3 + " " * 4
        assert length - len(chosen.encode(filler)) < len(trial.tokens) <= length


COUNTS = {
    NeedleKind.SINGLE: (1, 0),
    NeedleKind.MULTI_KEY: (1, 3),
    NeedleKind.MULTI_VALUE: (4, 0),
    NeedleKind.MULTI_QUERY: (4, 0),
    NeedleKind.VARIABLE_TRACKING: (5, 5),
}


@pytest.mark.parametrize(("kind", "counts"), COUNTS.items(), ids=lambda item: getattr(item, "value", ""))
def test_every_trial_has_its_needles_in_places_of_their_own(kind, counts):
    trials = [made(kind, 6000, seed=seed) for seed in range(30)]
    for trial in trials:
        answers, possible = read(kind, trial.prompt)
        assert (len(answers), len(possible) - len(answers)) == counts
        assert trial.prompt.count(FILLER) > 40
        assert list(trial.places) == sorted(trial.places)
        assert len(trial.places) == len(answers)
        hay = trial.prompt.split("Memorize and track")[-1].split("What ")[0].split("\nQuestion")[0]
        asked = [answer for answer in trial.answers if answer in hay]
        ends = [hay.index(answer) / len(hay) for answer in asked]
        np.testing.assert_allclose(sorted(ends), trial.places, atol=0.08)
    assert max(trial.places[-1] for trial in trials) > 0.8
    assert min(trial.places[0] for trial in trials) < 0.2
    assert len({trial.answers for trial in trials}) == 30


def test_common_words_stand_as_often_as_the_paper_says():
    for length, common, other in ((3000, 6, 1), (9000, 30, 3)):
        trial = made(NeedleKind.COMMON_WORDS, length)
        *_, example, last = trial.prompt.split("Below is")
        answers, counts = read_words(last)
        assert {counts[word] for word in answers} == {common}
        assert {counts[word] for word in counts if word not in answers} == {other}
        shown, shown_counts = read_words(example)
        assert sorted(shown) == sorted(re.findall(r"\d+\. (\S+)", example.split("list are:")[1]))
        assert set(shown_counts.values()) == {3, 1}
        assert not set(shown_counts) & set(counts)  # the example says nothing about the list
        assert list(counts)[:10] != answers  # shuffled


def test_no_word_is_part_of_another():
    assert len(set(words.ADJECTIVES)) == len(words.ADJECTIVES) > 150
    assert len(set(words.NOUNS)) == len(words.NOUNS) > 250
    assert not [(a, b) for a in words.ADJECTIVES for b in words.ADJECTIVES if a != b and b.endswith(a)]
    assert not [(a, b) for a in words.NOUNS for b in words.NOUNS if a != b and b.startswith(a)]
    assert all(word.isalpha() and word.islower() for word in words.ADJECTIVES + words.NOUNS)
    assert len({words.word(i) for i in range(words.WORD_COUNT)}) == words.WORD_COUNT


@KINDS
def test_a_trial_depends_on_its_generator_alone(kind):
    first, again, other = (made(kind, 3000, seed=seed) for seed in (5, 5, 6))
    assert (first.prompt, first.answers, first.places) == (again.prompt, again.answers, again.places)
    assert first.prompt != other.prompt
    assert set(first.answers) != set(other.answers)
    longer = made(kind, 3600, seed=5)  # the same needles in more filler
    assert longer.answers == first.answers


@KINDS
def test_a_length_without_room_is_refused(kind):
    with pytest.raises(UserError, match=f"kind '{kind.value}' without filler, got 40") as error:
        made(kind, 40)
    least = int(re.search(r"must be >= (\d+)", str(error.value))[1])
    assert len(made(kind, least).tokens) == least
    with pytest.raises(UserError, match=f"must be >= {least}, a needle prompt of kind '{kind.value}'"):
        made(kind, least - 1)


def test_a_list_longer_than_all_words_is_refused(monkeypatch):
    monkeypatch.setattr(needles, "WORD_COUNT", 45)
    with pytest.raises(UserError, match=r"kind 'common_words' with all 15 fillers, got 3500"):
        made(NeedleKind.COMMON_WORDS, 3500)


ONE = """\
A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the number\
 afterwards.
"""
SOME = """\
Some special magic numbers are hidden within the following text. Make sure to memorize it. I will quiz you about the\
 numbers afterwards.
"""
VARIABLES = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
WORDS = """\
Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that appear\
 most often.
"""
LITERAL = {
    NeedleKind.SINGLE: (
        500,
        f"""{ONE}{FILLER}One of the special magic numbers for lucky-statue is: 5606394.
What is the special magic number for lucky-statue mentioned in the provided text? The special magic number for\
 lucky-statue mentioned in the provided text is""",
        ("5606394",),
    ),
    NeedleKind.MULTI_KEY: (
        660,
        f"""{ONE}One of the special magic numbers for mute-sausage is: 8821227.
One of the special magic numbers for lucky-squirrel is: 3243057.
{FILLER}One of the special magic numbers for small-desk is: 3806482.
One of the special magic numbers for weary-fiddle is: 9537842.
What is the special magic number for small-desk mentioned in the provided text? The special magic number for\
 small-desk mentioned in the provided text is""",
        ("3806482",),
    ),
    NeedleKind.MULTI_VALUE: (
        680,
        f"""{SOME}One of the special magic numbers for lucky-statue is: 5606393.
One of the special magic numbers for lucky-statue is: 9554172.
{FILLER}One of the special magic numbers for lucky-statue is: 1313672.
One of the special magic numbers for lucky-statue is: 7796506.
What are all the special magic numbers for lucky-statue mentioned in the provided text? The special magic numbers for\
 lucky-statue mentioned in the provided text are""",
        ("1313672", "7796506", "9554172", "5606393"),
    ),
    NeedleKind.MULTI_QUERY: (
        760,
        f"""{SOME}One of the special magic numbers for mute-sausage is: 8821227.
One of the special magic numbers for lucky-squirrel is: 3243057.
{FILLER}One of the special magic numbers for small-desk is: 3806482.
One of the special magic numbers for weary-fiddle is: 9537842.
What are all the special magic numbers for small-desk, mute-sausage, weary-fiddle, and lucky-squirrel mentioned in\
 the provided text? The special magic numbers for small-desk, mute-sausage, weary-fiddle, and lucky-squirrel mentioned\
 in the provided text are""",
        ("3806482", "8821227", "9537842", "3243057"),
    ),
    NeedleKind.VARIABLE_TRACKING: (
        1100,
        f"""{VARIABLES}VAR HSE = 77965
VAR IZK = VAR HSE
VAR NHD = VAR IZK
VAR LQL = VAR NHD
VAR UJP = VAR LQL
Question: Find all variables that are assigned the value 77965 in the text above. Answer: According to the chain(s) of\
 variable assignment in the text above, 5 variables are assigned the value 77965, they are: HSE, IZK, NHD, LQL, UJP

{VARIABLES}VAR DVYGI = 56063
{FILLER}VAR WLHVG = VAR DVYGI
VAR KQOCA = VAR WLHVG
VAR DLZDJ = 52586
VAR WTVNV = VAR KQOCA
VAR KXFNG = VAR DLZDJ
{FILLER}VAR ATBHM = VAR KXFNG
VAR MDZTZ = VAR ATBHM
VAR CSHOY = VAR MDZTZ
VAR ILUDH = VAR WTVNV
Question: Find all variables that are assigned the value 56063 in the text above. Answer: According to the chain(s) of\
 variable assignment in the text above, 5 variables are assigned the value 56063, they are:""",
        ("DVYGI", "WLHVG", "KQOCA", "WTVNV", "ILUDH"),
    ),
    NeedleKind.COMMON_WORDS: (
        900,
        f"""{WORDS}1. tough-birch 2. subtle-kettle 3. tough-saddle 4. warm-basket 5. tough-saddle 6. warm-basket
Question: What are the 2 most common words in the above list? Answer: The top 2 words that appear most often in the\
 list are: 1. warm-basket 2. tough-saddle
{WORDS}1. green-field 2. coarse-creek 3. idle-arrow 4. little-temple 5. shallow-pond 6. olive-beetle 7. short-peach\
 8. neat-canyon 9. fast-button 10. fast-button 11. shallow-pond 12. free-oven 13. fast-button 14. rare-cotton\
 15. tender-spider 16. shallow-pond
Question: What are the 2 most common words in the above list? Answer: The top 2 words that appear most often in the\
 list are:""",
        ("fast-button", "shallow-pond"),
    ),
}


@KINDS
def test_the_wording(kind, monkeypatch):
    """A prompt that changed needs a new TEMPLATES_VERSION."""
    assert needles.TEMPLATES_VERSION == 1
    for name, value in {"COMMON_WORDS": 2, "REPEATS": (3, 1), "EXAMPLE_REPEATS": (2, 1)}.items():
        monkeypatch.setattr(needles, name, value)
    length, prompt, answers = LITERAL[kind]
    trial = made(kind, length, seed=1)
    assert trial.prompt == prompt
    assert trial.answers == answers
