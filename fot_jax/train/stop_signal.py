"""SIGTERM as a request: the loop finishes its step, saves and returns; with several processes all at the same step."""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """Catches SIGTERM while entered; the loop asks `reached` before every step.

    The handler only sets a flag: saving happens in the loop, between two steps. The previous handler is put
    back at the end. Outside the main thread Python allows no handlers, and nothing is caught.

    With several processes JAX has caught SIGTERM since they joined: the process that gets it tells the others,
    and all stop at the first step that none of them has begun.
    """

    def __init__(self) -> None:
        self.requested = False

    def reached(self, step: int) -> bool:
        """Whether to stop before `step`; every process asks once for every step, in order."""
        if jax.process_count() > 1:
            self.requested = multihost_utils.reached_preemption_sync_point(step)
        return self.requested

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        self.requested = True

    def __enter__(self) -> "StopSignal":
        self._catches = threading.current_thread() is threading.main_thread() and jax.process_count() == 1
        if self._catches:
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._catches:
            signal.signal(signal.SIGTERM, self._previous)
