"""Progress of a reading on stderr; imports nothing that computes."""

import dataclasses
import sys
from collections.abc import Callable

PROGRESS_SECONDS = 5.0  # between lines where stderr is no terminal


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadProgress:
    """Progress of a reading.

    Attributes:
      tokens_read: tokens of all rows so far.
      tokens_total: tokens of all rows.
      seconds: since its beginning; compiling does not count.
      memory_bytes: of the memory's entries.
    """

    tokens_read: int
    tokens_total: int
    seconds: float
    memory_bytes: int


class StopReading(Exception):  # noqa: N818  # a signal, as StopIteration
    """Raised by a progress function: ends `Memory.read` after the window at hand."""


Progress = Callable[[ReadProgress], None]  # called after each window


def progress_line(progress: ReadProgress) -> str:
    """Returns the tokens read, their rate and the memory's size as one line."""
    rate = progress.tokens_read / max(progress.seconds, 1e-9)
    return (
        f"read {progress.tokens_read:,} of {progress.tokens_total:,} tokens, {rate:,.0f} tokens/s, "
        f"memory {progress.memory_bytes / 2**20:,.1f} MiB"
    )


def show_progress(progress: ReadProgress, shown: list[float]) -> None:
    """Prints a line with the time left on stderr: rewritten on a terminal, elsewhere a new one every few seconds.

    Args:
      progress: of the reading.
      shown: seconds of the last line, [0.0] at first; changed in place.
    """
    left, terminal = progress.tokens_total - progress.tokens_read, sys.stderr.isatty()
    if left and not terminal and progress.seconds - shown[0] < PROGRESS_SECONDS:
        return
    shown[0] = progress.seconds
    seconds = round(progress.seconds * left / max(progress.tokens_read, 1))
    line = progress_line(progress) + (f", {seconds // 60}:{seconds % 60:02} left" if left else "")
    erase = "\r\x1b[K" * terminal  # the line before may be longer
    print(erase + line, end="" if terminal and left else "\n", file=sys.stderr, flush=True)


def show_on_terminal(progress: ReadProgress) -> None:
    """Prints a line with the time left on stderr, rewritten by the next one; nothing where stderr is no terminal."""
    if sys.stderr.isatty():
        show_progress(progress, shown=[0.0])
