"""Which runs may be measured next to one another."""

import dataclasses
import logging
import pathlib

import pytest

from configs import tiny_code
from fot_jax.config import ExperimentConfig, UserError, VocabularyKind
from fot_jax.config.build import build
from fot_jax.eval.runs import Comparison, Run, _check_comparable, warn_if_memory_unread
from fot_jax.logging import warn_once
from tests.convert.checkpoints import bpe_tokenizer
from tests.eval.tiny_models import MODEL, tiny_model


def run(folder: pathlib.Path, *, pieces: int = 300, **data) -> Run:
    """A run with its own copy of a tokenizer, as imports and averages have."""
    folder.mkdir()
    bpe_tokenizer(pieces).save(str(folder / "tokenizer.json"))
    config = build(ExperimentConfig, tiny_code.get_config())
    vocabulary = dataclasses.replace(
        config.data.vocabulary, kind=VocabularyKind.HF_TOKENIZER, path=str(folder / "tokenizer.json")
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, vocabulary=vocabulary, **data))
    return Run(workdir=folder, config=config, step=0, saved=0, evaluated=tiny_model(MODEL))


@pytest.mark.parametrize("given", [False, True])
def test_copies_of_one_tokenizer_are_one_vocabulary(tmp_path, given):
    _check_comparable([run(tmp_path / "imported"), run(tmp_path / "averaged")], given=given)
    with pytest.raises(UserError, match=r"other must have the same data\.vocabulary as .*imported"):
        _check_comparable([run(tmp_path / "first_imported"), run(tmp_path / "other", pieces=290)], given=given)


def test_prompts_that_read_no_memory_are_said_by_length(tmp_path, caplog):
    """Windows of 8 tokens: a prompt of 8 is one window, one of 9 is cut."""
    warn_once.cache_clear()
    one = run(tmp_path / "one")
    evaluated = one.evaluated
    comparison = Comparison(runs=(one,), baselines=(), evaluation=one.config.evaluation, memory=evaluated.memory)
    with caplog.at_level(logging.WARNING):
        warn_if_memory_unread(comparison, (4, 8, 9))
        warn_if_memory_unread(comparison, (8,))
    assert [record.message for record in caplog.records] == [
        f"memory: not read by prompts of {length} tokens, which fit one window of 8" for length in (4, 8)
    ]


def test_other_documents_are_refused_unless_some_are_given(tmp_path):
    runs = [run(tmp_path / "one"), run(tmp_path / "two", heldout_fraction=0.4)]
    _check_comparable(runs, given=True)
    with pytest.raises(UserError, match=r"two must have the same data as .*one"):
        _check_comparable(runs, given=False)
