"""Reads files inside .whl, .tar.* and .deb archives in memory: nothing is unpacked to disk."""

import io
import lzma
import pathlib
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator

from fot_jax.config import UserError

AR_MAGIC = b"!<arch>\n"
AR_HEADER = 60  # bytes
BROKEN = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError)

Members = Iterator[tuple[str, bytes]]


def read_members(path: pathlib.Path, kept: re.Pattern[str]) -> Members:
    """Yields (name, bytes) of the regular files of an archive whose names match `kept`; links are left out.

    The kind follows from the file's suffix: .whl or .zip, .deb, else a tar archive of any compression.
    Raises UserError where the archive is broken or holds a name that leads out of it.
    """
    reader = {".whl": _zip_members, ".zip": _zip_members, ".deb": _deb_members}.get(path.suffix, _tar_file)
    try:
        yield from reader(path, kept)
    except BROKEN as error:
        raise UserError(
            f"'{path}' must be a whole archive, got a broken one ({error}). Delete it and retry."
        ) from error
    except RuntimeError as error:  # zipfile's, for encryption and (NotImplementedError) other compressions
        raise UserError(f"'{path}' must be an archive that can be read here, got: {error}.") from error


def _safe_name(name: str, path: pathlib.Path) -> str:
    """Returns the name without a leading './'. Raises UserError for a name that leads out of a folder."""
    pure = pathlib.PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or re.match("[A-Za-z]:", name):
        raise UserError(f"'{path}' must hold relative names without '..', got {name!r}. Do not use this archive.")
    return pure.as_posix()


def _zip_members(path: pathlib.Path, kept: re.Pattern[str]) -> Members:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = _safe_name(info.orig_filename, path)
            if not info.is_dir() and kept.match(name):
                yield name, archive.read(info)


def _tar_file(path: pathlib.Path, kept: re.Pattern[str]) -> Members:
    with open(path, "rb") as file:
        yield from _tar_members(file, path, kept)


def _tar_members(file, path: pathlib.Path, kept: re.Pattern[str]) -> Members:
    with tarfile.open(fileobj=file) as archive:
        for member in archive:
            name = _safe_name(member.name, path)
            if member.isreg() and kept.match(name):
                content = archive.extractfile(member)
                assert content is not None  # a regular file has content
                yield name, content.read()


def _deb_members(path: pathlib.Path, kept: re.Pattern[str]) -> Members:
    """Yields files of data.tar.*, the last part of a .deb (an ar archive: 60-byte headers, parts at even offsets)."""
    data = path.read_bytes()
    if not data.startswith(AR_MAGIC):
        raise UserError(f"'{path}' must be a .deb (an ar archive), got {data[:8]!r}. Delete it and retry.")
    start = len(AR_MAGIC)
    while start + AR_HEADER <= len(data):
        name, size = data[start : start + 16].rstrip(b" /"), data[start + 48 : start + 58].strip()
        start += AR_HEADER
        end = start + int(size) if size.isdigit() else len(data) + 1
        if end > len(data):
            raise UserError(f"'{path}' must be a whole .deb, got one cut short in {name!r}. Delete it and retry.")
        if name.startswith(b"data.tar"):
            yield from _tar_members(io.BytesIO(data[start:end]), path, kept)
            return
        start = end + end % 2
    raise UserError(f"'{path}' must be a .deb with a data.tar, got none. Delete it and retry.")
