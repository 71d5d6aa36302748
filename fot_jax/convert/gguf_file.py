"""Reads GGUF, llama.cpp's files: metadata as a config.json, tensors dequantised in blocks of rows.

llama.cpp rotates dimension 2i with 2i + 1, Hugging Face i with i + D/2: the D rows of every query and key head
must be reordered.

    place in GGUF       0   1    2   3      ...  D-2    D-1
    its row here        0   D/2  1   D/2+1  ...  D/2-1  D-1
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fot_jax.config import UserError
from fot_jax.convert import gguf_tokenizer, names
from fot_jax.convert.gguf_metadata import ROPE_FACTORS, Metadata, check_is_model
from fot_jax.convert.gguf_reader import StoredTensor, read_contents
from fot_jax.convert.safetensors_files import row_blocks
from fot_jax.extras import needs

with needs("convert", "Importing a GGUF file"):
    import gguf

logger = logging.getLogger(__name__)


class GGUFFile:
    """One GGUF file, or a split model's files, by Hugging Face's names (llama.cpp's for tensors that it lacks).

    Attributes:
      config: the content of the matching Hugging Face config.json.
      shapes: of every tensor, rows first.
      num_bytes: of every tensor, as stored.
    """

    def __init__(self, path: Path):
        """Reads metadata and the list of tensors.

        Args:
          path: the file, or any part of a split model (the others are next to it).

        Raises:
          UserError: no GGUF, a truncated one, missing parts, an adapter, another architecture, or an unsupported
            quantisation or feature.
        """
        self.path = path
        contents = read_contents(path)
        self._metadata = contents.metadata
        check_is_model(path, self._metadata)
        foreign = next((name for name in contents.tensors if name.startswith(("model.", "lm_head."))), None)
        if foreign is not None:
            raise UserError(f"{path}: tensors must have llama.cpp's names, got {foreign}. Convert the model again.")
        self._tensors = {names.hf_name(name) or name: stored for name, stored in contents.tensors.items()}
        divisors = self._tensors.pop(ROPE_FACTORS, None)  # they are in the config then
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        self.num_bytes = {name: tensor.num_bytes for name, tensor in self._tensors.items()}
        values = None if divisors is None else self._vector(divisors)
        self.config = Metadata(path, self._metadata).config(self.shapes, values)
        if self.config["tie_word_embeddings"]:
            if not contents.whole:
                raise UserError(
                    f"{path}: the parts must hold output.weight, or say by split.tensors.count that no tensor is"
                    " missing. Split the model again, or import it from one file."
                )
            logger.info("%s has no output.weight: the embedding unembeds too, as in llama.cpp", path)

    def __enter__(self) -> "GGUFFile":
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Does nothing: no file stays open."""

    def blocks(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields (rows, their float32 values) of a tensor, rows and heads in Hugging Face's order.

        Raises:
          UserError: the file shrank meanwhile.
        """
        stored = self._tensors[name]
        if not name.endswith((".q_proj.weight", ".k_proj.weight")):
            yield from self._rows(name, stored)
            return
        head_dim = self.config["head_dim"]
        for rows, block in self._rows(name, stored, multiple=head_dim):
            pairs = block.reshape(-1, head_dim // 2, 2, block.shape[-1])
            yield rows, pairs.swapaxes(1, 2).reshape(block.shape)

    def _rows(self, name: str, stored: StoredTensor, *, multiple: int = 1) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields (rows, values) in the file's order; a vector is one row. Block sizes count the float32 bytes.

        A row holds whole blocks of quantised numbers, so that any rows can be dequantised by themselves.
        """
        count, width = (1, *stored.shape)[-2:]
        row_bytes = stored.num_bytes // count
        with stored.path.open("rb") as file:
            for rows in row_blocks((count, width), 4 * count * width, multiple=multiple):
                file.seek(stored.offset + rows.start * row_bytes)
                data = file.read(row_bytes * (rows.stop - rows.start))
                if len(data) != row_bytes * (rows.stop - rows.start):
                    raise UserError(f"{stored.path} became shorter while it was read: {name} is not whole.")
                values = gguf.dequantize(np.frombuffer(data, np.uint8).reshape(-1, row_bytes), stored.kind)
                values = values.reshape(-1, width)
                yield (rows, values) if len(stored.shape) == 2 else (slice(0, width), values[0])

    def _vector(self, stored: StoredTensor) -> np.ndarray:
        """Reads the values of ROPE_FACTORS; none where it is no vector."""
        if len(stored.shape) != 1 or not stored.shape[0]:
            return np.zeros(0, np.float32)
        return np.concatenate([block for _, block in self._rows(ROPE_FACTORS, stored)])

    def write_tokenizer(self, folder: Path) -> str | None:
        """Writes the tokenizer of the metadata as files that `fot_jax.data.vocabulary` and transformers read.

        Returns:
          The name of the main file; None if the file holds no tokenizer.

        Raises:
          UserError: a kind of tokenizer that is not supported.
        """
        return gguf_tokenizer.write_tokenizer(self._metadata, folder, source=str(self.path))
