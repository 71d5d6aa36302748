"""A whole decoder as float64 loops, both families, over plain nested dicts; imports nothing of `fot_jax`.

Parameters: {"embed" [V,E], "layers": [{...}], "final": norm, "head" [E,V]}; a layer holds "attention_norm",
"mlp_norm" (dicts with "scale" and, in the paper's family, "bias"), "q" [E,H,D], "k" and "v" [E,G,D],
"o" [H,D,E], "temperature" [H] (paper), "smear" [G] (smeared keys), "memory_share" [H] (gated memory), and "gate" [E,F]
(LLaMA), "up" [E,F], "down" [F,E].
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tests import oracles

Layer = dict[str, Any]
UNIT_EPSILON = 1e-6  # keeps the gradient of |q| and |k| finite at 0


def norm(x: np.ndarray, parameters: dict[str, np.ndarray], *, family: str, epsilon: float) -> np.ndarray:
    """RMSNorm (llama) or LayerNorm (paper)."""
    if family == "llama":
        return oracles.rms_norm(x, parameters["scale"], epsilon=epsilon)
    return oracles.layer_norm(x, parameters["scale"], parameters.get("bias", 0.0), epsilon=epsilon)


def gelu_mlp(x: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """gelu(x up) down, the tanh form of GELU (Flax's default)."""
    lifted = x @ up
    out = np.zeros(lifted.shape)
    for index in np.ndindex(*lifted.shape):
        a = lifted[index]
        out[index] = 0.5 * a * (1 + math.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
    return out @ down


def attention_layer(x: np.ndarray, layer: Layer, *, family: str, memory_layer: bool, positions: str,
                    frequencies: np.ndarray, local: Callable, far: Callable, memory, follows=None,
                    sharpen: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
    """One attention: a local source, and in memory layers the contexts and the memory, in one softmax.

    `layer["smear"]` [G], if there, is the share of the key before in each key, where `follows` [B, L].
    `layer["memory_share"]` [H], if there, makes two softmaxes of memory layers and mixes them, where `far` shows any.
    `positions`: "rope0" or "nope", what memory layers do; `memory` is (keys, values) [B, M, G, D] or None;
    `sharpen` [B, L] multiplies the scores of each query.
    """
    queries = np.einsum("ble,ehd->blhd", x, layer["q"])
    keys = np.einsum("ble,egd->blgd", x, layer["k"])
    values = np.einsum("ble,egd->blgd", x, layer["v"])
    if "smear" in layer:
        bare = keys.copy()
        for b, t in zip(*np.nonzero(follows), strict=True):
            for g, share in enumerate(layer["smear"]):
                keys[b, t, g] = (1 - share) * bare[b, t, g] + share * bare[b, t - 1, g]
    if family == "llama":
        queries = queries / math.sqrt(queries.shape[-1])
    else:
        queries, keys = (a / np.sqrt((a**2).sum(-1, keepdims=True) + UNIT_EPSILON) for a in (queries, keys))
        queries = queries * layer["temperature"][:, None]
    if sharpen is not None:
        queries = queries * sharpen[:, :, None, None]
    rotated, rotated_keys = queries, keys
    if not (memory_layer and positions == "nope"):
        places = np.broadcast_to(np.arange(x.shape[1]), x.shape[:2])
        rotated, rotated_keys = (oracles.rotate(a, places, frequencies) for a in (queries, keys))
    sources = {"local": (rotated, rotated_keys, values)}
    if memory_layer:
        sources["context"] = (rotated, keys, values)
        if memory is not None:
            sources["memory"] = (rotated, *memory)
    if memory_layer and "memory_share" in layer:
        mixed, remembered = oracles.attend(sources, local), oracles.attend(sources, far)
        for b, t, h in np.ndindex(*mixed.shape[:3]):
            share = layer["memory_share"][h] if far(b, t, h) else 0.0
            mixed[b, t, h] = share * remembered[b, t, h] + (1 - share) * mixed[b, t, h]
    else:
        mixed = oracles.attend(sources, oracles.union(local, far))
    return np.einsum("blhd,hde->ble", mixed, layer["o"])


def log_scales(context_ids: np.ndarray, length: int, *, start: int) -> np.ndarray:
    """[B, L]: log n / log start where a query has n > start keys in sight, whole rows counted; else 1."""
    scales = np.ones((len(context_ids), length))
    for b, t in np.ndindex(*scales.shape):
        in_sight = t + 1
        for row in context_ids[b]:
            in_sight += length if row >= 0 else 0
        if in_sight > start:
            scales[b, t] = math.log(in_sight) / math.log(start)
    return scales


def decoder(parameters: dict[str, Any], tokens: np.ndarray, *, family: str, segments: np.ndarray, boundaries: str,
            memory_layers: tuple[int, ...], positions: str, frequencies: np.ndarray, epsilon: float,
            context_ids=None, own=None, memory=None, scaling_from: int = 0) -> np.ndarray:  # fmt: skip
    """Logits [B, L, V]; `memory`: {layer: (keys, values)}; `scaling_from`: see `log_scales`; 0: never."""
    x = parameters["embed"][tokens]
    local = oracles.local_visible(segments, boundaries=boundaries)
    follows = np.zeros(segments.shape, bool)
    for b, t in np.ndindex(*segments.shape):
        follows[b, t] = t > 0 and (boundaries == "joined" or segments[b, t] == segments[b, t - 1])
    for index, layer in enumerate(parameters["layers"]):
        is_memory, far, entries = index in memory_layers, [], (memory or {}).get(index)
        if is_memory and context_ids is not None:
            far.append(oracles.context_visible(segments, context_ids, own, boundaries=boundaries))
        if entries is not None:
            far.append(oracles.memory_visible(np.ones(entries[0].shape[:2], bool)))
        sharpen = None
        if is_memory and scaling_from:
            sharpen = log_scales(context_ids, tokens.shape[1], start=scaling_from)
        normed = norm(x, layer["attention_norm"], family=family, epsilon=epsilon)
        x = x + attention_layer(
            normed, layer, family=family, memory_layer=is_memory, positions=positions, frequencies=frequencies,
            local=local, far=oracles.union(*far), memory=entries, follows=follows, sharpen=sharpen,
        )  # fmt: skip
        normed = norm(x, layer["mlp_norm"], family=family, epsilon=epsilon)
        if family == "llama":
            x = x + oracles.swiglu(normed, layer["gate"], layer["up"], layer["down"])
        else:
            x = x + gelu_mlp(normed, layer["up"], layer["down"])
    return norm(x, parameters["final"], family=family, epsilon=epsilon) @ parameters["head"]
