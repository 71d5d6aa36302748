"""The mesh, and the one table that maps logical axes to mesh axes."""

import math

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from fot_jax.config import ConfigError, MeshConfig
from fot_jax.device_order import neighbouring_rows
from fot_jax.types import MemoryLayout

MESH_AXES = ("data", "fsdp", "context", "tensor")  # the busiest links last

# Logical axis -> mesh axes. Activations and parameters never share a name for different layouts.
RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "length": "context",
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "vocab": "tensor",
    "norm": None,
    "activation_embed": None,
    "memory_entries": ("data", "fsdp", "context"),  # only those that the memory's rows leave free
}


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Arranges the devices as (data, fsdp, context, tensor); neighbours on an axis are near each other on the network.

    Consecutive row shards are on neighbouring chips (`device_order.py`), for the ring of crossbatch. With `slices` > 1
    only data parallelism uses the slower network between slices.

    Raises:
      ConfigError: the axes do not multiply to the number of devices, or the devices to the slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    fixed = config.fsdp * config.context * config.tensor
    data = len(devices) // fixed if config.data == -1 else config.data
    if data * fixed != len(devices) or data == 0:
        sizes = {"data": config.data, "fsdp": config.fsdp, "context": config.context, "tensor": config.tensor}
        raise ConfigError(
            f"{', '.join(f'mesh.{axis}={size}' for axis, size in sizes.items())} must multiply to the"
            f" {len(devices)} devices present (data=-1 takes all that remain). Change mesh.* or the number of devices."
        )
    shape = (data, config.fsdp, config.context, config.tensor)
    if config.slices == 1:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = _over_slices(shape, devices, config.slices)
    grid = np.concatenate([neighbouring_rows(part) for part in np.split(grid, config.slices)])
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _over_slices(shape: tuple[int, ...], devices: list[jax.Device], slices: int) -> np.ndarray:
    """Returns the grid of a hybrid mesh: its data axis is slices × the data axis within one slice."""
    by_process = not all(hasattr(device, "slice_index") for device in devices)
    present = len({device.process_index if by_process else device.slice_index for device in devices})
    if present != slices:
        what = "processes (the devices name no slice_index)" if by_process else "slices"
        raise ConfigError(
            f"mesh.slices must be the number of {what} that hold the devices, {present}, got {slices}."
            " Set mesh.slices to it, or to 1 where all links are equal."
        )
    if shape[0] % slices:
        raise ConfigError(
            f"mesh.data must be a multiple of mesh.slices={slices}, got {shape[0]}: only data parallelism runs"
            " between slices. Change mesh.data, or mesh.fsdp, mesh.context and mesh.tensor within a slice."
        )
    return mesh_utils.create_hybrid_device_mesh(
        (shape[0] // slices, *shape[1:]),
        (slices, 1, 1, 1),
        devices,
        process_is_granule=by_process,
        allow_split_physical_axes=True,
    )


def spec(*logical: str | None) -> PartitionSpec:
    """Returns the PartitionSpec of an array whose axes have these logical names.

    Raises:
      KeyError: a name has no rule.
      ValueError: two axes of one array want the same mesh axis.
    """
    for name in logical:
        if name is not None and name not in RULES:
            raise KeyError(f"logical axis {name!r} has no sharding rule; known: {sorted(RULES)}")
    mesh_axes = tuple(None if name is None else RULES[name] for name in logical)
    used = [a for entry in mesh_axes for a in ((entry,) if isinstance(entry, str) else entry or ())]
    if len(set(used)) != len(used):
        raise ValueError(f"logical axes {logical} map twice to one mesh axis: {mesh_axes}")
    return PartitionSpec(*mesh_axes)


def param_shardings(boxed, mesh: Mesh):
    """Returns the NamedSharding of every parameter, from the logical axes that it names where it is created.

    Args:
      boxed: a pytree of `nn.LogicallyPartitioned` arrays (or ShapeDtypeStructs).
      mesh: the mesh.

    Raises:
      ConfigError: a dimension does not divide by the mesh axes it is split over.
      ValueError: a parameter names no logical axes.
    """

    def is_box(leaf) -> bool:
        return isinstance(leaf, nn.LogicallyPartitioned)

    common: dict[str, int] = {}  # mesh axis -> common divisor of the parameter dimensions split over it

    for leaf in filter(is_box, jax.tree.leaves(boxed, is_leaf=is_box)):
        for size, entry in zip(leaf.value.shape, spec(*leaf.names), strict=True):
            common.update({axis: math.gcd(common.get(axis, 0), size) for axis in _axes(entry)})

    def one(path, leaf):
        name = jax.tree_util.keystr(path)
        if not is_box(leaf):
            raise ValueError(f"parameter {name} names no logical axes")
        partition = spec(*leaf.names)
        _check_divides(name, leaf.value.shape, leaf.names, partition, mesh, common)
        return NamedSharding(mesh, partition)

    return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=is_box)


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Returns the mesh axes of one entry of a PartitionSpec."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def _check_divides(name, shape, names, partition, mesh: Mesh, common: dict[str, int]) -> None:
    for size, logical, entry in zip(shape, names, partition, strict=True):
        axes = _axes(entry)
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            axis = axes[-1]
            allowed = [n for n in range(1, common[axis] + 1) if common[axis] % n == 0]
            raise ConfigError(
                f"parameter {name}: logical axis '{logical}' has {size} entries, which mesh axes {list(axes)}"
                f" split into {parts} parts unevenly. Choose mesh.{axis} from {allowed}:"
                " it has to divide every parameter dimension that is split over it."
            )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of [B, L] arrays: rows over data and fsdp, positions over context."""
    return NamedSharding(mesh, spec("batch", "length"))


def compiler_options(mesh: Mesh) -> dict[str, bool] | None:
    """Returns `jax.jit`'s options for programs with a ring: XLA on v3 runs permutes during other work only if asked."""
    tpu = next(iter(mesh.devices.flat)).platform == "tpu"
    return {"xla_enable_async_collective_permute": True} if tpu else None


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def mesh_axes(logical: str) -> tuple[str, ...]:
    """Returns the mesh axes that split an axis of this logical name."""
    return _axes(RULES[logical])


def shards(mesh: Mesh, logical: str) -> int:
    """Returns the number of parts into which an axis of this logical name is split."""
    return math.prod(mesh.shape[axis] for axis in mesh_axes(logical))


def check_rows(rows: int, mesh: Mesh) -> None:
    """Raises ConfigError unless the rows of a micro-batch divide over data × fsdp."""
    parts = shards(mesh, "batch")
    if rows % parts:
        raise ConfigError(
            f"train.batch_rows / train.accumulation = {rows} must be a multiple of the {parts} devices along"
            " mesh.data × mesh.fsdp. Change train.batch_rows, train.accumulation or mesh.*."
        )


def check_length(length: int, mesh: Mesh) -> None:
    """Raises ConfigError unless the positions of a row divide over context."""
    parts = shards(mesh, "length")
    if length % parts:
        raise ConfigError(
            f"model.local_context={length} must be a multiple of mesh.context={parts}. Change one of them."
        )


def memory_layout(mesh: Mesh | AbstractMesh, *, streams: int, kv_heads: int) -> MemoryLayout:
    """Returns the layout of an external memory on the mesh: rows first, entries over the axes that the rows leave free.

        streams                      rows over       entries over
        a multiple of data × fsdp    data, fsdp      context
        a multiple of data           data            fsdp, context
        one (also shared by rows)    (whole)         data, fsdp, context

    Args:
      mesh: a mesh with the axes of MESH_AXES.
      streams: the memory's streams, one for each batch row or one for all.
      kv_heads: G, split over tensor.

    Raises:
      ConfigError: streams or heads do not divide over the mesh.
    """
    batch, heads = mesh_axes("batch"), mesh_axes("kv_heads")
    over = [batch[:count] for count in range(len(batch), 0, -1)]
    rows = next((axes for axes in over if streams % math.prod(mesh.shape[axis] for axis in axes) == 0), ())
    if not rows and streams > 1:
        raise ConfigError(
            f"a memory on a mesh must have one stream or a multiple of mesh.data={mesh.shape['data']}, got {streams}"
            " streams. Change mesh.data (mesh.fsdp and mesh.context split the entries of any number) or the rows."
        )
    parts = math.prod(mesh.shape[axis] for axis in heads)
    if kv_heads % parts:
        raise ConfigError(
            f"mesh.tensor must divide the {kv_heads} key/value heads of a memory on a mesh, got {parts}."
            " Change mesh.tensor; mesh.fsdp and mesh.context split the memory's entries instead."
        )
    entries = tuple(axis for axis in mesh_axes("memory_entries") if axis not in rows)

    def split(axes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(axis for axis in axes if mesh.shape[axis] > 1)

    return MemoryLayout(mesh=mesh.abstract_mesh, rows=split(rows), entries=split(entries), heads=split(heads))


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Pins an activation's layout by logical names; does nothing where no mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*logical))
