"""Finished pieces of a long measurement, kept on disk so that an interrupted measurement can continue.

DIR/TASK.DIGEST.partial.jsonl    line 1: what is measured, with digest DIGEST; then one line per piece: [key, result]

Other runs, checkpoints or settings have another digest and do not touch this file. It is removed when the report
is written. On a disk a piece is appended as soon as it is finished. An object in a bucket cannot be appended to: it is
written again with all pieces, at most every five seconds, and when the measurement is interrupted.
"""

import hashlib
import json
import logging
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fot_jax.config.errors import explained_disk_full
from fot_jax.storage.paths import StoragePath
from fot_jax.workdir import write_whole

logger = logging.getLogger(__name__)

BUCKET_SECONDS = 5.0

Key = tuple[str | int, ...]
# (key, compute) -> the result of compute(), or its kept result from before; results are JSON.
Memoize = Callable[[Key, Callable[[], Any]], Any]


def no_memo(key: Key, compute: Callable[[], Any]) -> Any:
    """Returns compute(); a `Memoize` that keeps nothing."""
    del key
    return compute()


def digest(*inputs: object) -> str:
    """Returns a digest of a piece's inputs (arrays of one dtype each, sequences of integers, strings), for its key."""
    found = hashlib.blake2b(digest_size=8)
    for value in inputs:
        array = np.asarray(value)
        found.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return found.hexdigest()


class Journal:
    """The finished pieces of one measurement, each written as soon as it is finished.

    Attributes:
      path: the journal's file.
      num_resumed: number of pieces that an interrupted measurement left.
    """

    def __init__(self, directory: StoragePath, task: str, *, measured: Mapping[str, object]) -> None:
        """Opens the journal of `measured` (JSON), or begins a new one.

        Args:
          directory: the report's folder; it is made if missing.
          task: the report's name.
          measured: everything that the pieces depend on, except what their keys name.
        """
        head = json.dumps(measured, sort_keys=True)
        self.path = directory / f"{task}.{digest(head)}.partial.jsonl"
        self._found: dict[Key, Any] = {}
        text = self.path.read_bytes().decode(errors="replace") if self.path.is_file() else ""
        first, *lines = text.split("\n")
        if first == head:
            self._found = _pieces(lines)
        self.num_resumed = len(self._found)
        if self.num_resumed:
            logger.warning(
                "%s: %d pieces measured before it was interrupted are taken up.", self.path, self.num_resumed
            )
        self._head = head
        self._written = time.monotonic()
        if text != self._text():  # new, or an interruption has cut a line off
            write_whole(self.path, self._text())

    def memoize(self, *prefix: str | int) -> Memoize:
        """Returns a `Memoize` that puts a prefix before its keys."""

        def found(key: Key, compute: Callable[[], Any]) -> Any:
            whole = (*prefix, *key)
            if whole not in self._found:
                self._found[whole] = self._computed(compute)
                self._keep(whole)
            return self._found[whole]

        return found

    def _text(self) -> str:
        """Returns the whole journal."""
        return "".join(line + "\n" for line in (self._head, *(_line(key, found) for key, found in self._found.items())))

    def _keep(self, key: Key) -> None:
        """Writes a finished piece."""
        if isinstance(self.path, pathlib.Path):
            with explained_disk_full(self.path.parent), self.path.open("a", encoding="utf-8") as file:
                file.write(_line(key, self._found[key]) + "\n")
        elif time.monotonic() - self._written >= BUCKET_SECONDS:
            write_whole(self.path, self._text())
            self._written = time.monotonic()

    def _computed(self, compute: Callable[[], Any]) -> Any:
        """Returns compute(); adds a note to an interrupt that says what is kept."""
        try:
            return compute()
        except KeyboardInterrupt as interrupt:
            if not isinstance(self.path, pathlib.Path):
                write_whole(self.path, self._text())
            interrupt.add_note(f"{len(self._found)} finished pieces are kept in {self.path}")
            raise

    def remove(self) -> None:
        """Removes the file, once the report is written."""
        self.path.unlink(missing_ok=True)


def _line(key: Key, found: Any) -> str:
    return json.dumps([list(key), found])


def _pieces(lines: list[str]) -> dict[Key, Any]:
    """Reads the pieces of a file's lines up to the first invalid line, for example one that was cut off."""
    pieces = {}
    for line in lines:
        try:
            key, found = json.loads(line)
            pieces[tuple(part if isinstance(part, str) else int(part) for part in key)] = found
        except (TypeError, ValueError):
            break
    return pieces
