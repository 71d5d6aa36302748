"""A run's folder except its checkpoints: the resolved config, and the lock of the process that trains.

WORKDIR/config.json            the resolved experiment, written before the first step; "{workdir}/" is this folder
WORKDIR/source_config.json     an imported checkpoint's own config.json, for export; runs made from it hold a copy
WORKDIR/tokenizer/             the vocabulary's files; of a trained run a copy, read where the config's own path is gone
WORKDIR/.lock                  held while a process trains: by flock on a disk, as a lease in a bucket

A folder is one of this machine or of a bucket (gs://BUCKET/FOLDER).
"""

import contextlib
import dataclasses
import difflib
import fcntl
import json
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import jax

from fot_jax.config import ExperimentConfig, UserError
from fot_jax.config.build import build, difference, to_dict
from fot_jax.config.errors import explained_disk_full
from fot_jax.config.renames import with_current_names
from fot_jax.logging import info_once
from fot_jax.storage.explain import explained
from fot_jax.storage.lease import LEASE_SECONDS, Lease, end_process
from fot_jax.storage.paths import StoragePath, absolute, replace_file, storage_path

DOCUMENTS = "data.documents"  # the name that allows changed tokens in --allow-change
SOURCE_CONFIG = "source_config.json"
TOKENIZER = "tokenizer"  # folder of the vocabulary's files in a run's folder
TOKENIZER_COMPANIONS = (  # files next to a tokenizer that say more about it
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
HERE = "{workdir}/"  # starts a path in config.json inside the run's own folder, which may move


@contextlib.contextmanager
def only_writer(
    workdir: str | os.PathLike[str],
    *,
    lease_seconds: float = LEASE_SECONDS,
    lost: Callable[[str], object] = end_process,
) -> Iterator[Lease | None]:
    """Holds WORKDIR/.lock while a run trains there; on a disk the lock ends with its process.

    Args:
      workdir: the run's folder.
      lease_seconds: in a bucket, how long the lock outlives a killed process.
      lost: called with one line if a lease is lost; see `Lease`.

    Yields:
      In a bucket the lease, to be confirmed before files are written. Else None, as in processes but the first.

    Raises:
      UserError: another process holds it, or the bucket cannot be used.
    """
    if jax.process_index():
        yield None  # the first process of a run holds it for all
        return
    path = storage_path(workdir) / ".lock"
    if not isinstance(path, Path):
        lease = Lease(path, seconds=lease_seconds, lost=lost)
        try:
            yield lease
        finally:
            lease.release()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = (
                f"{os.fspath(workdir)} is being trained by another process. Wait for it, or use another --workdir."
            )
            raise UserError(message) from error
        yield None


def write_whole(path: StoragePath, content: str | bytes) -> None:
    """Writes a result as `replace_file` does; on a full disk it keeps the old file and raises one line.

    Raises:
      UserError: the disk is full, or a bucket refuses it.
    """
    data = content.encode() if isinstance(content, str) else content
    with explained_disk_full(os.fspath(path.parent), needed=len(data)), explained(path, writes=True):
        replace_file(path, data)


def read_config(workdir: str | os.PathLike[str]) -> ExperimentConfig:
    """Reads the resolved experiment of a run; makes a `data.vocabulary.path` in the run's folder absolute.

    A vocabulary that is no longer where the config names it is read from the run's own copy.

    Raises:
      UserError: the folder holds no run, or its config.json cannot be read.
    """
    path = storage_path(workdir) / "config.json"
    with explained(path):
        text = path.read_text(encoding="utf-8") if path.is_file() else None
    if text is None:
        raise UserError(f"--workdir must hold a run (a config.json), got {os.fspath(workdir)!r}. Train it first.")
    try:
        config = build(ExperimentConfig, with_current_names(json.loads(text)))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read: {error} Restore it from the `config` folder of a checkpoint next to it,"
            " or use another --workdir."
        ) from error
    tokenizer, folder = config.data.vocabulary.path, absolute(path.parent)
    if tokenizer.startswith(HERE):
        return with_tokenizer(config, str(folder / tokenizer.removeprefix(HERE)))
    copy = folder / TOKENIZER / PurePosixPath(tokenizer).name
    if not tokenizer or _expanded(tokenizer).is_file() or not copy.is_file():
        return config
    info_once(f"data.vocabulary.path: '{tokenizer}' is not there; the run's own copy is read, {copy}")
    return with_tokenizer(config, str(copy))


def _expanded(path: str) -> StoragePath:
    return storage_path(os.path.expanduser(os.path.expandvars(path)))


def keep_vocabulary(workdir: str | os.PathLike[str], config: ExperimentConfig) -> None:
    """Copies the vocabulary's files into a run's folder, which can then be moved and read from anywhere."""
    path, target = _expanded(config.data.vocabulary.path), storage_path(workdir) / TOKENIZER
    if not config.data.vocabulary.path or not path.is_file() or (target / path.name).exists():
        return
    neighbours = [path.parent / name for name in (*TOKENIZER_COMPANIONS, "config.json")]  # config.json: end tokens
    for file in (*(each for each in neighbours if each.is_file()), path):  # the one that is looked for comes last
        replace_file(target / file.name, file.read_bytes())


def with_tokenizer(config: ExperimentConfig, path: str) -> ExperimentConfig:
    """Returns the experiment with another `data.vocabulary.path`."""
    vocabulary = dataclasses.replace(config.data.vocabulary, path=path)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, vocabulary=vocabulary))


def write_config(workdir: str | os.PathLike[str], config: ExperimentConfig) -> None:
    """Writes the resolved experiment; makes the folder if it is missing."""
    replace_file(storage_path(workdir) / "config.json", json.dumps(to_dict(config), indent=1) + "\n")


def inherit_source(workdir: str | os.PathLike[str], *parents: str | os.PathLike[str]) -> None:
    """Copies an imported checkpoint's own config.json from the first parent run that has it, unless this run has it.

    It holds the special tokens and the trained context, which the experiment does not.
    """
    own = storage_path(workdir) / SOURCE_CONFIG
    found = [path for path in (storage_path(parent) / SOURCE_CONFIG for parent in parents) if path.is_file()]
    if found and not own.exists():
        replace_file(own, found[0].read_bytes())


def compare_config(
    workdir: str | os.PathLike[str], config: ExperimentConfig, *, allow_changes: Collection[str] = ()
) -> list[str]:
    """Compares an experiment with the one saved in a folder, if there is one.

    Args:
      workdir: the run's folder; it may be missing.
      config: the experiment asked for.
      allow_changes: config paths that may differ ("train.steps"); a section's name allows all of it ("train").

    Returns:
      The allowed differences, one line each.

    Raises:
      UserError: the folder belongs to a run whose config differs elsewhere, or `allow_changes` has an unknown path.
    """
    known = {DOCUMENTS, *_paths(to_dict(config))}
    for name in allow_changes:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(f"--allow-change must name config paths, got {name!r}.{hint}")
    path = storage_path(workdir) / "config.json"
    with explained(path):
        if not path.exists():
            return []
    differences = difference(read_config(workdir), config)
    refused = [d for d in differences if not any(allows(name, d.path) for name in allow_changes)]
    if refused:
        listed = "; ".join(str(d) for d in refused)
        names = ",".join(d.path for d in refused)
        raise UserError(
            f"{os.fspath(workdir)} holds a run of another config (saved -> asked for): {listed}."
            f" Use another --workdir, or go on with --allow-change={names}"
        )
    return [str(d) for d in differences]


def _paths(values: Any, prefix: str = "") -> Iterator[str]:
    """Yields every path of a nested config: sections, fields, items of lists."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        path = f"{prefix}[{key}]" if isinstance(key, int) else f"{prefix}.{key}" if prefix else str(key)
        yield path
        yield from _paths(value, path)


def allows(name: str, path: str) -> bool:
    """True if a name of --allow-change covers a config path: the path itself, or a section around it."""
    return path == name or path.startswith((name + ".", name + "["))
