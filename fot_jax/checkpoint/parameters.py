"""Parameters of a run without its optimizer: read to be evaluated, written by an import, exported bare."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp

from fot_jax.checkpoint.checkpointer import Checkpointer
from fot_jax.checkpoint.failures import unreadable_error
from fot_jax.checkpoint.streaming import chunked_save_args, streaming_handlers, write_without_copy
from fot_jax.config import Dtype, ExperimentConfig, ModelConfig, UserError
from fot_jax.models.init import param_shapes
from fot_jax.models.layers import DTYPES
from fot_jax.ops.backends.choose import runnable
from fot_jax.storage.paths import storage_path
from fot_jax.workdir import read_config


def trained_documents(
    workdir: str | os.PathLike[str], *, step: int | Literal["latest", "best"] = "latest"
) -> dict[str, str]:
    """Returns per source the digest of the tokens that a checkpoint was trained on; empty where nothing is known.

    Raises:
      UserError: no run, no such checkpoint, or a damaged one.
    """
    with _open_checkpointer(workdir, step) as (checkpoints, _, number):
        return checkpoints.read_data(number).get("documents", {})


def load_params(
    workdir: str | os.PathLike[str], *, step: int | Literal["latest", "best"] = "latest"
) -> tuple[ExperimentConfig, Any, int]:
    """Loads a trained model: its experiment, its parameters (float32, on this process's first device) and their step.

    If this device lacks the attention kernels that the experiment names, the experiment says `auto` (logged).

    Args:
      workdir: the run's folder.
      step: a checkpoint's number, "latest", or "best" (smallest held-out loss).

    Raises:
      UserError: no run, no such checkpoint, or a damaged one.
    """
    with _open_checkpointer(workdir, step) as (checkpoints, config, number):
        local = jax.local_devices()[0]
        device = jax.sharding.SingleDeviceSharding(local)
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), param_shapes(config.model)
        )
        model = dataclasses.replace(config.model, attention=runnable(config.model.attention, local.platform))
        return dataclasses.replace(config, model=model), checkpoints.restore_params(number, params=abstract), number


@contextlib.contextmanager
def _open_checkpointer(
    workdir: str | os.PathLike[str], step: int | Literal["latest", "best"]
) -> Iterator[tuple[Checkpointer, ExperimentConfig, int]]:
    """Holds a run's checkpoints open, with its config and the number of the checkpoint asked for; see `load_params`."""
    config = read_config(workdir)
    if not (storage_path(workdir) / "checkpoints").is_dir():
        raise UserError(f"{os.fspath(workdir)} holds no checkpoint yet. Train until the first one is saved.")
    with Checkpointer(workdir, config, read_only=True) as checkpoints:
        named = {"latest": checkpoints.latest_step, "best": checkpoints.best_step}
        number = named[step]() if isinstance(step, str) and step in named else step
        if number not in checkpoints.steps():
            raise UserError(
                f"{os.fspath(workdir)} must hold the checkpoint asked for ({step!r}); it has {checkpoints.steps()}."
            )
        yield checkpoints, config, number


def stored_bytes(workdir: str | os.PathLike[str], *, step: int | Literal["latest", "best"] = "latest") -> int:
    """Bytes of a checkpoint's parameters in the dtype they are stored in, before compression; see `load_params`."""
    with _open_checkpointer(workdir, step) as (checkpoints, config, number):
        return num_bytes(config.model, _dtype(checkpoints, number, workdir))


def num_bytes(model: ModelConfig, dtype: Dtype) -> int:
    """Returns the bytes of a model's parameters in a dtype."""
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(param_shapes(model)))
    return count * dtype.itemsize


def _dtype(checkpoints: Checkpointer, step: int, workdir: str | os.PathLike[str]) -> Dtype:
    """Returns the dtype of a checkpoint's parameters: float32 where training wrote it.

    Raises:
      UserError: the checkpoint names a dtype that does not exist.
    """
    stored = checkpoints.read_data(step).get("dtype", Dtype.FLOAT32.value)
    if stored not in [kind.value for kind in Dtype]:
        folder = storage_path(workdir) / "checkpoints"
        raise unreadable_error(folder, step, checkpoints.steps(), reason=f"its parameters' dtype is {stored!r}")
    return Dtype(stored)


def load_stored_params(
    workdir: str | os.PathLike[str], *, step: int | Literal["latest", "best"] = "latest"
) -> tuple[Any, Dtype]:
    """Returns parameters as numpy arrays in the dtype they are stored in, and that dtype; see `load_params`."""
    with _open_checkpointer(workdir, step) as (checkpoints, config, number):
        dtype = _dtype(checkpoints, number, workdir)
        like = jax.tree.map(
            lambda leaf: np.broadcast_to(np.zeros((), DTYPES[dtype]), leaf.shape), param_shapes(config.model)
        )
        return checkpoints.restore_params(number, params=like), dtype


def save_imported(
    workdir: str | os.PathLike[str],
    config: ExperimentConfig,
    params: Any,
    *,
    dtype: Dtype,
    documents: Mapping[str, str],
) -> None:
    """Writes parameters that come from elsewhere as checkpoint 0 of a new folder, without copying them.

    Args:
      workdir: the run's folder.
      config: its experiment.
      params: numpy arrays or, sharded over the devices of this process, jax.Arrays; all of one dtype.
      dtype: that dtype.
      documents: per source, the digest of the tokens that they were trained on.
    """
    with write_without_copy(), Checkpointer(workdir, config, streaming=True) as checkpoints:
        checkpoints.save_params(0, params=params, data={"step": 0, "documents": dict(documents), "dtype": dtype.value})


def write_bare_params(path: Path, params: Any) -> None:
    """Writes numpy parameters as one Orbax item, for serving: `StandardCheckpointer().restore(path)` reads it."""
    with write_without_copy(), ocp.Checkpointer(streaming_handlers()["params"]) as checkpointer:
        checkpointer.save(path.absolute(), args=ocp.args.StandardSave(params, chunked_save_args(params)))
