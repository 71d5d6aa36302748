"""Orbax checkpoints of state and data position in a run's folder.

    WORKDIR/checkpoints/N/         after N optimizer steps: params, optimizer, data, config, metrics

The only module that touches Orbax. Saving is asynchronous: a checkpoint appears under its number in one
rename when it is whole, so a half-written one is never read.
"""

import contextlib
import functools
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from fot_jax.config import Dtype, ExperimentConfig, TrainConfig, UserError
from fot_jax.config.build import to_dict
from fot_jax.models.init import param_shapes
from fot_jax.models.layers import DTYPES
from fot_jax.workdir import read_config

_CHUNK_BYTES = 2**23  # of arrays written in streams: a few chunks at a time are compressed
METRIC = "heldout_loss"  # nats a token; checkpoints are ranked by it, smaller is better


def _policy(train: TrainConfig) -> policies.PreservationPolicy:
    """The last `keep_checkpoints`, and the one with the smallest held-out loss."""
    latest = policies.LatestN(train.keep_checkpoints)
    if not train.keep_best:
        return latest
    best = policies.BestN(get_metric_fn=_rank, reverse=True, n=1, keep_checkpoints_without_metrics=False)
    return policies.AnyPreservationPolicy([latest, best])


def _rank(metrics: dict[str, float | None]) -> float:
    loss = metrics[METRIC]
    return math.inf if loss is None else loss


class Checkpointer:
    """Saves and restores one run; a context manager that waits for pending saves at its end."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        config: ExperimentConfig,
        *,
        read_only: bool = False,
        streaming: bool = False,
    ) -> None:
        """Opens WORKDIR/checkpoints; unless `read_only`, makes it and removes what was left half-written.

        With `streaming` a save returns when it is done and needs little memory (`_streaming_handlers`).

        Raises:
          UserError: what is there cannot be read.
        """
        self._folder = (Path(workdir) / "checkpoints").absolute()
        self._config = config
        # Orbax warns that a folder opened to be read is read only.
        quiet = _quiet_absl() if read_only else contextlib.nullcontext()
        try:
            with quiet:
                options = ocp.CheckpointManagerOptions(
                    preservation_policy=_policy(config.train),
                    best_fn=_rank,
                    best_mode="min",
                    create=not read_only,
                    read_only=read_only,
                    cleanup_tmp_directories=not read_only,
                    enable_async_checkpointing=not (read_only or streaming),
                )
                self._manager = ocp.CheckpointManager(
                    self._folder, options=options, item_handlers=_streaming_handlers() if streaming else None
                )
        except Exception as error:  # Orbax raises many kinds for a damaged folder
            found = self._folder.iterdir() if self._folder.is_dir() else ()
            steps = sorted(int(path.name) for path in found if path.name.isdigit())
            broken = _unreadable_step(self._folder, steps)
            if broken is not None:
                raise _damaged(self._folder, broken, steps, reason=_one_line(error)) from error
            raise UserError(f"{self._folder} cannot be opened: {_one_line(error)}. Use another --workdir.") from error

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, step: int, *, params: Any, optimizer: Any, data: dict[str, Any], heldout_loss: float | None) -> None:
        """Starts saving the state after `step` optimizer steps; arrays are copied before it returns.

        Args:
          step: the checkpoint's number.
          params: parameters.
          optimizer: the optimizer's state.
          data: the data position and whatever else the next step depends on, as JSON.
          heldout_loss: what ranks this checkpoint; None if it was not measured.
        """
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                optimizer=ocp.args.StandardSave(optimizer),
                data=ocp.args.JsonSave(data),
                config=ocp.args.JsonSave(to_dict(self._config)),
            ),
            metrics={METRIC: heldout_loss},
        )

    def save_params(self, step: int, *, params: Any, data: dict[str, Any]) -> None:
        """Saves parameters that no optimizer of ours has seen; see `save`."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params, _chunks(params)),
                data=ocp.args.JsonSave(data),
                config=ocp.args.JsonSave(to_dict(self._config)),
            ),
            metrics={METRIC: None},
        )

    def wait(self) -> None:
        """Returns when every save that was started is done."""
        self._manager.wait_until_finished()

    def latest_step(self) -> int | None:
        """Number of the newest whole checkpoint, None if there is none."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Number of the checkpoint with the smallest held-out loss, None if none was measured."""
        ranks = {step: _rank(self._manager.metrics(step) or {METRIC: None}) for step in self.steps()}
        best = min(ranks, key=ranks.__getitem__, default=None)
        return best if best is not None and math.isfinite(ranks[best]) else None

    def steps(self) -> list[int]:
        """Numbers of all whole checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def restore(self, step: int, *, params: Any, optimizer: Any) -> tuple[Any, Any, dict[str, Any]]:
        """The state saved at `step`, laid out as the abstract trees say (any mesh).

        Args:
          step: the checkpoint's number.
          params: tree of jax.ShapeDtypeStruct with shardings.
          optimizer: tree of jax.ShapeDtypeStruct with shardings.

        Returns:
          params, optimizer state, data.

        Raises:
          UserError: the checkpoint is truncated, damaged or of another model.
        """
        items = {
            "params": ocp.args.StandardRestore(params),
            "optimizer": ocp.args.StandardRestore(optimizer),
            "data": ocp.args.JsonRestore(),
        }
        restored = self._read(step, items)
        return restored["params"], restored["optimizer"], self._checked(step, restored["data"])

    def read_data(self, step: int) -> dict[str, Any]:
        """The data position alone; see `restore`."""
        return self._checked(step, self._read(step, {"data": ocp.args.JsonRestore()})["data"])

    def restore_params(self, step: int, *, params: Any) -> Any:
        """The parameters alone; see `restore`."""
        return self._read(step, {"params": ocp.args.StandardRestore(params)})["params"]

    def _checked(self, step: int, data: Any) -> dict[str, Any]:
        if not isinstance(data, dict) or data.get("step") != step:
            raise _damaged(self._folder, step, self.steps(), reason=f"its data position is {data!r}")
        return data

    def _read(self, step: int, items: dict[str, Any]) -> Any:
        _silence_pending_reads()
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax, TensorStore and JSON raise many kinds for damaged files
            raise _damaged(self._folder, step, self.steps(), reason=_one_line(error)) from error


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
    """Drops Orbax's warnings."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    try:
        yield
    finally:
        absl.setLevel(level)


@functools.cache  # once a process: hooks would pile up
def _silence_pending_reads() -> None:
    """When a restore fails, TensorStore's other reads report to an event loop that Orbax has closed.

    They do so from other threads, before the failure comes back too, so the filters stand before a restore and
    stay. The failure itself is raised as one UserError; they drop what would be printed around it, by its wording.
    """
    logging.getLogger("asyncio").addFilter(lambda record: "was never retrieved" not in record.getMessage())
    warnings.filterwarnings("ignore", r"coroutine 'Store\.\w+' was never awaited", RuntimeWarning)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
            before(unraisable)

    sys.unraisablehook = hook


def _unreadable_step(folder: Path, steps: list[int]) -> int | None:
    """The newest checkpoint with a metadata file that is no JSON, None where all can be parsed."""
    for step in reversed(steps):
        for file in (folder / str(step)).rglob("*"):
            if file.is_file() and file.name in ("_CHECKPOINT_METADATA", "metrics", "_METADATA"):
                try:
                    json.loads(file.read_bytes())
                except ValueError:
                    return step
    return None


def _damaged(folder: Path, step: int, steps: Sequence[int], *, reason: str) -> UserError:
    older = [s for s in steps if s < step]
    then = f"go on from step {older[-1]}" if older else "start again from step 0"
    return UserError(
        f"the checkpoint of step {step} cannot be read, it is truncated or damaged ({reason})."
        f" Delete {folder / str(step)} to {then}, or use another --workdir."
    )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def trained_documents(
    workdir: str | os.PathLike[str], *, step: int | Literal["latest", "best"] = "latest"
) -> dict[str, str]:
    """Per source, the digest of the tokens that a checkpoint was trained on; empty where nothing is known.

    Raises:
      UserError: no run, no such checkpoint, or a damaged one.
    """
    with _opened(workdir, step) as (checkpoints, _, number):
        return checkpoints.read_data(number).get("documents", {})


def load_params(
    workdir: str | os.PathLike[str], *, step: int | Literal["latest", "best"] = "latest"
) -> tuple[ExperimentConfig, Any, int]:
    """A trained model: its experiment, its parameters (float32, on this process' first device) and their step.

    Args:
      workdir: the run's folder.
      step: a checkpoint's number, "latest", or "best" (smallest held-out loss).

    Raises:
      UserError: no run, no such checkpoint, or a damaged one.
    """
    with _opened(workdir, step) as (checkpoints, config, number):
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), param_shapes(config.model)
        )
        return config, checkpoints.restore_params(number, params=abstract), number


@contextlib.contextmanager
def _opened(
    workdir: str | os.PathLike[str], step: int | Literal["latest", "best"]
) -> Iterator[tuple[Checkpointer, ExperimentConfig, int]]:
    """A run's checkpoints, its config, and the number of the checkpoint asked for; see `load_params`."""
    config = read_config(workdir)
    if not (Path(workdir) / "checkpoints").is_dir():
        raise UserError(f"{os.fspath(workdir)} holds no checkpoint yet. Train until the first one is saved.")
    with Checkpointer(workdir, config, read_only=True) as checkpoints:
        named = {"latest": checkpoints.latest_step, "best": checkpoints.best_step}
        number = named[step]() if isinstance(step, str) and step in named else step
        if number not in checkpoints.steps():
            raise UserError(
                f"{os.fspath(workdir)} must hold the checkpoint asked for ({step!r}); it has {checkpoints.steps()}."
            )
        yield checkpoints, config, number


def load_stored_params(
    workdir: str | os.PathLike[str], *, step: int | Literal["latest", "best"] = "latest"
) -> tuple[Any, Dtype]:
    """Parameters as numpy arrays in the dtype they are stored in, and that dtype; see `load_params`."""
    with _opened(workdir, step) as (checkpoints, config, number):
        dtype = Dtype(checkpoints.read_data(number).get("dtype", Dtype.FLOAT32.value))
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
    with _uncopied(), Checkpointer(workdir, config, streaming=True) as checkpoints:
        checkpoints.save_params(0, params=params, data={"step": 0, "documents": dict(documents), "dtype": dtype.value})


def write_bare_params(path: Path, params: Any) -> None:
    """Writes numpy parameters as one Orbax item, for serving: `StandardCheckpointer().restore(path)` reads it."""
    with _uncopied(), ocp.Checkpointer(_streaming_handlers()["params"]) as checkpointer:
        checkpointer.save(path.absolute(), args=ocp.args.StandardSave(params, _chunks(params)))


def _streaming_handlers() -> dict[str, Any]:
    """Orbax's handlers for a checkpoint that is written as it is compressed.

    Without OCDBT, a database in few files that is held in memory until 2 GB of it are full: every chunk is
    a file of its own.
    """
    json_handler = ocp.JsonCheckpointHandler
    return {
        "params": ocp.StandardCheckpointHandler(use_ocdbt=False),
        "data": json_handler(),
        "config": json_handler(),
        "metrics": json_handler(),
    }


def _chunks(params: Any) -> Any:
    return jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), params)


@contextlib.contextmanager
def _uncopied() -> Iterator[None]:
    """Lets Orbax write numpy arrays in place: it copies them first, as they could change while it saves.

    What it warns of here (another handler for arrays, no OCDBT to merge) is wanted.
    """
    kinds = ocp.type_handlers
    with _quiet_absl():
        before = kinds.get_type_handler(np.ndarray)
        kinds.register_type_handler(np.ndarray, kinds.NumpyHandler(deepcopy_host_arrays=False), override=True)
        try:
            yield
        finally:
            kinds.register_type_handler(np.ndarray, before, override=True)
