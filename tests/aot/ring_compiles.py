"""Compiles the ring of a memory layer, forward, for a pod: python -m tests.aot.ring_compiles v5e:8x8 TENSOR

Prints one line of JSON: permutes, those with a start and an end, and those with a kernel between the two.
"""

import json
import sys

from fot_jax.aot.chips import parse_topology
from fot_jax.aot.devices import only_libtpu, pod_devices, prepare_environment
from fot_jax.aot.hlo import parse_module


def program(devices, tensor: int) -> str:
    """The compiled text: two rows of 2,048 tokens a shard, packed, d = 4, so that two hops are needed."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from fot_jax.config import AttentionBackend, Boundaries, MeshConfig
    from fot_jax.ops.backends.choose import choose
    from fot_jax.ops.softmax import heads_first, normalise
    from fot_jax.sharding import compiler_options, make_mesh
    from fot_jax.types import Rows
    from tests.scale.ring_cases import LAYOUT, problem

    shards = len(devices) // tensor
    mesh = make_mesh(MeshConfig(fsdp=shards, tensor=tensor), devices)
    posed = problem("packed", rows=2 * shards, devices=shards, d=4)
    options = {"boundaries": Boundaries.MASKED, "block": 512, "layout": LAYOUT, "ring": posed.ring}

    def attend(queries, keys, values, segments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            queries, keys, values = map(heads_first, (queries, keys, values))
            ring, rows = choose(AttentionBackend.PALLAS, **options), Rows(keys, values, segments)
            out = normalise(ring.contexts(queries, rows, posed.traced_plan, segments=segments))
            return heads_first(out)

    def shape(dims, dtype, *axes):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, PartitionSpec(("data", "fsdp"), *axes)))

    rows = shape((2 * shards, 2048, 8, 128), jnp.bfloat16, None, "tensor")
    lowered = jax.jit(attend, compiler_options=compiler_options(mesh)).lower(
        rows, rows, rows, shape((2 * shards, 2048), jnp.int32)
    )
    return lowered.compile().as_text()


def permutes(text: str) -> dict[str, int]:
    """A scheduled program, in which instructions are in the order in which they run."""
    found = {"permutes": 0, "asynchronous": 0, "beside a kernel": 0}
    for computation in parse_module(text).computations.values():
        under_way: dict[str, bool] = {}  # -start -> whether a kernel has run since
        for one in computation.instructions.values():
            found["permutes"] += one.opcode in ("collective-permute", "collective-permute-start")
            if one.opcode == "collective-permute-start":
                under_way[one.name] = False
            elif one.opcode == "collective-permute-done":
                found["beside a kernel"] += under_way.pop(one.operands[0])
                found["asynchronous"] += 1
            elif "tpu_custom_call" in one.attributes:
                under_way = dict.fromkeys(under_way, True)
    return found


if __name__ == "__main__":
    pod = parse_topology(sys.argv[1])
    prepare_environment(pod)
    with only_libtpu(pod, log=lambda _: None):
        print(json.dumps(permutes(program(pod_devices(pod), int(sys.argv[2])))))
