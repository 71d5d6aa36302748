"""Storage that answers late: what training waits for, and what it does not."""

import json
import subprocess
import sys

import pytest

from tests.buckets import new_bucket
from tests.processes import environment
from tests.storage.proxy import proxied

DELAY = 0.05  # seconds of every request


def measure(workdir, variables) -> dict:
    command = [sys.executable, "-m", "tests.storage.latency", str(workdir)]
    done = subprocess.run(
        command, env=environment() | variables, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_slow_bucket_delays_neither_steps_nor_training(gcs, tmp_path):
    """With 50 ms a request a save blocks for less than two seconds, and a step takes as long as on a disk."""
    disk = measure(tmp_path / "run", {})
    with proxied(gcs) as (proxy, variables):
        proxy.delay = DELAY
        slow = measure(f"{new_bucket(gcs)}/run", variables)
        print(f"disk {json.dumps(disk)}\nbucket {json.dumps(slow)}\nrequests {proxy.count}")
    assert max(slow["save blocks"][1:]) < 2.0
    assert slow["step"] < 1.3 * disk["step"]
