"""Oracles: the method's equations as Python loops in float64, importing nothing of `fot_jax`.

Every attention of the method is one loop here: `attend` reads, for each query (b, l, h), the list of
entries that `visible(b, l, h)` names, in ONE softmax. A variant (causal, crossbatch, memory, a mutant) is
another list. `attend_gradients` is the same loop differentiated by hand. An entry is (source, row, index):
`sources[source]` holds the (queries, keys, values) that meet there, so that rotated queries can meet
rotated keys in one source and unrotated keys in another.
"""

import math
from collections.abc import Callable

import numpy as np

Source = tuple[np.ndarray, np.ndarray, np.ndarray]  # queries [B, L, H, D], keys [R, S, G, D], values [R, S, G, D]
Visible = Callable[[int, int, int], list[tuple[str, int, int]]]


def relative_error(got, want) -> float:
    """‖got − want‖ / ‖want‖, one number for a whole array; inf where either is not finite."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"shapes differ: {got.shape} and {want.shape}"
    if not (np.isfinite(got).all() and np.isfinite(want).all()):
        return math.inf
    return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30))


def weights_of(scores: list[float]) -> list[float]:
    """Softmax of a list of scores."""
    peak = max(scores)
    powers = [math.exp(score - peak) for score in scores]
    return [power / sum(powers) for power in powers]


def attend(sources: dict[str, Source], visible: Visible) -> np.ndarray:
    """One softmax over all visible entries: float64 [B, L, H, D], 0 where nothing is visible."""
    queries, keys, values = next(iter(sources.values()))
    out = np.zeros((*queries.shape[:3], values.shape[-1]))
    for b, l, h in np.ndindex(*queries.shape[:3]):
        entries = visible(b, l, h)
        if not entries:
            continue
        g = h // (queries.shape[2] // keys.shape[2])
        scores = [float(sources[n][0][b, l, h] @ sources[n][1][r, s, g]) for n, r, s in entries]
        for weight, (n, r, s) in zip(weights_of(scores), entries, strict=True):
            out[b, l, h] += weight * sources[n][2][r, s, g]
    return out


def attend_gradients(sources: dict[str, Source], visible: Visible, upstream: np.ndarray) -> dict[str, Source]:
    """Gradients of sum(attend * upstream) with respect to every source's queries, keys and values."""
    out = attend(sources, visible)
    grads = {name: tuple(np.zeros(a.shape) for a in source) for name, source in sources.items()}
    heads_per_group = next(iter(sources.values()))[0].shape[2] // next(iter(sources.values()))[1].shape[2]
    for b, l, h in np.ndindex(*out.shape[:3]):
        entries, g = visible(b, l, h), h // heads_per_group
        if not entries:
            continue
        scores = [float(sources[n][0][b, l, h] @ sources[n][1][r, s, g]) for n, r, s in entries]
        for weight, (n, r, s) in zip(weights_of(scores), entries, strict=True):
            (queries, keys, values), (d_queries, d_keys, d_values) = sources[n], grads[n]
            d_score = weight * float(upstream[b, l, h] @ (values[r, s, g] - out[b, l, h]))
            d_queries[b, l, h] += d_score * keys[r, s, g]
            d_keys[r, s, g] += d_score * queries[b, l, h]
            d_values[r, s, g] += weight * upstream[b, l, h]
    return grads


def local_visible(segments: np.ndarray, *, boundaries: str, causal: bool = True) -> Visible:
    """The reader's own chunk: not later than the query, no padding, under "masked" the same document."""

    def visible(b: int, l: int, h: int) -> list[tuple[str, int, int]]:
        entries = []
        for s in range(segments.shape[1]):
            same = segments[b, s] == segments[b, l]
            if (s <= l or not causal) and segments[b, s] != 0 and (same or boundaries == "joined"):
                entries.append(("local", b, s))
        return entries

    return visible


def context_visible(segments: np.ndarray, context_ids: np.ndarray, own: np.ndarray, *, boundaries: str) -> Visible:
    """The chunks that the plan names. Own: no padding, under "masked" the same document; others: another document."""

    def visible(b: int, l: int, h: int) -> list[tuple[str, int, int]]:
        entries = []
        for c in range(context_ids.shape[1]):
            row = int(context_ids[b, c])
            if row < 0:
                continue
            for s in range(segments.shape[1]):
                same = segments[row, s] == segments[b, l]
                if segments[row, s] == 0:
                    continue
                if (own[b, c] and (same or boundaries == "joined")) or (not own[b, c] and not same):
                    entries.append(("context", row, s))
        return entries

    return visible


def union(*parts: Visible) -> Visible:
    """The entries of all parts, to be read in one softmax."""
    return lambda b, l, h: [entry for part in parts for entry in part(b, l, h)]


def memory_visible(valid: np.ndarray) -> Visible:
    """All valid entries of the row's own memory; valid [B, M]."""
    return lambda b, l, h: [("memory", b, m) for m in range(valid.shape[1]) if valid[b, m]]


def topk_visible(queries: np.ndarray, keys: np.ndarray, valid: np.ndarray, *, k: int) -> Visible:
    """The k valid entries of the row's own memory with the largest inner product with the query."""

    def visible(b: int, l: int, h: int) -> list[tuple[str, int, int]]:
        g = h // (queries.shape[2] // keys.shape[2])
        ranked = sorted((-float(queries[b, l, h] @ keys[b, m, g]), m) for m in range(valid.shape[1]) if valid[b, m])
        return [("memory", b, m) for _, m in ranked[:k]]

    return visible


def log_masses(queries, keys, segments, context_ids, own, *, boundaries: str) -> np.ndarray:
    """log of the summed exp(score) of each slot: [B, C, L, H], -inf where the slot shows nothing."""
    out = np.full((*context_ids.shape, *queries.shape[1:3]), -math.inf)
    for b, c, l, h in np.ndindex(*out.shape):
        g = h // (queries.shape[2] // keys.shape[2])
        slot = context_visible(segments, context_ids[:, c : c + 1], own[:, c : c + 1], boundaries=boundaries)
        powers = [math.exp(float(queries[b, l, h] @ keys[r, s, g])) for _, r, s in slot(b, l, h)]
        out[b, c, l, h] = math.log(sum(powers)) if powers else -math.inf
    return out


def distraction(queries, keys, segments, context_ids, own, *, boundaries: str) -> float:
    """r_d of sec. 3.3: weight on the own document's contexts / weight on all contexts, mean over all queries.

    Queries that see no own context or no context at all are left out.
    """
    ratios = []
    for b, l, h in np.ndindex(*queries.shape[:3]):
        g = h // (queries.shape[2] // keys.shape[2])
        masses = {True: 0.0, False: 0.0}
        for c in range(context_ids.shape[1]):
            slot = context_visible(segments, context_ids[:, c : c + 1], own[:, c : c + 1], boundaries=boundaries)
            for _, r, s in slot(b, l, h):
                masses[bool(own[b, c])] += math.exp(float(queries[b, l, h] @ keys[r, s, g]))
        if masses[True] > 0:
            ratios.append(masses[True] / (masses[True] + masses[False]))
    return float(np.mean(ratios))


def rope_frequencies(head_dim: int, *, theta: float, scaling: str = "none", factor: float = 1.0, original: int = 2048,
                     length: int = 0, low: float = 1.0, high: float = 4.0, fast: float = 32.0,
                     slow: float = 1.0) -> tuple[np.ndarray, float]:  # fmt: skip
    """(frequencies [D/2] in radians a token, factor on cos and sin), as Hugging Face defines them."""
    if scaling == "dynamic" and length > original:
        theta *= (factor * length / original - (factor - 1)) ** (head_dim / (head_dim - 2))
    out = []
    for i in range(head_dim // 2):
        frequency = theta ** (-2 * i / head_dim)
        if scaling == "linear":
            frequency /= factor
        elif scaling == "llama3":
            turns = original * frequency / (2 * math.pi)  # whole turns within the original context
            smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
            frequency = (1 - smooth) * frequency / factor + smooth * frequency
        elif scaling == "yarn":
            per_turn = [original / (turns * 2 * math.pi) for turns in (fast, slow)]
            border = [head_dim * math.log(tokens) / (2 * math.log(theta)) for tokens in per_turn]
            first, last = max(math.floor(border[0]), 0), min(math.ceil(border[1]), head_dim - 1)
            ramp = min(max((i - first) / max(last - first, 0.001), 0.0), 1.0)
            frequency = ramp * frequency / factor + (1 - ramp) * frequency
        out.append(frequency)
    return np.array(out), (0.1 * math.log(factor) + 1.0 if scaling == "yarn" else 1.0)


def rotate(x: np.ndarray, positions: np.ndarray, frequencies: np.ndarray, factor: float = 1.0) -> np.ndarray:
    """Rotary positions in halves: (i, i + D/2) turns by position * frequency i. x [B, L, H, D], positions [B, L]."""
    out, half = np.zeros(x.shape), x.shape[-1] // 2
    for b, l, h, i in np.ndindex(*x.shape[:3], half):
        angle = float(positions[b, l]) * frequencies[i]
        cos, sin = math.cos(angle) * factor, math.sin(angle) * factor
        out[b, l, h, i] = x[b, l, h, i] * cos - x[b, l, h, i + half] * sin
        out[b, l, h, i + half] = x[b, l, h, i + half] * cos + x[b, l, h, i] * sin
    return out


def cross_entropy(logits: np.ndarray, targets: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Sums over masked tokens: nll, squared log-normaliser (z), weight, correct predictions."""
    sums = {"nll": 0.0, "z": 0.0, "weight": 0.0, "correct": 0.0}
    for b, l in np.ndindex(*targets.shape):
        row = [float(logit) for logit in logits[b, l]]
        log_total = max(row) + math.log(sum(math.exp(logit - max(row)) for logit in row))
        sums["nll"] += mask[b, l] * (log_total - row[targets[b, l]])
        sums["z"] += mask[b, l] * log_total**2
        sums["weight"] += mask[b, l]
        sums["correct"] += mask[b, l] * (row[targets[b, l]] == max(row))
    return sums


def row_mean_loss(logits: np.ndarray, targets: np.ndarray, mask: np.ndarray) -> float:
    """The authors' loss: each row's mean over its masked tokens, 0 where it has none, then the mean over all rows."""
    means = []
    for b in range(len(targets)):
        sums = cross_entropy(logits[b : b + 1], targets[b : b + 1], mask[b : b + 1])
        means.append(sums["nll"] / sums["weight"] if sums["weight"] else 0.0)
    return math.fsum(means) / len(means)


def rms_norm(x: np.ndarray, scale: np.ndarray, *, epsilon: float) -> np.ndarray:
    """x / sqrt(mean x² + epsilon) * scale over the last axis."""
    out = np.zeros(x.shape)
    for index in np.ndindex(*x.shape[:-1]):
        mean_square = sum(float(value) ** 2 for value in x[index]) / x.shape[-1]
        out[index] = [value / math.sqrt(mean_square + epsilon) * s for value, s in zip(x[index], scale, strict=True)]
    return out


def layer_norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, *, epsilon: float) -> np.ndarray:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis."""
    out = np.zeros(x.shape)
    for index in np.ndindex(*x.shape[:-1]):
        mean = sum(float(value) for value in x[index]) / x.shape[-1]
        variance = sum((float(value) - mean) ** 2 for value in x[index]) / x.shape[-1]
        out[index] = (x[index] - mean) / math.sqrt(variance + epsilon) * scale + bias
    return out


def swiglu(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """(silu(x gate) * (x up)) down, token by token."""
    out = np.zeros((*x.shape[:-1], down.shape[-1]))
    for index in np.ndindex(*x.shape[:-1]):
        gated, lifted = x[index] @ gate, x[index] @ up
        out[index] = np.array([a / (1 + math.exp(-a)) * b for a, b in zip(gated, lifted, strict=True)]) @ down
    return out
