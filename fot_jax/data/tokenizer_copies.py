"""Copies a tokenizer from a bucket: the libraries that read it take names of files."""

import atexit
import functools
import pathlib
import shutil
import tempfile

from fot_jax.config.errors import NotHereError
from fot_jax.logging import info_once
from fot_jax.storage.explain import explained
from fot_jax.storage.paths import SCHEME, bucket_files, storage_path, version
from fot_jax.workdir import TOKENIZER_COMPANIONS

NEIGHBOURS = (*TOKENIZER_COMPANIONS, "config.json")  # config.json: end tokens


def copied_tokenizer(url: str) -> pathlib.Path:
    """Copies a tokenizer and the files next to it that say more about it; once a process, unless it is written again.

    The copies are removed when the process ends.

    Args:
      url: gs://BUCKET/FOLDER/FILE.

    Returns:
      the copy, of the same name and in a folder of the same name.

    Raises:
      NotHereError: no such object exists.
      UserError: the bucket cannot be read.
    """
    try:
        with explained(url):
            found = version(storage_path(url))
            return _copied(url, found)
    except FileNotFoundError as error:
        raise NotHereError(f"data.vocabulary.path must name a file, got '{url}', which does not exist.") from error


@functools.lru_cache(maxsize=8)
def _copied(url: str, found: str) -> pathlib.Path:
    del found  # of the object: another one is copied anew
    folder, _, name = url.removeprefix(SCHEME).rpartition("/")
    root = tempfile.mkdtemp(prefix="fot_jax_tokenizer_")
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    target = pathlib.Path(root, folder)
    target.mkdir(parents=True)
    listed = bucket_files().ls(SCHEME + folder, detail=False)
    there = {path.rpartition("/")[2] for path in listed}
    for file in sorted(there & {*NEIGHBOURS, name}):
        bucket_files().get_file(f"{SCHEME}{folder}/{file}", str(target / file))
    info_once(f"data.vocabulary.path: '{url}' is read from a copy on this machine.")
    return target / name
