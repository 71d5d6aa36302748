"""The ring through the real TPU compiler: rows travel while the kernels attend. See `make test-aot`."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.aot


@pytest.mark.parametrize(
    ("topology", "tensor"),
    [("v3:8x8", 1), ("v4:2x2x4", 1), ("v5e:8x8", 1), ("v5e:16x16", 2), ("v5p:4x4x4", 1), ("v6e:8x8", 2)],
)
def test_ring_rows_travel_beside_the_kernels(topology, tensor):
    """Counts keys, values and document ids of two hops; some are waited for, by chip (experiments/scale.md)."""
    command = [sys.executable, "-m", "tests.aot.ring_compiles", topology, str(tensor)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["permutes"] == found["asynchronous"] == 6
    assert found["beside a kernel"] >= 3
