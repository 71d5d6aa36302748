"""Reads and writes a folder of safetensors, tensor by tensor in blocks of rows.

A folder holds one `*.safetensors`, or several and `model.safetensors.index.json`, which names each tensor's file. An
index next to a model.safetensors that it does not name is not read, as in transformers.
"""

import contextlib
import json
import logging
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # registers bfloat16 with numpy, for safetensors too
import numpy as np

from fot_jax.config import UserError
from fot_jax.convert import file_kinds
from fot_jax.extras import needs
from fot_jax.storage.paths import StoragePath

with needs("convert", "Importing and exporting checkpoints"):
    from safetensors import SafetensorError, safe_open

logger = logging.getLogger(__name__)

BLOCK_BYTES = 2**24  # rows are read and written in pieces of about this size
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"  # of PEFT
MAX_HEADER = 100_000_000  # bytes, as the library has it
FILE_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
NAMES = {np.dtype(kind): name for name, kind in FILE_DTYPES.items()}


def read_json(path: StoragePath) -> dict[str, Any]:
    """Reads a JSON object. Raises UserError where the file is missing or holds something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing. {_suggest_replacement(path.parent)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} must be JSON, but cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must be a JSON object, got {type(values).__name__}.")
    return values


def _suggest_replacement(folder: Path) -> str:
    """Suggests a replacement for a folder without a config.json, by the other files in it."""
    adapters = [name for name in (ADAPTER, "adapter_model.safetensors") if (folder / name).is_file()]
    if adapters:
        return (
            f"{adapters[0]} says that the folder holds an adapter (LoRA), not a model: merge it into its model"
            " (peft's merge_and_unload) and give the merged model's folder."
        )
    files = sorted(folder.glob("*.gguf"))
    if files:
        return f"Give the GGUF file itself: --from={files[0]}"
    if (folder / "params.json").is_file():
        return "The folder is in Meta's format: convert it with transformers' convert_llama_weights_to_hf.py."
    return "--from must name a Hugging Face folder or a GGUF file."


def _read_index(folder: Path) -> dict[str, str]:
    """Reads the index: tensor name -> file name."""
    path = folder / INDEX
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{path} must hold a weight_map from tensor names to files, got {type(places).__name__}.")
    for name in sorted(set(places.values())):
        if Path(name).name != name or "\0" in name:
            raise UserError(f"{path} must name files in its own folder, got {name!r}.")
    return places


def _check_shards(folder: Path, places: Mapping[str, str]) -> None:
    """Raises UserError unless every file of the index is there."""
    shards = sorted(set(places.values()))
    missing = next((name for name in shards if not (folder / name).is_file()), None)
    if missing is not None:
        raise UserError(f"{folder} must hold all {len(shards)} shards of {INDEX}; {missing} is missing. Download it.")


class SafetensorsFolder:
    """Tensors of a folder, as a context manager that keeps its files mapped.

    Attributes:
      shapes: of every tensor, by name.
      num_bytes: of every tensor, by name.
    """

    def __init__(self, folder: Path):
        """Opens every file and reads its header. Raises UserError where a file is missing or damaged."""
        self.folder = folder
        self._stack = contextlib.ExitStack()
        self._slices: dict[str, Any] = {}
        with contextlib.ExitStack() as stack:
            places = self._places()
            self._slices = (
                self._open(stack, self._single_file()) if places is None else self._open_indexed(stack, places)
            )
            self._stack = stack.pop_all()
        self.shapes = {name: tuple(part.get_shape()) for name, part in self._slices.items()}
        sizes = {
            name: np.dtype(FILE_DTYPES.get(part.get_dtype(), np.uint8)).itemsize for name, part in self._slices.items()
        }
        self.num_bytes = {
            name: int(np.prod(shape, dtype=np.int64)) * sizes[name] for name, shape in self.shapes.items()
        }

    def __enter__(self) -> "SafetensorsFolder":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._slices = {}
        self._stack.close()

    def _places(self) -> dict[str, str] | None:
        """Reads the index; None without one, or where model.safetensors is there and the index names other files."""
        if not (self.folder / INDEX).exists():
            return None
        whole = (self.folder / WHOLE).is_file()
        try:
            places = _read_index(self.folder)
        except UserError:
            if not whole:
                raise
            places = {}
        if whole and WHOLE not in places.values():
            logger.warning(
                "%s is read, as in transformers; %s names other files and is not", self.folder / WHOLE, INDEX
            )
            return None
        _check_shards(self.folder, places)
        return places

    def _single_file(self) -> Path:
        files = sorted(self.folder.glob("*.safetensors"))
        whole = self.folder / WHOLE
        if whole in files:
            return whole
        if len(files) == 1:
            return files[0]
        if files:
            raise UserError(f"{self.folder} must hold {INDEX} for its {len(files)} shards; it is missing. Download it.")
        pickled = sorted(path.name for kind in ("*.bin", "*.pth", "*.pt") for path in self.folder.glob(kind))
        got = f"got {pickled[0]}, which is pickled: convert it to safetensors first" if pickled else "got none"
        raise UserError(f"{self.folder} must hold {WHOLE} or shards with {INDEX}, {got}.")

    def _open(self, stack: contextlib.ExitStack, path: Path) -> dict[str, Any]:
        """Opens a file's tensors, by name."""
        try:
            file = stack.enter_context(safe_open(path, framework="np"))
            return {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(_describe_unreadable(path, error)) from error

    def _open_indexed(self, stack: contextlib.ExitStack, places: dict[str, str]) -> dict[str, Any]:
        """Opens the shards' tensors; one that several shards hold comes from the shard that the index names."""
        held = {name: self._open(stack, self.folder / name) for name in sorted(set(places.values()))}
        for name, file in places.items():
            if name not in held[file]:
                raise UserError(
                    f"{self.folder / file} must hold {name}, as {INDEX} says, but does not: they are not of one model."
                    " Download both from one place."
                )
        return {
            name: tensor
            for file, tensors in held.items()
            for name, tensor in tensors.items()
            if places.get(name, file) == file
        }

    def blocks(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields (rows, their values) of a tensor in its own dtype, in order, about BLOCK_BYTES at a time.

        Raises:
          UserError: a dtype that is no float of FILE_DTYPES, or a file that shrank meanwhile.
        """
        part = self._slices[name]
        if part.get_dtype() not in FILE_DTYPES:
            raise UserError(f"{self.folder}: {name} must be one of {', '.join(FILE_DTYPES)}, got {part.get_dtype()}.")
        for rows in row_blocks(self.shapes[name], self.num_bytes[name]):
            try:
                yield rows, part[rows]
            except (SafetensorError, OSError) as error:
                raise UserError(f"{self.folder}: {name} cannot be read: {' '.join(str(error).split())}.") from error


def _describe_unreadable(path: Path, error: Exception) -> str:
    """Explains an unreadable file: it is of another kind, truncated, or damaged."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"{path} cannot be read: {error.strerror}."
    other = file_kinds.describe_wrong_kind(path, wanted="a safetensors file")
    if other is not None:
        return other
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(8)
        length = struct.unpack("<Q", begin)[0] if len(begin) == 8 else 0
        if len(begin) < 8 or size < 8 + length <= 8 + MAX_HEADER:
            return file_kinds.describe_truncated(path, needed=8 + length)
        ends = _end_of_data(file.read(length)) if length <= MAX_HEADER else None
    if ends is not None and size < 8 + length + ends:
        return file_kinds.describe_truncated(path, needed=8 + length + ends)
    return f"{path} is no safetensors file, or damaged: {' '.join(str(error).split())}. Download it again."


def _end_of_data(header: bytes) -> int | None:
    """Returns the end of the last tensor, in bytes from the header's end; None if the header cannot be read."""
    try:
        parts = json.loads(header)
        return max(int(part["data_offsets"][1]) for name, part in parts.items() if name != "__metadata__")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError):
        return None


def row_blocks(shape: tuple[int, ...], num_bytes: int, *, multiple: int = 1) -> Iterator[slice]:
    """Yields slices of the first axis of about BLOCK_BYTES; all but the last have a multiple of `multiple` rows."""
    rows = max(1, shape[0])
    step = max(1, BLOCK_BYTES * rows // max(1, num_bytes) // multiple) * multiple
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def write_folder(folder: Path, tensors: Mapping[str, np.ndarray], *, max_shard_bytes: int) -> list[str]:
    """Writes model.safetensors, or shards and their index where it would exceed `max_shard_bytes`.

    Args:
      folder: exists.
      tensors: in any memory layout, views included; each is copied one block of rows at a time.
      max_shard_bytes: a shard may exceed it only with a single tensor.

    Returns:
      The names of the files.
    """
    shards: list[dict[str, np.ndarray]] = [{}]
    for name, tensor in tensors.items():
        held = sum(other.nbytes for other in shards[-1].values())
        if shards[-1] and held + tensor.nbytes > max_shard_bytes:
            shards.append({})
        shards[-1][name] = tensor
    if len(shards) == 1:
        _write(folder / WHOLE, shards[0])
        return [WHOLE]
    files = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        _write(folder / file, shard)
    total = sum(tensor.nbytes for tensor in tensors.values())
    places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*files, INDEX]


def _write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one file: the length of the header (8 bytes), the header (JSON), the tensors in order.

    The library's own writer needs the bytes of all tensors at once.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for this key
    offset = 0
    for name, tensor in tensors.items():
        ends = [offset, offset + tensor.nbytes]
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": ends}
        offset = ends[1]
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            for rows in row_blocks(tensor.shape, tensor.nbytes):
                file.write(tensor[rows].tobytes())
