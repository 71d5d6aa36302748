"""The token cache of one source: written once, whole or not at all, then memory-mapped.

    <cache_dir>/<source>-<fingerprint>/
      tokens.bin    uint16 or uint32, all documents one after another
      offsets.npy   int64 [documents + 1], where each document starts in tokens.bin
      names.json    the documents' names
      meta.json     fingerprint, dtype, counts and a digest of tokens.bin

A build writes into a temporary folder and renames it: a folder under the final name is always
whole. A file lock lets one process build while others wait; the lock falls with its process.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from fot_jax.config import DataConfig, SourceConfig, SourceKind, UserError, VocabularyConfig
from fot_jax.data import stdlib_source
from fot_jax.data.readers import source_files
from fot_jax.data.vocabulary import existing_file, load_vocabulary

CACHE_VERSION = 3  # raise it whenever the same files would give other tokens or files
PROGRESS_SECONDS = 5.0


def fingerprint(source: SourceConfig, *, data: DataConfig, seed: int) -> str:
    """16 hex digits over all that shapes the tokens: files (path, size, mtime), vocabulary, seed, CACHE_VERSION.

    `rate`, held-out share and row layout do not change tokens and are left out; the seed counts
    only where it does (the order of files in STDLIB documents, passkeys).
    Raises UserError when the source matches no file.
    """
    seeded = source.kind in (SourceKind.STDLIB, SourceKind.PASSKEY)
    parts: list[object] = [
        CACHE_VERSION,
        source.kind.value,
        source.text_field,
        data.max_documents,
        seed if seeded else None,
        source.min_tokens if source.kind is SourceKind.PASSKEY else None,
        (stdlib_source.LARGE_PACKAGE, stdlib_source.GROUP) if source.kind is SourceKind.STDLIB else None,
        vocabulary_identity(data.vocabulary),
        [_file_part(path) for path in source_files(source)],
    ]
    return hashlib.blake2b(json.dumps(parts).encode("utf-8"), digest_size=8).hexdigest()


def vocabulary_identity(config: VocabularyConfig) -> list[object]:
    """Kind and digest of its file, and what the files next to it change."""
    if not config.path:
        return [config.kind.value, None]
    digest = hashlib.blake2b(pathlib.Path(existing_file(config.path)).read_bytes(), digest_size=16).hexdigest()
    return [config.kind.value, digest, *load_vocabulary(config).identity]


def _file_part(path: pathlib.Path) -> list[object]:
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceCache:
    """The tokenised documents of one source.

    Attributes:
      tokens: uint16 or uint32, memory-mapped.
      offsets: int64 [documents + 1].
      folder: where it lies.
      digest: of the tokens, 32 hex digits: what a run was trained on, wherever the files lay.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    folder: pathlib.Path
    digest: str = ""

    @property
    def lengths(self) -> np.ndarray:
        """int64 [documents], in tokens, the end-of-document token included."""
        return np.diff(self.offsets)

    def names(self) -> list[str]:
        """The names of all documents (read from disk at each call)."""
        return json.loads((self.folder / "names.json").read_text("utf-8"))


def load_cache(folder: pathlib.Path, *, expected: str) -> SourceCache | None:
    """Opens a whole cache; None when there is none.

    Raises UserError when the folder exists but is not what a build leaves there.
    """
    if not folder.is_dir():
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text("utf-8"))
        dtype = np.dtype(meta["dtype"])
        digest, size = meta["digest"], (folder / "tokens.bin").stat().st_size
        if meta["fingerprint"] != expected or size != meta["tokens"] * dtype.itemsize:
            raise ValueError("its meta.json does not match it")
        tokens = np.memmap(folder / "tokens.bin", dtype=dtype, mode="r") if size else np.zeros(0, dtype)
        offsets = np.load(folder / "offsets.npy")
        if len(offsets) != meta["documents"] + 1 or offsets[-1] != meta["tokens"]:
            raise ValueError("offsets.npy does not match meta.json")
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(f"'{folder}' must be a whole token cache, got a damaged one ({error}). Delete it.") from error
    return SourceCache(tokens=tokens, offsets=offsets, folder=folder, digest=digest)


def open_or_build(
    folder: pathlib.Path,
    documents: Callable[[], Iterable[tuple[str, np.ndarray]]],
    *,
    source: str,
    expected: str,
    vocab_size: int,
) -> SourceCache:
    """Opens the cache in `folder`, or builds it from `documents()` (name, token ids); one process builds at a time.

    Raises UserError when there is no document, or the folder is damaged or cannot be written.
    """
    cache = load_cache(folder, expected=expected)
    if cache is None:
        with _build_lock(folder):
            cache = load_cache(folder, expected=expected)  # another process may have built it meanwhile
            if cache is None:
                _write_cache(folder, documents(), source=source, expected=expected, vocab_size=vocab_size)
                cache = load_cache(folder, expected=expected)
    assert cache is not None
    return cache


@contextlib.contextmanager
def _build_lock(folder: pathlib.Path) -> Iterator[None]:
    """Holds the lock file beside `folder`; says so when another process has it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = open(folder.with_name(folder.name + ".lock"), "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(
            f"data.cache_dir must be a folder that can be written, got '{folder.parent}' ({error})."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that builds {folder} ...", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_cache(
    folder: pathlib.Path, documents: Iterable[tuple[str, np.ndarray]], *, source: str, expected: str, vocab_size: int
) -> None:
    """Writes all files in a temporary folder and renames it; the lock must be held."""
    for left in folder.parent.glob(f".building-{folder.name}-*"):
        shutil.rmtree(left)  # of a build that was killed: its lock is ours now
    building = folder.with_name(f".building-{folder.name}-{os.getpid()}")
    building.mkdir()
    try:
        dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        names, lengths, digest = _write_tokens(building / "tokens.bin", documents, source=source, dtype=dtype)
        if not names:
            raise UserError(f"data.sources['{source}'] must hold at least one document with text, got none.")
        np.save(building / "offsets.npy", np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64))
        (building / "names.json").write_text(json.dumps(names), "utf-8")
        counts = {"documents": len(names), "tokens": int(sum(lengths))}
        meta = {"fingerprint": expected, "dtype": dtype.name, **counts, "digest": digest}
        (building / "meta.json").write_text(json.dumps(meta), "utf-8")
        for path in building.iterdir():
            _sync(path)
        os.rename(building, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_tokens(
    path: pathlib.Path, documents: Iterable[tuple[str, np.ndarray]], *, source: str, dtype: np.dtype
) -> tuple[list[str], list[int], str]:
    names: list[str] = []
    lengths: list[int] = []
    started = shown = time.monotonic()
    total = 0
    digest = hashlib.blake2b(digest_size=16)

    def progress(end: str) -> None:
        speed = total / max(time.monotonic() - started, 1e-9) / 1e6
        line = f"tokenising {source}: {len(names)} documents, {total / 1e6:.2f}M tokens, {speed:.2f}M tokens/s{end}"
        print(line, file=sys.stderr, flush=True)

    with open(path, "wb") as file:
        for name, tokens in documents:
            written = tokens.astype(dtype).tobytes()
            file.write(written)
            digest.update(written)
            names.append(name)
            lengths.append(len(tokens))
            total += len(tokens)
            if time.monotonic() - shown > PROGRESS_SECONDS:
                shown = time.monotonic()
                progress(" ...")
    progress("")
    return names, lengths, digest.hexdigest()
