"""A finished run ends with its held-out loss and the commands that use it."""

import json
import types

import pytest

from fot_jax.train import loop
from launch import cli, train
from tests.train.tiny import tiny

TEXT = {"sources": [{"name": "a", "kind": "stdlib"}], "vocabulary": {"kind": "bytes"}}


def write_metrics(folder, losses):
    rows = [{"step": step, "loss": 1.0} | ({} if loss is None else {"heldout_loss": loss}) for step, loss in losses]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_last_and_the_best_loss_are_shown(tmp_path):
    """The best one alone where it is the last; none of a run that measured none."""
    folder = tmp_path / "my runs"
    where = f"--workdir='{folder}'"
    folder.mkdir()
    config = tiny(data=TEXT, model__vocab_size=259)
    commands = [
        f"next: python -m launch.evaluate {where} --task=perplexity",
        f"next: python -m launch.read {where} --text=FILE",
        f"next: python -m launch.generate {where} --prompt-file=FILE --max-new-tokens=100 --temperature=0.8",
    ]
    assert train.closing_lines(config, folder) == commands
    write_metrics(folder, [(1, None), (2, 2.5), (4, 2.25), (5, None)])
    assert train.closing_lines(config, folder) == ["held-out loss 2.2500 nats a token after step 4", *commands]
    write_metrics(folder, [(2, 2.25), (4, 2.5)])
    better = "held-out loss 2.5000 nats a token after step 4; 2.2500 after step 2, which is --step=best"
    assert train.closing_lines(config, folder) == [better, *commands]


def test_the_commands_suit_the_model(tmp_path):
    """Dictionary lookup holds no text to go on with, and a model without memory layers has no memory to measure."""
    where = f"--workdir={tmp_path}"
    assert train.closing_lines(tiny(), tmp_path) == [f"next: python -m launch.evaluate {where} --task=dictionary"]
    plain = tiny(data=TEXT, model__vocab_size=259, model__memory_layers=[], crossbatch__plan="off")
    (line,) = train.closing_lines(plain, tmp_path)
    assert line.startswith("next: python -m launch.generate ")


@pytest.mark.parametrize("stopped", [False, True])
def test_a_stopped_run_shows_none(tmp_path, monkeypatch, capsys, stopped):
    """It ends with how it goes on instead."""
    monkeypatch.setattr(loop, "train", lambda *args, **kwargs: loop.Outcome(step=6, stopped=stopped))
    flags = ["--config=tests/e2e/tiny_config.py", f"--workdir={tmp_path}", "--compilation-cache=off"]
    cli.run(train.main, train.make_parser(), flags)
    assert capsys.readouterr().out.count("next: ") == (0 if stopped else 1)


def test_a_line_of_progress_is_one_write(monkeypatch):
    """Unbuffered, a second write for the line's end would let a message of another thread come between."""
    writes = []
    monkeypatch.setattr(train.sys, "stdout", types.SimpleNamespace(write=writes.append, flush=lambda: None))
    train._log("step 1/2")
    assert writes == ["step 1/2\n"]
