"""Which form of attention `auto` means here, decided by the device that is traced for and logged by name."""

import dataclasses
import functools
import logging

import jax
from jax.sharding import AxisType

from fot_jax.config import AttentionForm, ConfigError

logger = logging.getLogger(__name__)

# Mosaic refuses matrix products of bfloat16 there (E2001); of float32 they round to bfloat16 in the matrix unit.
WIDE_PRODUCTS = ("TPU v2", "TPU v3")
KERNELS_RUN_ON = ("tpu", "gpu")


@dataclasses.dataclass(frozen=True)
class Target:
    """The kind of device a program is traced for.

    Attributes:
      platform: JAX's name of it: "tpu", "gpu", "cpu".
      kind: the chip's name: "TPU v3".
    """

    platform: str
    kind: str


def target() -> Target:
    """Of the mesh that is traced in, which may be a pod that is not here; without one, of this process."""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    return Target(platform=device.platform, kind=device.device_kind)


def spread() -> bool:
    """Whether arrays may lie on several devices here: in a mesh and outside of `jax.shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    return any(size > 1 and kind is AxisType.Auto for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True))


def resolve(form: AttentionForm) -> AttentionForm:
    """The form itself; for AUTO the one that `automatic` names for the place where it is traced."""
    if form in (AttentionForm.REFERENCE, AttentionForm.BLOCKWISE, AttentionForm.PALLAS):
        return form
    if form is not AttentionForm.AUTO:
        raise ValueError(f"a form of attention must be known here, got {form!r}")
    known = jax.device_count() == 1 or not jax.sharding.get_abstract_mesh().empty
    return automatic(target(), known=known)


def runs_on(form: AttentionForm, platform: str) -> bool:
    """Whether the form runs on such devices ("tpu", "gpu", "cpu")."""
    return form is not AttentionForm.PALLAS or platform in KERNELS_RUN_ON


def check_platform(form: AttentionForm, platform: str, *, name: str = "model.attention") -> None:
    """Raises ConfigError, which calls the form's field or flag `name`, unless it `runs_on` such devices."""
    if not runs_on(form, platform):
        others = ", ".join(repr(other.value) for other in AttentionForm if other is not AttentionForm.PALLAS)
        raise ConfigError(
            f"{name} must be one of {others} on a {platform}, got 'pallas', whose kernels run on TPUs and GPUs."
        )


@functools.cache
def runnable(form: AttentionForm, platform: str) -> AttentionForm:
    """The form itself; for a model trained elsewhere AUTO, logged the first time, unless it `runs_on` such devices."""
    if runs_on(form, platform):
        return form
    logger.warning("model.attention 'pallas' of the checkpoint is 'auto' here: no such kernels on a %s", platform)
    return AttentionForm.AUTO


@functools.cache
def automatic(device: Target, *, known: bool) -> AttentionForm:
    """AUTO's choice, logged the first time: PALLAS on a TPU where the layout of arrays is known, else BLOCKWISE.

    On a GPU too: its kernels compile but have not run on one (docs/kernels.md), so they are taken by name only.

    XLA cannot split a kernel over devices, so on several of them it runs inside `jax.shard_map`.

    Args:
      device: that is traced for.
      known: whether there is one device, or a mesh that is traced in.
    """
    chosen = AttentionForm.PALLAS if device.platform == "tpu" and known else AttentionForm.BLOCKWISE
    logger.info("model.attention 'auto' is %r here (%s, %s)", chosen.value, device.platform, device.kind)
    if device.platform == "tpu" and not known:
        logger.warning("no TPU kernel: arrays may lie on several devices, and no mesh says how")
    return chosen
