"""The checkpoints of one run: saving, asynchronously, and restoring onto any mesh."""

import contextlib
import logging
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from fot_jax.checkpoint.digests import digest_of_json, digests, first_changed
from fot_jax.checkpoint.failures import (
    one_line,
    raise_bucket_failure,
    raise_runtime_failure,
    save_error,
    silence_abandoned_io,
    unreadable_error,
    unreadable_step,
)
from fot_jax.checkpoint.streaming import chunked_save_args, quiet_absl, streaming_handlers
from fot_jax.config import ExperimentConfig, TrainConfig, UserError
from fot_jax.config.build import to_dict
from fot_jax.storage.paths import StoragePath, absolute, in_bucket, storage_path

logger = logging.getLogger(__name__)

DIGESTS = "digests"  # of the arrays, in the data position's JSON
COMMITTED = "commit_success.txt"  # Orbax's last file of a checkpoint in a bucket
METRIC = "heldout_loss"  # nats a token; checkpoints are ranked by it, smaller is better


def _policy(train: TrainConfig) -> policies.PreservationPolicy:
    """Returns the policy that keeps the last `keep_checkpoints`, and the one with the smallest held-out loss."""
    latest = policies.LatestN(train.keep_checkpoints)
    if not train.keep_best:
        return latest
    best = policies.BestN(get_metric_fn=_ranking_loss, reverse=True, n=1, keep_checkpoints_without_metrics=False)
    return policies.AnyPreservationPolicy([latest, best])


def _ranking_loss(metrics: Any) -> float:
    """Returns the loss by which a checkpoint is ranked; infinity where none was measured or it is no number."""
    loss = metrics.get(METRIC) if isinstance(metrics, dict) else None
    return loss if isinstance(loss, int | float) and math.isfinite(loss) else math.inf


def newest_step(workdir: str | os.PathLike[str]) -> int | None:
    """Returns the number of the newest whole checkpoint of a run's folder, None if there is none; opens nothing."""
    folder = storage_path(workdir) / "checkpoints"
    return max(_numbers(folder), default=None)


def _numbers(folder: StoragePath) -> list[int]:
    """Returns the numbers of the whole checkpoints in a folder, ascending.

    In a bucket a checkpoint is written into its own folder, and is whole once Orbax has written its last file there.
    """
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.name.isdecimal()]
    return sorted(int(path.name) for path in found if not in_bucket(path) or (path / COMMITTED).exists())


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

        With `streaming` a save returns when it is done and needs little memory (`streaming_handlers`).

        Raises:
          UserError: what is there cannot be read.
          JaxRuntimeError, ValueError: another process of the run was lost meanwhile.
        """
        self._folder = absolute(workdir) / "checkpoints"
        self._config = config
        self._saving: tuple[int, int] | None = None  # step and bytes of the save under way
        self._half_written: int | None = None  # step of a save that failed
        # Orbax warns that a folder opened to be read is read only.
        quiet = quiet_absl() if read_only else contextlib.nullcontext()
        try:
            with quiet:
                options = ocp.CheckpointManagerOptions(
                    preservation_policy=_policy(config.train),
                    best_fn=_ranking_loss,
                    best_mode="min",
                    create=not read_only,
                    read_only=read_only,
                    cleanup_tmp_directories=not read_only,
                    enable_async_checkpointing=not (read_only or streaming),
                )
                self._manager = ocp.CheckpointManager(
                    self._folder, options=options, item_handlers=streaming_handlers() if streaming else None
                )
        except Exception as error:  # Orbax raises many kinds for a damaged folder
            raise_runtime_failure(error)
            raise_bucket_failure(error, self._folder)
            steps = _numbers(self._folder)
            broken = unreadable_step(self._folder, steps)
            if broken is not None:
                raise unreadable_error(self._folder, broken, steps, reason=one_line(error)) from error
            raise UserError(f"{self._folder} cannot be opened: {one_line(error)}. Use another --workdir.") from error

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: object, *exc_info: object) -> None:
        """Waits for the save under way. Raises UserError if it fails, unless another error is already raised."""
        try:
            self.wait()
        except UserError as error:
            if kind is None:
                raise
            logger.error("%s", error)
        finally:
            self._manager.close()
            half = self._half_written
            if half is not None and jax.process_index() == 0 and isinstance(self._folder, Path):
                for folder in self._folder.glob(f"{half}.*-tmp*"):  # else, and in a bucket, the next opening removes it
                    shutil.rmtree(folder, ignore_errors=True)

    def save(self, step: int, *, params: Any, optimizer: Any, data: dict[str, Any], heldout_loss: float | None) -> None:
        """Starts saving the state after `step` optimizer steps; arrays are copied before it returns.

        Args:
          step: the checkpoint's number.
          params: parameters.
          optimizer: the optimizer's state.
          data: the data position and whatever else the next step depends on, as JSON.
          heldout_loss: the loss that ranks this checkpoint; None if it was not measured.

        Raises:
          UserError: this save, or the one before, failed; older checkpoints are whole.
        """
        items = {"params": ocp.args.StandardSave(params), "optimizer": ocp.args.StandardSave(optimizer)}
        self._start(step, items, data, metric=heldout_loss, arrays={"params": params, "optimizer": optimizer})

    def save_params(self, step: int, *, params: Any, data: dict[str, Any]) -> None:
        """Saves parameters that no optimizer of ours has seen; see `save`."""
        items = {"params": ocp.args.StandardSave(params, chunked_save_args(params))}
        self._start(step, items, data, metric=None, arrays={"params": params})

    def _start(
        self, step: int, items: dict[str, Any], data: dict[str, Any], *, metric: float | None, arrays: dict[str, Any]
    ) -> None:
        """Hands a checkpoint to Orbax; `arrays` are the trees of `items`, what takes room on the disk."""
        silence_abandoned_io()
        self.wait()  # a failure of the earlier save is reported with its own step
        self._saving = step, sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
        found = {name: digests(tree) for name, tree in arrays.items()}
        data = data | {DIGESTS: {**found, "data": digest_of_json(data)}}
        items |= {"data": ocp.args.JsonSave(data), "config": ocp.args.JsonSave(to_dict(self._config))}
        with self._one_line_errors():
            self._manager.save(step, args=ocp.args.Composite(**items), metrics={METRIC: metric})

    def check(self) -> None:
        """Raises UserError if the save under way has failed; returns at once while it is being written."""
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when every save that was started is done. Raises UserError if one failed."""
        with self._one_line_errors():
            self._manager.wait_until_finished()
        self._saving = None

    @contextlib.contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        """Turns an error of the disk or the file system into one line."""
        try:
            yield
        except (OSError, ValueError, RuntimeError, ExceptionGroup) as error:  # TensorStore raises the middle two
            if self._saving is None:
                raise
            raise_runtime_failure(error)
            raise_bucket_failure(error, self._folder)
            (step, needed), self._saving = self._saving, None
            self._half_written = step
            newest = newest_step(self._folder.parent)
            raise save_error(self._folder, step, error, needed=needed, newest=newest) from error

    def latest_step(self) -> int | None:
        """Number of the newest whole checkpoint, None if there is none."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Returns the number of the checkpoint with the smallest held-out loss, None if none was measured.

        Raises:
          UserError: what is noted as a loss is no number.
        """
        noted = {step: self._manager.metrics(step) for step in self.steps()}
        for step, metrics in noted.items():
            loss = metrics.get(METRIC) if isinstance(metrics, dict) else metrics
            if not isinstance(loss, int | float | None) or isinstance(loss, bool):
                reason = f"its {METRIC} is not a number: {one_line(metrics)}"
                raise unreadable_error(self._folder, step, self.steps(), reason=reason)
        ranks = {step: _ranking_loss(metrics) for step, metrics in noted.items()}
        best = min(ranks, key=ranks.__getitem__, default=None)
        return best if best is not None and math.isfinite(ranks[best]) else None

    def steps(self) -> list[int]:
        """Numbers of all whole checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def restore(self, step: int, *, params: Any, optimizer: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Restores the state saved at `step`, laid out as the abstract trees say (any mesh).

        Args:
          step: the checkpoint's number.
          params: tree of jax.ShapeDtypeStruct with shardings.
          optimizer: tree of jax.ShapeDtypeStruct with shardings.

        Returns:
          params, optimizer state, data.

        Raises:
          UserError: the checkpoint is truncated, damaged, of another model, or does not fit in memory.
          JaxRuntimeError, ValueError: another process of the run was lost meanwhile.
        """
        restored, data = self._read_whole(step, {"params": params, "optimizer": optimizer})
        return restored["params"], restored["optimizer"], data

    def read_data(self, step: int) -> dict[str, Any]:
        """Restores the data position alone; see `restore`."""
        return self._read_whole(step, {})[1]

    def restore_params(self, step: int, *, params: Any) -> Any:
        """Restores the parameters alone; see `restore`."""
        return self._read_whole(step, {"params": params})[0]["params"]

    def _read_whole(self, step: int, abstract: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Restores the items named, as they were saved, and the data position; see `restore`."""
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        restored = self._read(step, items | {"data": ocp.args.JsonRestore()})
        data = restored["data"]
        if not isinstance(data, dict) or data.get("step") != step:
            raise unreadable_error(self._folder, step, self.steps(), reason=f"its data position is {one_line(data)}")
        if DIGESTS not in data:
            if abstract:
                logger.info("The checkpoint of step %d was saved without digests: changed bytes go unnoticed.", step)
            return restored, data
        stored = data.pop(DIGESTS)
        if not isinstance(stored, dict) or stored.get("data") != digest_of_json(data):
            raise unreadable_error(self._folder, step, self.steps(), reason="its data position is not the one saved")
        for name in abstract:
            held = stored.get(name)
            wrong = first_changed(restored[name], held if isinstance(held, dict) else {})
            if wrong is not None:
                raise unreadable_error(
                    self._folder, step, self.steps(), reason=f"{name} are not those saved: {wrong} differs"
                )
        return restored, data

    def _read(self, step: int, items: dict[str, Any]) -> Any:
        silence_abandoned_io()
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax, TensorStore and JSON raise many kinds for damaged files
            raise_runtime_failure(error)
            raise_bucket_failure(error, self._folder)
            raise unreadable_error(self._folder, step, self.steps(), reason=one_line(error)) from error
