"""launch.evaluate and launch.demo_report on a workdir with random parameters and a corpus of random text."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from fot_jax.config import PastReading, SourceConfig, SourceKind
from fot_jax.data.cache import fingerprint, open_or_build
from launch import cli, demo_report
from tests.eval.workdirs import LENGTH, experiment, run_evaluate, write_run


def test_another_window_is_measured(runs):
    fot, _ = runs
    run_evaluate(f"--workdir={fot}", "--task=distraction", "--evaluation.window=8", f"--out={fot / 'narrow'}")
    chunks = [json.loads(line) for line in (fot / "narrow" / "distraction_examples.jsonl").read_text().splitlines()]
    run_evaluate(f"--workdir={fot}", "--task=distraction", f"--out={fot / 'wide'}")
    wide = [json.loads(line) for line in (fot / "wide" / "distraction_examples.jsonl").read_text().splitlines()]
    assert max(row["chunk"] for row in chunks) > max(row["chunk"] for row in wide)


def test_context_beside_two_baselines(runs):
    """One table a source; the baselines read in their own way, and at one window the same parameters score the same."""
    fot, _ = runs
    folder = fot.parent
    for reading in ("sliding", "full"):
        config = experiment(folder, memory_layers=[])
        evaluation = dataclasses.replace(config.evaluation, reading=PastReading(reading))
        write_run(folder / reading, dataclasses.replace(config, name=reading, evaluation=evaluation))
    beside = [f"--baseline-workdir={folder / reading}" for reading in ("sliding", "full")]
    run_evaluate(f"--workdir={fot}", *beside, "--task=context", "--evaluation.context_windows=1,4")
    found = json.loads((fot / "eval" / "context.json").read_text())["results"]["sources"]["text"]
    assert [model["reading"] for model in found] == ["memory", "sliding", "full"]
    alone = [model["points"][0]["perplexity"] for model in found]
    np.testing.assert_allclose(alone[1:], alone[0], rtol=1e-4)
    assert len({round(model["points"][1]["perplexity"], 3) for model in found}) == 3
    assert (fot / "eval" / "context_text.png").read_bytes().startswith(b"\x89PNG")
    assert "| sliding | sliding |" in (fot / "eval" / "context.md").read_text()


def test_no_baseline_is_left_out(runs):
    """Each of two, by every task that measures one checkpoint of each model."""
    fot, plain = runs
    write_run(fot.parent / "second", experiment(fot.parent))
    beside = [f"--baseline-workdir={folder}" for folder in (plain, fot.parent / "second")]
    few = ("passkey_tokens=300", "passkey_trials=1", "distraction_contexts=1")
    few = ("--memory.overlap=3", *(f"--evaluation.{setting}" for setting in few))
    for task, rows in (("perplexity", "contexts"), ("distraction", "models"), ("passkey", "models")):
        run_evaluate(f"--workdir={fot}", *beside, f"--task={task}", *few, f"--out={fot / 'three'}")
        report = json.loads((fot / "three" / f"{task}.json").read_text())
        assert {row["model"].split(",")[0] for row in report["results"][rows]} == {"fot", "plain", "second"}, task
    assert f"in windows of {LENGTH} tokens, the newest 3 of each read again in the next" in report["method"]


def test_documents_that_are_given_are_all_measured(runs, caplog):
    """Two files besides the run's data, four documents each; runs with other data and seeds may be compared."""
    fot, _ = runs
    folder, config = fot.parent, experiment(fot.parent)
    rng, digests = np.random.default_rng(1), []
    for name, lowest in (("bytes", 3), ("high", 131)):
        (folder / f"{name}.jsonl").write_text("unused: the token cache is written beforehand")
        source = SourceConfig(name=name, kind=SourceKind.AUTO, path=str(folder / f"{name}.jsonl"))
        expected = fingerprint(source, data=config.data, seed=config.seed)
        documents = [(f"file {i}", rng.integers(lowest, 259, 18 * LENGTH + 1)) for i in range(4)]
        cache = folder / "cache" / f"{name}-{expected}"
        made = open_or_build(
            cache, lambda documents=documents: documents, source=name, expected=expected, vocab_size=259
        )
        digests.append(made.digest)
    other = dataclasses.replace(config.data, heldout_fraction=0.25)
    write_run(folder / "other", dataclasses.replace(config, name="other", seed=5, data=other))
    given = [f"--documents={name}={folder / name}.jsonl" for name in ("bytes", "high")]
    run_evaluate(
        f"--workdir={fot}", f"--baseline-workdir={folder / 'other'}", "--task=context", *given,
        "--evaluation.context_windows=1,4", "--evaluation.documents=9", f"--out={folder / 'given'}",
    )  # fmt: skip
    found = json.loads((folder / "given" / "context.json").read_text())["results"]["sources"]
    assert {name: [model["targets"] for model in models] for name, models in found.items()} == {
        "bytes": [4, 4],
        "high": [4, 4],
    }
    assert found["bytes"][0]["points"] != found["high"][0]["points"]
    assert not caplog.messages
    write_run(folder / "seen", dataclasses.replace(config, name="seen"), text=digests[1])
    run_evaluate(f"--workdir={folder / 'seen'}", "--task=distraction", *given, "--evaluation.distraction_contexts=1")
    assert [m for m in caplog.messages if "documents ['high']: a source that" in m and "seen was trained on" in m]


def test_every_task_and_the_summary(runs, capsys):
    fot, plain = runs
    few = ("--evaluation.passkey_tokens=400,600", "--evaluation.passkey_trials=2")
    for task in ("perplexity", "distraction", "dictionary", "passkey"):
        run_evaluate(f"--workdir={fot}", f"--baseline-workdir={plain}", f"--task={task}", *few)
        assert (fot / "eval" / f"{task}.png").read_bytes().startswith(b"\x89PNG")
        assert f"![{task}]({task}.png)" in (fot / "eval" / f"{task}.md").read_text()
        assert len((fot / "eval" / f"{task}_examples.jsonl").read_text().splitlines()) >= 12
    found = json.loads((fot / "eval" / "perplexity.json").read_text())["results"]
    ours, theirs = found["contexts"]
    assert (ours["model"], theirs["model"]) == ("fot", "plain")  # both configs are named "tiny"
    assert [point["size"] for point in ours["points"]] == [0, 16]
    # The same parameters: without memory the baseline is the same model, with borrowed memory layers too.
    assert ours["points"] == theirs["points"]
    cli.run(demo_report.main, demo_report.make_parser(), [f"--workdir={fot}", f"--baseline-workdir={plain}"])
    page = (fot / "summary.md").read_text()
    assert all(
        text in page for text in ("Held-out bits per byte", "Targets", "reached", "loss.png", "eval/distraction.png")
    )
    assert "r_16" in capsys.readouterr().out
    assert (fot / "loss.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=nowhere", "--task=perplexity"], "--workdir must hold a run"),
        (["--workdir=FOT", "--task=perplexity", "--step=7"], "must hold the checkpoint asked for (7); it has [1]"),
        (["--workdir=PLAIN", "--task=distraction"], "must hold a model with memory layers"),
        (["--workdir=FOT", "--task=distraction", "--memory.top_k=many"], "memory.top_k must be int, got 'many'"),
        (
            ["--workdir=FOT", "--task=context", "--memory.log_length_scaling_from=15"],
            "0 (never) or at least the local context, 16",
        ),
        (
            ["--workdir=FOT", "--task=distraction", "--evaluation.documents=0"],
            "evaluation.documents must be >= 1, got 0",
        ),
        (["--workdir=FOT", "--task=distraction", "--evaluation.distraction_contexts=64"], "asks for 64 contexts"),
        (["--workdir=FOT", "--task=perplexity", "--evaluation.memory_contexts=0,99"], "the longest has 289"),
        (["--workdir=FOT", "--workdir=FOT", "--task=perplexity"], "for --task=dictionary only"),
        (["--workdir=FOT", "--task=context", "--documents=a.jsonl"], "must be NAME=FILES, as letters="),
        (["--workdir=FOT", "--task=passkey", "--documents=a=a.jsonl"], "must go with a task of perplexity, context"),
        (["--workdir=FOT", "--task=context", "--documents=a=1", "--documents=a=2"], "distinct names, got 'a' twice"),
        (["--workdir=FOT", "--task=context", "--documents=a=no.jsonl"], "at least one file, got none for 'no.jsonl'"),
        (["--workdir=FOT", "--baseline-workdir=WIDE", "--task=context"], "got 32 and 16. Set --evaluation.window"),
    ],
)
def test_a_user_error_is_one_line_and_exit_code_2(runs, capsys, arguments, message):
    fot, plain = runs
    folders = {"FOT": fot, "PLAIN": plain, "WIDE": fot.parent / "wide"}
    filled = [
        functools.reduce(lambda text, name: text.replace(name, str(folders[name])), folders, a) for a in arguments
    ]
    with pytest.raises(SystemExit) as exit_:
        run_evaluate(*filled)
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert message in error
    assert [line[:7] for line in error.splitlines() if not line.startswith("compilation cache: ")] == ["error: "]


def test_summary_asks_for_what_it_lacks(runs, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.run(demo_report.main, demo_report.make_parser(), [f"--workdir={runs[1]}"])
    assert exit_.value.code == 2
    assert "perplexity.json must exist. Run python -m launch.evaluate" in capsys.readouterr().err
