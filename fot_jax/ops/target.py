"""The device and the mesh that a program is traced for."""

import dataclasses

import jax
from jax.sharding import AxisType


@dataclasses.dataclass(frozen=True)
class Target:
    """The kind of device that a program is traced for.

    Attributes:
      platform: JAX's name of it: "tpu", "gpu", "cpu".
      kind: the chip's name: "TPU v3".
    """

    platform: str
    kind: str


def current() -> Target:
    """Returns the target of the mesh in context, which may be a pod elsewhere; without one, of this process."""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    return Target(platform=device.platform, kind=device.device_kind)


def needs_shard_map() -> bool:
    """Whether arrays may be split over devices here: in a mesh, and outside of `jax.shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    return any(size > 1 and kind is AxisType.Auto for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True))
