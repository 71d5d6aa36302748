"""Compiles the joint softmax's kernels, forward and backward, for a chip: python -m tests.aot.kernel_compiles v3:2x2

Prints one line of JSON: {"HEAD_DIM DTYPE": number of kernels in the compiled program, or the compiler's refusal}.
"""

import json
import sys

from fot_jax.aot.chips import parse_topology
from fot_jax.aot.devices import only_libtpu, pod_devices, prepare_environment

CASES = [(64, "bfloat16"), (80, "bfloat16"), (100, "bfloat16"), (128, "bfloat16"), (100, "float32")]


def kernels(device, head_dim: int, dtype: str) -> int | str:
    """Kernels of two rows of 640 tokens and up to three contexts, four heads over two; no block divides the row."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from fot_jax.config import AttentionBackend, Boundaries
    from fot_jax.ops.backends.choose import choose
    from fot_jax.ops.crossbatch import crossbatch_attention
    from fot_jax.types import Plan

    mesh = Mesh(np.array([device]), ("data",), axis_types=(AxisType.Auto,))

    def shape(dims, dtype):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    def loss(queries, keys, values, plan, segments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            backend = choose(AttentionBackend.AUTO, boundaries=Boundaries.MASKED, block=512)
            out = crossbatch_attention(queries, keys, keys, values, plan, segments=segments, backend=backend)
        return (out.astype(jnp.float32) ** 2).sum()

    keys = shape((2, 640, 2, head_dim), jnp.dtype(dtype))
    plan = Plan(context_ids=shape((2, 3), jnp.int32), own_document=shape((2, 3), bool))
    arguments = shape((2, 640, 4, head_dim), jnp.dtype(dtype)), keys, keys, plan, shape((2, 640), jnp.int32)
    lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*arguments)
    try:
        return lowered.compile().as_text().count('custom_call_target="tpu_custom_call"')
    except jax.errors.JaxRuntimeError as error:
        return str(error)[:500]


if __name__ == "__main__":
    pod = parse_topology(sys.argv[1])
    prepare_environment(pod)
    with only_libtpu(pod, log=lambda _: None):
        device = pod_devices(pod)[0]
        print(json.dumps({f"{head_dim} {dtype}": kernels(device, head_dim, dtype) for head_dim, dtype in CASES}))
