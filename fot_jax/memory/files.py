"""Memories on disk: a folder with `meta.json` and one TensorStore (zarr3) array pair per stream.

    DIR/meta.json             format, model fingerprint, shapes, checksums of the arrays and of meta.json itself
    DIR/stream_0/keys         [P, G, M, D], oldest entry first
    DIR/stream_0/values
    DIR/stream_0/key_scales   [P, G, M, 1] float32, of int8 entries; value_scales likewise
    DIR/texts.json            [[name, text], …] that were read, where they are known

An empty stream has no arrays.
"""

import contextlib
import json
import logging
import math
import os
import pathlib
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorstore as ts

from fot_jax.config import UserError
from fot_jax.config.errors import explained_disk_full
from fot_jax.memory.store import MemoryStore

logger = logging.getLogger(__name__)

FORMAT = "fot_jax memory 1"
_ENTRIES = ("keys", "values")
TEXTS = "texts.json"
CHUNK_ENTRIES = 65536  # entries per zarr chunk
MOST_WIDE = 1 << 20  # layers, heads or components of a head, in any memory
META_BYTES = 1 << 24  # most that a meta.json may have: about 200,000 streams
READ_UNSEEN = (
    1 << 26
)  # bytes of an array that are read whatever its chunks hold; more must be there before room is made


def _spec(path: pathlib.Path, shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    """TensorStore's description of an array; one on disk that differs from it is not opened."""
    chunk = [1, 1, min(shape[2], CHUNK_ENTRIES), shape[3]]
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path)},
        "metadata": {
            "shape": list(shape),
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        },
        "store_data_equal_to_fill_value": True,  # chunks of zeros are written too
    }


def _names(dtype: Any) -> tuple[str, ...]:
    """Returns the names of a stream's arrays."""
    return _ENTRIES + (("key_scales", "value_scales") if dtype == "int8" else ())


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data)


def _meta_checksum(meta: Mapping[str, Any]) -> int:
    """Returns the checksum of all fields but its own."""
    fields = {name: value for name, value in meta.items() if name != "checksum"}
    return zlib.crc32(json.dumps(fields, sort_keys=True).encode())


def is_memory(directory: str | os.PathLike[str]) -> bool:
    """True if a folder holds a memory that `save` would replace."""
    return (pathlib.Path(directory) / "meta.json").is_file()


def check_writable(directory: str | os.PathLike[str]) -> None:
    """Raises UserError where `save` would refuse: the folder exists and is not a memory."""
    path = pathlib.Path(directory)
    if path.exists() and not (path / "meta.json").is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"memory folder must be new, empty or an earlier memory, got '{path}'. Name another folder.")


def save(
    store: MemoryStore,
    directory: str | os.PathLike[str],
    *,
    fingerprint: str,
    scaling_from: int = 0,
    texts: Sequence[tuple[str, str]] = (),
) -> None:
    """Writes a store; an earlier memory in the folder is replaced only once the new one is whole.

    Args:
      store: the memory.
      directory: the folder, made with its parents.
      fingerprint: of the model that wrote the entries (`fingerprint.fingerprint`).
      scaling_from: `memory.log_length_scaling_from` with which they were written.
      texts: name and text of what was read, for `load_texts`.

    Raises:
      UserError: the folder holds something else.
    """
    check_writable(directory)
    path = pathlib.Path(directory)
    with _atomic_replacement(path) as fresh, explained_disk_full(path, needed=store.bytes()):
        checksums = []
        for stream in range(store.streams):
            held = store.stored(stream, slice(None), store.live(stream))
            arrays = dict(zip(_names(store.dtype.name), held, strict=True))
            checksums.append({name: _checksum(array) for name, array in arrays.items()})
            for name, array in arrays.items():
                if array.size:
                    _write(fresh / f"stream_{stream}" / name, array)
        meta = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "logn_from": scaling_from,
            "memory_layers": list(store.memory_layers),
            "kv_heads": store.kv_heads,
            "head_dim": store.head_dim,
            "dtype": store.dtype.name,
            "lengths": store.lengths.tolist(),
            "checksums": checksums,
        }
        if texts:
            written = json.dumps(list(texts)).encode()
            (fresh / TEXTS).write_bytes(written)
            meta["texts"] = zlib.crc32(written)
        meta["checksum"] = _meta_checksum(meta)
        (fresh / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _atomic_replacement(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Holds a new folder that replaces `path` at the end; after an error it is gone and `path` is unchanged."""
    with explained_disk_full(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh, old = (path.with_name(f".{path.name}.{kind}-{os.getpid()}") for kind in ("tmp", "old"))
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
    try:
        yield fresh
        if path.exists():
            path.rename(old)
        fresh.rename(path)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write(path: pathlib.Path, array: np.ndarray) -> None:
    ts.open(_spec(path, array.shape, array.dtype.name), create=True).result().write(array).result()


def load(directory: str | os.PathLike[str], *, fingerprint: str, scaling_from: int = 0, budget: int = 0) -> MemoryStore:
    """Reads a store that this model wrote, bit for bit.

    Args:
      directory: the folder that `save` wrote.
      fingerprint: of the model that is to read it.
      scaling_from: `memory.log_length_scaling_from` with which it is to be read, as keys above the first memory layer
        depend on it.
      budget: as in MemoryStore; of a longer stream the newest entries are kept.

    Raises:
      UserError: the folder is missing, not a memory, another model's, read with another scale, or damaged; the
        entries do not fit into memory.
    """
    path = pathlib.Path(directory)
    meta = _read_meta(path)
    if meta["fingerprint"] != fingerprint:
        raise UserError(
            f"memory '{path}' must come from this model (fingerprint {fingerprint}), got one of another model "
            f"(fingerprint {meta['fingerprint']}). Keys of one model mean nothing to another: read the text again."
        )
    if meta["logn_from"] != scaling_from:
        raise UserError(
            f"memory '{path}' was written with memory.log_length_scaling_from={meta['logn_from']}, got {scaling_from}."
            f" Read on with memory.log_length_scaling_from={meta['logn_from']}, or read the text again."
        )
    for stream, length in enumerate(meta["lengths"]):
        if length:
            for name in _names(meta["dtype"]):
                _open(path, stream, name, meta)
    store = MemoryStore(
        memory_layers=meta["memory_layers"],
        streams=len(meta["lengths"]),
        kv_heads=meta["kv_heads"],
        head_dim=meta["head_dim"],
        dtype=ts.dtype(meta["dtype"]).numpy_dtype,
        budget=budget,
    )
    for stream, length in enumerate(meta["lengths"]):
        if length:
            store.restore(stream, *(_read(path, stream, name, meta) for name in _names(meta["dtype"])))
    return store


def load_texts(directory: str | os.PathLike[str]) -> tuple[tuple[str, str], ...]:
    """Returns name and text of what was read into a memory, in order; nothing where that was not saved.

    Raises:
      UserError: the folder is missing, not a memory, or damaged.
    """
    path = pathlib.Path(directory)
    wanted = _read_meta(path).get("texts")
    if wanted is None:
        return ()
    try:
        written = (path / TEXTS).read_bytes()
    except OSError as error:
        raise _damaged_error(path, TEXTS) from error
    if zlib.crc32(written) != wanted:
        raise _damaged_error(path, TEXTS)
    return tuple((name, text) for name, text in json.loads(written))


def _read_meta(path: pathlib.Path) -> dict[str, Any]:
    file = path / "meta.json"
    if not file.is_file():
        raise UserError(f"memory folder must hold meta.json, got '{path}', which has none. Save a memory there first.")
    damaged = f"memory '{path}' is damaged: meta.json cannot be read. Write it again."
    if file.stat().st_size > META_BYTES:
        raise UserError(damaged)
    try:
        meta = json.loads(file.read_text("utf-8"))
        known = meta["format"] == FORMAT
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(damaged) from error
    if not known:
        raise UserError(f"memory '{path}' must have format {FORMAT!r}, got {meta['format']!r:.60}. Write it again.")
    _check_meta(path, meta)
    return meta


def _check_meta(path: pathlib.Path, meta: dict[str, Any]) -> None:
    """Raises UserError where a field that `save` writes is missing or of another kind, or any was changed."""

    def is_integer(value: Any, least: int = 0, most: int = 1 << 40) -> bool:
        return type(value) is int and least <= value <= most

    def is_integer_list(value: Any) -> bool:
        return isinstance(value, list) and all(map(is_integer, value))

    def is_checksum_list(value: Any) -> bool:
        return isinstance(value, list) and all(
            isinstance(one, dict) and set(_names(meta.get("dtype"))) <= set(one) for one in value
        )

    rules = {
        "fingerprint": lambda value: isinstance(value, str),
        "logn_from": is_integer,
        "memory_layers": lambda value: is_integer_list(value) and 0 < len(value) == len(set(value)) < MOST_WIDE,
        "kv_heads": lambda value: is_integer(value, 1, MOST_WIDE),
        "head_dim": lambda value: is_integer(value, 1, MOST_WIDE),
        "dtype": lambda value: value in ("float32", "bfloat16", "float16", "int8"),
        "lengths": lambda value: is_integer_list(value) and len(value) > 0,
        "checksums": lambda value: (
            is_checksum_list(value) and is_integer_list(meta.get("lengths")) and len(value) == len(meta["lengths"])
        ),
    }
    wrong = [name for name, rule in rules.items() if name not in meta or not rule(meta[name])]
    if wrong:
        raise UserError(f"memory '{path}' is damaged: meta.json lacks a valid {', '.join(wrong)}. Write it again.")
    if "checksum" not in meta:
        logger.info("memory '%s' was written before meta.json had a checksum: only its arrays are checked.", path)
    elif meta["checksum"] != _meta_checksum(meta):
        raise UserError(f"memory '{path}' is damaged: meta.json was changed. Write it again.")


def _damaged_error(path: pathlib.Path, place: str) -> UserError:
    return UserError(f"memory '{path}' is damaged: {place} is truncated, changed or missing. Write it again.")


def _open(path: pathlib.Path, stream: int, name: str, meta: dict[str, Any]) -> Any:
    """The TensorStore of one array, of the shape that meta.json states; where it is large, its bytes are there.

    So no room is made for what a damaged file declares.
    """
    place = f"stream_{stream}/{name}"
    scales = name not in _ENTRIES
    width, dtype = (1, "float32") if scales else (meta["head_dim"], meta["dtype"])
    shape = (len(meta["memory_layers"]), meta["kv_heads"], meta["lengths"][stream], width)
    try:
        array = ts.open(_spec(path / place, shape, dtype), open=True).result()
        there = sum(file.stat().st_size for file in (path / place).rglob("*") if file.is_file())
    except (ValueError, OSError) as error:  # what TensorStore raises for missing or unreadable files
        raise _damaged_error(path, place) from error
    if math.prod(shape) * array.dtype.numpy_dtype.itemsize > max(there, READ_UNSEEN):
        raise _damaged_error(path, place)
    return array


def _read(path: pathlib.Path, stream: int, name: str, meta: dict[str, Any]) -> np.ndarray:
    """Reads one array and checks it: a missing chunk reads as zeros, so only the checksum tells."""
    place = f"stream_{stream}/{name}"
    stored = _open(path, stream, name, meta)
    try:
        array = stored.read().result()
    except (ValueError, OSError) as error:
        raise _damaged_error(path, place) from error
    if _checksum(array) != meta["checksums"][stream][name]:
        raise _damaged_error(path, place)
    return np.asarray(array)
