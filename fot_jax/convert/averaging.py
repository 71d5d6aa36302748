"""Averages a run's parameters with those it started from (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903).

Fine-tuning forgets some of what the model knew; a point on the line between the two sets of parameters is
often better than both on text unlike the training documents, and nearly as good at what was trained.
"""

from pathlib import Path
from typing import Literal

import jax
import numpy as np

from fot_jax import checkpoint
from fot_jax.config import ExperimentConfig, UserError
from fot_jax.convert.exporting import write_experiment
from fot_jax.convert.folders import new_folder
from fot_jax.data.cache import vocabulary_identity
from fot_jax.models.init import param_shapes, shape_difference
from fot_jax.storage.paths import storage_path
from fot_jax.workdir import inherit_source, read_config


def average_runs(
    workdir: str | Path,
    *,
    other: str | Path,
    folder: str | Path,
    share: float,
    step: int | Literal["latest", "best"] = "latest",
) -> ExperimentConfig:
    """Writes a run's folder with share · parameters + (1 − share) · the other's, as its checkpoint 0.

    The config is the first run's. Evaluation warns of documents that either run trained on. The average is computed in
    float32 and stored in the first run's dtype.

    Args:
      workdir: the fine-tuned run's folder.
      other: the folder of a run of the same shapes and vocabulary, as `train.init_from`; its latest checkpoint.
      folder: a new folder. It appears only when it is whole; an error leaves nothing.
      share: of the first run's parameters, between 0 and 1.
      step: the first run's checkpoint: a number, "latest", or "best".

    Returns:
      The new run's experiment.

    Raises:
      UserError: no such checkpoint, a share out of range, runs of different shapes or vocabularies, or a full disk.
    """
    if not 0 <= share <= 1:
        raise UserError(f"--share must be between 0 (all of --with) and 1 (all of --workdir), got {share}.")
    config = read_config(workdir)
    try:
        other_config = read_config(other)
    except UserError as error:
        raise UserError(str(error).replace("--workdir", "--with")) from error
    identities = [vocabulary_identity(one.data.vocabulary) for one in (config, other_config)]
    if identities[0] != identities[1]:
        raise UserError(f"--with must have the vocabulary of {workdir}, got {identities[1]} and {identities[0]}.")
    difference = shape_difference(param_shapes(other_config.model), param_shapes(config.model))
    if difference is not None:
        name, other_shape, shape = difference
        raise UserError(
            f"--with must have parameters of the same shapes: {name} is {other_shape} in {other}, {shape} in {workdir}."
            " Give the run that train.init_from named, or another of the same model."
        )
    needed = checkpoint.stored_bytes(workdir, step=step)
    with new_folder(storage_path(folder), needed=needed, compressed=True) as target:
        params, dtype = checkpoint.load_stored_params(workdir, step=step)
        others, _ = checkpoint.load_stored_params(other)
        average = jax.tree.map(lambda first, second: _mean(first, second, share=share), params, others)
        documents = {**checkpoint.trained_documents(other), **checkpoint.trained_documents(workdir, step=step)}
        checkpoint.save_imported(target, config, average, dtype=dtype, documents=documents)
        write_experiment(target, config)
        inherit_source(target, workdir, other)
    return config


def _mean(first: np.ndarray, second: np.ndarray, *, share: float) -> np.ndarray:
    """Averages two arrays; equal numbers stay exactly equal, without the rounding of a mean."""
    mean = np.float32(share) * first.astype(np.float32) + np.float32(1 - share) * second.astype(np.float32)
    return np.where(first.astype(np.float32) == second.astype(np.float32), first, mean.astype(first.dtype))
