"""What a long measurement has found so far, on disk, so that an interrupted one goes on where it stood.

DIR/TASK.partial.jsonl    line 1: what is measured; then one line a finished piece: [key, found]

The file goes when the report is written. One that is of other runs, checkpoints or settings is begun anew.
"""

import json
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TextIO

logger = logging.getLogger(__name__)

Key = tuple[str | int, ...]
# (key, compute) -> compute(), or what it gave before; what it gives is JSON.
Once = Callable[[Key, Callable[[], Any]], Any]


def unkept(key: Key, compute: Callable[[], Any]) -> Any:
    """A `Once` that keeps nothing."""
    del key
    return compute()


def path_of(directory: pathlib.Path, task: str) -> pathlib.Path:
    """The journal's file."""
    return directory / f"{task}.partial.jsonl"


class Journal:
    """The finished pieces of one measurement, each written as it comes."""

    def __init__(self, path: pathlib.Path, *, measured: Mapping[str, object]) -> None:
        """Opens the journal of `measured` (JSON), or begins it.

        Args:
          path: its file; folders are made.
          measured: all that the pieces depend on; the file's first line.
        """
        self._path = path
        head = json.dumps(measured, sort_keys=True)
        lines = _whole_lines(path)
        same = bool(lines) and json.dumps(lines[0], sort_keys=True) == head
        self._found: dict[Key, Any] = {tuple(key): found for key, found in lines[1:]} if same else {}
        if self._found:
            logger.warning("%s: %d pieces measured before it was interrupted are taken up.", path, len(self._found))
        elif len(lines) > 1:
            logger.warning("%s is of other runs or settings; it is begun anew.", path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:  # without the line that an interruption cut off
            file.write(head + "\n")
            for key, found in self._found.items():
                _write(file, key, found)

    def once(self, *prefix: str | int) -> Once:
        """A `Once` whose keys stand behind a prefix."""

        def found(key: Key, compute: Callable[[], Any]) -> Any:
            whole = (*prefix, *key)
            if whole not in self._found:
                self._found[whole] = compute()
                with self._path.open("a", encoding="utf-8") as file:
                    _write(file, whole, self._found[whole])
            return self._found[whole]

        return found


def _write(file: TextIO, key: Key, found: Any) -> None:
    file.write(json.dumps([list(key), found]) + "\n")


def _whole_lines(path: pathlib.Path) -> list[Any]:
    """The values of a file of JSON lines up to one that is none, as a cut-off last line; [] without a file."""
    lines = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
    return lines
