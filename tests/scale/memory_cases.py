"""Memories on meshes: arrays laid over devices, and what the compiled programs send."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from fot_jax.aot.hlo import parse_module
from fot_jax.config import MeshConfig
from fot_jax.ops import softmax
from fot_jax.ops.distributed import memory
from fot_jax.sharding import make_mesh, memory_layout
from tests import cases

ROWS, LENGTH, HEADS, GROUPS, DIM, ENTRIES = 2, 3, 4, 2, 6, 24
MESHES = {  # name: mesh axes. Two rows of entries over 8, 2 and 4 devices, 4 with halved heads and 3 of odd number
    "fsdp 8": {"data": 1, "fsdp": 8},
    "data 2, context 4": {"data": 2, "context": 4},
    "data 2, fsdp 2, context 2": {"data": 2, "fsdp": 2, "context": 2},
    "fsdp 4, tensor 2": {"data": 1, "fsdp": 4, "tensor": 2},
    "fsdp 3": {"data": 1, "fsdp": 3},
}


def mesh_of(**axes: int):
    """A mesh of the first devices."""
    config = MeshConfig(**axes)
    return make_mesh(config, jax.devices()[: config.data * config.fsdp * config.context * config.tensor])


def arrays() -> list[np.ndarray]:
    """Queries, memory keys and values."""
    far = (ROWS, ENTRIES, GROUPS, DIM)
    return cases.arrays(17, (ROWS, LENGTH, HEADS, DIM), far, far)


def whole_numbers() -> list[np.ndarray]:
    """Arrays with scores that tie exactly: keys of few whole numbers, met again on other devices."""
    queries, keys, values = arrays()
    return [np.round(queries), np.round(keys[:, :, :, :1].repeat(DIM, axis=-1)), values]


def laid_out(mesh, given, valid):
    """(layout, arrays over the mesh)."""
    layout = memory_layout(mesh, streams=len(valid), kv_heads=GROUPS)
    specs = [layout.spec(letters) for letters in ("B L H D", "B G D M", "B G M D", "B M")]
    queries, keys, values = cases.to_float32(*given)
    given = [queries, *cases.as_read(keys, values), jnp.asarray(valid)]
    return layout, [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(given, specs, strict=True)]


def operator(layout, *, k: int | None, recall: float | None = None):
    """(queries, keys, values, valid) -> normalised attention; k None: dense."""

    def op(queries, keys, values, valid):
        if k is None:
            part = memory.sharded_dense_partial(queries, keys, values, valid=valid, layout=layout, block=2)
        else:
            topk = memory.sharded_topk_partial
            part = topk(queries, keys, values, valid=valid, k=k, layout=layout, recall=recall)
        return softmax.normalise(part)

    return op


def collectives(text: str) -> dict[str, list[int]]:
    """Bytes of the results of all collectives of a compiled program, by opcode."""
    names = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast")
    found: dict[str, list[int]] = {}
    for computation in parse_module(text).computations.values():
        for one in computation.instructions.values():
            name = one.opcode.removesuffix("-start")
            if name in names:
                found.setdefault(name, []).append(one.bytes)
    return found
