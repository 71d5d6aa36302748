"""The Pallas kernels through the real TPU and GPU compilers, standing alone. See `make test-aot`."""

import json
import subprocess
import sys

import pytest

from tests.aot import gpu_compiles
from tests.aot.kernel_compiles import CASES

pytestmark = pytest.mark.aot


@pytest.mark.parametrize("topology", ["v3:2x2", "v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_kernels_compile_for_every_chip(topology):
    """Chooses them by AUTO for a chip that is not here; local and contexts make two times three of them."""
    command = [sys.executable, "-m", "tests.aot.kernel_compiles", topology]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {f"{head_dim} {dtype}": 6 for head_dim, dtype in CASES}


@pytest.mark.parametrize("gpu", gpu_compiles.GPUS)
def test_kernels_compile_for_gpus(gpu):
    """Runs Triton, LLVM and ptxas: six kernels, all with tensor cores; of bfloat16 they load one block ahead."""
    command = [sys.executable, "-m", "tests.aot.gpu_compiles", gpu]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {
        f"{head_dim} {dtype}": [6, 6, 6 if dtype == "bfloat16" else 0] for head_dim, dtype in gpu_compiles.CASES
    }
