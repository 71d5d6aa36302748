"""One writer of a run in a bucket: refused, taken over, lost, released; and of several at once, one."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from google.cloud.storage import Blob

from fot_jax.config import UserError
from fot_jax.storage.lease import LOST, Lease
from fot_jax.storage.paths import storage_path
from fot_jax.workdir import only_writer

SECONDS = 4.0  # the shortest lease


@pytest.fixture
def holder(bucket):
    """A process that holds the lease of the bucket's run; a line on its stdin releases it."""
    command = [sys.executable, "-m", "tests.storage.holder", f"{bucket}/run/.lock", str(SECONDS)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, **pipes)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def take(bucket: str) -> Lease:
    return Lease(f"{bucket}/run/.lock", seconds=SECONDS, lost=lambda line: None)


def test_a_second_writer_is_refused_and_the_lease_handed_on(bucket):
    first = take(bucket)
    with pytest.raises(UserError, match=rf"^{bucket}/run is being trained by another process \(process \d+ on .*\)\."):
        take(bucket)
    first.release()
    assert (storage_path(bucket) / "run/.lock").read_text() == "{}"
    start = time.monotonic()
    with only_writer(f"{bucket}/run", lease_seconds=SECONDS) as lease:
        assert time.monotonic() - start < SECONDS / 2, "a lease that was released is free at once"
        assert lease is not None and lease.held()
    assert (storage_path(bucket) / "run/.lock").read_text() == "{}"


def test_a_killed_holder_is_taken_over_after_its_lease(bucket, holder):
    holder.kill()
    start = time.monotonic()
    lease = take(bucket)
    assert time.monotonic() - start >= SECONDS
    lease.release()


def test_a_frozen_holder_ends_when_another_took_its_lease(bucket, holder):
    os.kill(holder.pid, signal.SIGSTOP)
    lease = take(bucket)
    os.kill(holder.pid, signal.SIGCONT)
    assert holder.wait(timeout=60) == LOST
    [line] = holder.stderr.read().splitlines()
    assert line.startswith("error: ") and f"the lock of this run was taken by process {os.getpid()} on " in line
    lease.confirm()
    lease.release()


def contend(bucket: str, monkeypatch) -> list[Lease]:
    """Lets six find the lock free before the first writes it; returns those who then hold it."""
    unchanging, all_have_looked = Lease._unchanging, threading.Barrier(6)
    holders, refused = [], []

    def look(self) -> int:
        found = unchanging(self)
        all_have_looked.wait()
        return found

    def take_one() -> None:
        try:
            holders.append(take(bucket))
        except UserError as error:
            refused.append(error)

    monkeypatch.setattr(Lease, "_unchanging", look)
    threads = [threading.Thread(target=take_one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(holders) + len(refused) == 6
    return holders


def test_of_six_at_once_one_gets_the_lease(bucket, monkeypatch):
    [lease] = contend(bucket, monkeypatch)
    lease.confirm()
    lease.release()


def test_without_the_condition_six_would_get_the_lease(bucket, monkeypatch):
    """The test above fails for a lease that writes without naming the generation that it replaces."""
    upload = Blob.upload_from_string

    def upload_anyway(self, data, **how):
        return upload(self, data, **how | {"if_generation_match": None})

    monkeypatch.setattr(Blob, "upload_from_string", upload_anyway)
    leases = contend(bucket, monkeypatch)
    assert len(leases) == 6
    for lease in leases:
        lease.release()


def test_the_condition_of_a_write_is_what_decides(bucket, monkeypatch):
    """Two that have both found the lock free: the second one's write is refused."""
    first = take(bucket)
    monkeypatch.setattr(Lease, "_unchanging", lambda self: 0)
    with pytest.raises(UserError, match="is being trained by another process"):
        take(bucket)
    first.release()


def test_an_empty_lock_of_a_copied_run_is_free(bucket):
    (storage_path(bucket) / "run/.lock").write_bytes(b"")
    Lease(f"{bucket}/run/.lock", seconds=SECONDS).release()


def test_a_lost_lease_is_never_confirmed(bucket):
    lines = []
    lease = Lease(f"{bucket}/run/.lock", seconds=SECONDS, lost=lines.append)
    lease.confirm()
    (storage_path(bucket) / "run/.lock").write_text('{"id": "x", "pid": 1, "host": "other"}')
    for _ in range(100):
        if not lease.held():
            break
        time.sleep(0.1)
    with pytest.raises(UserError, match=r"taken by process 1 on other\. This process ends, it saves nothing more\.$"):
        lease.confirm()
    assert len(lines) == 1
    lease.release()
    assert '"other"' in (storage_path(bucket) / "run/.lock").read_text()


@pytest.mark.parametrize("seconds", [3, 601, float("nan")])
def test_a_lease_is_neither_short_nor_long(seconds):
    """A longer one would be taken by others as of unknown length."""
    with pytest.raises(UserError, match=r"^--lease-seconds must be between 4 and 600, got "):
        Lease("gs://bucket/run/.lock", seconds=seconds)


def test_a_missing_bucket_is_named(gcs):
    with pytest.raises(UserError, match=r"^gs://no-such-bucket must exist\. Make it with `gcloud storage buckets"):
        Lease("gs://no-such-bucket/run/.lock")
