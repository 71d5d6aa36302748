"""What a long measurement has found so far, on disk, so that an interrupted one goes on where it stood.

DIR/TASK.DIGEST.partial.jsonl    line 1: what is measured, DIGEST is of it; then a line a finished piece: [key, found]

Other runs, checkpoints or settings have another digest and leave this file alone. It goes when the report is
written.
"""

import hashlib
import json
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fot_jax.config.errors import explained_disk_full
from fot_jax.workdir import write_whole

logger = logging.getLogger(__name__)

Key = tuple[str | int, ...]
# (key, compute) -> compute(), or what it gave before; what it gives is JSON.
Once = Callable[[Key, Callable[[], Any]], Any]


def unkept(key: Key, compute: Callable[[], Any]) -> Any:
    """A `Once` that keeps nothing."""
    del key
    return compute()


def digest(*inputs: object) -> str:
    """Of what a piece is computed from (arrays of one dtype each, sequences of integers, strings), for its key."""
    found = hashlib.blake2b(digest_size=8)
    for value in inputs:
        array = np.asarray(value)
        found.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return found.hexdigest()


class Journal:
    """The finished pieces of one measurement, each written as it comes.

    Attributes:
      path: its file.
      taken_up: pieces that an interrupted measurement left.
    """

    def __init__(self, directory: pathlib.Path, task: str, *, measured: Mapping[str, object]) -> None:
        """Opens the journal of `measured` (JSON), or begins it.

        Args:
          directory: of the report; it is made.
          task: the report's name.
          measured: all that the pieces depend on but what their keys name.
        """
        head = json.dumps(measured, sort_keys=True)
        self.path = directory / f"{task}.{digest(head)}.partial.jsonl"
        self._found: dict[Key, Any] = {}
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.is_file() else ""
        first, *lines = text.split("\n")
        if first == head:
            self._found = _pieces(lines)
        self.taken_up = len(self._found)
        if self.taken_up:
            logger.warning("%s: %d pieces measured before it was interrupted are taken up.", self.path, self.taken_up)
        whole = "".join(line + "\n" for line in (head, *(_line(key, found) for key, found in self._found.items())))
        if text != whole:  # new, or an interruption has cut a line off
            write_whole(self.path, whole)

    def once(self, *prefix: str | int) -> Once:
        """A `Once` whose keys stand behind a prefix."""

        def found(key: Key, compute: Callable[[], Any]) -> Any:
            whole = (*prefix, *key)
            if whole not in self._found:
                self._found[whole] = self._computed(compute)
                with explained_disk_full(self.path.parent), self.path.open("a", encoding="utf-8") as file:
                    file.write(_line(whole, self._found[whole]) + "\n")
            return self._found[whole]

        return found

    def _computed(self, compute: Callable[[], Any]) -> Any:
        """compute(); an interrupt in it carries a note that says what is kept."""
        try:
            return compute()
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(f"{len(self._found)} finished pieces are kept in {self.path}")
            raise

    def remove(self) -> None:
        """Removes the file: its report is written."""
        self.path.unlink(missing_ok=True)


def _line(key: Key, found: Any) -> str:
    return json.dumps([list(key), found])


def _pieces(lines: list[str]) -> dict[Key, Any]:
    """The pieces of a file's lines up to one that is none, as one that was cut off."""
    pieces = {}
    for line in lines:
        try:
            key, found = json.loads(line)
            pieces[tuple(part if isinstance(part, str) else int(part) for part in key)] = found
        except (TypeError, ValueError):
            break
    return pieces
