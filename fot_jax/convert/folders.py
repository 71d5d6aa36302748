"""Folders that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fot_jax.config import UserError
from fot_jax.config.errors import check_room, disk_full, explained_disk_full, free_bytes, is_disk_full
from fot_jax.storage.explain import explained, missing_bucket
from fot_jax.storage.paths import StoragePath, upload_folder

LEAST_SHARE = 4  # a compressed checkpoint takes at least a quarter of its numbers' bytes, as 4-bit weights do


@contextlib.contextmanager
def new_folder(path: StoragePath, *, needed: int | None = None, compressed: bool = False) -> Iterator[Path]:
    """Holds a folder under a temporary name next to `path`; renames it to `path` when the block ends well.

    An error leaves nothing. For a bucket the folder is one of this machine, and is copied when the block ends well,
    config.json last, by which a run is known.

    Args:
      path: must not exist, or be an empty folder.
      needed: bytes that will be written, if known; a disk with less room is refused at once.
      compressed: True if they are written compressed; then only a disk that is far too small is refused at once.

    Raises:
      UserError: `path` exists and is not empty, or the disk is full.
    """
    if not isinstance(path, Path):
        with _new_folder_in_bucket(path, needed=None if compressed else needed) as folder:
            yield folder
        return
    path = path.absolute()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"--to must name a new folder, got {str(path)!r}, which exists. Choose another or remove it.")
    if needed is not None and (not compressed or free_bytes(path) < needed // LEAST_SHARE):
        check_room(path, needed)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        _remove(temporary)  # and frees its room
        if isinstance(error, Exception) and is_disk_full(error):  # the error names the temporary folder only
            raise disk_full(path, error, needed=needed) from error
        raise


@contextlib.contextmanager
def _new_folder_in_bucket(path: StoragePath, *, needed: int | None) -> Iterator[Path]:
    """Holds a temporary folder, and copies it to a bucket when the block ends well; see `new_folder`."""
    with explained(path, writes=True):
        if path.exists():
            raise UserError(f"--to must name a new folder, got '{path}', which exists. Choose another or remove it.")
    if needed is not None:
        check_room(tempfile.gettempdir(), needed)
    with tempfile.TemporaryDirectory(prefix="fot_jax-") as temporary:
        with explained_disk_full(temporary, needed=needed):
            yield Path(temporary)
        with explained(path, writes=True):
            try:
                upload_folder(Path(temporary), path, last="config.json")
            except FileNotFoundError as error:
                raise missing_bucket(path) from error


def _remove(folder: Path, *, tries: int = 20) -> None:
    """Removes a folder in which a failed save may still write its last files: tries again until it is gone."""
    for attempt in range(tries):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05 * (attempt + 1))
