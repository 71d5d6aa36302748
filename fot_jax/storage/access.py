"""Checks before a run that its folder in a bucket can be used by everything that will use it.

Three libraries go there, each with a search for credentials of its own: gcsfs (configs, metrics, reports),
google-cloud-storage (the lock, and Orbax's question what kind of bucket it is) and TensorStore (arrays). A right that
one of them lacks would otherwise show at the first checkpoint, after minutes or hours.
"""

import os
import secrets
import socket

from fot_jax.storage.explain import explained, missing_bucket
from fot_jax.storage.paths import SCHEME, bucket_files, google_client, storage_path

_CONTENT = b"This object may be removed."


def check_access(folder: str | os.PathLike[str]) -> None:
    """Writes, reads, lists and removes an object in a folder of a bucket, as a run does; for a local one does nothing.

    Raises:
      UserError: the bucket does not exist, a right is missing (the message names the roles), nobody is logged in, or
        the bucket does not answer.
    """
    root = storage_path(folder)
    name = os.fspath(root)
    if not name.startswith(SCHEME):
        return
    probe = f".access-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    bucket = name.removeprefix(SCHEME).partition("/")[0]
    with explained(root, writes=True):
        try:
            google_client().get_bucket(bucket)
        except Exception as error:
            if getattr(error, "code", None) == 404:
                raise missing_bucket(root) from error
            raise
        bucket_files().pipe_file(f"{name}/{probe}", _CONTENT)
        found = bucket_files().find(name, prefix=probe)
        assert len(found) == 1 and bucket_files().cat_file(f"{name}/{probe}") == _CONTENT
    with explained(root, writes=True):
        _write_as_checkpoints_do(name, probe)
        bucket_files().rm_file(f"{name}/{probe}")


def _write_as_checkpoints_do(folder: str, name: str) -> None:
    import tensorstore

    store = tensorstore.KvStore.open(f"{folder}/").result()
    store.write(name, _CONTENT).result()
    assert store.read(name).result().value == _CONTENT
