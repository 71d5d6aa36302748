"""Real compiles for real pods: `make test-aot`. Each runs in a process of its own, as libtpu asks."""

import json
import math
import subprocess
import sys

import pytest

pytestmark = pytest.mark.aot

SMALL_3B = ("--config=configs/longllama.py:3b", "--config.model.num_layers=2", "--config.model.memory_layers=1")


def reports(tmp_path, *flags):
    """Reads what the command writes; layers are scanned, so that two of them compile the program of 26."""
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "launch.aot_compile", *flags, f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


def test_train_step_of_3b_compiles_for_v3(tmp_path):
    """Fits into 16 GiB a device; keys travel while the kernels run."""
    (report,) = reports(tmp_path, *SMALL_3B, "--topology=v3:8x8")
    assert report["mesh"]["fsdp"] == 64 and report["memory"]["limit"] == 16 * 2**30
    assert report["memory"]["spare"] > 0.5
    assert 0.3 < report["formula_flops"] / report["costs"]["flops"] < 1
    assert report["costs"]["received"]["all-gather"] > 0
    assert report["costs"]["unknown_loops"] == 0
    # Forward and two gradients, for the own chunk in two layers and for three hops of the ring in one.
    assert report["attention"] == "pallas (auto)"
    assert report["costs"]["kernels"]["tpu_custom_call"] == pytest.approx(3 * 2 + 3 * 3)
    # The ring's, and those by which the compiler aligns shards of parameters; some of both are waited for.
    assert report["costs"]["beside"]["collective-permute"] > 0.8 * report["costs"]["collectives"]["collective-permute"]


@pytest.mark.parametrize("topology", ["v4:4x4x8", "v5e:16x16", "v5p:4x4x4", "v6e:16x16"])
def test_train_step_compiles_for_every_kind_of_pod(tmp_path, topology):
    """Takes all devices of a pod for the rows of a small model."""
    rows = "--config.train.batch_rows=256"
    (report,) = reports(tmp_path, "--config=configs/tiny_code.py", rows, f"--topology={topology}")
    sides = [int(side) for side in topology.partition(":")[2].split("x")]
    assert report["fits"] and report["mesh"]["data"] == math.prod(sides)


def test_reading_and_decoding_compile_for_v5e(tmp_path):
    """Counts the FLOPs of the formula, with a memory of 4,096 entries a row."""
    flags = ("--topology=v5e:4x4", "--config.mesh.fsdp=8", "--config.mesh.tensor=2", "--programs=read,decode")
    read, decode = reports(tmp_path, *SMALL_3B, *flags, "--config.memory.retrieval=dense", "--entries=4096")
    for report in (read, decode):
        assert report["fits"]
        assert report["costs"]["flops"] == pytest.approx(report["formula_flops"], rel=0.1)
    assert decode["tokens"] == 8
