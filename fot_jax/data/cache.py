"""The token cache of one source: written once, whole or not at all, then memory-mapped.

    <cache_dir>/<source>-<fingerprint>/
      tokens.bin    uint16 or uint32, all documents one after another
      offsets.npy   int64 [documents + 1], where each document starts in tokens.bin
      contents.npy  uint64 [documents, 2], a digest of each document's tokens
      names.json    the documents' names
      meta.json     fingerprint, dtype, counts and a digest of tokens.bin

A build writes into a temporary folder and renames it: a folder under the final name is always
whole. A file lock lets one process build while others wait; the lock ends with its process.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from fot_jax.config import DataConfig, SourceConfig, SourceKind, UserError, VocabularyConfig
from fot_jax.config.errors import disk_full, is_disk_full
from fot_jax.data import stdlib_source
from fot_jax.data.copies import content_digest, digest_table
from fot_jax.data.readers import source_files
from fot_jax.data.vocabulary import existing_file, load_vocabulary
from fot_jax.storage.paths import StoragePath

# Raise it whenever the same files would give other tokens or files.
#   3: byte order marks are no text; contents.npy; names of special tokens in documents are text
CACHE_VERSION = 3
TOKEN_DTYPES = (np.dtype(np.uint16), np.dtype(np.uint32))
PROGRESS_SECONDS = 5.0


def fingerprint(source: SourceConfig, *, data: DataConfig, seed: int) -> str:
    """Returns a digest (16 hex digits) of all that decides the tokens of a source.

    It covers the files (path, size, and their time of writing or, in a bucket, their checksum), the vocabulary,
    CACHE_VERSION, and the seed where it matters: the order of files in STDLIB documents, and passkeys. `rate`,
    held-out share and row layout do not change tokens and are left out.
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
        [file.identity() for file in source_files(source)],
    ]
    return hashlib.blake2b(json.dumps(parts).encode("utf-8"), digest_size=8).hexdigest()


def vocabulary_identity(config: VocabularyConfig) -> list[object]:
    """Returns a vocabulary's kind, the digest of its file, and what the files next to it change."""
    if not config.path:
        return [config.kind.value, None]
    digest = hashlib.blake2b(pathlib.Path(existing_file(config.path)).read_bytes(), digest_size=16).hexdigest()
    return [config.kind.value, digest, *load_vocabulary(config).identity]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceCache:
    """The tokenised documents of one source.

    Attributes:
      tokens: uint16 or uint32, memory-mapped.
      offsets: int64 [documents + 1].
      contents: uint64 [documents, 2], a digest of each document's tokens: equal documents have equal ones.
      folder: the cache's own.
      digest: of the tokens, 32 hex digits. It identifies what a run was trained on, wherever the files are.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    contents: np.ndarray
    folder: pathlib.Path
    digest: str = ""

    @property
    def lengths(self) -> np.ndarray:
        """Lengths in tokens, int64 [documents], the end-of-document token included."""
        return np.diff(self.offsets)

    def names(self) -> list[str]:
        """Reads the names of all documents, from disk at each call. Raises UserError where they are damaged."""
        try:
            names = json.loads((self.folder / "names.json").read_text("utf-8"))
            if len(names) != len(self.lengths):
                raise ValueError(f"{len(names)} names of {len(self.lengths)}")
        except (OSError, ValueError, TypeError) as error:
            raise damaged_error(self.folder, f"names.json: {error}") from error
        return names


def load_cache(folder: pathlib.Path, *, expected: str, named: "StoragePath | None" = None) -> SourceCache | None:
    """Opens a whole cache; None when there is none.

    Args:
      folder: the cache's own.
      expected: the fingerprint.
      named: what the error names, if it is not the folder.

    Raises UserError when the folder exists but is not what a build leaves there.
    """
    if not folder.is_dir():
        return None
    with _explained_damage(named or folder):
        index = _load_index(folder, expected=expected)
        dtype, size = index.tokens.dtype, (folder / "tokens.bin").stat().st_size
        if size != index.tokens.nbytes:
            raise ValueError("its meta.json does not match it")
        tokens = np.memmap(folder / "tokens.bin", dtype=dtype, mode="r") if size else np.zeros(0, dtype)
        return dataclasses.replace(index, tokens=tokens)


def load_index(folder: pathlib.Path, *, expected: str, named: StoragePath) -> SourceCache:
    """Opens a cache without tokens.bin: of its tokens only the number and the digest are right.

    Args:
      folder: holds the other files of a cache.
      expected: the fingerprint.
      named: what the error names.

    Raises UserError when the files are not what a build leaves there.
    """
    with _explained_damage(named):
        return _load_index(folder, expected=expected)


def _load_index(folder: pathlib.Path, *, expected: str) -> SourceCache:
    meta = json.loads((folder / "meta.json").read_text("utf-8"))
    dtype, digest = np.dtype(meta["dtype"]), str(meta["digest"])
    if meta["fingerprint"] != expected or dtype not in TOKEN_DTYPES:
        raise ValueError("its meta.json does not match it")
    offsets = _load_array(folder / "offsets.npy", np.int64, (meta["documents"] + 1,))
    if offsets[0] != 0 or offsets[-1] != meta["tokens"] or (np.diff(offsets) < 1).any():
        raise ValueError("offsets.npy does not match meta.json")
    contents = _load_array(folder / "contents.npy", np.uint64, (meta["documents"], 2))
    tokens = np.broadcast_to(np.zeros((), dtype), meta["tokens"])  # takes no memory
    return SourceCache(tokens=tokens, offsets=offsets, contents=contents, folder=folder, digest=digest)


@contextlib.contextmanager
def _explained_damage(folder: StoragePath) -> Iterator[None]:
    """Turns errors of reading a cache into one line."""
    try:
        yield
    except PermissionError as error:
        raise UserError(f"'{folder}' must be a token cache that can be read, got: {error.strerror}.") from error
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise damaged_error(folder, str(error)) from error


def damaged_error(folder: StoragePath, reason: str) -> UserError:
    """Builds the error of a cache that is not what a build leaves."""
    line = " ".join(reason.split())
    return UserError(f"'{folder}' must be a whole token cache, got a damaged one ({line}). Delete it.")


def _load_array(path: pathlib.Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """Loads a .npy file of this dtype and shape into memory. Raises ValueError for another one."""
    mapped = np.lib.format.open_memmap(path, mode="r")  # a header with a huge shape then asks for no memory
    if mapped.dtype != dtype or mapped.shape != shape:
        raise ValueError(f"{path.name} must be {np.dtype(dtype)} {shape}, got {mapped.dtype} {mapped.shape}")
    return np.array(mapped)


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
        with build_lock(folder):
            cache = load_cache(folder, expected=expected)  # another process may have built it meanwhile
            if cache is None:
                _write_cache(folder, documents(), source=source, expected=expected, vocab_size=vocab_size)
                cache = load_cache(folder, expected=expected)
    assert cache is not None
    return cache


@contextlib.contextmanager
def build_lock(folder: pathlib.Path) -> Iterator[None]:
    """Holds the lock file next to `folder`; says so when another process has it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = open(folder.with_name(folder.name + ".lock"), "w")  # noqa: SIM115
    except OSError as error:
        raise _unwritable_error(folder, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that builds {folder} ...", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems have no locks
            raise _unwritable_error(folder, error) from error
        yield


def _unwritable_error(folder: pathlib.Path, error: OSError) -> UserError:
    if is_disk_full(error):
        return disk_full(folder.parent, error)
    return UserError(f"data.cache_dir must be a folder that can be written, got '{folder.parent}' ({error}).")


def _write_cache(
    folder: pathlib.Path, documents: Iterable[tuple[str, np.ndarray]], *, source: str, expected: str, vocab_size: int
) -> None:
    """Writes all files in a temporary folder and renames it; the lock must be held. Raises as `open_or_build`."""
    building = folder.with_name(f".building-{folder.name}-{os.getpid()}")
    dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    try:
        for left in folder.parent.glob(f".building-{folder.name}-*"):
            shutil.rmtree(left)  # left by a killed build: its lock is ours now
        building.mkdir()
        written = _write_tokens(building / "tokens.bin", documents, source=source, dtype=dtype)
        if not written.names:
            raise no_documents(source)
        offsets = np.concatenate([[0], np.cumsum(written.lengths, dtype=np.int64)]).astype(np.int64)
        _save_array(building / "offsets.npy", offsets)
        _save_array(building / "contents.npy", digest_table(bytes(written.contents)))
        (building / "names.json").write_text(json.dumps(written.names), "utf-8")
        counts = {"documents": len(written.names), "tokens": int(offsets[-1])}
        meta = {"fingerprint": expected, "dtype": dtype.name, **counts, "digest": written.digest}
        (building / "meta.json").write_text(json.dumps(meta), "utf-8")
        for path in building.iterdir():
            _fsync(path)
        os.rename(building, folder)
        _fsync(folder.parent)
    except OSError as error:
        raise _unwritable_error(folder, error) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def no_documents(source: str) -> UserError:
    """Builds the error of a source without text."""
    return UserError(f"data.sources['{source}'] must hold at least one document with text, got none.")


def _save_array(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes a .npy file through memory: on a full disk np.save itself raises an OSError without a number."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    path.write_bytes(buffer.getbuffer())


def _fsync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclasses.dataclass(kw_only=True)
class _WrittenDocuments:
    """Names, lengths and digests of the written documents, in order."""

    names: list[str] = dataclasses.field(default_factory=list)
    lengths: list[int] = dataclasses.field(default_factory=list)
    contents: bytearray = dataclasses.field(default_factory=bytearray)
    digest: str = ""


def _write_tokens(
    path: pathlib.Path, documents: Iterable[tuple[str, np.ndarray]], *, source: str, dtype: np.dtype
) -> _WrittenDocuments:
    written = _WrittenDocuments()
    started = shown = time.monotonic()
    total = 0
    digest = hashlib.blake2b(digest_size=16)

    def progress(end: str) -> None:
        speed = total / max(time.monotonic() - started, 1e-9) / 1e6
        count = len(written.names)
        line = f"tokenising {source}: {count} documents, {total / 1e6:.2f}M tokens, {speed:.2f}M tokens/s{end}"
        print(line, file=sys.stderr, flush=True)

    with open(path, "wb") as file:
        for name, tokens in documents:
            data = tokens.astype(dtype).tobytes()
            file.write(data)
            digest.update(data)
            written.contents += content_digest(data)
            written.names.append(name)
            written.lengths.append(len(tokens))
            total += len(tokens)
            if time.monotonic() - shown > PROGRESS_SECONDS:
                shown = time.monotonic()
                progress(" ...")
    progress("")
    written.digest = digest.hexdigest()
    return written
