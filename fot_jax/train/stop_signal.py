"""SIGTERM as a request: the loop finishes its step, saves and returns."""

import signal
import threading
from types import FrameType


class StopSignal:
    """Catches SIGTERM while entered; `requested` tells whether it came.

    The handler only sets a flag: saving happens in the loop, between two steps. The previous handler is put
    back at the end. Outside the main thread Python allows no handlers, and nothing is caught.
    """

    def __init__(self) -> None:
        self.requested = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        self.requested = True

    def __enter__(self) -> "StopSignal":
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        if self._in_main_thread:
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._in_main_thread:
            signal.signal(signal.SIGTERM, self._previous)
