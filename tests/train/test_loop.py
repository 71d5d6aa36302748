"""The loop: resume, stop, divergence, cadences; every run in this process, on one device."""

import contextlib
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.checkpoint import load_params
from fot_jax.config import AttentionBackend, UserError
from fot_jax.eval.summary import plot_losses
from fot_jax.train import loop
from fot_jax.train.context_schedule import ContextSchedule
from fot_jax.train.metrics import MetricsWriter, Speed, duration, progress_line, read_rows
from fot_jax.train.prefetch import Prefetcher
from fot_jax.train.recorder import NonFiniteError
from fot_jax.train.tensorboard import ScalarEvents
from fot_jax.train.time_accounting import Part
from tests.train.runs import run
from tests.train.tiny import tiny

TIMING = ("tokens_per_second", "model_flops_utilisation", *(f"{part}_seconds" for part in Part))


def rows(workdir):
    """metrics.jsonl without timings, by step."""
    kept = [{k: v for k, v in row.items() if k not in TIMING} for row in read_rows(workdir / "metrics.jsonl")]
    return {row["step"]: row for row in kept}


CHANGING = {
    "train__eval_every": 3,
    "train__eval_batches": 2,
    "crossbatch__schedule": {"kind": "switch_at_accuracy", "num_contexts": [1, 4], "switch_accuracy": 0.01},
    "model__attention": "blockwise",
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run of 6 steps with everything that changes over time."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    config = tiny(**CHANGING, train__peak_tflops=0.001)
    lines, outcome = run(config, workdir)
    return workdir, lines, outcome


def same_params(one, other):
    for a, b in zip(jax.tree.leaves(load_params(one)[1]), jax.tree.leaves(load_params(other)[1]), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_whole_run_leaves_its_record(uninterrupted):
    workdir, lines, outcome = uninterrupted
    assert (outcome.step, outcome.stopped) == (6, False)
    text = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in text] == [1, 2, 3, 4, 5, 6]
    measured = [step for step, row in rows(workdir).items() if "heldout_loss" in row]
    assert measured == [2, 3, 4, 6]  # every 3, and before each checkpoint so that it can be ranked
    assert any(line.startswith("embedding ") for line in lines), "the parameter table"
    progress = next(line for line in lines if line.startswith("step 6/6"))
    for part in ("loss", "acc", "d 4", "held-out loss", "tokens/s", "ETA 0s", "MFU"):
        assert part in progress
    assert list((workdir / "tensorboard").iterdir())
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 6


@pytest.mark.parametrize("stop_at", [1, 3])
def test_stopped_and_resumed_equals_uninterrupted(uninterrupted, tmp_path, stop_at):
    """SIGTERM between checkpoints (step 1: before the first one, and before the accuracy switch took effect)."""
    config = tiny(**CHANGING, train__peak_tflops=0.001)

    def terminate(line):
        if line.startswith(f"step {stop_at}/"):
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    lines, outcome = run(config, tmp_path, log=terminate)
    assert outcome.stopped and stop_at <= outcome.step <= stop_at + 1
    assert f"stopped by SIGTERM after step {outcome.step}, nothing is lost" in lines[-1]
    assert signal.getsignal(signal.SIGTERM) is handler
    # What a killed run leaves: rows after the checkpoint, the last one cut off.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 0.0}\n{"step": 6, "lo')
    lines, outcome = run(config, tmp_path)
    assert outcome.step == 6 and any("resumed after step" in line for line in lines)
    expected, got = rows(uninterrupted[0]), rows(tmp_path)
    for step, row in expected.items():
        common = row.keys() & got[step].keys()  # a save by SIGTERM is not evaluated
        assert {k: got[step][k] for k in common} == {k: row[k] for k in common}
        assert "loss" in common
    assert [row["num_contexts"] for row in got.values()] == [row["num_contexts"] for row in expected.values()]
    same_params(uninterrupted[0], tmp_path)


def test_the_accuracy_switch_happened(uninterrupted):
    ds = [row["num_contexts"] for row in rows(uninterrupted[0]).values()]
    assert ds[0] == 1 and ds[-1] == 4, ds


def test_a_finished_run_is_left_alone_and_can_be_extended(tmp_path):
    run(tiny(train__steps=2), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    _, outcome = run(tiny(train__steps=2), tmp_path)
    assert outcome.step == 2 and (tmp_path / "metrics.jsonl").read_text() == before
    with pytest.raises(UserError, match=r"train\.steps: 2 -> 4; train\.log_every: 1 -> 2\. .*--allow-change="):
        run(tiny(train__steps=4, train__log_every=2), tmp_path)
    lines, outcome = run(tiny(train__steps=4), tmp_path, allow_changes=["train.steps"])
    assert outcome.step == 4 and "config changed: train.steps: 2 -> 4" in lines
    with pytest.raises(UserError, match=r"train\.steps must be at least the 4 done in"):
        run(tiny(train__steps=3), tmp_path, allow_changes=["train"])


def without_loss(monkeypatch, steps):
    """Makes batches `steps` (from 0) of both splits bear no loss."""
    make = loop.make_stream

    def masked(config, split):
        stream = make(config, split)
        whole = stream.batch

        def batch(step, rows=None):
            made = whole(step, rows=rows)
            return made.replace(loss_mask=made.loss_mask * 0) if step in steps and split == "train" else made

        stream.batch = batch
        return stream

    monkeypatch.setattr(loop, "make_stream", masked)


def test_a_step_without_loss_tokens_logs_no_loss(tmp_path, monkeypatch, caplog):
    """No 0.0000 in the progress line, metrics.jsonl or TensorBoard, nor for the accuracy switch; one warning."""
    without_loss(monkeypatch, {1, 2})
    observed = []
    observe = ContextSchedule.observe
    monkeypatch.setattr(
        ContextSchedule,
        "observe",
        lambda self, known, **seen: observed.append(seen["step"]) or observe(self, known, **seen),
    )
    points = []
    monkeypatch.setattr(
        ScalarEvents, "add", lambda self, step, scalars: points.extend((name, step) for name in scalars)
    )
    lines, _ = run(tiny(**CHANGING, train__loss_mean="rows"), tmp_path)
    assert [message for message in caplog.messages if "bore loss" in message] == [
        "step 2: no token bore loss; a document that a batch holds twice bears none"
    ]
    assert "2 steps had no token that bears loss: there are few documents for the streams" in lines
    means = {"loss", "z_loss", "accuracy", "row_mean_loss"}
    for step, row in rows(tmp_path).items():
        assert (row["loss_tokens"] == 0) == (step in (2, 3))
        assert (means & row.keys()) == (set() if step in (2, 3) else means), row
        assert row["param_norm"] > 0
    empty = [line for line in lines if line.startswith(("step 2/", "step 3/"))]
    assert len(empty) == 2 and all("  no token bore loss  d " in line and "acc" not in line for line in empty), empty
    assert {step for name, step in points if name in means} == {1, 4, 5, 6}
    assert observed == [0, 3, 4, 5]
    plot_losses(tmp_path / "loss.png", workdirs=[tmp_path])


def test_a_non_finite_metric_stops_and_names_itself(tmp_path, monkeypatch):
    """The loss turns NaN at step 4; the checkpoint of step 2 stays and step 4's is never written."""
    make = loop.make_train_step

    def poisoned(config, mesh):
        step = make(config, mesh)

        def call(state, batch, plan):
            done, metrics = step(state, batch, plan)
            bad = jnp.float32(jnp.nan) if poisoned.calls == 3 else metrics.loss
            poisoned.calls += 1
            return done, metrics.replace(loss=bad)

        return call

    poisoned.calls = 0
    monkeypatch.setattr(loop, "make_train_step", poisoned)
    monkeypatch.setattr(loop, "_jax_guards", contextlib.nullcontext)
    with pytest.raises(NonFiniteError, match=r"step 4: loss is nan"):
        run(tiny(), tmp_path)
    assert load_params(tmp_path)[2] == 2
    assert sorted(rows(tmp_path)) == [1, 2, 3]


def test_a_diverging_run_never_saves_broken_parameters(tmp_path):
    """A huge learning rate: whatever breaks first is named, and what is on disk is finite."""
    with pytest.raises(NonFiniteError, match=r"step \d+: (loss|grad_norm|param_norm) is (nan|inf)"):
        run(tiny(optimizer__learning_rate=1e38, optimizer__warmup_steps=0, train__checkpoint_every=1), tmp_path)
    if (tmp_path / "checkpoints").exists() and any((tmp_path / "checkpoints").iterdir()):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_params(tmp_path)[1]))


def test_the_loop_compiles_one_program_per_power_of_two(tmp_path, caplog):
    config = tiny(
        crossbatch__schedule={"kind": "random", "num_contexts": [1, 2, 3, 4]},
        train__steps=12,
        train__checkpoint_every=12,
    )
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        run(config, tmp_path)
    ds = {row["num_contexts"] for row in rows(tmp_path).values()}
    compiled = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling jit(train_step)")]
    assert ds == {1, 2, 3, 4}
    assert len(compiled) == 3, compiled


def test_training_starts_from_the_parameters_of_another_run(tmp_path):
    run(tiny(train__steps=3), tmp_path / "first")
    params = load_params(tmp_path / "first")[1]
    more = tiny(train__steps=1, train__init_from=str(tmp_path / "first"), optimizer__learning_rate=1e-12)
    (tmp_path / "first/source_config.json").write_text("{}")  # as an imported run has it
    run(more, tmp_path / "second")
    assert (tmp_path / "second/source_config.json").read_text() == "{}"
    for a, b in zip(jax.tree.leaves(load_params(tmp_path / "second")[1]), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
    wider = tiny(train__init_from=str(tmp_path / "first"), model__mlp_dim=48)
    with pytest.raises(UserError, match=r"train.init_from=.* must hold parameters of this model, but .*\(2, 32, 16\)"):
        run(wider, tmp_path / "third")
    with pytest.raises(UserError, match="must hold a run"):
        run(tiny(train__init_from=str(tmp_path / "absent")), tmp_path / "third")


def test_gates_start_at_zero_where_the_other_run_has_none(tmp_path, caplog):
    run(tiny(train__steps=1), tmp_path / "first")
    gated = tiny(
        train__steps=1,
        train__init_from=str(tmp_path / "first"),
        model__memory_gate=True,
        crossbatch={"plan": "own_past", "packing": 2, "gradients": "stopped", "schedule": {"num_contexts": [1]}},
        optimizer__learning_rate=1e-3,
    )
    run(gated, tmp_path / "gated")
    assert "no gates there" in caplog.text
    gate = load_params(tmp_path / "gated")[1]["layers"]["attention"]["gate"]
    assert 0 < np.abs(gate).max() < 2e-3  # one step of the optimizer away from 0


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    hold = f"""
import sys, time
from fot_jax.workdir import only_writer
with only_writer({str(tmp_path)!r}):
    print("held", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "held\n"
            with pytest.raises(UserError, match="is being trained by another process"):
                run(tiny(train__steps=2), tmp_path)
        finally:
            other.kill()
    assert run(tiny(train__steps=2), tmp_path)[1].step == 2


def text(folder, **changes):
    """`tiny` on a text file of two documents a stream."""
    source = {"name": "notes", "kind": "text", "path": str(folder / "*.txt")}
    data = {"sources": [source], "cache_dir": str(folder / "cache"), "heldout_fraction": 0.0}
    return tiny(data=data, model__vocab_size=300, train__steps=2, **changes)


def test_changed_documents_are_noticed_on_resume(tmp_path):
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text(f"{number} " * 400)
    run(text(tmp_path), tmp_path / "run")
    (tmp_path / "8.txt").write_text("other " * 400)
    more = dataclasses.replace(text(tmp_path), train=dataclasses.replace(text(tmp_path).train, steps=3))
    before = (tmp_path / "run" / "config.json").read_text()
    with pytest.raises(
        UserError, match=r"data.sources \['notes'\] must give the tokens .*--allow-change=data.documents"
    ):
        run(more, tmp_path / "run", allow_changes=["train.steps"])
    assert (tmp_path / "run" / "config.json").read_text() == before
    lines, outcome = run(more, tmp_path / "run", allow_changes=["train.steps", "data.documents"])
    assert outcome.step == 3 and "documents changed: notes" in lines


def test_data_is_checked_before_it_is_tokenised(tmp_path):
    """The plan's notice comes first, then one line where a split has too few documents; nothing is written."""
    (tmp_path / "a.txt").write_text("one document")
    source = {"name": "text", "kind": "auto", "path": str(tmp_path / "a.txt")}
    data = {"sources": [source], "cache_dir": str(tmp_path / "cache"), "vocabulary": {"kind": "bytes"}}
    config = tiny(data=data, model__vocab_size=259, crossbatch={"plan": "two_pass"})
    lines = []
    with pytest.raises(UserError, match=r"the train split at least 4 documents, one a stream .*got 1\."):
        loop.train(config, workdir=tmp_path / "run", devices=jax.devices()[:1], log=lines.append)
    assert len(lines) == 1 and lines[0].startswith("note: crossbatch.plan 'two_pass' has no negatives at d = 1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt"]


def test_held_out_batches_without_loss_are_refused_at_once(tmp_path):
    """Two held-out documents that every batch reads twice: before the first step, not at the first measurement."""
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"{i}")
    source = {"name": "text", "kind": "text", "path": str(tmp_path / "*.txt")}
    data = {"sources": [source], "cache_dir": str(tmp_path / "cache"), "vocabulary": {"kind": "bytes"}}
    data["heldout_fraction"] = 0.5
    config = tiny(data=data, model__vocab_size=259, train__batch_rows=4, train__eval_every=6)
    with pytest.raises(UserError, match=r"train\.eval_batches must hold tokens that bear loss, got none"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_kernels_that_do_not_run_here_are_refused_or_replaced(tmp_path):
    with pytest.raises(UserError, match=r"model\.attention must be one of .* on a cpu, got 'pallas'"):
        run(tiny(model__attention="pallas"), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    run(tiny(crossbatch={"plan": "off"}, model__attention="blockwise", train__steps=1), tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    saved = json.loads(path.read_text())
    saved["model"]["attention"] = "pallas"  # as from a TPU
    path.write_text(json.dumps(saved))
    assert load_params(tmp_path / "run")[0].model.attention is AttentionBackend.AUTO
    assert json.loads(path.read_text()) == saved


def test_unknown_names_of_allowed_changes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"must name config paths, got 'train.step'. Did you mean 'train.steps'\?"):
        run(tiny(), tmp_path, allow_changes=["train.step"])


def test_plain_training_needs_no_plan(tmp_path):
    _, outcome = run(tiny(crossbatch={"plan": "off"}, train__steps=2), tmp_path)
    assert outcome.step == 2


def test_prefetch_gives_every_step_once_and_passes_errors_on():
    loaded = []

    def load(step):
        loaded.append(step)
        if step == 3:
            raise ValueError("no batch 3")
        return step * 10

    with Prefetcher(load, stop=5) as batches:
        assert [batches.take(step) for step in (0, 1, 2)] == [0, 10, 20]
        with pytest.raises(ValueError, match="no batch 3"):
            batches.take(3)
    with Prefetcher(load, stop=2) as batches:
        assert [batches.take(1)] == [10]
    assert loaded == [0, 1, 2, 3, 1]


def test_progress_line_and_speed(monkeypatch):
    now = iter([100.0, 110.0])
    with monkeypatch.context() as patch:
        patch.setattr("fot_jax.train.metrics.time.monotonic", lambda: next(now))
        speed = Speed(tokens_per_step=1000, steps=45)
        speed.start(5)
        assert speed.report(25) == (2000.0, 10.0)
    scalars = {"loss": 2.5, "accuracy": 0.25, "num_contexts": 4}
    scalars |= {"tokens_per_second": 12345.0, "model_flops_utilisation": 0.412}
    line = progress_line(120, scalars, steps=500, seconds_left=200)
    assert line == "step 120/500  loss 2.5000  acc 0.250  d 4  12.3k tokens/s  ETA 3m20s  MFU 41.2%"
    assert [duration(s) for s in (45, 200, 7500)] == ["45s", "3m20s", "2h05m"]


def test_rows_are_on_disk_before_the_writer_is_closed(tmp_path):
    writer = MetricsWriter(tmp_path, step=0)
    writer.write(1, {"loss": 0.1})
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.1}]
    writer.close()
