"""Reads a source's tensors as the decoder's parameters: numpy arrays, or arrays sharded over a mesh.

Without a mesh every buffer is filled in place, one block of rows at a time. With one, the host assembles one tensor at
a time and every device takes its own part of it:

    layers.feed_forward.gate [N, E, F]    fsdp 4, tensor 2      device (i, j) holds [N, E/4, F/2]
    ...layers.n.mlp.gate_proj [F, E]      host: [E, F]          its part [E/4, F/2] goes to place n there

No device sees more of a parameter than it keeps.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fot_jax.config import Dtype, ModelConfig, UserError
from fot_jax.convert import names
from fot_jax.convert.sources import Source
from fot_jax.models.init import boxed_shapes, param_shapes
from fot_jax.models.layers import DTYPES
from fot_jax.sharding import param_shardings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a conversion; bytes are the source's."""

    tensors: int
    tensors_total: int
    bytes: int
    bytes_total: int
    seconds: float


def read_params(
    source: Source,
    model: ModelConfig,
    *,
    dtype: Dtype,
    mesh: Mesh | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Any:
    """Reads the decoder's parameters: numpy arrays, or jax.Arrays with the shardings of `fot_jax/sharding.py`.

    Args:
      source: holds every tensor of the model.
      model: LLAMA family, scanned layers.
      dtype: of the result.
      mesh: of this process's devices; None: on the host.
      progress: called after every tensor.

    Raises:
      UserError: a tensor that cannot be read.
      ConfigError: a parameter does not divide over the mesh.
    """
    if mesh is not None:
        return _read_sharded(source, model, dtype=dtype, mesh=mesh, progress=progress)
    params = jax.tree.map(lambda leaf: np.empty(leaf.shape, DTYPES[dtype]), param_shapes(model))
    for name, slot in _slots(source, model, progress):
        target = names.tensor_view(params, slot)
        for rows, block in source.blocks(name):
            target[rows] = block
    return params


def _slots(
    source: Source, model: ModelConfig, progress: Callable[[Progress], None] | None
) -> Iterator[tuple[str, names.TensorSlot]]:
    """Yields every tensor's name and place; reports a tensor when the next one is asked for."""
    wanted = names.tensor_slots(model)
    total = sum(source.num_bytes[name] for name in wanted)
    done, start = 0, time.perf_counter()
    for count, (name, slot) in enumerate(wanted.items(), start=1):
        yield name, slot
        done += source.num_bytes[name]
        if progress is not None:
            seconds = time.perf_counter() - start
            progress(Progress(tensors=count, tensors_total=len(wanted), bytes=done, bytes_total=total, seconds=seconds))


def _read_sharded(
    source: Source, model: ModelConfig, *, dtype: Dtype, mesh: Mesh, progress: Callable[[Progress], None] | None
) -> Any:
    shardings = param_shardings(boxed_shapes(model), mesh)
    params = param_shapes(model)
    for name, slot in _slots(source, model, progress):
        leaf, sharding = names.get_leaf(params, slot), names.get_leaf(shardings, slot)
        host = np.empty(leaf.shape if slot.layer is None else leaf.shape[1:], DTYPES[dtype])
        target = names.array_view(host, slot)
        for rows, block in source.blocks(name):
            target[rows] = block
        if slot.layer is None:
            placed = _put_sharded(host, sharding)
        else:
            if not isinstance(leaf, jax.Array):
                leaf = jax.jit(functools.partial(jnp.zeros, leaf.shape, DTYPES[dtype]), out_shardings=sharding)()
            part = NamedSharding(mesh, PartitionSpec(*sharding.spec[1:]))  # layers are not split
            placed = _set_layer(leaf, _put_sharded(host, part), np.int32(slot.layer), sharding)
        names.set_leaf(params, slot, jax.block_until_ready(placed))
    return params


def _put_sharded(host: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Puts an array of the host on the devices; each copies its own part."""
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


@functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
def _set_layer(leaf: jax.Array, value: jax.Array, layer: jax.Array, sharding: NamedSharding) -> jax.Array:
    changed = jax.lax.dynamic_update_index_in_dim(leaf, value, layer, axis=0)
    return jax.lax.with_sharding_constraint(changed, sharding)


def check_tied_head(source: Source, model: ModelConfig, params: Any) -> None:
    """Raises UserError where a tied model comes with an unembedding that differs from its embedding."""
    if not model.tie_embeddings or names.UNEMBEDDING not in source.shapes:
        return
    embedding = params["embedding"]
    same = source.shapes[names.UNEMBEDDING] == embedding.shape and all(
        np.array_equal(np.asarray(embedding[rows]), block.astype(embedding.dtype))
        for rows, block in source.blocks(names.UNEMBEDDING)
    )
    if not same:
        raise UserError(
            f"{source.path}: {names.UNEMBEDDING} must equal {names.EMBEDDING} where tie_word_embeddings is true, got"
            " others. Set it to false."
        )
