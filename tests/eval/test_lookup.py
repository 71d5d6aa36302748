"""Grading of dictionary answers with models that are known to be right, half right, or late."""

import numpy as np
import pytest

from fot_jax.config import DictionaryConfig, UserError
from fot_jax.eval import lookup
from tests.eval.tiny_models import MODEL, tiny_model

CONFIG = DictionaryConfig(num_symbols=30, definition_tokens=40, question_tokens=40)
SIZES = (40, 95)


def measured(predict):
    return lookup.measure(predict, config=CONFIG, sizes=SIZES, episodes=3, seed=0)


def perfect(definitions, questions):
    """Looks every answer up in the definitions, and nothing else: `<k> k1..k4 <v> v1..v4` is ten tokens."""
    predicted = np.zeros_like(questions)
    for row in range(len(questions)):
        entries = definitions[row].reshape(-1, 10)
        values = {tuple(entry[1:5]): entry[6:] for entry in entries}
        for start in range(0, questions.shape[1], 10):
            predicted[row, start + 5 : start + 9] = values[tuple(questions[row, start + 1 : start + 5])]
    return predicted


def test_a_perfect_model_scores_one():
    found = measured(perfect)
    assert found.token_accuracy.shape == (2, 3)
    assert (found.token_accuracy == 1).all()
    assert (found.answer_accuracy == 1).all()
    assert len(found.examples) == 2 * 3 * 4
    assert all(row["right"] and row["predicted"] == row["value"] for row in found.examples)
    assert {row["definition_tokens"] for row in found.examples} == {40, 90}  # whole definitions only


def test_one_wrong_token_spoils_the_answer_not_other_tokens():
    def predict(definitions, questions):
        predicted = perfect(definitions, questions)
        predicted[:, 8::10] = 0  # the last token of every value
        return predicted

    found = measured(predict)
    assert (found.token_accuracy == 0.75).all()
    assert (found.answer_accuracy == 0).all()


def test_copying_the_present_token_is_not_predicting_the_next():
    assert measured(lambda _, questions: questions).token_accuracy.mean() < 0.2


def test_episodes_are_a_pure_function_of_seed_and_size():
    first, again, other = (
        lookup.make_episodes(CONFIG, definition_tokens=40, count=2, seed=seed).questions for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])


def test_questions_must_fit_the_local_context():
    for make in (lookup.with_memory, lookup.without_memory):
        with pytest.raises(UserError, match=f"fit into model.local_context={MODEL.local_context}, got 40"):
            measured(make(tiny_model()))
