"""Files that grow next to a bucket: what is copied, when, and what a continued run finds."""

import time

import pytest

from fot_jax.config import UserError
from fot_jax.storage import mirror
from fot_jax.storage.lease import Lease
from fot_jax.storage.mirror import OutputFolder
from fot_jax.storage.paths import files_below, storage_path
from fot_jax.train.metrics import MetricsWriter, read_rows


@pytest.fixture
def run(bucket):
    folder = storage_path(bucket) / "run"
    lease = Lease(folder / ".lock", seconds=30, lost=lambda line: None)
    yield folder, lease
    lease.release()


def names(folder) -> list[str]:
    return [str(path).removeprefix(f"{folder}/") for path in files_below(folder)]


def test_on_a_disk_it_is_the_run_itself(tmp_path):
    with OutputFolder(tmp_path) as outputs:
        assert outputs.local == tmp_path
        outputs.flush()
    assert list(tmp_path.iterdir()) == []


def test_what_has_changed_is_copied_at_a_flush_and_at_the_end(run):
    folder, lease = run
    with OutputFolder(folder, lease=lease) as outputs:
        (outputs.local / "a").write_text("1")
        outputs.flush()
        assert (folder / "a").read_text() == "1"
        (folder / "a").write_text("not written again")
        outputs.flush()
        assert (folder / "a").read_text() == "not written again"
        (outputs.local / "deep").mkdir()
        (outputs.local / "deep/b").write_text("2")
    assert (folder / "deep/b").read_text() == "2"
    assert not outputs.local.exists()


def test_a_bucket_that_is_gone_is_said(run, monkeypatch):
    """An object is not found where its bucket is not; the rows must not be lost in silence."""
    folder, lease = run

    def gone(path, data):
        raise FileNotFoundError(str(path))

    with OutputFolder(folder, lease=lease) as outputs:
        (outputs.local / "a").write_text("1")
        with monkeypatch.context() as patch:
            patch.setattr(mirror, "replace_file", gone)
            with pytest.raises(UserError, match=r"gs://.* must exist"):
                outputs.flush()
    assert (folder / "a").read_text() == "1"


def test_it_is_copied_by_itself(run):
    folder, lease = run
    with OutputFolder(folder, lease=lease, seconds=0.1) as outputs:
        (outputs.local / "a").write_text("1")
        for _ in range(100):
            if (folder / "a").exists():
                break
            time.sleep(0.1)
        assert (folder / "a").read_text() == "1"


def test_rows_go_on_after_the_restored_step(run):
    """A killed process leaves rows that no checkpoint has; each step is there once in the end."""
    folder, lease = run
    for start, end in ((0, 5), (3, 6)):
        with OutputFolder(folder, lease=lease, fetch=["metrics.jsonl"]) as outputs:
            writer = MetricsWriter(outputs.local, step=start)
            for step in range(start + 1, end + 1):
                writer.write(step, {"loss": 10 * start + step})
            writer.close()
    assert [(row["step"], row["loss"]) for row in read_rows(folder / "metrics.jsonl")] == [
        *((step, step) for step in (1, 2, 3)),
        *((step, 30 + step) for step in (4, 5, 6)),
    ]
    assert any(name.startswith("tensorboard/events.") for name in names(folder))


def test_nothing_is_copied_once_the_lease_is_lost(run):
    folder, lease = run
    lease._taken = "taken"
    with OutputFolder(folder, lease=lease, seconds=0.1) as outputs:
        (outputs.local / "a").write_text("1")
        with pytest.raises(UserError, match=r"^taken$"):
            outputs.flush()
        time.sleep(0.5)
        (outputs.local / "a").unlink()
        lease._taken = None
    assert names(folder) == [".lock"]


def test_other_processes_copy_nothing(run):
    folder, _ = run
    with OutputFolder(folder) as outputs:
        (outputs.local / "a").write_text("1")
        outputs.flush()
    assert names(folder) == [".lock"] and not outputs.local.exists()
