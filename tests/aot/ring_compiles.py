"""Compiles the ring of a memory layer, forward, for a pod: python -m tests.aot.ring_compiles v5e:8x8 TENSOR

Prints one line of JSON: permutes, those with a start and an end, and those with a kernel between the two.
"""

import json
import re
import sys

from fot_jax.aot.chips import parse_topology
from fot_jax.aot.devices import only_libtpu, pod_devices, prepare_environment


def program(devices, tensor: int) -> str:
    """The compiled text: two rows of 2,048 tokens a shard, packed, d = 4, so that two hops are needed."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from fot_jax.config import AttentionForm, Boundaries, MeshConfig
    from fot_jax.ops.attention import normalise
    from fot_jax.ops.ring import ring_partial
    from fot_jax.sharding import compiler_options, make_mesh
    from fot_jax.types import Plan
    from tests.scale.ring_cases import problem

    shards = len(devices) // tensor
    mesh = make_mesh(MeshConfig(fsdp=shards, tensor=tensor), devices)
    posed = problem("packed", rows=2 * shards, devices=shards, d=4)
    plan = Plan(context_ids=posed.plan.context_ids, own_document=posed.plan.own_document, route=posed.route)
    options = {"boundaries": Boundaries.MASKED, "form": AttentionForm.PALLAS, "block": 512}

    def attend(queries, keys, values, segments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return normalise(ring_partial(queries, keys, values, plan, segments=segments, **options))

    def shape(dims, dtype, *axes):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, PartitionSpec(("data", "fsdp"), *axes)))

    rows = shape((2 * shards, 2048, 8, 128), jnp.bfloat16, None, "tensor")
    lowered = jax.jit(attend, compiler_options=compiler_options(mesh)).lower(
        rows, rows, rows, shape((2 * shards, 2048), jnp.int32)
    )
    return lowered.compile().as_text()


def permutes(text: str) -> dict[str, int]:
    """Of a scheduled program, in which instructions stand in the order in which they run."""
    lines = text.splitlines()
    starts = {
        m[1]: n for n, line in enumerate(lines) if (m := re.search(r"%?(\S+) = .* collective-permute-start\(", line))
    }
    ends = {
        m[1]: n for n, line in enumerate(lines) if (m := re.search(r" collective-permute-done\(.*%([\w.\-]+)\)", line))
    }
    covered = [any("tpu_custom_call" in line for line in lines[n : ends[name]]) for name, n in starts.items()]
    alone = sum(" collective-permute(" in line for line in lines)
    return {"permutes": alone + len(starts), "asynchronous": len(starts), "beside a kernel": sum(covered)}


if __name__ == "__main__":
    pod = parse_topology(sys.argv[1])
    prepare_environment(pod)
    with only_libtpu(pod, say=lambda _: None):
        print(json.dumps(permutes(program(pod_devices(pod), int(sys.argv[2])))))
