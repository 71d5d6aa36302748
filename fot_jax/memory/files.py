"""Memories on disk: a folder with `meta.json` and one TensorStore (zarr3) array pair per stream.

    DIR/meta.json             format, model fingerprint, shapes, checksums
    DIR/stream_0/keys         [P, G, M, D], oldest entry first
    DIR/stream_0/values

An empty stream has no arrays.
"""

import json
import os
import pathlib
import shutil
import zlib
from typing import Any

import numpy as np
import tensorstore as ts

from fot_jax.config import UserError
from fot_jax.memory.store import MemoryStore
from fot_jax.types import KeyValue

FORMAT = "fot_jax memory 1"
CHUNK_ENTRIES = 65536  # entries per zarr chunk


def _spec(path: pathlib.Path) -> dict[str, Any]:
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data)


def check_writable(directory: str | os.PathLike[str]) -> None:
    """Raises UserError where `save` would refuse: the folder exists and is not a memory."""
    path = pathlib.Path(directory)
    if path.exists() and not (path / "meta.json").is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"memory folder must be new, empty or an earlier memory, got '{path}'. Name another folder.")


def save(store: MemoryStore, directory: str | os.PathLike[str], *, fingerprint: str, logn_from: int = 0) -> None:
    """Writes a store; an earlier memory in the folder is replaced only once the new one is whole.

    Args:
      store: the memory.
      directory: the folder, made with its parents.
      fingerprint: of the model that wrote the entries (`fingerprint.fingerprint`).
      logn_from: `memory.logn_from` with which they were written.

    Raises:
      UserError: the folder holds something else.
    """
    check_writable(directory)
    path = pathlib.Path(directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    checksums = []
    for stream in range(store.streams):
        arrays = dict(zip(("keys", "values"), store.take(stream, store.live(stream)), strict=True))
        checksums.append({name: _checksum(array) for name, array in arrays.items()})
        for name, array in arrays.items():
            if array.size:
                _write(fresh / f"stream_{stream}" / name, array)
    meta = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "logn_from": logn_from,
        "memory_layers": list(store.memory_layers),
        "kv_heads": store.kv_heads,
        "head_dim": store.head_dim,
        "dtype": store.dtype.name,
        "lengths": store.lengths.tolist(),
        "checksums": checksums,
    }
    (fresh / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    if path.exists():
        path.rename(old)
    fresh.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _write(path: pathlib.Path, array: np.ndarray) -> None:
    chunk = [1, 1, min(array.shape[2], CHUNK_ENTRIES), array.shape[3]]
    target = ts.open(
        _spec(path),
        create=True,
        dtype=ts.dtype(array.dtype.name),
        shape=array.shape,
        chunk_layout=ts.ChunkLayout(chunk_shape=chunk),
    ).result()
    target.write(array).result()


def load(directory: str | os.PathLike[str], *, fingerprint: str, logn_from: int = 0, budget: int = 0) -> MemoryStore:
    """Reads a store that this model wrote, bit for bit.

    Args:
      directory: the folder that `save` wrote.
      fingerprint: of the model that is to read it.
      logn_from: `memory.logn_from` with which it is to be read; keys above the first memory layer depend on it.
      budget: as in MemoryStore; of a longer stream the newest entries are kept.

    Raises:
      UserError: the folder is missing, not a memory, another model's, read with another scale, or damaged.
    """
    path = pathlib.Path(directory)
    meta = _read_meta(path)
    if meta["fingerprint"] != fingerprint:
        raise UserError(
            f"memory '{path}' must come from this model (fingerprint {fingerprint}), got one of another model "
            f"(fingerprint {meta['fingerprint']}). Keys of one model mean nothing to another: read the text again."
        )
    if meta["logn_from"] != logn_from:
        raise UserError(
            f"memory '{path}' was written with memory.logn_from={meta['logn_from']}, got {logn_from}. Read on with"
            f" --logn-from={meta['logn_from']}, or read the text again."
        )
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
            keys, values = (_read(path, stream, name, meta) for name in ("keys", "values"))
            entries = KeyValue(keys=np.swapaxes(keys, 1, 2)[:, None], values=np.swapaxes(values, 1, 2)[:, None])
            store.append(entries, np.array([length]), streams=[stream])
    return store


def _read_meta(path: pathlib.Path) -> dict[str, Any]:
    if not (path / "meta.json").is_file():
        raise UserError(f"memory folder must hold meta.json, got '{path}', which has none. Save a memory there first.")
    try:
        meta = json.loads((path / "meta.json").read_text("utf-8"))
        known = meta["format"] == FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"memory '{path}' is damaged: meta.json cannot be read. Write it again.") from error
    if not known:
        raise UserError(f"memory '{path}' must have format {FORMAT!r}, got {meta['format']!r}. Write it again.")
    _check_meta(path, meta)
    return meta


def _check_meta(path: pathlib.Path, meta: dict[str, Any]) -> None:
    """Raises UserError where a field that `save` writes is missing or of another kind."""

    def whole(value: Any, least: int = 0) -> bool:
        return isinstance(value, int) and value >= least

    def wholes(value: Any) -> bool:
        return isinstance(value, list) and all(map(whole, value))

    def sums(value: Any) -> bool:
        return isinstance(value, list) and all(
            isinstance(one, dict) and {"keys", "values"} <= set(one) for one in value
        )

    rules = {
        "fingerprint": lambda value: isinstance(value, str),
        "logn_from": whole,
        "memory_layers": wholes,
        "kv_heads": lambda value: whole(value, 1),
        "head_dim": lambda value: whole(value, 1),
        "dtype": lambda value: value in ("float32", "bfloat16", "float16"),
        "lengths": wholes,
        "checksums": lambda value: sums(value) and wholes(meta.get("lengths")) and len(value) == len(meta["lengths"]),
    }
    wrong = [name for name, rule in rules.items() if name not in meta or not rule(meta[name])]
    if wrong:
        raise UserError(f"memory '{path}' is damaged: meta.json lacks a valid {', '.join(wrong)}. Write it again.")


def _read(path: pathlib.Path, stream: int, name: str, meta: dict[str, Any]) -> np.ndarray:
    """One array, whole and unharmed: a missing chunk reads as zeros, so only the checksum tells."""
    place = f"stream_{stream}/{name}"
    damaged = f"memory '{path}' is damaged: {place} is truncated, changed or missing. Write it again."
    shape = (len(meta["memory_layers"]), meta["kv_heads"], meta["lengths"][stream], meta["head_dim"])
    try:
        array = ts.open(_spec(path / place), open=True).result().read().result()
    except (ValueError, OSError) as error:  # what TensorStore raises for missing or unreadable files
        raise UserError(damaged) from error
    if array.shape != shape or array.dtype.name != meta["dtype"] or _checksum(array) != meta["checksums"][stream][name]:
        raise UserError(damaged)
    return np.asarray(array)
