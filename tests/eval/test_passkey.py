"""Passkey trials: what counts as right, that prompts are shared, and that a model that knows the key scores 1."""

import dataclasses
import re

import numpy as np
import pytest

from fot_jax.config import UserError
from fot_jax.data.vocabulary import ByteVocabulary
from fot_jax.eval import passkey
from fot_jax.eval.answering import answer
from fot_jax.infer.generate import FINISHED, generate
from fot_jax.infer.sampling import SamplingConfig
from fot_jax.infer.windows import read
from tests.eval.tiny_models import MODEL, tiny_model

VOCABULARY = ByteVocabulary()
BYTES = dataclasses.replace(MODEL, vocab_size=VOCABULARY.size)


@pytest.mark.parametrize(
    ("generated", "right"),
    [
        (" 123. Remember", True),
        (" number 123", True),
        ("123", True),
        (" 1234", False),
        (" 12 123", False),
        (" none", False),
        ("", False),
    ],
)
def test_the_first_digits_generated_count(generated, right):
    assert passkey.Trial(length=9, place=0.5, key="123", generated=generated).right is right


def knows(share: float):
    """A `read` that keeps the prompts and a `generate` that repeats the key in a share of the trials."""
    calls = []

    def read(params, model, tokens, *, memory, store, **_):
        assert store is None, "each prompt has a memory of its own"
        calls.append([len(ids) for ids in tokens])
        return tokens

    def generate(params, model, reading, *, sampling, max_new_tokens, end_ids):
        assert sampling.vocab_limit == VOCABULARY.size
        answers = []
        for ids in reading:
            key = re.search(r"The pass key is (\d+)\.", VOCABULARY.decode(ids.tolist())).group(1)
            answers.append(VOCABULARY.encode(f" {key}." if int(key) % 10 < 10 * share else " 0") + [end_ids[0]] * 9)
        yield from np.array([answer[:7] for answer in answers]).T

    return calls, read, generate


@pytest.mark.parametrize(("share", "wanted"), [(1.0, 1.0), (0.0, 0.0)])
def test_a_model_that_knows_the_key_is_right(monkeypatch, share, wanted):
    calls, read, generate = knows(share)
    monkeypatch.setattr("fot_jax.infer.windows.read", read)
    monkeypatch.setattr("fot_jax.library.model.generate", generate)
    evaluated = tiny_model(BYTES)
    seen = []
    found = passkey.measure(
        evaluated, vocabulary=VOCABULARY, lengths={400: 5, 900: 5}, batch=2, seed=3,
        progress=lambda *line: seen.append(line),
    )  # fmt: skip
    assert [len(rows) for rows in calls] == [2, 2, 1] * 2
    assert all(
        length - 95 < n <= length for rows, length in zip(calls, [400] * 3 + [900] * 3, strict=True) for n in rows
    )
    assert [np.mean([trial.right for trial in trials]) for trials in found] == [wanted, wanted]
    assert seen[-1] == (900, 5, 5 * wanted)
    assert len({trial.key for trials in found for trial in trials}) == 10
    first = passkey.make_trials(VOCABULARY, length=400, trials=2, seed=3)
    assert [trial.key for trial in found[0][:2]] == [prompt.answer.strip() for prompt in first]


def test_answers_are_those_of_one_batch():
    """Prompts of one and of several windows, each with its own memory."""
    evaluated = tiny_model(BYTES)
    prompts = [
        VOCABULARY.encode(text) for text in ("Who?", "Who is it who knocks?", "Who is it who asks the question?")
    ]
    reading = read(evaluated.params, BYTES, [np.array(ids) for ids in prompts], memory=evaluated.memory)
    sampling = SamplingConfig(vocab_limit=VOCABULARY.size)
    how = {"sampling": sampling, "max_new_tokens": 12, "end_ids": VOCABULARY.end_ids}
    rows = np.stack(list(generate(evaluated.params, BYTES, reading, **how)), axis=1)
    ends = {FINISHED, *VOCABULARY.end_ids}
    want = [VOCABULARY.decode([token for token in row if token not in ends]) for row in rows.tolist()]
    assert answer(evaluated, prompts, vocabulary=VOCABULARY, max_new_tokens=12) == want
    assert len(set(want)) == 3


def test_a_length_without_room_is_refused():
    with pytest.raises(UserError, match="length_tokens must be >= "):
        passkey.make_trials(VOCABULARY, length=50, trials=1, seed=0)
