"""A full disk in one line, whichever library met it."""

import errno
import os
from collections import namedtuple

import pytest

from fot_jax.config import errors
from fot_jax.config.errors import UserError, check_room, disk_full, explained_disk_full, is_disk_full

Usage = namedtuple("Usage", "total used free")


def chained(outer, inner):
    """`outer`, raised while `inner` was handled: `inner` is its context."""
    try:
        try:
            raise inner
        except type(inner):
            raise outer from None
    except type(outer) as error:
        return error


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), True),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), True),
        (OSError(errno.EACCES, os.strerror(errno.EACCES)), False),
        (ValueError("RESOURCE_EXHAUSTED: Error writing file [OS error 28: No space left on device]"), True),
        (ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 1 GB"), False),
        (chained(RuntimeError("save failed"), OSError(errno.ENOSPC, "x")), True),
        (ExceptionGroup("several", [ValueError("a"), OSError(errno.ENOSPC, "x")]), True),
        (ExceptionGroup("several", [ValueError("a")]), False),
    ],
)
def test_disk_full_is_told_from_other_errors(error, full):
    """By number, by the system's text in a library's error, through causes and groups; memory is not a disk."""
    assert is_disk_full(error) is full


def test_disk_full_names_folder_and_bytes(monkeypatch, tmp_path):
    """The free bytes are those of the nearest folder that exists."""
    asked = []
    monkeypatch.setattr(errors.shutil, "disk_usage", lambda path: asked.append(path) or Usage(0, 0, 300_000_000))
    text = f"{tmp_path}/a/b: the disk is full (needs 1.2 GB, 300.0 MB free). Make room and give the same command again."
    assert str(disk_full(tmp_path / "a/b", OSError(errno.ENOSPC, "x"), needed=1_200_000_000)) == text
    assert asked == [tmp_path]
    quota = disk_full(tmp_path, OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))
    assert "the disk quota is used up (300.0 MB free)" in str(quota)
    with pytest.raises(UserError, match=r"is full \(needs 300\.0 MB"):
        check_room(tmp_path, 300_000_001)
    check_room(tmp_path, 300_000_000)


def test_explained_disk_full_passes_other_errors_on(tmp_path):
    """Only a full disk becomes a user's error; a user's error stays as it is."""
    with pytest.raises(UserError, match="the disk is full") as caught, explained_disk_full(tmp_path, needed=5):
        raise OSError(errno.ENOSPC, "x")
    assert "needs 5 bytes" in str(caught.value) and isinstance(caught.value.__cause__, OSError)
    for error in (ValueError("else"), UserError("told already")):
        with pytest.raises(type(error)) as kept, explained_disk_full(tmp_path):
            raise error
        assert kept.value is error
