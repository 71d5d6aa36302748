"""The choice of a backend, once for each trace: by name, by the device and by the mesh that is traced for."""

import functools
import logging

import jax
from jax.sharding import PartitionSpec

from fot_jax.config import AttentionBackend, Boundaries, ConfigError
from fot_jax.ops import target
from fot_jax.ops.backends import Backend
from fot_jax.ops.backends.cpu import Cpu
from fot_jax.ops.backends.pallas import Pallas
from fot_jax.ops.backends.reference import Reference
from fot_jax.ops.backends.sharded import Sharded
from fot_jax.ops.backends.xla import Xla
from fot_jax.ops.distributed.ring import Ring
from fot_jax.ops.target import Target
from fot_jax.types import RingSchedule

logger = logging.getLogger(__name__)


def choose(
    name: AttentionBackend,
    *,
    boundaries: Boundaries,
    block: int,
    layout: PartitionSpec | None = None,
    ring: RingSchedule | None = None,
) -> Backend:
    """Returns the backend for the place where it is traced.

    Args:
      name: BLOCKWISE is `Xla` where XLA splits arrays over devices, else `Cpu`, which is `Xla` on accelerators.
      boundaries: MASKED or JOINED documents.
      block: keys per block of scores, in tokens; REFERENCE has none.
      layout: mesh axes of queries [B, H, L, D], for kernels in a mesh of several devices.
      ring: when rows travel between devices, `Plan.ring`; None: they do not.

    Raises:
      ValueError: PALLAS in such a mesh, and no layout.
    """
    name, split = resolve(name), target.needs_shard_map()
    if name is AttentionBackend.REFERENCE:
        inside = outside = Reference(boundaries=boundaries)
    elif name is AttentionBackend.PALLAS:
        inside = outside = Pallas(boundaries=boundaries, block=block)
        if split:
            if layout is None:
                raise ValueError(
                    "backend 'pallas' in a mesh of several devices needs `layout`, their mesh axes, got None"
                )
            outside = Sharded(backend=inside, layout=layout)
    elif name is not AttentionBackend.BLOCKWISE:
        raise ValueError(f"an attention backend must be known here, got {name!r}")
    else:
        inside = Cpu(boundaries=boundaries, block=block)
        outside = Xla(boundaries=boundaries, block=block) if split else inside
    return outside if ring is None else Ring(own=outside, inside=inside, schedule=ring)


def resolve(name: AttentionBackend) -> AttentionBackend:
    """Returns the name itself; for AUTO the one that `automatic` gives for the place where it is traced."""
    if name is not AttentionBackend.AUTO:
        return name
    known = jax.device_count() == 1 or not jax.sharding.get_abstract_mesh().empty
    return automatic(target.current(), known=known)


def runs_on(name: AttentionBackend, platform: str) -> bool:
    """Whether the backend runs on such devices ("tpu", "gpu", "cpu")."""
    return name is not AttentionBackend.PALLAS or platform in ("tpu", "gpu")


def check_platform(name: AttentionBackend, platform: str, *, field: str = "model.attention") -> None:
    """Raises ConfigError, which names the field or flag, unless the backend `runs_on` such devices."""
    if not runs_on(name, platform):
        others = ", ".join(repr(other.value) for other in AttentionBackend if other is not AttentionBackend.PALLAS)
        raise ConfigError(
            f"{field} must be one of {others} on a {platform}, got 'pallas', whose kernels run on TPUs and GPUs."
        )


@functools.cache
def runnable(name: AttentionBackend, platform: str) -> AttentionBackend:
    """Returns the name itself, or AUTO for a model trained elsewhere whose backend does not run here; logged once."""
    if runs_on(name, platform):
        return name
    logger.warning("model.attention 'pallas' of the checkpoint is 'auto' here: no such kernels on a %s", platform)
    return AttentionBackend.AUTO


@functools.cache
def automatic(device: Target, *, known: bool) -> AttentionBackend:
    """Returns AUTO's choice, logged once: PALLAS on a TPU where the layout of arrays is known, else BLOCKWISE.

    On a GPU too: the kernels compile but have not run on one (docs/backends.md), so they are taken by name only.

    Args:
      device: the device that is traced for.
      known: whether the layout of arrays is known: there is one device, or a mesh that is traced in.
    """
    chosen = AttentionBackend.PALLAS if device.platform == "tpu" and known else AttentionBackend.BLOCKWISE
    logger.info("model.attention 'auto' is %r here (%s, %s)", chosen.value, device.platform, device.kind)
    if device.platform == "tpu" and not known:
        logger.warning("no TPU kernel: arrays may be split over several devices, and no mesh says how")
    return chosen
