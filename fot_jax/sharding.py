"""The mesh, and the one table that maps logical axes to mesh axes."""

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fot_jax.config import ConfigError, MeshConfig

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. Activations and parameters never share a name for different layouts.
RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "length": None,
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "vocab": "tensor",
    "norm": None,
    "activation_embed": None,
}


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Arranges the devices as (data, fsdp, tensor).

    Raises:
      ConfigError: the axes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    fixed = config.fsdp * config.tensor
    data = len(devices) // fixed if config.data == -1 else config.data
    if data * fixed != len(devices) or data == 0:
        wanted = f"mesh.data={config.data}, mesh.fsdp={config.fsdp}, mesh.tensor={config.tensor}"
        raise ConfigError(
            f"{wanted} must multiply to the {len(devices)} devices present"
            " (data=-1 takes all that remain). Change mesh.* or the number of devices."
        )
    grid = np.array(devices).reshape(data, config.fsdp, config.tensor)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def spec(*logical: str | None) -> PartitionSpec:
    """The PartitionSpec of an array whose axes have these logical names.

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
    """NamedSharding of every parameter from the logical axes it names where it is created.

    Args:
      boxed: a pytree of `nn.LogicallyPartitioned` arrays (or ShapeDtypeStructs).
      mesh: the mesh.

    Raises:
      ConfigError: a dimension does not divide by the mesh axes it is split over.
      ValueError: a parameter names no logical axes.
    """

    def one(path, leaf):
        name = jax.tree_util.keystr(path)
        if not isinstance(leaf, nn.LogicallyPartitioned):
            raise ValueError(f"parameter {name} names no logical axes")
        partition = spec(*leaf.names)
        _check_divides(name, leaf.value.shape, leaf.names, partition, mesh)
        return NamedSharding(mesh, partition)

    return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def _check_divides(name, shape, names, partition, mesh: Mesh) -> None:
    for size, logical, entry in zip(shape, names, partition, strict=True):
        axes: list[str] = [entry] if isinstance(entry, str) else list(entry or ())
        parts = int(np.prod([mesh.shape[axis] for axis in axes], initial=1))
        if size % parts:
            raise ConfigError(
                f"parameter {name}: logical axis '{logical}' has {size} entries, which mesh axes {axes}"
                f" split into {parts} parts unevenly. Choose mesh.{axes[-1]} so that it divides {size}."
            )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of [B, ...] arrays: rows over data and fsdp."""
    return NamedSharding(mesh, spec("batch"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def check_rows(rows: int, mesh: Mesh) -> None:
    """Raises ConfigError unless the rows of a micro-batch divide over data × fsdp."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % parts:
        raise ConfigError(
            f"train.batch_rows / train.accumulation = {rows} must be a multiple of the {parts} devices along"
            " mesh.data × mesh.fsdp. Change train.batch_rows, train.accumulation or mesh.*."
        )


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Pins an activation's layout by logical names; nothing to do where no mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*logical))
