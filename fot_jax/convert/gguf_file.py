"""GGUF, llama.cpp's single file: metadata as a config.json, tensors dequantised in blocks of rows.

llama.cpp rotates dimension 2i with 2i + 1, Hugging Face i with i + D/2: the D rows of every query and key head
come in another order.

    place in GGUF       0   1    2   3      ...  D-2    D-1
    its row here        0   D/2  1   D/2+1  ...  D/2-1  D-1
"""

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from fot_jax.config import RopeConfig, RopeScaling, UserError
from fot_jax.convert import gguf_tokenizer, names
from fot_jax.convert.rope_scaling import write_rope
from fot_jax.convert.safetensors_files import row_blocks
from fot_jax.ops.rope import rope_frequencies

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
ROPE_FACTORS = "rope_freqs.weight"
NEUTRAL = {  # other values would change the numbers, and we have nothing that computes with them
    "expert_count": 0,
    "attention.sliding_window": 0,
    "rope.scaling.alpha": 0,
    "rope.scaling.attn_factor": 1,
    "rope.scaling.yarn_attn_factor": 1,
    "rope.scaling.yarn_log_multiplier": 0,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stored:
    """A tensor in the file; `shape` as Hugging Face has it, rows first."""

    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    offset: int
    num_bytes: int


class GGUFFile:
    """One GGUF file under Hugging Face's names (llama.cpp's own for tensors that Hugging Face lacks).

    Attributes:
      config: what a Hugging Face config.json would hold.
      shapes: of every tensor, rows first.
      num_bytes: of every tensor, as stored.
    """

    def __init__(self, path: Path):
        """Reads metadata and the list of tensors.

        Raises:
          UserError: no GGUF, a truncated one, another architecture, or an unsupported quantisation or feature.
        """
        self.path = path
        try:
            reader = gguf.GGUFReader(path)
            metadata = {key: field.contents() for key, field in reader.fields.items()}
        except (ValueError, IndexError, KeyError, OverflowError, MemoryError, TypeError, struct.error) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path} is truncated or no supported GGUF file ({reason}). Download it again.") from error
        self._metadata: dict[str, Any] = metadata
        self._tensors: dict[str, _Stored] = {}
        for tensor in reader.tensors:
            if tensor.tensor_type.name not in KINDS:
                raise UserError(
                    f"{path}: {tensor.name} must be one of {', '.join(KINDS)}, got {tensor.tensor_type.name}."
                    " Take the file in another quantisation."
                )
            self._tensors[names.from_gguf(tensor.name) or tensor.name] = _Stored(
                shape=tuple(int(n) for n in tensor.shape[::-1]),
                kind=tensor.tensor_type,
                offset=int(tensor.data_offset),
                num_bytes=int(tensor.n_bytes),
            )
        self.config = self._read_config()
        self._tensors.pop(ROPE_FACTORS, None)  # they are in the config now
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        self.num_bytes = {name: tensor.num_bytes for name, tensor in self._tensors.items()}

    def __enter__(self) -> "GGUFFile":
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Nothing stays open."""

    def _get(self, key: str, kind: type, default: Any = None) -> Any:
        """`llama.KEY` of the metadata: a number or a string. Raises UserError where it is none of that type."""
        value = self._metadata.get(f"llama.{key}", default)
        if kind is float and isinstance(value, (int, float)):
            # A float32 of the file means the decimal that it was written from: 1e-05, not 9.9999997e-06.
            return float(str(np.float32(value)))
        if type(value) is not kind:
            raise UserError(f"{self.path}: llama.{key} must be {kind.__name__}, got {value!r}. Download it again.")
        return value

    def _read_config(self) -> dict[str, Any]:
        kind = self._metadata.get("general.architecture")
        if kind != "llama":
            raise UserError(f"{self.path}: general.architecture must be 'llama', got {kind!r}.")
        for key, neutral in NEUTRAL.items():
            value = self._metadata.get(f"llama.{key}", neutral)
            if value != neutral:
                raise UserError(f"{self.path}: llama.{key} must be absent or {neutral}, got {value!r}.")
        heads, embed = self._get("attention.head_count", int), self._get("embedding_length", int)
        head_dim = self._get("attention.key_length", int, embed // max(heads, 1))
        for key in ("attention.value_length", "rope.dimension_count"):
            found = self._get(key, int, head_dim)
            if found != head_dim:
                raise UserError(f"{self.path}: llama.{key} must equal the head's {head_dim}, got {found}.")
        embedding = self._tensors.get(names.EMBEDDING)
        rows = 0 if embedding is None else embedding.shape[0]
        specials = {name: self._metadata.get(f"tokenizer.ggml.{name}") for name in ("bos_token_id", "eos_token_id")}
        return {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": embed,
            "intermediate_size": self._get("feed_forward_length", int),
            "num_hidden_layers": self._get("block_count", int),
            "num_attention_heads": heads,
            "num_key_value_heads": self._get("attention.head_count_kv", int, heads),
            "head_dim": head_dim,
            "vocab_size": rows or self._get("vocab_size", int),
            "rms_norm_eps": self._get("attention.layer_norm_rms_epsilon", float),
            "max_position_embeddings": self._get("context_length", int),
            "tie_word_embeddings": names.UNEMBEDDING not in self._tensors,
            **write_rope(self._read_rope(head_dim)),
            **{name: value for name, value in specials.items() if value is not None},
        }

    def _read_rope(self, head_dim: int) -> RopeConfig:
        theta = self._get("rope.freq_base", float, 10000.0)
        factor = self._get("rope.scaling.factor", float, self._get("rope.scale_linear", float, 0.0))
        kind = self._get("rope.scaling.type", str, "linear" if factor else "none")  # as llama.cpp reads it
        mixed = self._get("rope.scaling.yarn_ext_factor", float, -1.0)  # -1: as the kind has it
        if mixed not in (-1.0, float(kind == "yarn")):
            raise UserError(
                f"{self.path}: llama.rope.scaling.yarn_ext_factor must be absent, or 1 for yarn and 0 for any other"
                f" kind, got {mixed} for {kind!r}."
            )
        if ROPE_FACTORS in self._tensors:
            if kind != "none":
                raise UserError(
                    f"{self.path}: llama.rope.scaling.type must be none beside the tensor {ROPE_FACTORS}, got {kind!r}."
                )
            return self._llama3(theta, head_dim)
        if kind == "none":
            return RopeConfig(theta=theta)
        if kind not in ("linear", "yarn"):
            raise UserError(f"{self.path}: llama.rope.scaling.type must be none, linear or yarn, got {kind!r}.")
        original = self._get("rope.scaling.original_context_length", int, self._get("context_length", int))
        rope = RopeConfig(
            theta=theta,
            scaling=RopeScaling(kind),
            factor=factor,
            original_context=original,
            beta_fast=self._get("rope.scaling.yarn_beta_fast", float, RopeConfig.beta_fast),
            beta_slow=self._get("rope.scaling.yarn_beta_slow", float, RopeConfig.beta_slow),
        )
        rope.validate(f"{self.path}: llama.rope.scaling")
        return rope

    def _llama3(self, theta: float, head_dim: int) -> RopeConfig:
        """The llama3 scaling whose divisors the file holds: Meta's numbers with the factor that fits.

        Raises:
          UserError: none fits.
        """
        stored = self._tensors[ROPE_FACTORS]
        divisors = np.concatenate([block.ravel() for _, block in self._rows(ROPE_FACTORS, stored)])
        factor = float(divisors.max(initial=1.0))
        rope = RopeConfig(
            theta=theta, scaling=RopeScaling.LLAMA3, factor=factor, original_context=8192, low_freq_factor=1.0
        )
        plain, _ = rope_frequencies(RopeConfig(theta=theta), head_dim, 1)
        scaled, _ = rope_frequencies(rope, head_dim, 1)
        if divisors.shape != plain.shape or not np.allclose(plain / scaled, divisors, rtol=1e-3):
            raise UserError(
                f"{self.path}: {ROPE_FACTORS} must be those of LLaMA 3 (original context 8192, frequency factors 1"
                " and 4), got others. Import the Hugging Face folder, whose config.json has the numbers."
            )
        return rope

    def blocks(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        """(rows, their values, float32) of a tensor in order, heads in Hugging Face's order.

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

    def _rows(self, name: str, stored: _Stored, *, multiple: int = 1) -> Iterator[tuple[slice, np.ndarray]]:
        """(rows, values) as the file orders them; a vector is one row. Blocks count float32 bytes, what comes out."""
        count, width = (1, *stored.shape)[-2:]
        row_bytes = stored.num_bytes // count
        with self.path.open("rb") as file:
            for rows in row_blocks((count, width), 4 * count * width, multiple=multiple):
                file.seek(stored.offset + rows.start * row_bytes)
                data = file.read(row_bytes * (rows.stop - rows.start))
                if len(data) != row_bytes * (rows.stop - rows.start):
                    raise UserError(f"{self.path} is truncated in {name}. Download it again.")
                values = gguf.dequantize(np.frombuffer(data, np.uint8).reshape(-1, row_bytes), stored.kind)
                values = values.reshape(-1, width)
                yield (rows, values) if len(stored.shape) == 2 else (slice(0, width), values[0])

    def write_tokenizer(self, folder: Path) -> str | None:
        """Writes the tokenizer of the metadata as files that `fot_jax.data.vocabulary` and transformers read.

        Returns:
          The name of the main file; None if the file holds no tokenizer.

        Raises:
          UserError: a kind of tokenizer that is not supported.
        """
        return gguf_tokenizer.write_tokenizer(self._metadata, folder, source=str(self.path))
