"""Finds the files that a path, a folder or a pattern names, on a disk or in a bucket (gs://)."""

import glob
import logging
import os
import pathlib
from collections.abc import Iterable

from fot_jax.config import UserError
from fot_jax.config.errors import NotHereError
from fot_jax.data.bucket_listing import matching_objects
from fot_jax.data.files import SourceFile, on_disk
from fot_jax.storage.paths import StoragePath, check_storage_path, in_bucket

logger = logging.getLogger(__name__)


def matching_files(path: str, *, what: str) -> list[StoragePath]:
    """Lists the files that `path` names; see `listed_files`."""
    return [file.path for file in listed_files(path, what=what)]


def listed_files(path: str, *, what: str) -> list[SourceFile]:
    """Lists the files that `path` names, sorted: an existing file or folder, else all matches of the pattern.

    "[2024] notes" is a pattern too; a path that exists is taken as it is, and so are the folders before a
    pattern ("[2024] notes/*.txt"). A folder means all files below it; links to folders are followed.
    Hidden files (.git, .DS_Store) are read only where the path names them, as in the shell. A file that
    several paths lead to is read once. '~' and environment variables are expanded where the path does not
    exist as written.

    Args:
      path: a file, a folder or a glob ('**': any folders); of this machine or gs://BUCKET/....
      what: the config field or flag, for errors.

    Raises:
      NotHereError: nothing matches.
      UserError: a link leads nowhere, a folder cannot be listed, or a match is neither file nor folder; another
        scheme than gs://.
    """
    if in_bucket(path):
        return matching_objects(path, what=what)
    expanded = path if os.path.lexists(path) else os.path.expanduser(os.path.expandvars(path))
    if in_bucket(expanded):
        return matching_objects(expanded, what=what)
    check_storage_path(expanded)
    if os.path.lexists(expanded):
        matches = [expanded]
        others = glob.glob(expanded, recursive=True) if glob.has_magic(expanded) else []
        if set(others) - {expanded}:
            logger.info("%s: '%s' exists and is taken as it is, not as a pattern of other names.", what, path)
    else:
        matches = glob.glob(_pattern(expanded), recursive=True)
    found = [file for match in matches for file in _files(match, what=what)]
    if not found:
        nothing = "a folder without files" if os.path.isdir(expanded) else "none"
        raise NotHereError(
            f"{what} must match at least one file, got {nothing} for '{path}' (from folder '{os.getcwd()}')."
        )
    return [on_disk(file) for file in _unique_files(found, what=what)]


def _pattern(path: str) -> str:
    """Escapes a glob's leading folders, as far as they exist as written, so that they are no pattern."""
    rest, folder = pathlib.PurePath(path).parts, ""
    while rest and os.path.isdir(os.path.join(folder, rest[0])):
        folder, rest = os.path.join(folder, rest[0]), rest[1:]
    return os.path.join(glob.escape(folder), *rest)


def _files(match: str, *, what: str) -> list[pathlib.Path]:
    """Lists the file itself, or all files below a folder."""
    if os.path.isfile(match):
        return [pathlib.Path(match)]
    if os.path.isdir(match):
        return _files_below(match, what=what)
    if os.path.islink(match):
        raise UserError(f"{what} must name files, got '{match}', a link to '{os.readlink(match)}', which is not there.")
    raise UserError(f"{what} must name files or folders, got '{match}', which is neither. Write it to a file first.")


def _files_below(folder: str, *, what: str) -> list[pathlib.Path]:
    """Lists all files below a folder that are not hidden; enters each real folder once, so that link loops end."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{what} must name folders that can be read, got '{error.filename}' ({error.strerror}).")

    files: list[pathlib.Path] = []
    hidden: list[str] = []
    entered = {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        hidden += [os.path.join(place, name) for name in (*folders, *names) if name.startswith(".")]
        kept = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(place, name))
            if not name.startswith(".") and real not in entered:
                entered.add(real)
                kept.append(name)
        folders[:] = kept
        for name in names:
            if not name.startswith("."):
                files += _files(os.path.join(place, name), what=what)
    if hidden:
        logger.info("%s: left out %d hidden files and folders, such as '%s'.", what, len(hidden), min(hidden))
    return files


def _unique_files(found: Iterable[pathlib.Path], *, what: str) -> list[pathlib.Path]:
    """Sorts the files and keeps each one once, by the shortest path that leads to it."""
    by_file: dict[str, pathlib.Path] = {}
    ordered = sorted(set(found), key=lambda path: (len(path.parts), path))
    for path in ordered:
        by_file.setdefault(os.path.realpath(path), path)
    if len(by_file) < len(ordered):
        logger.info("%s: %d paths lead to files that others name already.", what, len(ordered) - len(by_file))
    return sorted(by_file.values())
