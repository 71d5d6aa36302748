"""A trace of chosen steps, for XProf: WORKDIR/profile/plugins/profile/TIME/."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax

from fot_jax import distributed
from fot_jax.config import UserError
from fot_jax.storage.paths import StoragePath


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileSteps:
    """The steps to trace, `first` to `last`, both included, counted from 1 as the progress lines do.

    Raises:
      UserError: the range has no step, or starts before step 1.
    """

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last:
            raise UserError(f"--profile-steps must be FROM:TO with 1 <= FROM <= TO, got {self.first}:{self.last}.")


class Profile:
    """The trace of a run's steps; the first process traces its host and devices.

    It holds only whole steps: it starts after the device has done the step before, and ends after the last one.
    """

    def __init__(
        self, workdir: StoragePath, steps: ProfileSteps | None, *, local: Path, log: Callable[[str], None]
    ) -> None:
        """Takes the run's folder, and the local one to which JAX writes: it has its own ways to a bucket."""
        self._folder = workdir / "profile"
        self._local = local / "profile"
        self._steps = steps
        self._log = log
        self._running = False

    def before(self, step: int, *, wait: Callable[[], None]) -> None:
        """Starts or ends the trace before `step` is dispatched; `wait` returns when every step before is done."""
        if self._steps is None or not distributed.is_first():
            return
        if self._running and step > self._steps.last:
            wait()
            self._end()
        elif not self._running and self._steps.first <= step <= self._steps.last:
            wait()
            self._running = True
            jax.profiler.start_trace(str(self._local))

    def step(self, step: int) -> contextlib.AbstractContextManager:
        """Marks a step in the trace."""
        return jax.profiler.StepTraceAnnotation("train", step_num=step) if self._running else contextlib.nullcontext()

    def _end(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
        self._log(f"profile: trace in {self._folder}")

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._running:  # the run ended within the steps to trace
            self._end()
