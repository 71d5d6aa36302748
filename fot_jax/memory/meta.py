"""The meta.json of a memory: what it must state, and its checksum."""

import json
import logging
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

from fot_jax.config import UserError
from fot_jax.memory.replacement import ARRAYS, META
from fot_jax.storage.explain import explained
from fot_jax.storage.paths import StoragePath, bucket_files, storage_path

logger = logging.getLogger(__name__)

FORMAT = "fot_jax memory 1"
ENTRIES = ("keys", "values")
MOST_WIDE = 1 << 20  # layers, heads or components of a head, in any memory
META_BYTES = 1 << 24  # most that a meta.json may have: about 200,000 streams


def array_names(dtype: object) -> tuple[str, ...]:
    """Returns the names of a stream's arrays."""
    return ENTRIES + (("key_scales", "value_scales") if dtype == "int8" else ())


def meta_checksum(meta: Mapping[str, Any]) -> int:
    """Returns the checksum of all fields but its own."""
    fields = {name: value for name, value in meta.items() if name != "checksum"}
    return zlib.crc32(json.dumps(fields, sort_keys=True).encode())


def is_memory(directory: str | os.PathLike[str]) -> bool:
    """True if a folder holds a memory that `save` would replace."""
    path = storage_path(directory) / META
    with explained(path):
        return path.is_file() if isinstance(path, pathlib.Path) else path.exists()


def read_meta(path: StoragePath) -> dict[str, Any]:
    """Reads and checks a memory's meta.json. Raises UserError where it is missing, damaged or of another format."""
    file = path / META
    if not is_memory(path):
        raise UserError(f"memory folder must hold meta.json, got '{path}', which has none. Save a memory there first.")
    damaged = f"memory '{path}' is damaged: meta.json cannot be read. Write it again."
    if _size(file) > META_BYTES:
        raise UserError(damaged)
    try:
        with explained(path):
            written = file.read_bytes()
        meta = json.loads(written.decode("utf-8"))
        known = meta["format"] == FORMAT
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(damaged) from error
    if not known:
        raise UserError(f"memory '{path}' must have format {FORMAT!r}, got {meta['format']!r:.60}. Write it again.")
    _check_meta(path, meta)
    return meta


def _size(file: StoragePath) -> int:
    """Returns the bytes of a file that is there."""
    if isinstance(file, pathlib.Path):
        return file.stat().st_size
    with explained(file):
        return bucket_files().info(os.fspath(file))["size"]


def arrays_folder(path: StoragePath, meta: Mapping[str, Any]) -> StoragePath:
    """Returns the folder of a memory's arrays."""
    return path / meta["arrays"] if "arrays" in meta else path


def _check_meta(path: StoragePath, meta: dict[str, Any]) -> None:
    """Raises UserError where a field that `save` writes is missing or of another kind, or any was changed."""

    def is_integer(value: Any, least: int = 0, most: int = 1 << 40) -> bool:
        return type(value) is int and least <= value <= most

    def is_integer_list(value: Any) -> bool:
        return isinstance(value, list) and all(map(is_integer, value))

    def is_checksum_list(value: Any) -> bool:
        return isinstance(value, list) and all(
            isinstance(one, dict) and set(array_names(meta.get("dtype"))) <= set(one) for one in value
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
    if "arrays" in meta and not (isinstance(meta["arrays"], str) and ARRAYS.fullmatch(meta["arrays"])):
        wrong.append("arrays")
    if wrong:
        raise UserError(f"memory '{path}' is damaged: meta.json lacks a valid {', '.join(wrong)}. Write it again.")
    if "checksum" not in meta:
        logger.info("memory '%s' was written before meta.json had a checksum: only its arrays are checked.", path)
    elif meta["checksum"] != meta_checksum(meta):
        raise UserError(f"memory '{path}' is damaged: meta.json was changed. Write it again.")
