"""Dictionaries answer their own questions; streams lay them into the rows of a plan."""

import numpy as np
import pytest

from fot_jax.config import ConfigError, CrossbatchConfig, DictionaryConfig, PlanKind, UserError
from fot_jax.data.dictionary_stream import DictionaryStream
from fot_jax.data.synthetic import episode, passkey
from fot_jax.data.vocabulary import ByteVocabulary, SymbolVocabulary

K, V, Q = SymbolVocabulary.key_id, SymbolVocabulary.value_id, SymbolVocabulary.question_id
TWO_PASS = CrossbatchConfig(plan=PlanKind.TWO_PASS)


def read_dictionary(definitions, questions, answers):
    """A plain reader of the format: {key: value} and the list of (key, value) asked."""
    entries = [definitions[i : i + 10] for i in range(0, len(definitions) // 10 * 10, 10)]
    assert all(e[0] == K and e[5] == V for e in entries)
    table = {tuple(e[1:5]): tuple(e[6:]) for e in entries}
    assert len(table) == len(entries), "keys repeat"
    asked = [questions[i : i + 10] for i in range(0, len(questions) // 10 * 10, 10)]
    assert all(q[0] == Q and q[5] == V for q in asked)
    answered = [tuple(questions[i : i + 10][answers[i : i + 10]]) for i in range(0, len(asked) * 10, 10)]
    assert answered == [tuple(q[6:]) for q in asked]
    assert not answers[len(asked) * 10 :].any()
    return table, [(tuple(q[1:5]), tuple(q[6:])) for q in asked]


@pytest.mark.parametrize("definition_tokens", [256, 4096])
def test_questions_are_answered_by_the_definitions(definition_tokens):
    config = DictionaryConfig()
    made = episode(np.random.default_rng(1), config, definition_tokens=definition_tokens, question_tokens=256)
    table, asked = read_dictionary(*map(np.asarray, (made.definitions, made.questions, made.answers)))
    assert (len(table), len(asked)) == (definition_tokens // 10, 25)
    assert all(table[key] == value for key, value in asked)
    assert len({key for key, _ in asked}) > 12  # questions spread over the dictionary
    tail = definition_tokens % 10
    assert (made.definitions[-tail:] == 0).all()
    letters = made.definitions[:-tail].reshape(-1, 10)[:, [1, 2, 3, 4, 6, 7, 8, 9]]
    assert letters.min() >= 4
    assert letters.max() == 63  # 60 letters and 4 marks: the paper's vocabulary of 64


def test_every_key_is_used_when_there_are_just_enough():
    config = DictionaryConfig(num_symbols=2, key_length=3)
    made = episode(np.random.default_rng(0), config, definition_tokens=8 * 9, question_tokens=9)
    keys = made.definitions.reshape(8, 9)[:, 1:4]
    assert len(np.unique(keys, axis=0)) == 8
    with pytest.raises(ConfigError, match=r"at least 9 distinct keys.*got 8 from 2 symbols"):
        episode(np.random.default_rng(0), config, definition_tokens=81, question_tokens=9)
    with pytest.raises(ConfigError, match="question_tokens must be >= 9"):
        episode(np.random.default_rng(0), config, definition_tokens=72, question_tokens=8)


def test_two_pass_rows_are_definitions_then_questions():
    stream = DictionaryStream(DictionaryConfig(), crossbatch=TWO_PASS, rows=8, length=256, seed=0)
    first, second = stream.batch(0), stream.batch(1)
    assert not first.loss_mask[:4].any()
    for row in range(4):
        answers = np.append(False, first.loss_mask[4 + row].astype(bool))[:256]
        _, asked = read_dictionary(first.tokens[row], first.tokens[4 + row], answers)
        table, _ = read_dictionary(first.tokens[row], first.tokens[4 + row], answers)
        assert all(table[key] == value for key, value in asked)
        np.testing.assert_array_equal(first.targets[4 + row, :-1], first.tokens[4 + row, 1:])
        segment = first.segments[row, 0]
        for tokens, segments in zip(first.tokens[[row, 4 + row]], first.segments[[row, 4 + row]], strict=True):
            np.testing.assert_array_equal(segments, np.where(tokens == 0, 0, segment))
    assert len(np.unique(first.segments[:4, 0])) == 4
    assert (first.tokens != second.tokens).any(axis=1).all()  # every document is fresh


def test_one_pass_rows_follow_the_document():
    crossbatch = CrossbatchConfig(plan=PlanKind.PACKED, packing=2)
    stream = DictionaryStream(DictionaryConfig(), crossbatch=crossbatch, rows=4, length=256, seed=0)
    whole = DictionaryStream(DictionaryConfig(), crossbatch=CrossbatchConfig(), rows=2, length=512, seed=0)
    packed, plain = stream.batch(3), whole.batch(3)
    for name in ("tokens", "targets", "loss_mask", "segments"):
        np.testing.assert_array_equal(getattr(packed, name).reshape(2, 512), getattr(plain, name))
    halves = DictionaryStream(DictionaryConfig(), crossbatch=CrossbatchConfig(), rows=2, length=256, seed=0)
    np.testing.assert_array_equal(
        np.concatenate([halves.batch(6).tokens, halves.batch(7).tokens], axis=1), plain.tokens
    )


def test_dictionary_batches_are_pure_and_hosts_share_them():
    stream = DictionaryStream(DictionaryConfig(), crossbatch=TWO_PASS, rows=8, length=256, seed=0)
    again = DictionaryStream(DictionaryConfig(), crossbatch=TWO_PASS, rows=8, length=256, seed=0)
    for hosts in (1, 2, 4):
        share = 8 // hosts
        parts = [again.batch(5, slice(h * share, (h + 1) * share)).tokens for h in range(hosts)]
        np.testing.assert_array_equal(np.concatenate(parts), stream.batch(5).tokens)


def test_dictionary_must_fit_its_rows():
    with pytest.raises(ConfigError, match=r"multiple of model.local_context=200, got 512"):
        DictionaryStream(DictionaryConfig(), crossbatch=TWO_PASS, rows=4, length=200, seed=0)
    with pytest.raises(ConfigError, match=r"must be 2 chunks .*local_context=128, got 512"):
        DictionaryStream(DictionaryConfig(), crossbatch=TWO_PASS, rows=4, length=128, seed=0)


def test_passkey_fills_its_length_with_one_key():
    vocabulary = ByteVocabulary()
    made = [passkey(np.random.default_rng(i), length_tokens=2048, vocabulary=vocabulary) for i in range(20)]
    for trial in made:
        assert 2048 - 100 < len(trial.tokens) <= 2048
        assert vocabulary.decode(trial.tokens) == trial.prompt
        assert trial.prompt.endswith("What is the pass key? The pass key is")
        assert trial.prompt.count(f"The pass key is{trial.answer}. Remember it.{trial.answer} is the pass key.") == 1
    assert max(trial.place for trial in made) > 0.8
    assert min(trial.place for trial in made) < 0.2
    with pytest.raises(UserError, match="length_tokens must be >= "):
        passkey(np.random.default_rng(0), length_tokens=50, vocabulary=vocabulary)
