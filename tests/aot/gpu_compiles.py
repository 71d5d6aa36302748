"""Compiles the joint softmax's kernels for a GPU that is not here: python -m tests.aot.gpu_compiles h100

Prints one line of JSON: {"HEAD_DIM DTYPE": kernels in the program, those with tensor cores, those that load ahead}.
"""

import json
import os
import re
import sys
import tempfile
from pathlib import Path

FOLDER = ".libcuda"  # where `make libcuda` puts the compiler
CASES = [(64, "bfloat16"), (80, "bfloat16"), (100, "bfloat16"), (128, "bfloat16"), (128, "float32")]
# What XLA asks of a device, for one that is not here: NVIDIA's data sheets, limits of the compute capability.
GPUS = {
    "a100": {
        "kind": "NVIDIA A100-SXM4-80GB", "major": 8, "minor": 0, "cores": 108, "fpus": 64, "shared": 166912,
        "per_core": 167936, "l2": 41943040, "bandwidth": 2039000000000, "clock": 1.41, "memory": 85899345920,
    },
    "h100": {
        "kind": "NVIDIA H100 80GB HBM3", "major": 9, "minor": 0, "cores": 132, "fpus": 128, "shared": 232448,
        "per_core": 233472, "l2": 52428800, "bandwidth": 3352320000000, "clock": 1.98, "memory": 84929347584,
    },
}  # fmt: skip
TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {shared} shared_memory_per_core: {per_core}
  core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {clock}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {l2} device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 7 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{kind}"
"""


def device_of(name: str):
    """A device of this kind, described to the compiler."""
    from jax.experimental import topologies

    target = TARGET.format(**GPUS[name])
    return topologies.get_topology_desc(platform="cuda", target_config=target, topology="1x1x1").devices[0]


def kernels(device, head_dim: int, dtype: str, dump: Path) -> list[int]:
    """Kernels of rows of 640 tokens, local and contexts, forward and backward: with tensor cores, loading ahead."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from tests.ops.kernel_cases import step_for_a_chip

    mesh = Mesh(np.array([device]), ("data",), axis_types=(AxisType.Auto,))
    step, arguments = step_for_a_chip(head_dim, jnp.dtype(dtype))
    place = NamedSharding(mesh, PartitionSpec())
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments)
    before = set(dump.glob("*.ptx"))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        jax.jit(step).trace(*arguments).lower(lowering_platforms=("cuda",)).compile()
    texts = [path.read_text() for path in set(dump.glob("*.ptx")) - before]
    ours = [text for text in texts if re.search(r"\.entry crossbatch_attention_", text)]
    return [
        len(ours),
        *(sum(bool(re.search(what, text)) for text in ours) for what in (r"\b(wgmma|mma)\.", r"cp\.async")),
    ]


def main(name: str) -> None:
    """Compiles all cases and prints what came out."""
    sys.path.append(str(Path(FOLDER).resolve()))
    os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
    with tempfile.TemporaryDirectory() as dump:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={dump}".strip()
        device = device_of(name)
        found = {f"{head_dim} {dtype}": kernels(device, head_dim, dtype, Path(dump)) for head_dim, dtype in CASES}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
