"""Saves a run's checkpoints when they are due, and turns a full disk into one line."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from fot_jax import checkpoint
from fot_jax.config import ExperimentConfig, UserError
from fot_jax.config.errors import disk_full, is_disk_full
from fot_jax.storage.explain import bucket_error
from fot_jax.storage.paths import StoragePath, in_bucket
from fot_jax.train.state import TrainState
from fot_jax.train.time_accounting import Part, TimeAccount


class Saver:
    """The saver of a run's state and data position.

    Attributes:
      saved: the step of the newest checkpoint, finished or under way.
    """

    def __init__(
        self,
        checkpoints: checkpoint.Checkpointer,
        config: ExperimentConfig,
        *,
        step: int,
        time_account: TimeAccount,
        documents: dict[str, str],
        before: Callable[[], None],
    ) -> None:
        """Continues after `step` optimizer steps; every checkpoint holds the seed and `documents`.

        `before` is called before every save.
        """
        self.saved = step
        self._train = config.train
        self._checkpoints = checkpoints
        self._account = time_account
        self._before = before
        self._position = {"seed": config.seed, "documents": documents}

    def due(self, step: int) -> bool:
        """True if `step` ends with a checkpoint: every `train.checkpoint_every` steps, and the last one."""
        return step == self._train.steps or step % self._train.checkpoint_every == 0

    def save(
        self, step: int, state: TrainState, *, switch_step: int | None, heldout: dict[str, float] | None = None
    ) -> None:
        """Starts saving the state after `step` optimizer steps. Raises UserError as `Checkpointer.save` does."""
        data: dict[str, Any] = {"step": step, "switch_step": switch_step} | self._position
        loss = heldout["heldout_loss"] if heldout else None
        with self._account.charge(Part.CHECKPOINT):
            self._before()
            self._checkpoints.save(step, params=state.params, optimizer=state.opt_state, data=data, heldout_loss=loss)
        self.saved = step

    def wait(self) -> None:
        """Returns when every save is done. Raises UserError if one failed."""
        with self._account.charge(Part.CHECKPOINT):
            self._checkpoints.wait()


@contextlib.contextmanager
def storage_errors_in_one_line(workdir: StoragePath) -> Iterator[None]:
    """Turns a full disk, whatever was being written, into one line that says from which step the run continues.

    An error of the run's bucket becomes one line, too.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (refused := bucket_error(error, workdir) if in_bucket(workdir) else None) is not None:
            raise refused from error
        if not is_disk_full(error):
            raise
        file = error.filename if isinstance(error, OSError) else None
        newest = checkpoint.newest_step(workdir)
        then = f"from step {newest}" if newest is not None else "from the beginning"
        folder = os.path.dirname(file) if isinstance(file, str) else os.fspath(workdir)
        raise UserError(f"{disk_full(folder, error)} It goes on {then}.") from error
