"""Storage that answers late: what training waits for, and what it does not."""

import json
import subprocess
import sys

import pytest

from tests.buckets import new_bucket
from tests.processes import environment
from tests.storage.proxy import proxied

DELAY = 0.05  # seconds of every request


def start(workdir, variables) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.storage.latency", str(workdir)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment() | variables, **pipes)


def figures(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.mark.slow
def test_a_slow_bucket_delays_neither_steps_nor_training(gcs, tmp_path):
    """With 50 ms a request a save blocks for less than two seconds, and steps take as long as on a disk.

    Both runs are made at once, so that the machine's other work meets both.
    """
    with proxied(gcs) as (proxy, variables):
        proxy.delay = DELAY
        disk, slow = (
            figures(process) for process in [start(tmp_path / "run", {}), start(f"{new_bucket(gcs)}/run", variables)]
        )
        print(f"disk {json.dumps(disk)}\nbucket {json.dumps(slow)}\nrequests {proxy.count}")
    assert max(slow["save blocks"][1:]) < 2.0
    assert slow["step"] < 1.3 * disk["step"]
