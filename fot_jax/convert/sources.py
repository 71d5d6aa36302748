"""Opens a checkpoint to import: its config, its tensors by Hugging Face's names, its tokenizer."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fot_jax.config import UserError
from fot_jax.convert.safetensors_files import ADAPTER, SafetensorsFolder, read_json
from fot_jax.workdir import TOKENIZER_COMPANIONS

TOKENIZERS = ("tokenizer.json", "tokenizer.model")  # by preference


class Source(Protocol):
    """Checkpoint to import, a context manager; its attributes are those of GGUFFile."""

    path: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    num_bytes: dict[str, int]

    def __enter__(self) -> "Source": ...

    def __exit__(self, *exc_info: object) -> None: ...

    def blocks(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields (rows, their values) of a tensor, in order."""
        ...

    def write_tokenizer(self, folder: Path) -> str | None:
        """Writes the tokenizer's files; returns the main one's name, None if there is none."""
        ...


class HuggingFaceFolder(SafetensorsFolder):
    """Hugging Face folder: config.json, safetensors and tokenizer files."""

    def __init__(self, folder: Path):
        self.config = read_json(folder / "config.json")
        self.path = folder / "config.json"
        if (folder / ADAPTER).is_file():
            raise UserError(
                f"{folder / ADAPTER} is of an adapter (LoRA) next to the model, which is not applied here. Merge it"
                " into the model first (peft's merge_and_unload), or move it away."
            )
        super().__init__(folder)

    def __enter__(self) -> "HuggingFaceFolder":
        return self

    def write_tokenizer(self, folder: Path) -> str | None:
        """See Source."""
        return copy_tokenizer(self.folder, folder)


def copy_tokenizer(source: Path, folder: Path) -> str | None:
    """Copies the tokenizer files that exist; returns the main one's name, None if there is none."""
    for name in (*TOKENIZERS, *TOKENIZER_COMPANIONS):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    return next((name for name in TOKENIZERS if (source / name).is_file()), None)


def open_source(path: Path) -> Source:
    """Opens a Hugging Face folder or a GGUF file.

    Raises:
      UserError: nothing is there, or it cannot be read.
    """
    if path.is_dir():
        return HuggingFaceFolder(path)
    if path.is_file():
        from fot_jax.convert.gguf_file import GGUFFile

        return GGUFFile(path)
    raise UserError(f"--from must name a Hugging Face folder or a GGUF file, got {str(path)!r}, which does not exist.")
