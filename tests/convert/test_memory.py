"""Importing holds the output's buffers and less than 1.3 of the largest tensor besides."""

import json
import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from fot_jax.checkpoint import load_stored_params
from fot_jax.convert.safetensors_files import write_folder
from tests.convert.checkpoints import SMALL, shapes

MIDDLE = {**SMALL, "hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "vocab_size": 32000,
          "num_hidden_layers": 3, "num_key_value_heads": 16, "max_position_embeddings": 2048}  # fmt: skip
OPEN_LLAMA_3B = {**MIDDLE, "hidden_size": 3200, "intermediate_size": 8640, "num_attention_heads": 32,
                 "num_hidden_layers": 26, "num_key_value_heads": 32}  # fmt: skip
OVERHEAD = 24 * 2**20  # Python and Orbax themselves


def write_random(folder, config, *, max_shard_bytes):
    """bfloat16 tensors cut from one random buffer, so that writing needs no more than that."""
    wanted = shapes(config)
    largest = max(int(np.prod(shape)) for shape in wanted.values())
    rng = np.random.default_rng(0)
    buffer = np.empty(largest + 10_000, ml_dtypes.bfloat16)
    for start in range(0, len(buffer), 2**22):
        piece = buffer[start : start + 2**22]
        piece[:] = rng.standard_normal(len(piece), np.float32)
    tensors = {}
    for index, (name, shape) in enumerate(wanted.items()):
        offset = 31 * index % 10_000
        tensors[name] = buffer[offset : offset + int(np.prod(shape))].reshape(shape)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    write_folder(folder, tensors, max_shard_bytes=max_shard_bytes)
    return tensors


def measure(tmp_path, config, *, dtype, max_shard_bytes, tries=1):
    """Peak anonymous memory of an import, the output's bytes, the largest tensor's bytes (in the output's dtype)."""
    tensors = write_random(tmp_path / "hf", config, max_shard_bytes=max_shard_bytes)
    assert (tmp_path / "hf/model.safetensors.index.json").exists()
    size = {"float32": 4, "bfloat16": 2}[dtype]
    output = size * sum(tensor.size for tensor in tensors.values())
    largest = size * max(tensor.size for tensor in tensors.values())
    peaks = []
    for attempt in range(tries):  # a busy disk keeps more of what is written waiting: that only adds
        run = tmp_path / ("run" if attempt == 0 else f"run{attempt}")
        done = subprocess.run(
            [sys.executable, "-m", "tests.convert.memory_probe", tmp_path / "hf", run, dtype],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stderr.count("Progress(") == len(tensors)
        peaks.append(int(re.search(r"PEAK (\d+)", done.stdout)[1]))
        if peaks[-1] <= output + 1.3 * largest + OVERHEAD:
            break
    peak = min(peaks)
    print(f"peak {peak / 2**20:,.0f} MiB, output {output / 2**20:,.0f} MiB, largest tensor {largest / 2**20:,.0f} MiB")
    return tensors, peak, output, largest


@pytest.mark.slow  # a busy disk keeps more of what is written waiting than the bound allows
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_small_sharded_checkpoint(tmp_path, dtype):
    _, peak, output, largest = measure(tmp_path, MIDDLE, dtype=dtype, max_shard_bytes=50 * 10**6, tries=4)
    assert peak <= output + 1.3 * largest + OVERHEAD
    assert peak >= output, "or the measurement misses the buffers"


@pytest.mark.slow
def test_a_3b_shaped_checkpoint(tmp_path):
    tensors, peak, output, largest = measure(tmp_path, OPEN_LLAMA_3B, dtype="bfloat16", max_shard_bytes=2 * 10**9)
    assert output > 6.8e9
    assert peak <= output + 1.3 * largest + OVERHEAD
    params, _ = load_stored_params(tmp_path / "run")
    found = params["layers"]["feed_forward"]["down"][25]
    np.testing.assert_array_equal(found.T, tensors["model.layers.25.mlp.down_proj.weight"])
