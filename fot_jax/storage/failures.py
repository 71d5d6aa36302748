"""Errors of a bucket in one line: what is missing, and what to give to whom."""

import contextlib
import os
import re
from collections.abc import Iterator

from fot_jax.config import UserError
from fot_jax.storage.paths import in_bucket

ROLES = "roles/storage.objectUser and roles/storage.legacyBucketReader"
_PERMISSION = re.compile(r"storage\.[a-zA-Z]+\.[a-zA-Z]+")
_NO_CREDENTIALS = ("default credentials were not found", "anonymous caller", "invalid credentials", "unauthenticated")
_FORBIDDEN = ("forbidden", "permission_denied", "does not have storage.")
_NO_BUCKET = ("bucket does not exist", "bucket not found", "nosuchbucket")
_UNREACHABLE = ("max retries exceeded", "cannot connect to host", "curl error", "timeout of", "timed out")


def bucket_error(error: BaseException, path: str | os.PathLike[str]) -> UserError | None:
    """Returns the one line about a bucket that refused a request; None for an error of another kind.

    Looks through causes, contexts and groups: Orbax and TensorStore put the service's text into errors of their own.

    Args:
      error: as it was raised.
      path: what was read or written.
    """
    texts = _texts(error)
    bucket = os.fspath(path).partition("://")[2].partition("/")[0]
    for text in texts:
        low = text.lower()
        if any(sign in low for sign in _NO_CREDENTIALS):
            return UserError(
                f"{os.fspath(path)} needs credentials of Google Cloud, got none. On a machine of Google Cloud give it a"
                " service account; elsewhere run `gcloud auth application-default login`."
            )
        if any(sign in low for sign in _FORBIDDEN):
            permission = _PERMISSION.search(text)
            missing = f" ({permission[0]} is missing)" if permission else ""
            return UserError(
                f"{os.fspath(path)} must be a folder that this account may read and write, but the bucket refused"
                f" a request{missing}. Give the account {ROLES} on gs://{bucket}."
            )
        if any(sign in low for sign in _NO_BUCKET):
            return missing_bucket(path)
        if any(sign in low for sign in _UNREACHABLE):
            said = " ".join(text.split())[:150]
            return UserError(
                f"{os.fspath(path)} must be within reach, but the bucket does not answer ({said}). Look at the network"
                " and give the same command again."
            )
    return None


def missing_bucket(path: str | os.PathLike[str]) -> UserError:
    """Returns the one line about a bucket that does not exist."""
    bucket = os.fspath(path).partition("://")[2].partition("/")[0]
    return UserError(f"gs://{bucket} must exist. Make it with `gcloud storage buckets create gs://{bucket}`.")


@contextlib.contextmanager
def explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an error of a bucket inside the block into `bucket_error`'s line; other errors pass unchanged."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        found = bucket_error(error, path) if in_bucket(path) else None
        if found is None:
            raise
        raise found from error


def _texts(error: BaseException) -> list[str]:
    """Returns the texts of an error, of its causes and of what it groups."""
    seen: set[int] = set()
    texts: list[str] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        texts.append(str(one))
        waiting += [one.__cause__, one.__context__, *(one.exceptions if isinstance(one, BaseExceptionGroup) else ())]
    return texts
