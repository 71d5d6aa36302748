"""A run keeps a copy of its vocabulary, so that it can be read from any folder and after the original is gone."""

import dataclasses
import json
import shutil

import pytest

from fot_jax.config import VocabularyConfig, VocabularyKind
from fot_jax.workdir import keep_vocabulary, read_config, with_tokenizer, write_config
from tests.train.tiny import tiny


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run's folder, and the folder that its config names relative to the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "own.json").write_text("the tokenizer")
    (tmp_path / "given" / "config.json").write_text(json.dumps({"eos_token_id": [3, 5]}))
    config = tiny()
    vocabulary = VocabularyConfig(kind=VocabularyKind.HF_TOKENIZER, path="given/own.json")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, vocabulary=vocabulary))
    write_config(tmp_path / "run", config)
    keep_vocabulary(tmp_path / "run", config)
    return tmp_path / "run"


def test_the_config_names_the_original_while_it_is_there(run):
    assert read_config(run).data.vocabulary.path == "given/own.json"


def test_a_run_is_read_from_another_folder(run, tmp_path, monkeypatch, caplog):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = read_config(run).data.vocabulary.path
    assert path == str(run / "tokenizer" / "own.json")
    assert (run / "tokenizer" / "own.json").read_text() == "the tokenizer"
    assert json.loads((run / "tokenizer" / "config.json").read_text()) == {"eos_token_id": [3, 5]}
    assert "'given/own.json' is not there; the run's own copy is read" in caplog.text


def test_a_copy_is_made_once(run, tmp_path):
    """Keeps the vocabulary that the run was trained with, whatever becomes of the original."""
    config = read_config(run)
    (tmp_path / "given" / "own.json").write_text("another")
    keep_vocabulary(run, config)
    assert (run / "tokenizer" / "own.json").read_text() == "the tokenizer"


def test_a_missing_copy_leaves_the_config_as_written(run, tmp_path):
    """The error names the file that the config names."""
    shutil.rmtree(run / "tokenizer")
    shutil.rmtree(tmp_path / "given")
    assert read_config(run).data.vocabulary.path == "given/own.json"
    keep_vocabulary(run, with_tokenizer(read_config(run), ""))
    assert not (run / "tokenizer").exists()
