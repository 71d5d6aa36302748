"""The journal of a long measurement: what is kept, when it is taken up again, when not."""

import json
import logging

import pytest

from fot_jax.eval import context
from fot_jax.eval.journal import Journal
from tests.eval.test_end_to_end import run_evaluate, runs  # noqa: F401  (a fixture)

MEASURED = {"steps": [1, 2]}


class Pieces:
    """Computes pieces and remembers which."""

    def __init__(self, journal: Journal) -> None:
        self.computed, self._once = [], journal.once("model")

    def __call__(self, number: int) -> list[float]:
        return self._once((number,), lambda: (self.computed.append(number), [number / 3, 0.1])[1])


def test_pieces_are_computed_once_and_come_back_as_they_were(tmp_path, caplog):
    path = tmp_path / "new" / "task.partial.jsonl"
    first = Pieces(Journal(path, measured=MEASURED))
    found = [first(number) for number in (1, 2, 1)]
    assert first.computed == [1, 2]
    with caplog.at_level(logging.WARNING):
        second = Pieces(Journal(path, measured=MEASURED))
    assert [second(number) for number in (1, 2, 1)] == found and second(3) == [1.0, 0.1]
    assert second.computed == [3]
    assert "2 pieces measured before it was interrupted are taken up" in caplog.text


def test_keys_of_other_prefixes_are_other_pieces(tmp_path):
    journal = Journal(tmp_path / "task.partial.jsonl", measured=MEASURED)
    assert journal.once("a")((1,), lambda: "first") == "first"
    assert journal.once("b")((1,), lambda: "second") == "second"


@pytest.mark.parametrize("kept", ['[["model", 2], [0.66', '[["model", 2', "\x00\x00"])
def test_a_line_that_was_cut_off_is_measured_again(tmp_path, kept):
    path = tmp_path / "task.partial.jsonl"
    first = Pieces(Journal(path, measured=MEASURED))
    first(1)
    path.write_text(path.read_text() + kept)
    second = Pieces(Journal(path, measured=MEASURED))
    second(1), second(2)
    assert second.computed == [2]
    third = Pieces(Journal(path, measured=MEASURED))
    third(1), third(2)
    assert third.computed == []


def test_a_journal_of_something_else_is_begun_anew(tmp_path, caplog):
    path = tmp_path / "task.partial.jsonl"
    Pieces(Journal(path, measured=MEASURED))(1)
    with caplog.at_level(logging.WARNING):
        other = Pieces(Journal(path, measured={"steps": [1, 3]}))
    other(1)
    assert other.computed == [1] and "is of other runs or settings" in caplog.text
    again = Pieces(Journal(path, measured=MEASURED))
    again(1)
    assert again.computed == [1]


@pytest.mark.parametrize("text", ["", "no json", "{}\n"])
def test_a_file_that_is_no_journal_is_begun_anew(tmp_path, text):
    path = tmp_path / "task.partial.jsonl"
    path.write_text(text)
    pieces = Pieces(Journal(path, measured=MEASURED))
    pieces(1)
    assert pieces.computed == [1]


def test_an_interrupted_evaluation_goes_on(runs, monkeypatch):  # noqa: F811
    """Same report as one that ran through, only the rest computed; a newer checkpoint begins anew."""
    fot, _ = runs
    flags = [f"--workdir={fot}", "--task=context", "--evaluation.context_windows=1,2,4"]
    run_evaluate(*flags, f"--out={fot / 'through'}")
    calls, losses = [], context._losses

    def until(most: int):
        def interrupted(*text, **options):
            if len(calls) == most:
                raise KeyboardInterrupt
            calls.append(text[1].shape)
            return losses(*text, **options)

        return interrupted

    out = fot / "interrupted"
    partial = out / "context.partial.jsonl"
    monkeypatch.setattr(context, "_losses", until(2))
    with pytest.raises(SystemExit):  # the command's own way out
        run_evaluate(*flags, f"--out={out}")
    assert len(partial.read_text().splitlines()) == 3
    monkeypatch.setattr(context, "_losses", until(3))
    run_evaluate(*flags, f"--out={out}")
    assert len(calls) == 3 and not partial.exists()
    found, through = (json.loads((folder / "context.json").read_text()) for folder in (out, fot / "through"))
    assert found["results"] == through["results"]

    calls.clear()
    monkeypatch.setattr(context, "_losses", until(1))
    with pytest.raises(SystemExit):  # the command's own way out
        run_evaluate(*flags, f"--out={out}")
    assert len(partial.read_text().splitlines()) == 2
    (fot / "checkpoints" / "1" / "touched").touch()  # changes the folder's time, as a new checkpoint does
    (fot / "checkpoints" / "1" / "touched").unlink()
    calls.clear()
    monkeypatch.setattr(context, "_losses", until(9))
    run_evaluate(*flags, f"--out={out}")
    assert len(calls) == 3
