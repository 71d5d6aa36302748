"""Token caches in a bucket (data.cache_dir=gs://...): one process builds, all others copy it to their own disk.

    gs://BUCKET/FOLDER/<source>-<fingerprint>/   the files of `fot_jax.data.cache`; without meta.json there is none
    ~/.cache/fot_jax/tokens/BUCKET/FOLDER/...    this machine's copy, which training maps into memory

meta.json is uploaded last and states what the other files hold, so a cache is seen whole or not at all.
"""

import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable

import numpy as np

from fot_jax.config.errors import explained_disk_full
from fot_jax.data.cache import SourceCache, build_lock, damaged_error, load_cache, load_index, open_or_build
from fot_jax.distributed import check_agreement, is_first
from fot_jax.storage.explain import explained
from fot_jax.storage.paths import SCHEME, StoragePath, bucket_files, upload_folder

COPIES = "~/.cache/fot_jax/tokens"
META = "meta.json"
FILES = ("tokens.bin", "offsets.npy", "contents.npy", "names.json", META)
INDEX = ("offsets.npy", "contents.npy", META)
LOOK_SECONDS = 2.0  # between two looks for a cache that another process builds


def local_folder(remote: StoragePath) -> pathlib.Path:
    """Returns the folder of this machine that holds the copy of a cache in a bucket."""
    return pathlib.Path(COPIES).expanduser() / os.fspath(remote).removeprefix(SCHEME)


def open_or_build_copy(
    remote: StoragePath,
    documents: Callable[[], Iterable[tuple[str, np.ndarray]]],
    *,
    source: str,
    expected: str,
    vocab_size: int,
) -> SourceCache:
    """Opens this machine's copy of the cache in `remote`, which the first process of a run builds where it is missing.

    Arguments and errors are those of `open_or_build`.

    Raises:
      UserError: there is no document; a cache is damaged; the bucket or this machine's folder cannot be written; the
        processes of the run would make different caches.
    """
    # One that looks for another fingerprint would wait for ever.
    check_agreement(f"files and vocabulary of data.sources['{source}']", expected)
    local = local_folder(remote)
    if is_first() and not _is_there(remote):
        built = open_or_build(local, documents, source=source, expected=expected, vocab_size=vocab_size)
        with explained(remote, writes=True):
            upload_folder(local, remote, last=META)
        return built
    _wait_for(remote)
    return _open_copy(local, remote, expected=expected)


def load_counts(remote: StoragePath, *, expected: str) -> SourceCache | None:
    """Opens a cache in a bucket to count: of its tokens only the number is right.

    Reads offsets and digests, 24 bytes a document, and keeps nothing on the disk.

    Returns:
      the cache; None when there is none.

    Raises:
      UserError: it is damaged, or the bucket cannot be read.
    """
    if not _is_there(remote):
        return None
    with tempfile.TemporaryDirectory(prefix="fot_jax_") as folder:
        _get(remote, pathlib.Path(folder), INDEX)
        return load_index(pathlib.Path(folder), expected=expected, named=remote)


def _is_there(remote: StoragePath) -> bool:
    with explained(remote):
        return bucket_files().exists(f"{remote}/{META}")


def _wait_for(remote: StoragePath) -> None:
    """Returns when the first process has uploaded the cache; where that one fails, the supervisor ends this one."""
    said = False
    while not _is_there(remote):
        if not said:
            print(f"waiting for process 0, which builds {remote} ...", file=sys.stderr, flush=True)
            said = True
        time.sleep(LOOK_SECONDS)


def _open_copy(local: pathlib.Path, remote: StoragePath, *, expected: str) -> SourceCache:
    """Opens the copy, made anew where it is of other tokens; processes of one machine copy once."""
    with explained(remote):
        meta = json.loads(bucket_files().cat_file(f"{remote}/{META}"))
    with build_lock(local):
        cache = load_cache(local, expected=expected)
        if cache is None or cache.digest != meta["digest"]:
            _download(remote, local, expected=expected)
            cache = load_cache(local, expected=expected)
    assert cache is not None
    return cache


def _download(remote: StoragePath, local: pathlib.Path, *, expected: str) -> None:
    """Copies all files into a temporary folder, checks them and renames it; the lock must be held."""
    copying = local.with_name(f".copying-{local.name}")
    with explained_disk_full(local.parent):
        shutil.rmtree(copying, ignore_errors=True)  # of a killed process: its lock is ours now
        copying.mkdir(parents=True)
        try:
            _get(remote, copying, FILES)
            found = load_cache(copying, expected=expected, named=remote)
            assert found is not None
            if hashlib.blake2b(found.tokens, digest_size=16).hexdigest() != found.digest:
                raise damaged_error(remote, "tokens.bin does not match meta.json")
            shutil.rmtree(local, ignore_errors=True)
            os.rename(copying, local)
        finally:
            shutil.rmtree(copying, ignore_errors=True)


def _get(remote: StoragePath, folder: pathlib.Path, names: Iterable[str]) -> None:
    """Copies files of a cache into a folder. Raises UserError where one is missing."""
    for name in names:
        try:
            with explained(remote):
                bucket_files().get_file(f"{remote}/{name}", str(folder / name))
        except FileNotFoundError as error:
            raise damaged_error(remote, f"{name} is missing") from error
