"""Documents are counted before they are tokenised as after it, and too few are refused."""

import dataclasses
import json

import pytest

from fot_jax.config import ConfigError, DataConfig, SourceConfig, SourceKind, UserError
from fot_jax.config.errors import NotHereError
from fot_jax.data import build_store, survey
from fot_jax.data.survey import check_data, text_lengths
from tests.train.tiny import tiny


@pytest.fixture
def data(tmp_path):
    """Makes 20 text files, four of them copies, and five JSON lines, of which one is a file's text, one another's."""
    (tmp_path / "books").mkdir()
    for i in range(20):
        (tmp_path / "books" / f"{i:02}.txt").write_text("a" * (2 + i if i < 16 else 10))
    lines = [json.dumps({"text": text}) for text in ("b", "", "a" * 10, "bb", "b", "é" * 9)]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    books = SourceConfig(name="books", kind=SourceKind.TEXT, path=str(tmp_path / "books"), min_tokens=6)
    lines = SourceConfig(name="lines", kind=SourceKind.AUTO, path=str(tmp_path / "lines.jsonl"))
    return DataConfig(sources=(books, lines), heldout_fraction=0.25, cache_dir=str(tmp_path / "cache"))


def test_counts_are_those_of_the_tokenised_documents(data, tmp_path):
    """Counts bytes, whose tokens are the text's; one line of a source says all, and nothing is written."""
    before = survey.survey(data, seed=3)
    assert not (tmp_path / "cache").exists()
    build_store(data, seed=3)
    after = survey.survey(data, seed=3)
    assert (before.tokenised, after.tokenised) == (False, True)
    assert after.lines() == [
        "books: 20 files, 0.2 kB; 20 documents: 14 to train on, 3 held out, 3 shorter than min_tokens=6,"
        " 4 of them copies of others, 212 tokens",
        "lines: 1 files, 0.1 kB; 5 documents: 3 to train on, 2 held out, 2 of them copies of others, 37 tokens",
    ]
    assert [line.rsplit(",", 1)[0] for line in after.lines()][1:] == before.lines()[1:]
    # Text alone does not tell how many tokens 3 bytes have: 6 with a begin, an end and a space before the first word.
    assert "; 20 documents: 15 to train on, 4 held out, 1 shorter than min_tokens=6, 4 of" in before.lines()[0]


def test_text_lengths_are_bytes_of_different_documents(data, monkeypatch):
    """The 16 books and three new lines; too many bytes are refused, and not read."""
    lengths, copies = text_lengths(data)
    assert sorted(lengths) == sorted([*range(2, 18), 1, 2, 18])
    assert copies == 6
    monkeypatch.setattr(survey, "MOST_BYTES", 100)
    with pytest.raises(UserError, match=r"data\.sources must hold at most 0\.1 kB of files to be counted, got 0\.3 kB"):
        text_lengths(data)
    assert survey.survey(data, seed=0).lines()[1] == (
        "lines: 1 files, 0.1 kB; documents are counted when they are tokenised"
    )


def experiment(data, **changes):
    changes = {"train__batch_rows": 8, "model__vocab_size": 259, **changes}
    return dataclasses.replace(tiny(**changes, data__vocabulary={"kind": "bytes"}), data=data)


def test_too_few_documents_are_refused_untokenised(data, tmp_path):
    """A stream without a document, for either split; a vocabulary beyond the model's; no document held out."""
    one = dataclasses.replace(data, sources=data.sources[1:])
    message = r"the train split at least 4 documents, one a stream .*got 3 and 1 copies of them"
    with pytest.raises(ConfigError, match=message):
        check_data(experiment(one))
    assert check_data(experiment(data)) is not None
    with pytest.raises(ConfigError, match=r"the heldout split at least 6 documents.*got 5.*or set train\.eval_every=0"):
        check_data(experiment(data, train__batch_rows=12, train__eval_every=1))
    with pytest.raises(UserError, match=r"data\.heldout_fraction must leave documents"):
        check_data(experiment(dataclasses.replace(data, heldout_fraction=0.0), train__eval_every=1))
    with pytest.raises(ConfigError, match=r"model\.vocab_size must be >= 259"):
        check_data(experiment(data, model__vocab_size=256))
    empty = dataclasses.replace(data.sources[1], path=str(tmp_path / "empty.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"sources\['lines'\] must hold at least one document with text, got none"):
        check_data(experiment(dataclasses.replace(data, sources=(empty,))))
    assert not (tmp_path / "cache").exists()


def test_what_is_not_here_has_an_error_of_its_own(data, tmp_path):
    """`launch.explain` goes on where a path matches nothing; what is generated needs no files."""
    gone = dataclasses.replace(data.sources[1], path=str(tmp_path / "gone"))
    with pytest.raises(NotHereError, match="must match at least one file"):
        check_data(experiment(dataclasses.replace(data, sources=(gone,))))
    assert check_data(tiny()) is None
    keys = DataConfig(sources=(SourceConfig(name="keys", kind=SourceKind.PASSKEY, min_tokens=200),), max_documents=9)
    assert survey.survey(keys, seed=0).lines() == ["keys: generated; 9 documents: 8 to train on, 1 held out"]
