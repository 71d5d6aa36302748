"""A kind of input: its intact files, how they are damaged, and what reading them must give."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

from tests.fuzz.edits import Edit, Files


class WrongError(Exception):
    """The input was accepted, and what came of it is not what it holds."""


def require(holds: bool, message: str) -> None:
    """Raises WrongError unless an accepted input gave what an independent reading of it gives."""
    if not holds:
        raise WrongError(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of input.

    Attributes:
      name: names the test, and folders of inputs that were found.
      files: makes the intact input: the same bytes at every call.
      edits: single edits of these files.
      attempt: `attempt(source, target, intact)` reads the folder `source` as a command would, writes at `target` if
        it writes, and raises WrongError where it accepts other numbers than an independent reading gives. `intact`
        is a folder with the undamaged files.
    """

    name: str
    files: Callable[[], Files]
    edits: Callable[[Files], st.SearchStrategy[Edit]]
    attempt: Callable[[Path, Path, Path], None]


def write_files(folder: Path, files: Files) -> None:
    """Writes an input to a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def read_files(folder: Path) -> Files:
    """The files of a folder, those of folders in it included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
