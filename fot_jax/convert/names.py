"""Maps each Hugging Face LLaMA tensor to its place in our parameters, and llama.cpp's names to Hugging Face's.

Hugging Face stores a linear map as [out, in], one tensor a layer. Ours is [in, out] with an axis for heads and
all layers stacked on axis 0. One rule covers every matrix: reshape our layer to [in, out], transpose.

    model.embed_tokens.weight [V, E]                 embedding [V, E]
    ...self_attn.q_proj.weight [H·D, E]              layers.attention.projections.query [N, E, H, D]
    ...self_attn.{k,v}_proj.weight [G·D, E]          layers.attention.projections.{key,value} [N, E, G, D]
    ...self_attn.o_proj.weight [E, H·D]              layers.attention.output [N, H, D, E]
    ...mlp.{gate,up}_proj.weight [F, E]              layers.feed_forward.{gate,up} [N, E, F]
    ...mlp.down_proj.weight [E, F]                   layers.feed_forward.down [N, F, E]
    ...{input,post_attention}_layernorm.weight [E]   layers.{attention,feed_forward}_norm.scale [N, E]
    model.norm.weight [E]                            final_norm.scale [E]
    lm_head.weight [V, E]                            unembedding [E, V], absent where tied

Both rotate dimension i with i + D/2, so rows keep their order.
"""

import dataclasses
import functools
import operator
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from fot_jax.config import ModelConfig

EMBEDDING, UNEMBEDDING, FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"

GGUF_GLOBAL = {"token_embd.weight": EMBEDDING, "output.weight": UNEMBEDDING, "output_norm.weight": FINAL_NORM}
GGUF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorSlot:
    """Place of one Hugging Face tensor: a parameter's path, its layer, and the tensor's own shape."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    layer: int | None = None
    transposed: bool = False


def tensor_slots(config: ModelConfig) -> dict[str, TensorSlot]:
    """Lists every tensor of a Hugging Face LLaMA of this shape by its name, in the usual order of files.

    Args:
      config: LLAMA family, scanned layers.
    """
    E, F, V = config.embed_dim, config.mlp_dim, config.vocab_size
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    places = {EMBEDDING: TensorSlot(path=("embedding",), shape=(V, E))}
    projections = ("layers", "attention", "projections")
    matrices = {
        "self_attn.q_proj": ((*projections, "query"), (heads, E)),
        "self_attn.k_proj": ((*projections, "key"), (kv_heads, E)),
        "self_attn.v_proj": ((*projections, "value"), (kv_heads, E)),
        "self_attn.o_proj": (("layers", "attention", "output"), (E, heads)),
        "mlp.gate_proj": (("layers", "feed_forward", "gate"), (F, E)),
        "mlp.up_proj": (("layers", "feed_forward", "up"), (F, E)),
        "mlp.down_proj": (("layers", "feed_forward", "down"), (E, F)),
    }
    norms = {"input_layernorm": "attention_norm", "post_attention_layernorm": "feed_forward_norm"}
    for n in range(config.num_layers):
        for name, (path, shape) in matrices.items():
            places[f"model.layers.{n}.{name}.weight"] = TensorSlot(path=path, shape=shape, layer=n, transposed=True)
        for name, norm in norms.items():
            places[f"model.layers.{n}.{name}.weight"] = TensorSlot(path=("layers", norm, "scale"), shape=(E,), layer=n)
    places[FINAL_NORM] = TensorSlot(path=("final_norm", "scale"), shape=(E,))
    if not config.tie_embeddings:
        places[UNEMBEDDING] = TensorSlot(path=("unembedding",), shape=(V, E), transposed=True)
    return places


def is_ignored(name: str, config: ModelConfig) -> bool:
    """True if a tensor may be in a file though no parameter holds it: it is computed, or tied to another one."""
    return name.endswith(".rotary_emb.inv_freq") or (config.tie_embeddings and name == UNEMBEDDING)


def hf_name(name: str) -> str | None:
    """Returns Hugging Face's name for one of llama.cpp's, None where there is none."""
    if name in GGUF_GLOBAL:
        return GGUF_GLOBAL[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    part = GGUF_LAYER.get(match[2]) if match else None
    return f"model.layers.{match[1]}.{part}.weight" if match and part else None


FOREIGN_NAMES = (  # a part of a foreign tensor's name, its origin and the fix
    (".lora_", "an adapter (LoRA): merge it into its model first (peft's merge_and_unload)"),
    (".weight_packed", "quantised weights: dequantise the checkpoint first, or take its GGUF file"),
    (".qweight", "quantised weights: dequantise the checkpoint first, or take its GGUF file"),
    (".attention.wq.", "Meta's format: convert it with transformers' convert_llama_weights_to_hf.py"),
    ("transformer.h.", "a GPT, not a LLaMA"),
)


def describe_foreign_names(found: Iterable[str]) -> str:
    """Says what a checkpoint holds whose names are no LLaMA's: its kind where one is recognised."""
    listed = sorted(found)
    for part, what in FOREIGN_NAMES:
        name = next((name for name in listed if part in name), None)
        if name is not None:
            return f"It holds {name}, of {what}."
    if any(f"model.{name}" == EMBEDDING for name in listed):
        return "Its names lack the prefix model.: save it as LlamaForCausalLM, with its lm_head."
    prefixed = next((name for name in listed if name.endswith(f".{EMBEDDING}")), None)
    if prefixed is not None:
        return f"Its names begin with {prefixed.removesuffix(EMBEDDING)}, which must be taken off."
    return f"It holds {listed[0]} and {len(listed) - 1} more." if listed else "It holds no tensors."


def tensor_view(params: Any, slot: TensorSlot) -> np.ndarray:
    """Returns one Hugging Face tensor as a view of our numpy parameters: assigning to it fills them."""
    stacked = get_leaf(params, slot)
    return array_view(stacked if slot.layer is None else stacked[slot.layer], slot)


def array_view(array: np.ndarray, slot: TensorSlot) -> np.ndarray:
    """Returns one Hugging Face tensor as a view of the array that holds it: one layer of a parameter, or all."""
    return array.reshape(slot.shape[::-1]).T if slot.transposed else array


def get_leaf(tree: Any, slot: TensorSlot) -> Any:
    """Returns the value at a tensor's place in a tree of the parameters' structure."""
    return functools.reduce(operator.getitem, slot.path, tree)


def set_leaf(tree: Any, slot: TensorSlot, value: Any) -> None:
    """Puts a value into a tree of the parameters' structure."""
    functools.reduce(operator.getitem, slot.path[:-1], tree)[slot.path[-1]] = value
