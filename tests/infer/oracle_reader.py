"""A LLaMA-family decoder that reads one text one token at a time, float64; imports nothing of `fot_jax`.

Each layer keeps a list of local (key, value) pairs, memory layers a second list, the memory. A token
attends to every local pair, rotated by its place in the list, and to the memory's, unrotated, in one
softmax. Causality, masks, batches and caches do not exist here.
"""

import math
from typing import Any

import numpy as np


def turn(x: np.ndarray, place: int, theta: float) -> np.ndarray:
    """RoPE of vectors [..., D]: the pair (i, i + D/2) as a complex number."""
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * place * theta ** (-np.arange(half) / half))
    return np.concatenate([turned.real, turned.imag], axis=-1)


class Reader:
    """Reads with `feed`; `push_oldest` moves local pairs to memory, as a window's end or an overflow does.

    Args of the constructor:
      params: {"embedding", "layers": {...} stacked along layers, "final_norm", "unembedding"}.
      memory_layers: those with a memory.
      top_k: nearest memory pairs a query reads, None for all.
      rotate_memory_layers: False for memory layers without positions.
      scaling_from: pairs in one softmax of a memory layer from which scores grow as log of their number; 0: never.
    """

    def __init__(self, params: dict[str, Any], *, memory_layers: tuple[int, ...], top_k: int | None,
                 rotate_memory_layers: bool, theta: float, epsilon: float, scaling_from: int = 0):  # fmt: skip
        self.params, self.memory_layers, self.top_k = params, memory_layers, top_k
        self.rotate_memory_layers, self.theta, self.epsilon = rotate_memory_layers, theta, epsilon
        self.scaling_from = scaling_from
        self.depth = params["layers"]["attention"]["output"].shape[0]
        self.local: list[list] = [[] for _ in range(self.depth)]
        self.memory: list[list] = [[] for _ in range(self.depth)]
        self.before: list = [None] * self.depth  # the newest key before it was smeared

    def norm(self, x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / math.sqrt(np.mean(x * x) + self.epsilon) * scale

    def feed(self, token: int) -> np.ndarray:
        """Logits [V] after one more token."""
        x = self.params["embedding"][token]
        for n in range(self.depth):
            x = x + self.attend(self.norm(x, self.params["layers"]["attention_norm"]["scale"][n]), n)
            forward = {name: w[n] for name, w in self.params["layers"]["feed_forward"].items()}
            y = self.norm(x, self.params["layers"]["feed_forward_norm"]["scale"][n])
            gate = y @ forward["gate"]
            x = x + (gate / (1 + np.exp(-gate)) * (y @ forward["up"])) @ forward["down"]
        return self.norm(x, self.params["final_norm"]["scale"]) @ self.params["unembedding"]

    def attend(self, x: np.ndarray, n: int) -> np.ndarray:
        weights = self.params["layers"]["attention"]
        query, key, value = (
            np.einsum("e,ehd->hd", x, weights["projections"][name][n]) for name in ("query", "key", "value")
        )
        bare = key
        if "smear" in weights["projections"] and self.local[n]:
            share = 1 / (1 + np.exp(-weights["projections"]["smear"][n]))[:, None]
            key = (1 - share) * key + share * self.before[n]
        self.before[n] = bare
        self.local[n].append((key, value))
        heads, dim = query.shape
        theta = self.theta if n not in self.memory_layers or self.rotate_memory_layers else math.inf
        mixed = np.zeros((heads, dim))
        for h in range(heads):
            g = h // (heads // len(key))
            q = query[h] if theta == math.inf else turn(query[h], len(self.local[n]) - 1, theta)
            pairs = []
            for place, (k, v) in enumerate(self.local[n]):
                pairs.append((q @ (k[g] if theta == math.inf else turn(k[g], place, theta)), v[g]))
            far = sorted(((q @ k[g], i) for i, (k, _) in enumerate(self.memory[n])), reverse=True)
            pairs += [(score, self.memory[n][i][1][g]) for score, i in far[: self.top_k]]
            scores = np.array([score for score, _ in pairs]) / math.sqrt(dim)
            if n in self.memory_layers and 0 < self.scaling_from < len(pairs):
                scores = scores * math.log(len(pairs), self.scaling_from)
            shares = np.exp(scores - scores.max())
            mixed[h] = sum(share * v for share, (_, v) in zip(shares / shares.sum(), pairs, strict=True))
        return np.einsum("hd,hde->e", mixed, weights["output"][n])

    def push_oldest(self, count: int) -> None:
        for n in range(self.depth):
            if n in self.memory_layers:
                self.memory[n] += self.local[n][:count]
            self.local[n] = self.local[n][count:]
