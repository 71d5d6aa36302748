"""Digests of arrays, kept with a checkpoint: neither OCDBT nor zarr notices that bytes of an array changed.

The digest of an array x, its elements taken as unsigned integers and numbered in C order, is a sum modulo 2^32:

    sum over i of  fold(x[i]) * weight(i)      weight(i) = (h ^ h >> 15) | 1,  h = 2654435761 i,  fold(v) = v ^ v >> 16

Every weight is odd, so no single changed element goes unnoticed, and of other damage one case in 2^32. A sum does
not depend on how an array is spread over devices: each digests what it holds, and nothing is copied to the host.
"""

import functools
import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 1 << 16  # elements that the host digests at a time
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32}  # by bytes of an element
KINDS = ("float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint8", "bool", "float64", "int64", "uint64")
_GOLDEN = np.uint32(2654435761)


def _summands(words: Any, place: Any) -> Any:
    """Computes the summands of elements, each with its number."""
    hashed = place * _GOLDEN
    return (words ^ (words >> 16)) * ((hashed ^ (hashed >> 15)) | np.uint32(1))


@functools.partial(jax.jit, static_argnames="dtype")
def _digest_on_devices(array: jax.Array, *, dtype: np.dtype) -> jax.Array:
    word = _WORDS[dtype.itemsize]
    words = jax.lax.bitcast_convert_type(array.astype(dtype), word).astype(jnp.uint32)
    place, stride = jnp.zeros(array.shape, jnp.uint32), 1
    for axis in reversed(range(array.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * np.uint32(stride % 2**32)
        stride *= array.shape[axis]
    return jnp.sum(_summands(words, place), dtype=jnp.uint32)


def _digest_on_host(array: np.ndarray, *, dtype: np.dtype) -> int:
    flat = np.ascontiguousarray(array).reshape(-1)
    numbers, total = np.arange(_BLOCK, dtype=np.uint32), 0
    for start in range(0, flat.size, _BLOCK):
        words = flat[start : start + _BLOCK].astype(dtype).view(_WORDS[dtype.itemsize]).astype(np.uint32)
        place = numbers[: words.size] + np.uint32(start % 2**32)
        total += int(_summands(words, place).sum(dtype=np.uint32))
    return total % 2**32


def _digest(array: Any, dtype: np.dtype) -> Any:
    """Returns the digest of an array once it is of a dtype: an int, or one on its way from the devices."""
    if dtype.itemsize == 8:  # two words an element; JAX has none of these unless it is told to
        words = np.ascontiguousarray(np.asarray(array).reshape(-1).astype(dtype)).view(np.uint32)
        return _digest_on_host(words, dtype=np.dtype(np.uint32))
    if dtype == np.bool_:
        array, dtype = array.astype(np.uint8), np.dtype(np.uint8)
    if isinstance(array, jax.Array):
        devices = list(array.sharding.device_set)
        if len(devices) > 1 or devices[0].platform != "cpu":
            return _digest_on_devices(array, dtype=dtype)
    return _digest_on_host(np.asarray(array), dtype=dtype)  # of one CPU device: no copy, and nothing to compile


def _arrays_by_path(tree: Any) -> dict[str, Any]:
    """Returns every array of a tree by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def digests(tree: Any) -> dict[str, str]:
    """Computes dtype and digest of every array of a tree, numpy's or JAX's on any mesh, by its path; for JSON."""
    found = {name: (leaf.dtype, _digest(leaf, leaf.dtype)) for name, leaf in _arrays_by_path(tree).items()}
    return {name: f"{dtype.name} {int(value):08x}" for name, (dtype, value) in found.items()}


def digest_of_json(value: Any) -> str:
    """Returns the digest of a value as JSON holds it."""
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


def first_changed(tree: Any, stored: Mapping[str, str]) -> str | None:
    """Returns the first array of a tree that is not the one that `digests` saw; None where all are.

    Arrays may be of a wider dtype now. One without a digest counts as changed.
    """
    found = {}
    for name, leaf in _arrays_by_path(tree).items():
        kind, _, want = str(stored.get(name, "")).partition(" ")
        if kind not in KINDS:
            return name
        found[name] = want, _digest(leaf, jnp.dtype(kind))
    return next((name for name, (want, value) in found.items() if f"{int(value):08x}" != want), None)
