"""Replaces a memory by a new one that is seen whole or not at all, on a disk or in a bucket.

disk      DIR.tmp -> rename to DIR
bucket    DIR/arrays-0123456789abcdef/...  -> DIR/meta.json, one object, names it -> the earlier arrays are removed
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Iterator

from fot_jax.config.errors import explained_disk_full
from fot_jax.logging import warn_once
from fot_jax.storage.explain import explained
from fot_jax.storage.paths import StoragePath, bucket_files, files_below, replace_file

META = "meta.json"
ARRAYS = re.compile(r"arrays-[0-9a-f]{16}")  # folder of the arrays and texts of a memory in a bucket


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewMemory:
    """A memory that is being written.

    Attributes:
      folder: where its arrays and texts are written.
      meta: its meta.json, to be written last.
      arrays: the name of `folder` that meta.json must hold; "" where the arrays are next to it.
    """

    folder: StoragePath
    meta: StoragePath
    arrays: str = ""


@contextlib.contextmanager
def replacing(path: StoragePath) -> Iterator[NewMemory]:
    """Holds a new memory that replaces the one at `path` at the end; after an error that one is unchanged.

    Raises:
      UserError: the disk is full, or the bucket refuses.
    """
    if isinstance(path, pathlib.Path):
        with _new_folder(path) as fresh:
            yield NewMemory(folder=fresh, meta=fresh / META)
        return
    with explained(path, writes=True):
        earlier = _objects_of_memory(path)
        name = f"arrays-{secrets.token_hex(8)}"
        try:
            yield NewMemory(folder=path / name, meta=path / META, arrays=name)
        except BaseException:
            _remove(list(files_below(path / name)), path)
            raise
        _remove(earlier, path)


@contextlib.contextmanager
def _new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Holds a new folder that replaces `path` at the end; after an error it is gone and `path` is unchanged."""
    with explained_disk_full(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh, old = (path.with_name(f".{path.name}.{kind}-{os.getpid()}") for kind in ("tmp", "old"))
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
    try:
        yield fresh
        if path.exists():
            path.rename(old)
        fresh.rename(path)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_meta(memory: NewMemory, text: str) -> None:
    """Writes meta.json, which makes the memory one."""
    replace_file(memory.meta, text)


def is_unfinished(path: StoragePath, file: StoragePath) -> bool:
    """True if a file of a bucket's folder is one of a save that has not ended."""
    first = os.fspath(file).removeprefix(f"{path}/").partition("/")[0]
    return not isinstance(path, pathlib.Path) and ARRAYS.fullmatch(first) is not None


def _objects_of_memory(path: StoragePath) -> list[StoragePath]:
    """Lists the objects of the memory that meta.json describes, except meta.json; of no other save in the folder."""
    try:
        arrays = json.loads((path / META).read_bytes()).get("arrays", "")
    except FileNotFoundError:
        return []
    except (ValueError, AttributeError):
        arrays = ""  # a damaged one: what it named is not known
    if isinstance(arrays, str) and ARRAYS.fullmatch(arrays):
        return list(files_below(path / arrays))
    return [file for file in files_below(path) if file.name != META and not is_unfinished(path, file)]


def _remove(files: list[StoragePath], path: StoragePath) -> None:
    """Removes objects that no memory names any more; where that fails they only take room, and the log says so."""
    try:
        if files:
            bucket_files().rm([os.fspath(file) for file in files])
    except Exception as error:
        warn_once(os.fspath(path), f"{len(files)} objects of a replaced memory could not be removed ({error}).")
