"""Opens GGUF files, one or all parts of a split model: metadata and the places of tensors, by llama.cpp's names.

llama.cpp names the files of a split model itself; the first holds the metadata, each says which one it is:

    NAME-00001-of-00003.gguf    split.no 0, split.count 3, split.tensors.count 291
    NAME-00002-of-00003.gguf    split.no 1, split.count 3
    NAME-00003-of-00003.gguf    split.no 2, split.count 3
"""

import dataclasses
import re
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fot_jax.config import UserError
from fot_jax.convert import file_kinds
from fot_jax.extras import needs

with needs("convert", "Importing a GGUF file"):
    import gguf

PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
MIN_VERSION, MAX_VERSION = min(gguf.gguf_reader.READER_SUPPORTED_VERSIONS), gguf.GGUF_VERSION
QUANTISATION_VERSION = 2  # of ggml's blocks; version 1 had other layouts


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor in a file; `shape` as Hugging Face has it, rows first."""

    path: Path
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    offset: int
    num_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelContents:
    """Metadata and tensors of a model; `whole`: no tensor can be missing unnoticed."""

    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]
    whole: bool


class _EndOfFileError(Exception):
    """Error of a file that ends before `needed` bytes."""

    def __init__(self, needed: int):
        self.needed = needed


class _Reader(gguf.GGUFReader):
    """Reader that raises at a file's end, where the package's own reads emptiness."""

    def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
        end = int(offset) + int(np.dtype(dtype).itemsize) * int(count)
        if end > len(self.data):
            raise _EndOfFileError(end)
        return super()._get(offset, dtype, count, override_order)


def read_contents(path: Path) -> ModelContents:
    """Opens a GGUF file, and with it the other parts of its model.

    Args:
      path: a whole model, or any part of a split one.

    Raises:
      UserError: no GGUF file, a truncated or damaged one, a quantisation that cannot be read, or parts that are
        missing or do not belong together.
    """
    metadata, tensors = _read_file(path)
    count = _count(metadata, "split.count", path, default=0)
    named = PART.fullmatch(path.name)
    if count <= 1:
        if named and int(named[3]) > 1:
            raise UserError(
                f"{path} must hold split.count {int(named[3])}, as its name says that it is a part, but does not. Give"
                " the file another name if the model in it is whole."
            )
        return ModelContents(metadata=metadata, tensors=tensors, whole=True)
    if named is None or int(named[3]) != count:
        number = _count(metadata, "split.no", path, default=0) + 1
        raise UserError(
            f"{path} is part {number} of a model in {count} files: they must be named"
            f" NAME-{number:05d}-of-{count:05d}.gguf, as llama.cpp names them, to be found."
        )
    return _join([path.with_name(f"{named[1]}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)])


def _join(paths: list[Path]) -> ModelContents:
    """Joins the contents of all parts; the metadata are the first one's. Raises UserError, see `read_contents`."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]} is missing: the model is split into {len(paths)} files. Download it too.")
    first: dict[str, Any] = {}
    tensors: dict[str, StoredTensor] = {}
    for number, path in enumerate(paths):
        metadata, held = _read_file(path)
        first = first or metadata
        for key, wanted in (("split.no", number), ("split.count", len(paths))):
            got = _count(metadata, key, path, default=-1)
            if got != wanted:
                raise UserError(f"{path}: {key} must be {wanted}, as the file's name says, got {got}.")
        twice = next((name for name in held if name in tensors), None)
        if twice is not None:
            raise UserError(f"{path}: {twice} must be in one part of the model, but is in {tensors[twice].path} too.")
        tensors |= held
    total = _count(first, "split.tensors.count", paths[0], default=len(tensors))
    if total != len(tensors):
        raise UserError(
            f"{paths[0]}: the {len(paths)} parts must hold {total} tensors, as split.tensors.count says, got"
            f" {len(tensors)}. They are not of one model: download all again."
        )
    return ModelContents(metadata=first, tensors=tensors, whole="split.tensors.count" in first)


def _count(metadata: dict[str, Any], key: str, path: Path, *, default: int) -> int:
    value = metadata.get(key, default)
    if type(value) is not int:
        raise UserError(f"{path}: {key} must be a whole number, got {value!r}.")
    return value


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Reads the metadata and tensors of one file. Raises UserError."""
    _check_head(path)
    try:
        with np.errstate(over="ignore"):  # places of tensors are compared below
            reader = _Reader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
    except _EndOfFileError as error:
        raise UserError(file_kinds.describe_truncated(path, needed=error.needed)) from error
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, TypeError, RecursionError) as error:
        raise UserError(_damaged(path, error)) from error
    unreadable = {kind: not _can_dequantise(kind) for kind in {tensor.tensor_type for tensor in reader.tensors}}
    quantised = any(gguf.GGML_QUANT_SIZES[kind][0] > 1 for kind in unreadable)
    version = metadata.get("general.quantization_version", QUANTISATION_VERSION)
    if quantised and version != QUANTISATION_VERSION:
        raise UserError(
            f"{path}: general.quantization_version must be {QUANTISATION_VERSION}, got {version!r}. Quantise the"
            " model again with a llama.cpp of June 2023 or later."
        )
    tensors, end = {}, 0
    for tensor in reader.tensors:
        begin = int(tensor.field.parts[-1][0])  # the package adds it to the data's place modulo 2^64
        if begin != end:
            raise UserError(
                f"{path} is damaged: {tensor.name} must begin at byte {end} of the data, where the tensor before it"
                f" ends, got {begin}. Download it again."
            )
        end += -(-int(tensor.n_bytes) // int(reader.alignment)) * int(reader.alignment)
        if unreadable[tensor.tensor_type]:
            allowed = ", ".join(kind.name for kind in gguf.GGMLQuantizationType if _can_dequantise(kind))
            raise UserError(
                f"{path}: {tensor.name} must be one of {allowed}, got {tensor.tensor_type.name}."
                " Take the file in another quantisation."
            )
        tensors[tensor.name] = StoredTensor(
            path=path,
            shape=tuple(int(n) for n in tensor.shape[::-1]),
            kind=tensor.tensor_type,
            offset=int(tensor.data_offset),
            num_bytes=int(tensor.n_bytes),
        )
    return metadata, tensors


def _check_head(path: Path) -> None:
    """Raises UserError unless a file begins as GGUF of a version and a byte order that can be read."""
    with path.open("rb") as file:
        head = file.read(8)
    if head and b"GGUF".startswith(head[:4]) and len(head) < 8:
        raise UserError(file_kinds.describe_truncated(path, needed=24))  # bytes before the first key
    if not head.startswith(b"GGUF"):
        other = file_kinds.describe_wrong_kind(path, wanted="a GGUF file")
        raise UserError(other or f"{path} must be a GGUF file, but begins with {head[:4]!r}. Give another file.")
    version = struct.unpack("<I", head[4:])[0]
    if version & 0xFFFF == 0 or sys.byteorder != "little":
        raise UserError(
            f"{path} must be little-endian, but is big-endian. Convert it with gguf-py's gguf_convert_endian.py."
        )
    if not MIN_VERSION <= version <= MAX_VERSION:
        age = "older" if version < MIN_VERSION else "newer"
        raise UserError(
            f"{path} must be GGUF of version {MIN_VERSION} to {MAX_VERSION}, got {version}, which is {age}."
            f" {'Convert the model again' if age == 'older' else 'Install a newer gguf package'}."
        )


def _damaged(path: Path, error: Exception) -> str:
    """Explains the error of the package's reader about a file that is long enough."""
    reason = " ".join(str(error).split())
    unknown = re.search(r"(\d+)\)? is not a valid GGMLQuantizationType", reason)
    if unknown:
        return (
            f"{path} holds a tensor of kind {unknown[1]}, which the installed gguf package does not know. Install a"
            " newer one, or take the file in another quantisation."
        )
    if isinstance(error, MemoryError):
        return f"{path}: its header must fit in memory, but does not."
    return f"{path} is damaged: its header cannot be read ({reason or type(error).__name__}). Download it again."


def _can_dequantise(kind: gguf.GGMLQuantizationType) -> bool:
    """True if the installed package dequantises this kind; tries one block of zeros."""
    try:
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
