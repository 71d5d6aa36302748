"""Which runs may be measured beside one another."""

import dataclasses
import pathlib

import pytest

from configs import tiny_code
from fot_jax.config import ExperimentConfig, UserError, VocabularyKind
from fot_jax.config.build import build
from fot_jax.eval.runs import Run, _check_alike
from tests.convert.checkpoints import bpe_tokenizer
from tests.eval.subjects import MODEL, subject


def run(folder: pathlib.Path, *, pieces: int = 300, **data) -> Run:
    """A run with its own copy of a tokenizer, as imports and averages have."""
    folder.mkdir()
    bpe_tokenizer(pieces).save(str(folder / "tokenizer.json"))
    config = build(ExperimentConfig, tiny_code.get_config())
    vocabulary = dataclasses.replace(
        config.data.vocabulary, kind=VocabularyKind.HF_TOKENIZER, path=str(folder / "tokenizer.json")
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, vocabulary=vocabulary, **data))
    return Run(workdir=folder, config=config, step=0, saved=0, subject=subject(MODEL))


@pytest.mark.parametrize("given", [False, True])
def test_copies_of_one_tokenizer_are_one_vocabulary(tmp_path, given):
    _check_alike([run(tmp_path / "imported"), run(tmp_path / "averaged")], given=given)
    with pytest.raises(UserError, match=r"other must have the same data\.vocabulary as .*imported"):
        _check_alike([run(tmp_path / "first_imported"), run(tmp_path / "other", pieces=290)], given=given)


def test_other_documents_are_refused_unless_some_are_given(tmp_path):
    runs = [run(tmp_path / "one"), run(tmp_path / "two", heldout_fraction=0.4)]
    _check_alike(runs, given=True)
    with pytest.raises(UserError, match=r"two must have the same data as .*one"):
        _check_alike(runs, given=False)
