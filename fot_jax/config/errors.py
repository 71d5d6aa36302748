"""The errors that a user can cause, and the check that every section uses.

`launch.cli.run` prints their message as one line and exits with code 2.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class UserError(ValueError):
    """An error that the user can fix: one line that says what, got, allowed and the fix."""


class ConfigError(UserError):
    """A config that cannot run: the message says what, got, allowed and the fix."""


class NotHereError(UserError):
    """A file that a config names and this machine does not have."""


def check(condition: bool, path: str, rule: str, got: object, fix: str = "") -> None:
    """Raises ConfigError("path must rule, got X. fix") unless the condition holds."""
    if not condition:
        raise ConfigError(f"{path} must {rule}, got {got!r}." + (f" {fix}" if fix else ""))


def check_all(*checks: Callable[[], None]) -> None:
    """Makes every check; raises ConfigError with the first error of each that fails."""
    errors = []
    for make in checks:
        try:
            make()
        except ConfigError as error:
            errors.append(str(error))
    if errors:
        raise ConfigError(" ".join(errors))


def is_disk_full(error: BaseException) -> bool:
    """True if a full disk or a used-up quota caused an error, by an OSError's number or by the system's text.

    Looks through causes, contexts and groups; TensorStore and Orbax put the system's text into errors of their own.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        number = one.errno if isinstance(one, OSError) else None
        if number in DISK_FULL or any(os.strerror(number) in str(one) for number in DISK_FULL):
            return True
        waiting += [one.__cause__, one.__context__, *(one.exceptions if isinstance(one, BaseExceptionGroup) else ())]
    return False


def free_bytes(folder: str | Path) -> int:
    """Returns the bytes that a user may still write to a folder's disk; the folder itself may not exist yet."""
    path = Path(folder).absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def disk_full(folder: str | Path, error: BaseException | None = None, *, needed: int | None = None) -> UserError:
    """Builds the one line about a full disk: the folder, the bytes needed and free, and how to continue.

    Args:
      folder: the folder of the write.
      error: the error of the write; None where room was checked before writing.
      needed: bytes of everything to write, where they are known.
    """
    sizes = ([] if needed is None else [f"needs {_size(needed)}"]) + [f"{_size(free_bytes(folder))} free"]
    quota = error is not None and os.strerror(errno.EDQUOT) in str(error)
    return UserError(
        f"{folder}: the disk {'quota is used up' if quota else 'is full'} ({', '.join(sizes)})."
        " Make room and give the same command again."
    )


def check_room(folder: str | Path, needed: int) -> None:
    """Raises UserError where a folder's disk has less than `needed` bytes free, before anything is written."""
    if free_bytes(folder) < needed:
        raise disk_full(folder, needed=needed)


@contextlib.contextmanager
def explained_disk_full(folder: str | Path, *, needed: int | None = None) -> Iterator[None]:
    """Turns a full disk inside the block into `disk_full`'s one line; every other error passes unchanged."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise disk_full(folder, error, needed=needed) from error
        raise


def _size(count: int) -> str:
    """Returns bytes for people: 1.2 GB, 340 kB."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
