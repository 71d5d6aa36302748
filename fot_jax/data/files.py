"""Files of sources on a disk or in a bucket: what identifies one, and how it is opened or copied."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import io
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from fot_jax.config import UserError
from fot_jax.storage.explain import explained
from fot_jax.storage.paths import StoragePath, bucket_files

SMALL = 1 << 20  # bytes of a file that is fetched ahead
AHEAD = 16  # files


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
def open_binary(path: StoragePath, content: bytes | None = None) -> Iterator[IO[bytes]]:
    """Opens a file for reading and closes it.

    Args:
      path: the file.
      content: its bytes, where they are read already.

    Raises:
      OSError: it is missing or cannot be read.
      UserError: the bucket cannot be read.
    """
    with explained(path):
        if content is not None:
            yield io.BytesIO(content)
        elif isinstance(path, pathlib.Path):
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


def read_ahead(files: Sequence[SourceFile]) -> Iterator[tuple[SourceFile, Callable[[], bytes | None]]]:
    """Yields each file and a function that returns its bytes, or None where they are to be read from the file.

    Small files of a bucket are fetched AHEAD at a time: one after another each would cost the time of a request.
    The function raises as `open_binary`.
    """
    if not any(_is_fetched(file) for file in files):
        yield from ((file, lambda: None) for file in files)
        return
    pool = concurrent.futures.ThreadPoolExecutor(AHEAD, thread_name_prefix="read_ahead")
    waiting: collections.deque[tuple[SourceFile, Callable[[], bytes | None]]] = collections.deque()
    try:
        for file in files:
            waiting.append((file, pool.submit(read_bytes, file.path).result if _is_fetched(file) else lambda: None))
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        yield from waiting
    finally:
        pool.shutdown(cancel_futures=True)


def _is_fetched(file: SourceFile) -> bool:
    return file.size <= SMALL and not isinstance(file.path, pathlib.Path)


@contextlib.contextmanager
def local_copy(path: StoragePath, content: bytes | None = None) -> Iterator[pathlib.Path]:
    """Yields a file of this machine itself, or a copy of a bucket's file, which is removed afterwards.

    Arguments and errors are those of `open_binary`.
    """
    if isinstance(path, pathlib.Path):
        yield path
        return
    folder = tempfile.mkdtemp(prefix="fot_jax_")
    try:
        copy = pathlib.Path(folder, path.name)
        if content is None:
            with explained(path):
                bucket_files().get_file(os.fspath(path), str(copy))
        else:
            copy.write_bytes(content)
        yield copy
    finally:
        shutil.rmtree(folder, ignore_errors=True)
