"""Turns the metadata of a GGUF file of the architecture `llama` into a config.json of Hugging Face.

Every key of `llama.*` that the package gguf knows is read (`READ`), refused where its value asks for a computation that
this project lacks (`NEUTRAL`), or harmless for a stated reason (`HARMLESS`). Other keys are logged once.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fot_jax.config import RopeConfig, RopeScaling, UserError
from fot_jax.convert import names
from fot_jax.convert.rope_scaling import write_rope
from fot_jax.ops.rope import rope_frequencies

logger = logging.getLogger(__name__)

ROPE_FACTORS = "rope_freqs.weight"
ARCHITECTURE = "llama"
END_ROLES = ("eos", "eot", "eom")  # of the tokens that end generated text
NEUTRAL: dict[str, tuple[Any, ...]] = {  # other values would change the numbers
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "interleave_moe_layer_step": (0,),
    "moe_every_n_layers": (0,),
    "nextn_predict_layers": (0,),
    "use_parallel_residual": (False,),
    "pooling_type": (0,),
    "logit_scale": (0, 1),  # llama.cpp takes 0 for none
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "router_logit_softcapping": (0,),
    "swin_norm": (False,),
    "rescale_every_n_layers": (0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.output_scale": (0, 1),
    "attention.q_lora_rank": (0,),
    "attention.kv_lora_rank": (0,),
    "attention.relative_buckets_count": (0,),
    "attention.shared_kv_layers": (0,),
    "attention.sliding_window": (0,),
    "attention.sliding_window_pattern": (0,),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0, 1),
    "rope.scaling.alpha": (0,),
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_log_multiplier": (0,),
}
READ = (
    "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_rms_epsilon", "attention.scale", "rope.dimension_count", "rope.freq_base",
    "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
    "rope.scaling.yarn_ext_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
)  # fmt: skip
HARMLESS = {
    "vocab_size": "the embedding's rows are counted",
    "tensor_data_layout": "rows of queries and keys have llama.cpp's order whatever they were converted from",
    "rope.scaling.finetuned": "says how the model was trained",
    "rope.dimension_sections": "parts an image's positions; a text's are the same in all sections",
}


def check_is_model(path: Path, metadata: Mapping[str, Any]) -> None:
    """Raises UserError where a GGUF file is an adapter, a projector or the like, or of another architecture."""
    kind = metadata.get("general.type", "model")
    if kind == "adapter" or any(key.startswith("adapter.") for key in metadata):
        raise UserError(
            f"{path} is an adapter (LoRA), not a model. Merge it into its model with llama.cpp's llama-export-lora and"
            " give the file that comes out."
        )
    if kind != "model":
        raise UserError(f"{path}: general.type must be 'model', got {kind!r}. Give the file of the language model.")
    found = metadata.get("general.architecture")
    if found != ARCHITECTURE:
        raise UserError(f"{path}: general.architecture must be {ARCHITECTURE!r}, got {found!r}.")


class Metadata:
    """`llama.*` of a file's metadata with typed access; errors name the file and the key."""

    def __init__(self, path: Path, values: Mapping[str, Any]):
        self.path, self._values = path, values

    def config(self, shapes: Mapping[str, tuple[int, ...]], divisors: np.ndarray | None) -> dict[str, Any]:
        """Builds the content of the matching Hugging Face config.json.

        Args:
          shapes: of the tensors, by Hugging Face's names.
          divisors: the values of ROPE_FACTORS; None where the file has no such tensor.

        Raises:
          UserError: a key that is missing, of another type, or whose value this project does not compute.
        """
        check_is_model(self.path, self._values)
        heads, embed = self._integer("attention.head_count"), self._integer("embedding_length")
        head_dim = self._integer("attention.key_length", embed // max(heads, 1))
        self._check_keys(head_dim)
        rows = shapes.get(names.EMBEDDING, ())
        specials = {"bos_token_id": self._values.get("tokenizer.ggml.bos_token_id"), "eos_token_id": self._end_ids()}
        return {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": embed,
            "intermediate_size": self._integer("feed_forward_length"),
            "num_hidden_layers": self._integer("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._integer("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "vocab_size": rows[0] if len(rows) == 2 else self._integer("vocab_size"),
            "rms_norm_eps": self._number("attention.layer_norm_rms_epsilon"),
            "max_position_embeddings": self._integer("context_length"),
            "tie_word_embeddings": names.UNEMBEDDING not in shapes,
            **write_rope(self._rope(head_dim, divisors)),
            **{name: value for name, value in specials.items() if value is not None},
        }

    def _end_ids(self) -> Any:
        """The ids of END_ROLES, each once, as config.json has them: one or a list; None where there is no eos."""
        ids = [self._values.get(f"tokenizer.ggml.{role}_token_id") for role in END_ROLES]
        ends = [index for place, index in enumerate(ids) if index is not None and index not in ids[:place]]
        return ids[0] if ids[0] is None or len(ends) == 1 else ends

    def _get(self, key: str, default: Any) -> Any:
        """Returns a value; a list of equal values (one a layer) counts as one. Raises UserError if it is missing."""
        value = self._values.get(f"{ARCHITECTURE}.{key}", default)
        if value is None:
            raise UserError(f"{self.path}: {ARCHITECTURE}.{key} is missing. Convert the model again.")
        if isinstance(value, list) and value and all(one == value[0] for one in value):
            return value[0]
        if isinstance(value, list):
            raise UserError(
                f"{self.path}: {ARCHITECTURE}.{key} must be the same in every layer, got {str(value)[:80]}."
                " Layers that differ are not supported."
            )
        return value

    def _wrong_type(self, key: str, kind: str, value: Any) -> UserError:
        return UserError(
            f"{self.path}: {ARCHITECTURE}.{key} must be {kind}, got {value!r}. Whoever converted the model wrote it"
            " so; convert it again."
        )

    def _integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if type(value) is not int:
            raise self._wrong_type(key, "an integer", value)
        return value

    def _number(self, key: str, default: float | None = None) -> float:
        """Returns a number: for a float32 the decimal it was written from, 1e-05, not 9.9999997e-06."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self._wrong_type(key, "a finite number", value)
        return float(str(np.float32(value)))

    def _text(self, key: str, default: str) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong_type(key, "a text", value)
        return value

    def _check_keys(self, head_dim: int) -> None:
        """Raises UserError where a value would change the numbers; logs unknown keys."""
        for key, allowed in NEUTRAL.items():
            value = self._values.get(f"{ARCHITECTURE}.{key}", allowed[0])
            if value not in allowed:
                words = " or ".join(str(one) for one in allowed)
                raise UserError(f"{self.path}: {ARCHITECTURE}.{key} must be absent or {words}, got {value!r}.")
        for key in ("attention.value_length", "rope.dimension_count"):
            found = self._integer(key, head_dim)
            if found != head_dim:
                raise UserError(f"{self.path}: {ARCHITECTURE}.{key} must equal the head's {head_dim}, got {found}.")
        scale = self._number("attention.scale", 0.0)  # llama.cpp takes 0 for the usual one
        usual = max(head_dim, 1) ** -0.5
        if scale and not math.isclose(scale, usual, rel_tol=1e-5):
            raise UserError(
                f"{self.path}: {ARCHITECTURE}.attention.scale must be absent or 1/sqrt({head_dim}) = {usual:.6f},"
                f" got {scale}."
            )
        known = {f"{ARCHITECTURE}.{key}" for key in (*NEUTRAL, *READ, *HARMLESS)}
        unknown = sorted(key for key in self._values if key.startswith(f"{ARCHITECTURE}.") and key not in known)
        if unknown:
            logger.warning("%s: not read, as nothing here knows what it says: %s", self.path, ", ".join(unknown))

    def _rope(self, head_dim: int, divisors: np.ndarray | None) -> RopeConfig:
        """Reads the rotary positions as llama.cpp does: a factor without a kind is linear, no factor is none."""
        theta = self._number("rope.freq_base", 10000.0)
        factor = self._number("rope.scaling.factor", self._number("rope.scale_linear", 0.0))
        kind = self._text("rope.scaling.type", "linear")
        if kind == "linear" and factor in (0.0, 1.0):
            kind = "none"
        mixed = self._number("rope.scaling.yarn_ext_factor", -1.0)  # -1: as the kind has it
        if mixed not in (-1.0, float(kind == "yarn")):
            raise UserError(
                f"{self.path}: {ARCHITECTURE}.rope.scaling.yarn_ext_factor must be absent, or 1 for yarn and 0 for"
                f" any other kind, got {mixed} for {kind!r}."
            )
        if divisors is not None:
            if kind != "none":
                raise UserError(
                    f"{self.path}: {ARCHITECTURE}.rope.scaling.type must be none where the tensor {ROPE_FACTORS} is,"
                    f" got {kind!r}."
                )
            return self._llama3(theta, head_dim, divisors)
        if kind == "none":
            return RopeConfig(theta=theta)
        if kind not in ("linear", "yarn"):
            raise UserError(
                f"{self.path}: {ARCHITECTURE}.rope.scaling.type must be none, linear or yarn, got {kind!r}."
            )
        rope = RopeConfig(
            theta=theta,
            scaling=RopeScaling(kind),
            factor=factor or 1.0,
            original_context=self._integer("rope.scaling.original_context_length", self._integer("context_length")),
            beta_fast=self._number("rope.scaling.yarn_beta_fast", RopeConfig.beta_fast),
            beta_slow=self._number("rope.scaling.yarn_beta_slow", RopeConfig.beta_slow),
        )
        rope.validate(f"{self.path}: {ARCHITECTURE}.rope.scaling")
        return rope

    def _llama3(self, theta: float, head_dim: int, divisors: np.ndarray) -> RopeConfig:
        """Finds the llama3 scaling whose divisors the file holds: Meta's numbers with the factor that fits.

        Raises:
          UserError: none fits.
        """
        unscaled = RopeConfig(theta=theta)
        unscaled.validate(f"{self.path}: rope")
        factor = float(divisors.max(initial=1.0))
        if divisors.shape == (head_dim // 2,) and np.isfinite(factor):
            rope = RopeConfig(
                theta=theta, scaling=RopeScaling.LLAMA3, factor=factor, original_context=8192, low_freq_factor=1.0
            )
            plain, _ = rope_frequencies(unscaled, head_dim, 1)
            scaled, _ = rope_frequencies(rope, head_dim, 1)
            if np.allclose(plain / scaled, divisors, rtol=1e-3):
                return rope
        raise UserError(
            f"{self.path}: {ROPE_FACTORS} must be those of LLaMA 3 (original context 8192, frequency factors 1"
            " and 4), got others. Import the Hugging Face folder, whose config.json has the numbers."
        )
