"""TensorBoard events, written in the caller's thread."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Lets the imports inside the block find no such module, unless it is imported already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


with _hidden("google.cloud.storage"):  # tensorboardX would import it for gs://, which event files here never are
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.summary import scalar

_FLUSH_SECONDS = 120.0


class ScalarEvents:
    """An event file in a folder, to which scalars are appended.

    tensorboardX's SummaryWriter writes from a thread of its own. When the disk is full that thread dies, and
    training waits for it forever. Here the error is raised where a scalar is added.
    """

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        """Opens a new file in `folder`; TensorBoard hides the points of older files from `purge_step` on."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        self._file.write_event(Event(step=purge_step, wall_time=time.time(), file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._file.write_event(Event(step=purge_step, wall_time=time.time(), session_log=start))
        self._flushed = 0.0

    def add(self, step: int, scalars: dict[str, float]) -> None:
        """Adds a point to each curve; flushes the file every two minutes. Raises OSError."""
        for name, value in scalars.items():
            self._file.write_event(Event(step=step, wall_time=time.time(), summary=scalar(name, value)))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the file. Raises OSError."""
        self._file.close()
