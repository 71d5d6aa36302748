"""Handles Ctrl-C and SIGTERM during long work: what is whole is kept, and one line says so.

Exit codes are as in shells: 130 after Ctrl-C, 143 after SIGTERM.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
CAUGHT = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Interrupt by Ctrl-C or SIGTERM; `number` is the signal's."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


class Stopped(KeyboardInterrupt):
    """End of work between two of its pieces, because a signal came."""


@contextlib.contextmanager
def _signal_handlers(handle: Any) -> Iterator[None]:
    """Holds `handle(number)` as handler of both signals; of none outside the main thread, where Python allows none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda caught, _: handle(caught)) for number in CAUGHT}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _raise(number: int) -> NoReturn:
    raise Interrupted(number)


def raise_on_signal() -> contextlib.AbstractContextManager[None]:
    """Holds handlers that raise Interrupted as soon as a signal comes."""
    return _signal_handlers(_raise)


class SignalStop:
    """Catcher of the first signal, which work checks between two of its pieces; the next one raises Interrupted.

    Attributes:
      number: of the signal that came; 0: none.
    """

    def __init__(self) -> None:
        self.number = 0

    def _handle(self, number: int) -> None:
        if self.number:
            raise Interrupted(number)
        self.number = number

    def catch_signals(self) -> contextlib.AbstractContextManager[None]:
        """Holds handlers that catch signals."""
        return _signal_handlers(self._handle)

    def check(self) -> None:
        """Raises Stopped if a signal came."""
        if self.number:
            raise Stopped

    def until(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items up to the first signal."""
        for item in items:
            yield item
            if self.number:
                return


def exit_interrupted(number: int, line: str) -> NoReturn:
    """Says what was kept and ends the process with the signal's exit code."""
    print(f"interrupted: {line}", file=sys.stderr, flush=True)
    sys.exit(128 + number)
