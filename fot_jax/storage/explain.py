"""Turns what the clients of a bucket raise into one line: a missing right, a missing login, a service that is away."""

import contextlib
import os
from collections.abc import Iterator

from fot_jax.config import UserError
from fot_jax.storage.paths import in_bucket

_CLIENTS = ("gcsfs", "aiohttp", "requests", "urllib3", "google", "asyncio")  # packages whose errors are explained
_READ, _WRITE = "roles/storage.objectViewer", "roles/storage.objectUser"


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
        if not in_bucket(path):
            raise
        message = _explanation(error, os.fspath(path), writes=writes)
        if message is None:
            raise
        raise UserError(message) from error


def _explanation(error: Exception, path: str, *, writes: bool) -> str | None:
    """Returns the line for an error of a client; None for another error."""
    package = type(error).__module__.partition(".")[0]
    text, code = " ".join(str(error).split()), getattr(error, "code", None)
    does = "written" if writes else "read"
    if code == 403 or (isinstance(error, OSError) and text.startswith("Forbidden")):
        role = _WRITE if writes else _READ
        return f"{path} cannot be {does} by this account (403: {text:.120}). Give it {role} on the bucket."
    if code == 401 or "DefaultCredentialsError" in type(error).__name__:
        return (
            f"{path} cannot be {does} without a login ({text:.120}). Run `gcloud auth application-default login`, or"
            " use a machine with a service account."
        )
    if package in _CLIENTS or (isinstance(error, ValueError) and text.startswith("Bad Request")):
        return f"{path} cannot be {does}, got {type(error).__name__}: {text:.200}. Try again, or look at the bucket."
    return None
