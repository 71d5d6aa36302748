"""The journal of a long measurement: what is kept, when it is taken up again, when not."""

import json
import logging
import os
import signal

import pytest

from fot_jax.eval import context, needle, passkey
from fot_jax.eval.journal import Journal, digest
from tests.eval.workdirs import run_evaluate

MEASURED = {"steps": [1, 2]}


class Pieces:
    """Computes pieces and remembers which."""

    def __init__(self, journal: Journal) -> None:
        self.computed, self._memoize = [], journal.memoize("model")

    def __call__(self, number: int) -> list[float]:
        return self._memoize((number,), lambda: (self.computed.append(number), [number / 3, 0.1])[1])


def test_pieces_are_computed_once_and_come_back_as_they_were(tmp_path, caplog):
    first = Pieces(Journal(tmp_path / "new", "task", measured=MEASURED))
    found = [first(number) for number in (1, 2, 1)]
    assert first.computed == [1, 2]
    with caplog.at_level(logging.WARNING):
        second = Pieces(Journal(tmp_path / "new", "task", measured=MEASURED))
    assert [second(number) for number in (1, 2, 1)] == found and second(3) == [1.0, 0.1]
    assert second.computed == [3]
    assert "2 pieces measured before it was interrupted are taken up" in caplog.text


def test_keys_of_other_prefixes_are_other_pieces(tmp_path):
    journal = Journal(tmp_path, "task", measured=MEASURED)
    assert journal.memoize("a")((1,), lambda: "first") == "first"
    assert journal.memoize("b")((1,), lambda: "second") == "second"


CUT_OFF = ('[["model", 2], [0.66', '[["model", 2', "\x00\x00", "5\n", "{}\n", "[1, 2]\n", '[[{"a": 1}], 2]\n', "[1]\n")


@pytest.mark.parametrize("kept", CUT_OFF)
def test_what_follows_a_line_that_is_no_piece_is_measured_again(tmp_path, kept):
    journal = Journal(tmp_path, "task", measured=MEASURED)
    Pieces(journal)(1)
    journal.path.write_text(journal.path.read_text() + kept)
    second = Pieces(Journal(tmp_path, "task", measured=MEASURED))
    second(1), second(2)
    assert second.computed == [2]
    third = Pieces(Journal(tmp_path, "task", measured=MEASURED))
    third(1), third(2)
    assert third.computed == []


def test_what_is_measured_otherwise_has_a_journal_of_its_own(tmp_path):
    """Also while the first one still writes: two settings in one folder at once."""
    first = Pieces(Journal(tmp_path, "task", measured=MEASURED))
    first(1)
    other = Journal(tmp_path, "task", measured={"steps": [1, 3]})
    pieces = Pieces(other)
    pieces(1), first(2)
    assert pieces.computed == [1]
    other.remove()
    again = Pieces(Journal(tmp_path, "task", measured=MEASURED))
    again(1), again(2)
    assert again.computed == []


@pytest.mark.parametrize("text", ["", "no json", "{}\n"])
def test_a_file_that_is_no_journal_is_begun_anew(tmp_path, text):
    Journal(tmp_path, "task", measured=MEASURED).path.write_text(text)
    for wanted in ([1], []):
        pieces = Pieces(Journal(tmp_path, "task", measured=MEASURED))
        pieces(1)
        assert pieces.computed == wanted


def test_a_digest_is_of_values_shapes_and_bounds():
    different = [digest([1, 2], [3]), digest([1], [2, 3]), digest([1, 2, 3]), digest([[1, 2, 3]]), digest([1.0, 2, 3])]
    assert len(set(different)) == 5 and digest([1, 2], [3]) == different[0]


@pytest.mark.parametrize(
    ("task", "module", "flags", "pieces"),
    [
        ("passkey", passkey, ["--evaluation.passkey_tokens=400,900", "--evaluation.passkey_trials=5"], 2 * 2 * 3),
        ("needle", needle, ["--evaluation.needle_tokens=1000,1500", "--evaluation.needle_kinds=single,multi_key"], 16),
    ],
)
def test_interrupted_prompts_go_on(runs, monkeypatch, task, module, flags, pieces):
    """Each answer tells which prompts it is for: none is taken for another's, and none is asked twice."""
    fot, _ = runs
    flags = [*flags, "--evaluation.passkey_batch=2", "--evaluation.needle_trials=3", "--evaluation.needle_batch=2"]
    flags = [f"--workdir={fot}", f"--task={task}", *flags]
    asked = []

    def answers(most: int):
        def answer(evaluated, prompts, **options):
            if len(asked) == most:
                raise KeyboardInterrupt
            asked.append(evaluated)
            return [f"{bool(evaluated.model.memory_layers)} {digest(prompt)}" for prompt in prompts]

        return answer

    monkeypatch.setattr(module, "answer", answers(-1))
    run_evaluate(*flags, f"--out={fot / 'through'}")
    assert len(asked) == pieces
    asked.clear()
    out = fot / "interrupted"
    for most in (1, pieces // 2 + 1):
        monkeypatch.setattr(module, "answer", answers(most))
        with pytest.raises(SystemExit):  # the command's own way out
            run_evaluate(*flags, f"--out={out}")
    (journal,) = out.glob(f"{task}.*.partial.jsonl")
    assert len(journal.read_text().splitlines()) == 1 + pieces // 2 + 1
    monkeypatch.setattr(module, "answer", answers(pieces))
    run_evaluate(*flags, f"--out={out}")
    assert len(asked) == pieces and not journal.exists()
    name = f"{task}_examples.jsonl"
    assert (out / name).read_text() == (fot / "through" / name).read_text()
    assert f"taken up: {pieces // 2 + 1} pieces" in (out / f"{task}.md").read_text()


def test_an_interrupted_evaluation_goes_on(runs, monkeypatch, capsys):
    """Same report as one that ran through, only the rest computed; a newer checkpoint begins anew."""
    fot, _ = runs
    flags = [f"--workdir={fot}", "--task=context", "--evaluation.context_windows=1,2,4"]
    run_evaluate(*flags, f"--out={fot / 'through'}")
    calls, losses = [], context._losses

    def until(most: int):
        def interrupted(*text, **options):
            if len(calls) == most:
                os.kill(os.getpid(), signal.SIGTERM)
            calls.append(text[1].shape)
            return losses(*text, **options)

        return interrupted

    out = fot / "interrupted"
    monkeypatch.setattr(context, "_losses", until(2))
    with pytest.raises(SystemExit) as ended:  # the command's own way out
        run_evaluate(*flags, f"--out={out}")
    (partial,) = out.glob("context.*.partial.jsonl")
    line = f"interrupted: 2 finished pieces are kept in {partial}. The same command goes on from there."
    assert (ended.value.code, capsys.readouterr().err.splitlines()[-1]) == (143, line)
    assert len(partial.read_text().splitlines()) == 3
    monkeypatch.setattr(context, "_losses", until(3))
    run_evaluate(*flags, f"--out={out}")
    assert len(calls) == 3 and not partial.exists()
    found, through = (json.loads((folder / "context.json").read_text()) for folder in (out, fot / "through"))
    assert found["results"] == through["results"]

    calls.clear()
    monkeypatch.setattr(context, "_losses", until(1))
    with pytest.raises(SystemExit):
        run_evaluate(*flags, f"--out={out}")
    (fot / "checkpoints" / "1" / "touched").touch()  # changes the folder's time, as a new checkpoint does
    (fot / "checkpoints" / "1" / "touched").unlink()
    calls.clear()
    monkeypatch.setattr(context, "_losses", until(9))
    run_evaluate(*flags, f"--out={out}")
    assert len(calls) == 3
