"""Reads the running interpreter's standard library as repository-like documents.

The rule that makes documents ("families"), a function of the files alone:
  - a package (a folder with .py files, subfolders included) is one document;
  - a package over LARGE_PACKAGE bytes (`test`) is split: each of its subpackages is a
    document by the same rule, its own modules are grouped like top-level ones;
  - single modules are sorted by name (leading underscores ignored, so that `_pydecimal` comes
    near `decimal`) and joined in that order into groups of at most GROUP bytes.
In a document the files come in a seeded random order, each after a comment line with its path,
as the paper joins the files of a GitHub repository (FoT sec. 5.1).
"""

import os
import pathlib
import sysconfig
from collections.abc import Iterator

from fot_jax.config import UserError
from fot_jax.data.seeds import generator
from fot_jax.logging import warn_once

LARGE_PACKAGE = 2 << 20  # bytes
GROUP = 64 << 10  # bytes
SKIPPED_FOLDERS = ("__pycache__", "site-packages", "dist-packages", "lib-dynload")


def stdlib_root() -> pathlib.Path:
    """Returns the folder of the running interpreter's standard library."""
    return pathlib.Path(sysconfig.get_path("stdlib"))


def stdlib_files(root: pathlib.Path) -> list[pathlib.Path]:
    """Lists all .py files of the library below `root`, sorted, without installed packages and caches."""
    files = []
    for folder, folders, names in os.walk(root):  # rglob would look into every installed package
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith("config-")]
        files += [pathlib.Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(path for path in files if path.is_file())


def families(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Maps each document's name to its files, sorted, by the rule above. Raises UserError when there are none."""
    files = stdlib_files(root)
    if not files:
        raise UserError(
            f"The standard library must hold .py files, got none under '{root}'."
            " Use an interpreter with its source, or another data source."
        )
    return dict(_split(files, root=root, folder=root, large=-1))


def _split(files: list[pathlib.Path], *, root: pathlib.Path, folder: pathlib.Path, large: int) -> Iterator:
    """Yields (name, files) of one folder, split when its files hold more than `large` bytes."""
    size = sum(path.stat().st_size for path in files)
    if size <= large:
        yield folder.relative_to(root).as_posix(), files
        return
    modules = [path for path in files if path.parent == folder]
    yield from _groups(modules, root=root)
    packages: dict[str, list[pathlib.Path]] = {}
    for path in files:
        if path.parent != folder:
            packages.setdefault(path.relative_to(folder).parts[0], []).append(path)
    for name, inside in packages.items():
        yield from _split(inside, root=root, folder=folder / name, large=LARGE_PACKAGE)


def _groups(modules: list[pathlib.Path], *, root: pathlib.Path) -> Iterator:
    """Yields (name, files) of neighbouring modules, at most GROUP bytes unless one alone is larger."""
    group: list[pathlib.Path] = []
    size = 0
    for path in sorted(modules, key=lambda path: (path.stem.lstrip("_"), path.stem)):
        if group and size + path.stat().st_size > GROUP:
            yield _group_name(group, root), group
            group, size = [], 0
        group.append(path)
        size += path.stat().st_size
    if group:
        yield _group_name(group, root), group


def _group_name(group: list[pathlib.Path], root: pathlib.Path) -> str:
    first = group[0].relative_to(root).as_posix()
    return first if len(group) == 1 else f"{first}..{group[-1].name}"


def read_stdlib(*, seed: int, root: pathlib.Path | None = None) -> Iterator[tuple[str, str]]:
    """Yields (name, text) of every document; files that are not UTF-8 are skipped and logged."""
    root = root or stdlib_root()
    for name, files in families(root).items():
        order = generator(seed, "files", name).permutation(len(files))
        parts = []
        for index in order:
            relative = files[index].relative_to(root).as_posix()
            try:
                text = files[index].read_bytes().decode("utf-8")
            except UnicodeDecodeError as error:
                warn_once(str(files[index]), f"skipped, it is not UTF-8 ({error.reason})")
                continue
            parts.append(f"# {relative}\n{text}\n")
        if parts:
            yield name, "".join(parts)
