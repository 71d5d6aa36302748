"""Which form of attention `auto` means here, decided by backend and logged by name."""

import functools
import logging

import jax

from fot_jax.config import AttentionForm

logger = logging.getLogger(__name__)


def resolve(form: AttentionForm) -> AttentionForm:
    """The form itself; for AUTO the one that `automatic` names for the place where it is traced.

    A program lowered here for another platform (ahead of time, for a TPU) must name its form.
    """
    if form is not AttentionForm.AUTO:
        return form
    local = jax.device_count() == 1 or bool(jax.sharding.get_abstract_mesh().manual_axes)
    return automatic(jax.default_backend(), local=local)


@functools.cache
def automatic(backend: str, *, local: bool) -> AttentionForm:
    """AUTO's choice, logged the first time: PALLAS on a TPU where arrays are local, else BLOCKWISE.

    XLA cannot split a kernel over devices, so on several of them it runs inside `jax.shard_map` only.

    Args:
      backend: JAX's name of it.
      local: whether each call sees one device's arrays.
    """
    chosen = AttentionForm.PALLAS if backend == "tpu" and local else AttentionForm.BLOCKWISE
    logger.info("model.attention 'auto' is %r here (backend %s)", chosen.value, backend)
    if backend == "tpu" and not local:
        logger.warning("no TPU kernel: arrays are spread over several devices outside jax.shard_map")
    return chosen
