"""Files of sources on a disk or in a bucket: what identifies one, and how it is opened or copied."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO

from fot_jax.config import UserError
from fot_jax.storage.explain import explained
from fot_jax.storage.paths import StoragePath, bucket_files


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of a source, as it was listed.

    Attributes:
      path: where it is.
      size: its bytes.
      mark: a number or text that changes with its content: the time of writing on a disk (nanoseconds), in a bucket
        the checksum, which is the same when equal content is written again.
    """

    path: StoragePath
    size: int
    mark: int | str

    def identity(self) -> list[object]:
        """Returns what a token cache knows the file by: its path without links, its bytes, its mark."""
        place = self.path.resolve() if isinstance(self.path, pathlib.Path) else self.path
        return [os.fspath(place), self.size, self.mark]


def on_disk(path: pathlib.Path) -> SourceFile:
    """Looks at a file of this machine. Raises UserError where that fails."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"'{path}' must be a file that can be read, got: {error}.") from error
    return SourceFile(path=path, size=status.st_size, mark=status.st_mtime_ns)


@contextlib.contextmanager
def open_binary(path: StoragePath) -> Iterator[IO[bytes]]:
    """Opens a file for reading and closes it.

    Raises:
      OSError: it is missing or cannot be read.
      UserError: the bucket cannot be read.
    """
    with explained(path):
        if isinstance(path, pathlib.Path):
            with open(path, "rb") as file:
                yield file
        else:
            with bucket_files().open(os.fspath(path), "rb") as file:
                yield file


def read_bytes(path: StoragePath) -> bytes:
    """Reads a whole file, in one request from a bucket. Raises as `open_binary`."""
    if isinstance(path, pathlib.Path):
        return path.read_bytes()
    with explained(path):
        return bucket_files().cat_file(os.fspath(path))


@contextlib.contextmanager
def local_copy(path: StoragePath) -> Iterator[pathlib.Path]:
    """Yields a file of this machine itself, or a copy of a bucket's file, which is removed afterwards.

    Raises as `open_binary`.
    """
    if isinstance(path, pathlib.Path):
        yield path
        return
    folder = tempfile.mkdtemp(prefix="fot_jax_")
    try:
        copy = pathlib.Path(folder, path.name)
        with explained(path):
            bucket_files().get_file(os.fspath(path), str(copy))
        yield copy
    finally:
        shutil.rmtree(folder, ignore_errors=True)
