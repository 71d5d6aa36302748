"""A run in a bucket: trained, resumed, loaded, evaluated, averaged and started from, as on a disk."""

import json
import os
import re

import jax
import numpy as np
import pytest

import fot_jax
from fot_jax.checkpoint import Checkpointer, load_params, newest_step
from fot_jax.config import UserError
from fot_jax.convert.averaging import average_runs
from fot_jax.convert.exporting import Format, export_checkpoint
from fot_jax.convert.hf_config import Changes
from fot_jax.convert.importing import import_checkpoint
from fot_jax.eval.journal import Journal
from fot_jax.storage.paths import bucket_files, files_below, storage_path
from fot_jax.train.metrics import read_rows
from fot_jax.train.profile import ProfileSteps
from fot_jax.workdir import read_config
from tests.buckets import new_bucket
from tests.convert.checkpoints import SMALL, bpe_tokenizer, random_tensors, write_folder
from tests.eval import workdirs
from tests.train.runs import run
from tests.train.tiny import tiny

EVALUATED = {"train__eval_every": 2, "train__eval_batches": 1, "train__keep_checkpoints": 1}


def config(steps: int, **changes):
    return tiny(train__steps=steps, **EVALUATED, **changes)


def losses(workdir):
    return [(row["step"], row["loss"], row.get("heldout_loss")) for row in read_rows(workdir / "metrics.jsonl")]


def names(folder) -> set[str]:
    """The files of a folder, without numbers that differ from run to run."""
    found = [os.fspath(path).removeprefix(f"{os.fspath(folder)}/") for path in files_below(folder)]
    return {re.sub(r"events\.out.*", "events", name) for name in found}


@pytest.fixture(scope="module")
def runs(gcs, tmp_path_factory):
    """Trains six steps on a disk, and in a bucket with a break after four; with a trace of step 2."""
    disk, bucket = tmp_path_factory.mktemp("disk"), storage_path(new_bucket(gcs)) / "runs/a"
    run(config(6), disk)
    run(config(4), bucket, profile=ProfileSteps(first=2, last=2))
    lines, outcome = run(config(6), bucket, allow_changes=["train.steps"])
    assert outcome.step == 6 and "resumed after step 4" in lines
    return disk, bucket


def test_losses_are_those_of_a_run_on_a_disk(runs):
    disk, bucket = runs
    assert losses(bucket) == losses(disk) and len(losses(disk)) == 6


def test_everything_is_in_the_bucket(runs):
    _, bucket = runs
    found = {name for name in names(bucket) if not name.startswith("checkpoints/")}
    traces = {name for name in found if name.startswith("profile/plugins/profile/")}
    assert any(name.endswith(".xplane.pb") for name in traces)
    assert found - traces == {".lock", "config.json", "metrics.jsonl", "tensorboard/events"}


def test_the_same_checkpoints_are_kept(runs):
    for number in ("latest", "best"):
        (_, params, step), (_, others, other) = (load_params(folder, step=number) for folder in runs)
        assert step == other
        jax.tree.map(np.testing.assert_array_equal, params, others)
    kept = []
    for folder in runs:
        with Checkpointer(folder, config(6), read_only=True) as checkpoints:
            kept.append(checkpoints.steps())
    assert kept[0] == kept[1] and 6 in kept[0]


def test_a_run_starts_from_one_in_the_bucket(runs, tmp_path):
    for name, start in (("disk", runs[0]), ("bucket", runs[1]), ("fresh", "")):
        run(tiny(train__steps=1, train__init_from=str(start)), tmp_path / name)
    found = {name: losses(tmp_path / name) for name in ("disk", "bucket", "fresh")}
    assert found["bucket"] == found["disk"] != found["fresh"]


def test_another_config_is_refused(runs):
    with pytest.raises(UserError, match=rf"^{runs[1]} holds a run of another config .*model\.mlp_dim: 32 -> 64\."):
        run(config(6, model__mlp_dim=64), runs[1])


def copied(source, bucket):
    """A copy of a run in another bucket, as `gcloud storage cp -r` makes it."""
    for path in files_below(source):
        target = storage_path(bucket) / "run" / os.fspath(path).removeprefix(f"{os.fspath(source)}/")
        target.write_bytes(path.read_bytes())
    return storage_path(bucket) / "run"


def test_a_run_on_a_disk_goes_on_in_a_bucket(runs, bucket):
    folder = copied(runs[0], bucket)
    lines, _ = run(config(7), folder, allow_changes=["train.steps"])
    assert "resumed after step 6" in lines
    assert losses(folder)[:6] == losses(runs[0]) and len(losses(folder)) == 7


def test_a_half_written_checkpoint_is_never_used(runs, bucket):
    """Orbax's last file makes a checkpoint a whole one; without it the next opening removes the folder."""
    folder = copied(runs[1], bucket)
    with Checkpointer(folder, config(6), read_only=True) as checkpoints:
        older = [step for step in checkpoints.steps() if step < 6]
    (folder / "checkpoints/6/commit_success.txt").unlink()
    assert newest_step(folder) == (older[-1] if older else None)
    with Checkpointer(folder, config(6)) as checkpoints:
        assert checkpoints.steps() == older
    lines, _ = run(config(6), folder)
    assert (f"resumed after step {older[-1]}" if older else f"new run in {folder}") in lines
    assert losses(folder) == losses(runs[0])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax drops its other reads
@pytest.mark.usefixtures("abandoned_reads")
def test_a_half_removed_checkpoint_is_refused_in_one_line(runs, bucket):
    """Removing an old checkpoint is many requests: a kill may leave it with its last file and without arrays."""
    folder = copied(runs[1], bucket)
    bucket_files().rm(f"{folder}/checkpoints/6/params/d", recursive=True)
    bucket_files().rm(f"{folder}/checkpoints/6/params/ocdbt.process_0", recursive=True)
    with pytest.raises(
        UserError, match=r"checkpoint of step 6 cannot be read.*Delete gs://.*/checkpoints/6 to"
    ) as caught:
        run(config(6), folder)
    assert "\n" not in str(caught.value)


def test_it_is_evaluated_and_read_straight_from_the_bucket(bucket, tmp_path):
    """Reports, plots and journals go to the bucket; `fot_jax.load` reads the model from it."""
    (tmp_path / "corpus.txt").mkdir()  # a folder of files, each one document
    for number in range(20):
        (tmp_path / f"corpus.txt/{number}.txt").write_text(f"It was a dark and stormy night {number}. " * 9)
    folder = storage_path(bucket) / "run"
    workdirs.write_run(folder, workdirs.experiment(tmp_path))
    workdirs.run_evaluate(f"--workdir={folder}", "--task=distraction")
    workdirs.run_evaluate(f"--workdir={folder}", "--task=distraction", f"--out={folder}/other")
    found = {name for name in names(folder) if not name.startswith("checkpoints/")}
    assert {"eval/distraction.json", "eval/distraction.md", "eval/distraction.png"} < found
    assert {"other/distraction.json", "other/distraction.md"} < found
    assert json.loads((folder / "eval/distraction.json").read_text())["task"] == "distraction"
    assert not [name for name in found if "partial" in name]
    assert fot_jax.load(str(folder)).read("It was", progress=lambda _: None).ask("a", max_new_tokens=1) is not None


def test_an_interrupted_evaluation_goes_on_in_a_bucket(bucket):
    """Pieces are kept at the interrupt, not one by one: an object may be written once a second."""
    folder = storage_path(bucket) / "eval"

    def interrupted():
        raise KeyboardInterrupt

    memoize = Journal(folder, "needle", measured={"a": 1}).memoize("part")
    assert [memoize((number,), lambda number=number: number * 2) for number in range(3)] == [0, 2, 4]
    with pytest.raises(KeyboardInterrupt):
        memoize((3,), interrupted)
    journal = Journal(folder, "needle", measured={"a": 1})
    assert journal.num_resumed == 3
    assert journal.memoize("part")((2,), interrupted) == 4
    assert [path.name for path in folder.glob("needle.*.partial.jsonl")] == [journal.path.name]
    journal.remove()
    assert list(files_below(folder)) == []


def test_imports_averages_and_exports_go_there(bucket, tmp_path):
    values = {**SMALL, "vocab_size": 300}
    write_folder(tmp_path / "hf", values, random_tensors(values))
    bpe_tokenizer(300).save(str(tmp_path / "hf/tokenizer.json"))
    changes = Changes(memory_layers=(1,), local_context=32)
    imported = import_checkpoint(tmp_path / "hf", f"{bucket}/imported", changes=changes)
    assert imported.name == "imported"
    assert imported.data.vocabulary.path == f"{bucket}/imported/tokenizer/tokenizer.json"
    average_runs(f"{bucket}/imported", other=f"{bucket}/imported", folder=f"{bucket}/mean", share=0.5)
    params, others = (load_params(f"{bucket}/{name}")[1] for name in ("imported", "mean"))
    jax.tree.map(np.testing.assert_array_equal, params, others)
    assert read_config(f"{bucket}/mean").data.vocabulary.path == f"{bucket}/mean/tokenizer/tokenizer.json"
    export_checkpoint(f"{bucket}/mean", f"{bucket}/hf", form=Format.HF)
    assert {"config.json", "tokenizer.json", "model.safetensors"} < names(storage_path(bucket) / "hf")
    with pytest.raises(UserError, match=rf"^--to must name a new folder, got '{bucket}/mean', which exists\."):
        average_runs(f"{bucket}/imported", other=f"{bucket}/imported", folder=f"{bucket}/mean", share=0.5)
