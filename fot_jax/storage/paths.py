"""Paths on a disk of this machine (pathlib) or in a bucket (`etils.epath`, gs://BUCKET/FOLDER).

    storage_path("runs/a")             pathlib.Path("runs/a")
    storage_path("gs://bucket/a")      epath.Path("gs://bucket/a")

Both have `/`, name, parent, exists, is_dir, iterdir, read_text, read_bytes and unlink. In a bucket the following is
different, and code that may run there must not use it:

    open("a")                  overwrites the object
    absolute(), resolve()      give a path of this machine: use `absolute` below
    mkdir()                    does nothing, and a folder without objects does not exist
    rename(), replace()        copy and delete: use `replace_file` below
    glob("**"), rglob()        are refused: use `files_below` below
    stat()                     has only length and mtime: use `version` below
"""

import functools
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from fot_jax.config import UserError
from fot_jax.extras import needs

if TYPE_CHECKING:
    from etils import epath

# etils takes TensorFlow's file system for gs:// where TensorFlow is installed. It looks once, at the first path of any
# kind, so this must be set before Orbax has one.
os.environ.setdefault("EPATH_USE_TF", "0")

SCHEME = "gs://"
EXTRA = "gcs"  # of fot_jax/extras.py
_LEAST_BUCKET_NAME = 3  # characters; Google's rule, which TensorStore checks

StoragePath: TypeAlias = "pathlib.Path | epath.Path"


def in_bucket(path: str | os.PathLike[str]) -> bool:
    """True if a path is in a bucket."""
    return os.fspath(path).startswith(SCHEME)


def check_storage_path(text: str) -> str:
    """Returns the text of a path unchanged if it is a local one or gs://BUCKET/...

    Raises:
      UserError: it has another scheme, no bucket, or `..` in a bucket.
    """
    scheme, found, rest = text.partition("://")
    if not found and text.startswith("gs:"):
        raise UserError(f"a path in a bucket must start with {SCHEME}, got {text!r}.")
    if not found:
        return text
    bucket, *parts = rest.split("/")
    if scheme != "gs" or len(bucket) < _LEAST_BUCKET_NAME or {".", ".."} & set(parts):
        raise UserError(
            f"a path must be a local one or {SCHEME}BUCKET/FOLDER, got {text!r}. No other scheme is known, and a bucket"
            " has no folders named . or .. ."
        )
    return text


def storage_path(path: str | os.PathLike[str]) -> StoragePath:
    """Returns a local path as pathlib.Path, gs://BUCKET/... as etils.epath.Path.

    Raises:
      UserError: the path has another scheme, or no bucket; or the extra `gcs` is not installed.
    """
    text = check_storage_path(os.fspath(path))
    return _gcs().Path(text.rstrip("/")) if in_bucket(text) else pathlib.Path(text)


def local_path(path: str | os.PathLike[str], *, what: str) -> pathlib.Path:
    """Returns a path that must be a local one.

    Args:
      path: the path, or a URL, which is refused.
      what: the subject of the error, as "--out".

    Raises:
      UserError: it is a URL; the message says how to copy what is there.
    """
    text = os.fspath(path)
    if "://" in text or text.startswith("gs:"):
        raise UserError(
            f"{what} must be a local path, got {text!r}. Copy what is there with `gcloud storage cp -r`, or mount it."
        )
    return pathlib.Path(text)


def absolute(path: str | os.PathLike[str]) -> StoragePath:
    """Returns a path that does not depend on the current folder; a bucket's path unchanged."""
    found = storage_path(path)
    return found.absolute() if isinstance(found, pathlib.Path) else found


def replace_file(path: StoragePath, content: str | bytes) -> None:
    """Writes a file so that every reader finds the old one or the new one, whole.

    A folder that is missing is made. In a bucket one request replaces the object, which is seen when it is whole.

    Raises:
      OSError: it cannot be written; the old file is kept.
    """
    data = content.encode() if isinstance(content, str) else content
    if not isinstance(path, pathlib.Path):
        path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def files_below(folder: StoragePath) -> Iterator[StoragePath]:
    """Yields every file in a folder and in its subfolders, in the order of their names."""
    if isinstance(folder, pathlib.Path):
        yield from sorted(path for path in folder.rglob("*") if path.is_file())
        return
    for name in sorted(bucket_files().find(str(folder))):
        yield storage_path(SCHEME + name)


def version(path: StoragePath) -> str:
    """Returns a text that changes whenever a file is written again: its time in nanoseconds, or the generation.

    Raises:
      FileNotFoundError: the file is missing.
    """
    if isinstance(path, pathlib.Path):
        return str(path.stat().st_mtime_ns)
    return str(bucket_files().info(str(path))["generation"])


def upload_folder(local: pathlib.Path, remote: StoragePath, *, last: str) -> None:
    """Copies every file of a local folder to one in a bucket.

    Args:
      local: the folder.
      remote: where to; what is there under other names stays.
      last: the file that says that the others are there.
    """
    names = [path.relative_to(local).as_posix() for path in files_below(local)]
    for name in sorted(names, key=lambda name: (name == last, name)):
        bucket_files().put_file(str(local / name), f"{remote}/{name}")


def bucket_files() -> Any:
    """Returns fsspec's file system of gs://, for patterns, sizes and checksums (`glob`, `find`, `info`, `get_file`).

    It remembers no listing: what other processes wrote is seen at once.
    """
    _gcs()
    import fsspec

    return fsspec.filesystem("gcs")


@functools.cache
def google_client() -> Any:
    """Returns google-cloud-storage's client, which has what fsspec lacks: writes with a condition."""
    _gcs()
    from google.cloud import storage

    return storage.Client()


@functools.cache
def _gcs() -> Any:
    """Imports and returns `etils.epath`, set up for buckets.

    Raises:
      UserError: the extra `gcs` is not installed.
    """
    with needs(EXTRA, "A path in a bucket (gs://)"):
        import gcsfs  # noqa: F401  # etils imports it when it first needs it
        import google.cloud.storage  # noqa: F401  # Orbax does
    from etils import epath
    from fsspec import config

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs tracebacks of the errors that it raises
    for name in ("gs", "gcs"):  # gcsfs keeps listings for ever: what others write would never be seen
        config.conf.setdefault(name, {}).setdefault("use_listings_cache", False)
    return epath
