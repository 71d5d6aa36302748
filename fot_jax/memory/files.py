"""Memories on disk or in a bucket: a folder with `meta.json` and one TensorStore (zarr3) array pair per stream.

    DIR/meta.json             format, model fingerprint, shapes, checksums of the arrays and of meta.json itself
    DIR/stream_0/keys         [P, G, M, D], oldest entry first
    DIR/stream_0/values
    DIR/stream_0/key_scales   [P, G, M, 1] float32, of int8 entries; value_scales likewise
    DIR/texts.json            [[name, text], …] that were read, where they are known

In a bucket all but meta.json is in DIR/arrays-0123456789abcdef, which meta.json names (`replacement.py`). An empty
stream has no arrays.
"""

import json
import math
import os
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorstore as ts

from fot_jax.config import UserError
from fot_jax.config.errors import explained_disk_full
from fot_jax.memory.meta import ENTRIES, FORMAT, array_names, arrays_folder, is_memory, meta_checksum, read_meta
from fot_jax.memory.replacement import is_unfinished, replacing, write_meta
from fot_jax.memory.store import MemoryStore
from fot_jax.storage.explain import explained, missing_bucket
from fot_jax.storage.paths import SCHEME, StoragePath, bucket_files, files_below, storage_path

TEXTS = "texts.json"
CHUNK_ENTRIES = 65536  # entries per zarr chunk
READ_UNSEEN = (
    1 << 26
)  # bytes of an array that are read whatever its chunks hold; more must be there before room is made


def _spec(path: StoragePath, shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    """TensorStore's description of an array; one on disk that differs from it is not opened."""
    chunk = [1, 1, min(shape[2], CHUNK_ENTRIES), shape[3]]
    return {
        "driver": "zarr3",
        "kvstore": _kvstore(path),
        "metadata": {
            "shape": list(shape),
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        },
        "store_data_equal_to_fill_value": True,  # chunks of zeros are written too
    }


def _kvstore(path: StoragePath) -> dict[str, str]:
    """TensorStore's description of a folder."""
    if isinstance(path, pathlib.Path):
        return {"driver": "file", "path": str(path)}
    bucket, _, folder = os.fspath(path).removeprefix(SCHEME).partition("/")
    return {"driver": "gcs", "bucket": bucket, "path": f"{folder}/"}


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data)


def check_writable(directory: str | os.PathLike[str]) -> None:
    """Raises UserError where `save` would refuse: the folder exists and is not a memory."""
    path = storage_path(directory)
    if isinstance(path, pathlib.Path):
        other = path.exists() and not is_memory(path) and not (path.is_dir() and not any(path.iterdir()))
    else:
        try:
            with explained(path):
                other = not is_memory(path) and any(not is_unfinished(path, file) for file in files_below(path))
        except FileNotFoundError as error:
            raise missing_bucket(path) from error
    if other:
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
      directory: the folder, made with its parents; or gs://BUCKET/FOLDER.
      fingerprint: of the model that wrote the entries (`fingerprint.fingerprint`).
      scaling_from: `memory.log_length_scaling_from` with which they were written.
      texts: name and text of what was read, for `load_texts`.

    Raises:
      UserError: the folder holds something else, or cannot be written.
    """
    check_writable(directory)
    path = storage_path(directory)
    with replacing(path) as new, explained_disk_full(os.fspath(path), needed=store.bytes()):
        checksums = []
        for stream in range(store.streams):
            held = store.stored(stream, slice(None), store.live(stream))
            arrays = dict(zip(array_names(store.dtype.name), held, strict=True))
            checksums.append({name: _checksum(array) for name, array in arrays.items()})
            for name, array in arrays.items():
                if array.size:
                    _write(new.folder / f"stream_{stream}" / name, array)
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
            (new.folder / TEXTS).write_bytes(written)
            meta["texts"] = zlib.crc32(written)
        if new.arrays:
            meta["arrays"] = new.arrays
        meta["checksum"] = meta_checksum(meta)
        write_meta(new, json.dumps(meta, indent=1) + "\n")


def _write(path: StoragePath, array: np.ndarray) -> None:
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
    path = storage_path(directory)
    meta = read_meta(path)
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
            for name in array_names(meta["dtype"]):
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
            store.restore(stream, *(_read(path, stream, name, meta) for name in array_names(meta["dtype"])))
    return store


def load_texts(directory: str | os.PathLike[str]) -> tuple[tuple[str, str], ...]:
    """Returns name and text of what was read into a memory, in order; nothing where that was not saved.

    Raises:
      UserError: the folder is missing, not a memory, or damaged.
    """
    path = storage_path(directory)
    meta = read_meta(path)
    wanted = meta.get("texts")
    if wanted is None:
        return ()
    try:
        with explained(path):
            written = (arrays_folder(path, meta) / TEXTS).read_bytes()
    except OSError as error:
        raise _damaged_error(path, TEXTS) from error
    if zlib.crc32(written) != wanted:
        raise _damaged_error(path, TEXTS)
    return tuple((name, text) for name, text in json.loads(written))


def _damaged_error(path: StoragePath, place: str) -> UserError:
    return UserError(f"memory '{path}' is damaged: {place} is truncated, changed or missing. Write it again.")


def _open(path: StoragePath, stream: int, name: str, meta: dict[str, Any]) -> Any:
    """The TensorStore of one array, of the shape that meta.json states; where it is large, its bytes are there.

    So no room is made for what a damaged file declares.
    """
    place = f"stream_{stream}/{name}"
    width, dtype = (meta["head_dim"], meta["dtype"]) if name in ENTRIES else (1, "float32")
    shape = (len(meta["memory_layers"]), meta["kv_heads"], meta["lengths"][stream], width)
    try:
        with explained(path):
            array = ts.open(_spec(arrays_folder(path, meta) / place, shape, dtype), open=True).result()
            there = _bytes_below(arrays_folder(path, meta) / place)
    except UserError:
        raise
    except (ValueError, OSError) as error:  # what TensorStore raises for missing or unreadable files
        raise _damaged_error(path, place) from error
    if math.prod(shape) * array.dtype.numpy_dtype.itemsize > max(there, READ_UNSEEN):
        raise _damaged_error(path, place)
    return array


def _bytes_below(folder: StoragePath) -> int:
    """Sums the bytes of all files in a folder and its subfolders."""
    if isinstance(folder, pathlib.Path):
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return sum(info["size"] for info in bucket_files().find(os.fspath(folder), detail=True).values())


def _read(path: StoragePath, stream: int, name: str, meta: dict[str, Any]) -> np.ndarray:
    """Reads one array and checks it: a missing chunk reads as zeros, so only the checksum tells."""
    place = f"stream_{stream}/{name}"
    stored = _open(path, stream, name, meta)
    try:
        with explained(path):
            array = stored.read().result()
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise _damaged_error(path, place) from error
    if _checksum(array) != meta["checksums"][stream][name]:
        raise _damaged_error(path, place)
    return np.asarray(array)
