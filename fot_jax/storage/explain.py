"""Turns what the clients of a bucket raise into one line: a missing right, a missing login, a service that is away."""

import contextlib
import os
import re
from collections.abc import Iterator

from fot_jax.config import UserError
from fot_jax.storage.paths import SCHEME, in_bucket

READ = "roles/storage.objectViewer"
# Orbax asks for the bucket's own settings, which objectUser does not show.
WRITE = "roles/storage.objectUser and roles/storage.legacyBucketReader"
_CLIENTS = ("gcsfs", "aiohttp", "requests", "urllib3", "google", "asyncio")  # packages whose errors are explained
_FORBIDDEN = ("Forbidden", "PERMISSION_DENIED", "does not have storage.")
_NO_LOGIN = ("Anonymous caller", "UNAUTHENTICATED", "DefaultCredentialsError", "default credentials were not found")
_OTHERS = ("jax", "jaxlib")  # name lost processes with the words that TensorStore has for a lost bucket
_AWAY = ("CURL error", "UNAVAILABLE:", "DEADLINE_EXCEEDED:")  # of TensorStore
_PERMISSION = re.compile(r"storage\.[a-zA-Z]+\.[a-zA-Z]+ ")


@contextlib.contextmanager
def explained(path: str | os.PathLike[str], *, writes: bool = False) -> Iterator[None]:
    """Turns errors of a bucket inside the block into one line; errors of local paths pass unchanged.

    FileNotFoundError passes too: only the caller knows what was to be there.

    Args:
      path: what is read or written.
      writes: whether it is written, which decides the role that the error names.

    Raises:
      UserError: a right is missing, nobody is logged in, or the service cannot be reached.
    """
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:
        found = bucket_error(error, path, writes=writes) if in_bucket(path) else None
        if found is None:
            raise
        raise found from error


def bucket_error(error: BaseException, path: str | os.PathLike[str], *, writes: bool = True) -> UserError | None:
    """Returns the one line about a bucket that refused a request or did not answer; None for another error.

    Looks through causes, contexts and groups: Orbax and TensorStore put the service's text into errors of their own.

    Args:
      error: as it was raised.
      path: what was read or written.
      writes: whether it was written.
    """
    name, does = os.fspath(path), "written" if writes else "read"
    bucket = name.removeprefix(SCHEME).partition("/")[0]
    chain = _chain(error)
    if any(type(one).__module__.partition(".")[0] in _OTHERS or "Gloo" in str(one) for one in chain):
        return None
    for one in chain:
        text, code = " ".join(str(one).split()), getattr(one, "code", None)
        if code == 401 or any(sign in f"{type(one).__name__} {text}" for sign in _NO_LOGIN):
            return UserError(
                f"{name} cannot be {does} without a login ({text:.120}). Run `gcloud auth application-default login`,"
                " or use a machine with a service account."
            )
        if code == 403 or any(sign in text for sign in _FORBIDDEN):
            permission = _PERMISSION.search(text)
            missing = f"{permission[0]}is missing" if permission else f"403: {text:.120}"
            return UserError(
                f"{name} cannot be {does} by this account ({missing}). Give it {WRITE if writes else READ} on"
                f" {SCHEME}{bucket}."
            )
        if "bucket does not exist" in text:
            return missing_bucket(path)
    for one in chain:
        text, package = " ".join(str(one).split()), type(one).__module__.partition(".")[0]
        bad = isinstance(one, ValueError) and text.startswith("Bad Request")
        if bad or package in _CLIENTS or any(sign in text for sign in _AWAY):
            return UserError(
                f"{name} cannot be {does}, got {type(one).__name__}: {text:.200}. Try again, or look at the bucket."
            )
    return None


def missing_bucket(path: str | os.PathLike[str]) -> UserError:
    """Returns the one line about a bucket that does not exist."""
    bucket = os.fspath(path).removeprefix(SCHEME).partition("/")[0]
    return UserError(f"gs://{bucket} must exist. Make it with `gcloud storage buckets create gs://{bucket}`.")


def _chain(error: BaseException) -> list[BaseException]:
    """Returns an error, its causes and what it groups."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is None or any(one is other for other in found):
            continue
        found.append(one)
        waiting += [one.__cause__, one.__context__, *(one.exceptions if isinstance(one, BaseExceptionGroup) else ())]
    return found
