"""Folders that appear whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from fot_jax.config import UserError


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder under a temporary name beside `path`; it gets its name when the block ends well.

    On an error nothing is left. Raises UserError where something is there already or the place cannot be written.
    """
    path = path.absolute()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"--to must name a new folder, got {str(path)!r}, which exists. Choose another or remove it.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
