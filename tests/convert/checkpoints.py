"""Checkpoints made by others' code for the tests of conversion: transformers' models, gguf's writer, small folders."""

import functools
import json
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from fot_jax.checkpoint import load_params
from fot_jax.config import ModelConfig
from fot_jax.models.transformer import Decoder

TEXT = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SMALL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Hugging Face's names and shapes, written out."""
    E, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    D = config.get("head_dim") or E // config["num_attention_heads"]
    heads, groups = config["num_attention_heads"] * D, config["num_key_value_heads"] * D
    found = {"model.embed_tokens.weight": (V, E), "model.norm.weight": (E,)}
    for n in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm": (E,), "post_attention_layernorm": (E,), "self_attn.q_proj": (heads, E),
            "self_attn.k_proj": (groups, E), "self_attn.v_proj": (groups, E), "self_attn.o_proj": (E, heads),
            "mlp.gate_proj": (F, E), "mlp.up_proj": (F, E), "mlp.down_proj": (E, F),
        }  # fmt: skip
        found |= {f"model.layers.{n}.{name}.weight": shape for name, shape in layer.items()}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (V, E)
    return found


def random_tensors(config: dict[str, Any], dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """A tensor of every name."""
    rng = np.random.default_rng(3)
    return {name: rng.standard_normal(shape, np.float32).astype(dtype) for name, shape in shapes(config).items()}


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], *, shards: int = 1) -> Path:
    """A Hugging Face folder as the safetensors library writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    if shards == 1:
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        return folder
    places = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        safetensors.numpy.save_file({n: tensors[n] for n in names if places[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def llama(**changes: Any) -> Any:
    """A random `transformers` model; its attention is peaked and its norms differ, so that every mistake shows."""
    import torch
    import transformers

    fields = {
        "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": 160, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
        "initializer_range": 0.06, "bos_token_id": 1, "eos_token_id": 2, "attn_implementation": "eager",
    }  # fmt: skip
    config = transformers.LlamaConfig(**{**fields, **changes})
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter += 0.2 * torch.randn_like(parameter)
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter *= 1.2
    return model


def tokens_for(vocab: int, length: int) -> np.ndarray:
    """Random tokens [1, length]."""
    return np.random.default_rng(5).integers(0, vocab, (1, length)).astype(np.int32)


def their_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Logits [B, L, V] of a `transformers` model."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(tokens.astype(np.int64))).logits.float().numpy()


@functools.partial(jax.jit, static_argnums=0)
def _forward(config: ModelConfig, params: Any, tokens: jax.Array) -> jax.Array:
    return Decoder(config).apply({"params": params}, tokens).logits


def our_logits(workdir: Path, tokens: np.ndarray, config: ModelConfig | None = None) -> np.ndarray:
    """Logits [B, L, V] of an imported model, or of its parameters under another config."""
    experiment, params, _ = load_params(workdir)
    return np.asarray(_forward(config or experiment.model, params, jnp.asarray(tokens)))


def bpe_tokenizer(size: int = 400) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer of SmolLM2's kind (digits one by one), trained on the README."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


TO_GGUF = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
}  # fmt: skip


def gguf_name(name: str) -> str:
    """llama.cpp's name for one of Hugging Face's."""
    layer = name.removesuffix(".weight").removeprefix("model.layers.")
    number, _, part = layer.partition(".")
    if number.isdigit():
        return f"blk.{number}.{TO_GGUF[part]}.weight"
    return f"{TO_GGUF[layer]}.weight"


def interleave(tensor: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows in llama.cpp's order: within a head, row 2i holds i and row 2i + 1 holds i + D/2."""
    moved = np.empty_like(tensor)
    for start in range(0, len(tensor), head_dim):
        for i in range(head_dim // 2):
            moved[start + 2 * i] = tensor[start + i]
            moved[start + 2 * i + 1] = tensor[start + i + head_dim // 2]
    return moved


def write_gguf(path: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], *, kind: str = "F32",
               metadata: dict[str, Any] | None = None, arch: str = "llama") -> Path:  # fmt: skip
    """A GGUF file as llama.cpp's own package writes it: matrices of one kind, norms F32, heads interleaved.

    `tensors` are Hugging Face's; a uint8 one is stored as it is (raw blocks of `kind`).
    """
    writer = gguf.GGUFWriter(path, arch)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    for key, value in (metadata or {}).items():
        writer.kv_data[0].pop(key, None)  # in place of what is above
        {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array,
         bool: writer.add_bool}[type(value)](key, value)  # fmt: skip
    quantisation = gguf.GGMLQuantizationType[kind]
    for name, tensor in tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = interleave(tensor, head_dim)
        if tensor.ndim == 2 and kind != "F32":
            stored = tensor if tensor.dtype == np.uint8 else gguf.quantize(tensor, quantisation)
            writer.add_tensor(gguf_name(name), stored, raw_dtype=quantisation)
        else:
            writer.add_tensor(gguf_name(name) if "." in name and not name.startswith("rope") else name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
