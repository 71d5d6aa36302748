"""Finds the objects of a bucket that a path, a folder or a pattern names, as `fot_jax.data.paths` finds files."""

import fnmatch
import glob
import logging
import os
from typing import Any

from fot_jax.config.errors import NotHereError
from fot_jax.data.files import SourceFile
from fot_jax.logging import info_once
from fot_jax.storage.explain import explained
from fot_jax.storage.paths import SCHEME, bucket_files, check_storage_path, storage_path

logger = logging.getLogger(__name__)


def matching_objects(path: str, *, what: str) -> list[SourceFile]:
    """Lists the objects that a path in a bucket names, in the order in which the same files on a disk are listed.

    The rules are those of `fot_jax.data.paths.matching_files`; in particular '**' means any folders, and what exists
    is no pattern. Sizes and checksums come with the listing, so no object is opened.

    Args:
      path: gs://BUCKET/..., an object, a folder or a pattern.
      what: the config field or flag, for errors.

    Raises:
      NotHereError: nothing matches.
      UserError: the bucket cannot be listed.
    """
    url = check_storage_path(path).rstrip("/")
    try:
        with explained(url):
            found = _existing(url, what=what)
            if found is None and glob.has_magic(url):
                found = _matches(url, what=what)
    except FileNotFoundError:  # the bucket itself
        found = None
    if not found:
        nothing = "none" if found is None else "a folder or pattern without files"
        raise NotHereError(f"{what} must match at least one file, got {nothing} for '{path}'.")
    return [_source_file(info) for info in sorted(found, key=lambda info: info["name"].split("/"))]


def _existing(url: str, *, what: str) -> list[dict[str, Any]] | None:
    """Returns an object, or all below a folder that are not hidden; None where there is no such path."""
    files = bucket_files()
    try:
        info = files.info(url)
    except FileNotFoundError:
        return None
    if glob.has_magic(url):
        logger.info("%s: '%s' exists and is taken as it is, not as a pattern of other names.", what, url)
    if info["type"] == "file" and not info["name"].endswith("/"):
        return [info]
    return _visible(url, (), what=what)


def _matches(url: str, *, what: str) -> list[dict[str, Any]]:
    """Returns the objects that a pattern matches, and all below the folders that it matches."""
    folder, *rest = url.removeprefix(SCHEME).split("/")
    while rest and (not glob.has_magic(rest[0]) or bucket_files().isdir(f"{SCHEME}{folder}/{rest[0]}")):
        folder, rest = f"{folder}/{rest[0]}", rest[1:]
    return _visible(SCHEME + folder, tuple(rest), what=what)


def _visible(folder: str, pattern: tuple[str, ...], *, what: str) -> list[dict[str, Any]]:
    """Returns the objects below a folder that match; logs how many are hidden (.git, .DS_Store)."""
    base = folder.removeprefix(SCHEME) + "/"
    listed = bucket_files().find(folder, detail=True).values()
    inside = [info for info in listed if info["name"].startswith(base) and not info["name"].endswith("/")]
    parts = [tuple(info["name"].removeprefix(base).split("/")) for info in inside]
    kept = [match(pattern, names) for names in parts]
    hidden = [names for names in parts if not pattern and not match(pattern, names)]
    if hidden:
        logger.info("%s: left out %d hidden files, such as '%s'.", what, len(hidden), base + "/".join(min(hidden)))
    return [info for info, keep in zip(inside, kept, strict=True) if keep]


def match(pattern: tuple[str, ...], names: tuple[str, ...]) -> bool:
    """True if a pattern matches a path, or a folder around it; hidden names match only what begins with a dot.

        pattern      **/*.txt     a.txt  b/a.txt  b/c/a.txt     but not  .b/a.txt
        pattern      b*           b.txt  bc/d.txt               but not  bc/.d.txt

    Args:
      pattern: its parts between slashes.
      names: the path's parts.
    """
    if not pattern:
        return not any(name.startswith(".") for name in names)
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        return match(rest, names) or (bool(names) and not names[0].startswith(".") and match(pattern, names[1:]))
    if not names or (names[0].startswith(".") and not first.startswith(".")):
        return False
    return fnmatch.fnmatchcase(names[0], first) and match(rest, names[1:])


def _source_file(info: dict[str, Any]) -> SourceFile:
    url = SCHEME + info["name"]
    mark = info.get("crc32c")
    if not mark:
        info_once(f"'{os.path.dirname(url)}': objects without a checksum are known by their generation.")
        mark = str(info["generation"])
    return SourceFile(path=storage_path(url), size=int(info["size"]), mark=mark)
