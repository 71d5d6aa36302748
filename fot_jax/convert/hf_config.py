"""Turns a config.json of Hugging Face into our model and memory sections, and back.

Read: `LlamaForCausalLM` (LLaMA 1, 2, 3 and their like: grouped queries, tied embeddings, `head_dim`, every
rotary scaling of `rope_scaling`) and `LongLlamaForCausalLM`. Written: `LlamaForCausalLM`, with what
transformers does not know under "fot_jax". A feature the decoder lacks is refused by its key.
"""

import dataclasses
import logging
from typing import Any

from fot_jax.config import (
    ConfigError,
    Dtype,
    ExperimentConfig,
    Family,
    LastContext,
    MemoryConfig,
    MemoryPositions,
    ModelConfig,
    Retrieval,
    UserError,
)
from fot_jax.config.build import build, to_dict
from fot_jax.config.enums import RopeScaling
from fot_jax.config.renames import with_current_names
from fot_jax.convert.hf_keys import check_keys
from fot_jax.convert.rope_scaling import finite, read_rope, write_rope

logger = logging.getLogger(__name__)

ARCHITECTURES = {"LlamaForCausalLM": "llama", "LongLlamaForCausalLM": "longllama"}
FOT_JAX_KEY = "fot_jax"
# Fields of the model that "fot_jax" may set; config.json's own keys give the shapes.
FOT_JAX_FIELDS = (
    "local_context",
    "memory_layers",
    "memory_positions",
    "dtype",
    "attention",
    "attention_block",
    "remat",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Changes:
    """Settings of the user on import; None keeps the checkpoint's own."""

    memory_layers: tuple[int, ...] | None = None
    local_context: int | None = None


class _Values:
    """config.json with typed access; errors name the file and the key."""

    def __init__(self, values: dict[str, Any], source: str):
        self.values, self.source = values, source

    def get(self, name: str, kinds: tuple[type, ...], default: Any = None) -> Any:
        """Returns a value of the given types (a bool is no number); `default` where it is absent or null."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise UserError(f"{self.source}: {name} must be {wanted}, got {value!r}.")
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        return self.get(name, (int,), default)

    def number(self, name: str, default: float | None = None) -> float:
        value = self.values.get(name)
        return finite(default if value is None else value, f"{self.source}: {name}")


def architecture(values: dict[str, Any], *, source: str) -> str:
    """Returns our name for the architecture ("llama", "longllama"). Raises UserError for one not in ARCHITECTURES."""
    named = values.get("architectures") or []
    kinds = {v: k for k, v in ARCHITECTURES.items()}
    stated = values.get("model_type")
    name = named[0] if isinstance(named, list) and named else kinds.get(stated) if isinstance(stated, str) else None
    if not isinstance(name, str) or name not in ARCHITECTURES:
        got = name or stated
        allowed = " or ".join(repr(a) for a in ARCHITECTURES)
        raise UserError(f"{source}: architectures must be {allowed}, got {got!r}. Other models are not supported.")
    if stated not in (None, ARCHITECTURES[name]):
        raise UserError(
            f"{source}: model_type must be {ARCHITECTURES[name]!r}, as architectures says {name!r}, got {stated!r}."
        )
    return ARCHITECTURES[name]


def read_config(
    values: dict[str, Any], *, source: str, changes: Changes = Changes()
) -> tuple[ModelConfig, MemoryConfig]:
    """Reads the model and the memory that a config.json describes.

    LongLLaMA: `mem_layers`, `mem_positionals` (false: no positions in memory layers), `last_context_length`
    (at most the local context) become ours, and memory is read densely as its code does. `mem_dtype`,
    `mem_attention_grouping` and `gradient_checkpoint_every_ith` change only speed and bytes and are left out.

    Args:
      values: config.json.
      source: the file; errors begin with it.
      changes: the user's settings, which win. Without them the local context is `max_position_embeddings`.

    Raises:
      UserError: an unknown architecture, a missing or mistyped key, or an unsupported feature, by its key.
    """
    kind = architecture(values, source=source)
    check_keys(values, source=source)
    read = _Values(values, source)
    embed, heads = read.integer("hidden_size"), read.integer("num_attention_heads")
    if heads < 1 or (values.get("head_dim") is None and embed % heads):
        raise UserError(f"{source}: hidden_size must be a multiple of num_attention_heads={heads}, got {embed}.")
    positions = read.integer("max_position_embeddings", 2048)
    fields: dict[str, Any] = {
        "num_layers": read.integer("num_hidden_layers"),
        "embed_dim": embed,
        "num_heads": heads,
        "num_kv_heads": read.integer("num_key_value_heads", heads),
        "head_dim": read.integer("head_dim", embed // heads),
        "mlp_dim": read.integer("intermediate_size"),
        "vocab_size": read.integer("vocab_size"),
        "local_context": positions,
        "rope": to_dict(read_rope(values, max_positions=positions, source=source)),
        "tie_embeddings": read.get("tie_word_embeddings", (bool,), False),
        "norm_epsilon": read.number("rms_norm_eps", 1e-6),
    }
    memory: dict[str, Any] = {}
    if kind == "longllama":
        fields["memory_layers"] = read.get("mem_layers", (list,), [])
        still = read.get("mem_positionals", (bool,), True) is False
        fields["memory_positions"] = (MemoryPositions.NOPE if still else MemoryPositions.ROPE0).value
        memory["retrieval"] = Retrieval.DENSE.value
        memory["last_context"] = LastContext.EXACT.value
        memory["last_context_length"] = read.integer("last_context_length", 1024)
    else:
        ours = read.get(FOT_JAX_KEY, (dict,), {})
        model = _Values(ours, f"{source}: {FOT_JAX_KEY}").get("model", (dict,), {})
        fields |= {key: model[key] for key in FOT_JAX_FIELDS if key in model}
        memory = _Values(ours, f"{source}: {FOT_JAX_KEY}").get("memory", (dict,), {})
        memory = with_current_names({"memory": memory})["memory"]
    return _build_sections(fields, dict(memory), changes, source=source)


def _build_sections(fields: dict, memory: dict, changes: Changes, *, source: str) -> tuple[ModelConfig, MemoryConfig]:
    """Builds both sections with the user's changes; errors of their checks name the file."""
    fields |= {key: value for key, value in dataclasses.asdict(changes).items() if value is not None}
    try:
        model = build(ModelConfig, fields, path="model")
        last = memory.get("last_context_length")
        if isinstance(last, int) and last > model.local_context:
            logger.warning(
                "%s: last_context_length %d is more than the local context: %d is taken (memory.last_context_length)",
                source, last, model.local_context,
            )  # fmt: skip
            memory["last_context_length"] = model.local_context
        return model, build(MemoryConfig, memory, path="memory")
    except ConfigError as error:
        raise UserError(f"{source}: {error}") from error


def check_exportable(model: ModelConfig) -> None:
    """Raises UserError where transformers' LlamaForCausalLM would compute something else."""
    rules = {
        "family": (model.family is Family.LLAMA, "'llama'", model.family.value),
        "smear_keys": (not model.smear_keys, "off", model.smear_keys),
        "memory_gate": (not model.memory_gate, "off", model.memory_gate),
        "scan_layers": (model.scan_layers, "on", model.scan_layers),
    }
    for name, (holds, words, got) in rules.items():
        if not holds:
            raise UserError(
                f"model.{name} must be {words} to be written for transformers, got {got!r}. Use --format=orbax."
            )
    still = model.memory_positions is MemoryPositions.NOPE
    if still and model.memory_layers:
        raise UserError(
            "model.memory_positions must be 'rope0' to be written for transformers, whose layers all rotate,"
            " got 'nope'. Use --format=orbax."
        )


def write_config(config: ExperimentConfig, *, dtype: Dtype, source_values: dict[str, Any]) -> dict[str, Any]:
    """Returns the config.json of a `LlamaForCausalLM` with our settings under "fot_jax".

    Args:
      config: the experiment; see `check_exportable`.
      dtype: of the stored tensors.
      source_values: config.json of the checkpoint that the model was imported from, or empty; special token
        ids and the trained context are taken from it.
    """
    model = config.model
    kept = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "attention_dropout", "pretraining_tp")
    positions = source_values.get("max_position_embeddings", model.local_context)
    if model.rope.scaling is RopeScaling.DYNAMIC:
        positions = model.rope.original_context
    sections = ("model", "crossbatch", "memory")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": model.embed_dim,
        "intermediate_size": model.mlp_dim,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": model.vocab_size,
        "rms_norm_eps": model.norm_epsilon,
        "tie_word_embeddings": model.tie_embeddings,
        "max_position_embeddings": positions,
        "torch_dtype": dtype.value,
        "use_cache": True,
        **write_rope(model.rope),
        **{key: source_values[key] for key in kept if key in source_values},
        "mem_layers": list(model.memory_layers),
        FOT_JAX_KEY: {"name": config.name, **{section: to_dict(getattr(config, section)) for section in sections}},
    }
