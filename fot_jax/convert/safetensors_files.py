"""safetensors: a folder read tensor by tensor in blocks of rows, and written the same way.

A folder holds one `*.safetensors`, or several and `model.safetensors.index.json` that says which holds what.
"""

import contextlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # registers bfloat16 with numpy, for safetensors too
import numpy as np
from safetensors import SafetensorError, safe_open

from fot_jax.config import UserError

BLOCK_BYTES = 2**24  # rows are read and written in pieces of about this size
INDEX = "model.safetensors.index.json"
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
NAMES = {np.dtype(kind): name for name, kind in DTYPES.items()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError where the file is missing or holds something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing. --from must name a Hugging Face folder or a GGUF file.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} must be JSON, but cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must be a JSON object, got {type(values).__name__}.")
    return values


def _indexed(folder: Path) -> dict[str, str]:
    """The index: tensor name -> file name."""
    path = folder / INDEX
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{path} must hold a weight_map from tensor names to files, got {type(places).__name__}.")
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise UserError(f"{path} must name files beside it, got {name!r}.")
        if not (folder / name).is_file():
            count = len(set(places.values()))
            raise UserError(f"{folder} must hold all {count} shards of {INDEX}; {name} is missing. Download it.")
    return places


class SafetensorsFolder:
    """The tensors of a folder; a context manager that keeps its files mapped.

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
            if (folder / INDEX).exists():
                self._open_indexed(stack, _indexed(folder))
            else:
                self._open(stack, self._single())
            self._stack = stack.pop_all()
        self.shapes = {name: tuple(part.get_shape()) for name, part in self._slices.items()}
        sizes = {name: np.dtype(DTYPES.get(part.get_dtype(), np.uint8)).itemsize for name, part in self._slices.items()}
        self.num_bytes = {
            name: int(np.prod(shape, dtype=np.int64)) * sizes[name] for name, shape in self.shapes.items()
        }

    def __enter__(self) -> "SafetensorsFolder":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._slices = {}
        self._stack.close()

    def _single(self) -> Path:
        files = sorted(self.folder.glob("*.safetensors"))
        whole = self.folder / "model.safetensors"
        if whole in files:
            return whole
        if len(files) == 1:
            return files[0]
        if files:
            raise UserError(f"{self.folder} must hold {INDEX} for its {len(files)} shards; it is missing. Download it.")
        pickled = sorted(path.name for path in self.folder.glob("*.bin"))
        got = f"got {pickled[0]}, which is pickled: convert it to safetensors first" if pickled else "got none"
        raise UserError(f"{self.folder} must hold model.safetensors or shards with {INDEX}, {got}.")

    def _open(self, stack: contextlib.ExitStack, path: Path) -> set[str]:
        try:
            file = stack.enter_context(safe_open(path, framework="np"))
            names = set(file.keys())
            self._slices |= {name: file.get_slice(name) for name in names}
        except (SafetensorError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path} is truncated or no safetensors file ({reason}). Download it again.") from error
        return names

    def _open_indexed(self, stack: contextlib.ExitStack, places: dict[str, str]) -> None:
        held = {name: self._open(stack, self.folder / name) for name in sorted(set(places.values()))}
        for name, file in places.items():
            if name not in held[file]:
                raise UserError(f"{self.folder / file} must hold {name}, as {INDEX} says, but does not. Download both.")

    def blocks(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        """(rows, their values) of a tensor in its own dtype, in order, about BLOCK_BYTES at a time.

        Raises:
          UserError: a dtype that is no float of DTYPES, or a file that shrank meanwhile.
        """
        part = self._slices[name]
        if part.get_dtype() not in DTYPES:
            raise UserError(f"{self.folder}: {name} must be one of {', '.join(DTYPES)}, got {part.get_dtype()}.")
        for rows in row_blocks(self.shapes[name], self.num_bytes[name]):
            try:
                yield rows, part[rows]
            except (SafetensorError, OSError) as error:
                raise UserError(f"{self.folder}: {name} cannot be read ({error}). Download it again.") from error


def row_blocks(shape: tuple[int, ...], num_bytes: int, *, multiple: int = 1) -> Iterator[slice]:
    """Slices of the first axis of about BLOCK_BYTES each, of a multiple of some rows but for the last."""
    rows = max(1, shape[0])
    step = max(1, BLOCK_BYTES * rows // max(1, num_bytes) // multiple) * multiple
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def write_folder(folder: Path, tensors: Mapping[str, np.ndarray], *, max_shard_bytes: int) -> list[str]:
    """Writes model.safetensors, or shards and their index where it would be larger than a shard may be.

    Args:
      folder: exists.
      tensors: in any layout (views welcome); each is copied one block of rows at a time.
      max_shard_bytes: a shard holds at least one tensor, whatever its size.

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
        _write(folder / "model.safetensors", shards[0])
        return ["model.safetensors"]
    files = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        _write(folder / file, shard)
    total = sum(tensor.nbytes for tensor in tensors.values())
    places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*files, INDEX]


def _write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """One file: the length of the header (8 bytes), the header (JSON), the tensors one after another.

    The library's own writer wants every tensor's bytes at once.
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
