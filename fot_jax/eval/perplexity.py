"""Perplexity of held-out documents against the size of the memory.

Protocol. The SAME target chunks (L = local context tokens each) are scored at every memory size.
For memory of m local contexts and a target chunk t of a document:

    chunk   t-m    t-m+1   …   t-1      t
            read   read        read     scored
    memory  empty  t-m         t-m…t-2  t-m … t-1

Chunks t-m … t-1 are read window by window from an empty memory, each with the memory that the
windows before it left (as LongLLaMA reads a prompt), and then the target is scored with its own
local context and that memory. With m = 0 the target sees only itself. Each of its L tokens is
predicted from inside the chunk: the last one's target is the first token beyond the chunk, and the
first token of the chunk is only read. Every size is read afresh: a smaller memory is not a cut of
a larger one, whose keys would depend on older text.

Multi-document memory (sec. 5.2, fig. 5): the memory of a target holds m contexts of its own
document and of x - 1 other held-out documents. Differs: the paper reads documents one after
another into one memory; here each document's contexts are read with its own memory only and then
joined, so that all x share the reading.

Source: FoT sec. 3.1, 5.2, 5.4.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from fot_jax.eval.reading import EvaluatedModel, TokenScores, join_rows, read_past, score_window
from fot_jax.eval.statistics import Interval, Score, paired_bootstrap
from fot_jax.eval.targets import Documents, Target, choose_targets, gather_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """Losses of the same targets under several memories.

    Attributes:
      sizes: what was varied: local contexts per memory, or documents per memory.
      nats: float [X, T], summed loss of each target at each size.
      num_bytes: int [T], UTF-8 bytes of the scored tokens of each target.
      tokens: scored tokens per target.
      targets: the T targets.
    """

    sizes: tuple[int, ...]
    nats: np.ndarray
    num_bytes: np.ndarray
    tokens: int
    targets: tuple[Target, ...]

    def score(self, index: int) -> Score:
        """Returns the score of all targets together at one size."""
        return Score(
            nats=float(self.nats[index].sum()),
            tokens=self.tokens * len(self.targets),
            num_bytes=int(self.num_bytes.sum()),
        )

    def curve(self, quantity: Callable[[Score], float]) -> dict[str, list[float]]:
        """Returns a quantity of the scores at each size (y), with its ends (low, high) by the change's interval.

        The first size, with which the others are compared, has no interval.
        """
        first = self.score(0)
        y = [quantity(self.score(index)) for index in range(len(self.sizes))]
        changes = [self.change(index) for index in range(1, len(self.sizes))]
        ends = [
            [quantity(dataclasses.replace(first, nats=first.nats * (1 + end))) for end in (c.low, c.high)]
            for c in changes
        ]
        low, high = ([math.nan, *(pair[side] for pair in ends)] for side in (0, 1))
        return {"y": y, "low": low, "high": high}

    def figures(self, index: int) -> dict[str, float]:
        """Returns perplexity, bits per byte and the change against the first size, for reports."""
        score, change = self.score(index), self.change(index)
        return {
            "perplexity": score.perplexity,
            "bits_per_byte": score.bits_per_byte,
            "change": change.estimate,
            "change_low": change.low,
            "change_high": change.high,
        }

    def change(self, index: int, *, against: int = 0) -> Interval:
        """Returns the relative difference of the loss of two sizes; 95 % paired bootstrap over documents."""
        documents = np.asarray([target.document for target in self.targets])
        return paired_bootstrap(self.nats[index], control=self.nats[against], groups=documents)


def target_bytes(targets: Int[np.ndarray, "T L"], *, token_bytes: Int[np.ndarray, " V"]) -> Int[np.ndarray, " T"]:
    """Returns the UTF-8 bytes of the scored tokens of each target."""
    return token_bytes[targets].sum(axis=1)


def measure_contexts(
    evaluated: EvaluatedModel,
    *,
    documents: Documents,
    token_bytes: Int[np.ndarray, " V"],
    sizes: tuple[int, ...],
    most_documents: int,
    per_document: int,
    seed: int,
    batch: int,
) -> Sweep:
    """Measures the loss against memory size in local contexts, one document per memory.

    Args:
      evaluated: the model.
      documents: held-out documents; those with room for the largest memory are used.
      token_bytes: UTF-8 bytes of each token id.
      sizes: memory sizes, in local contexts.
      most_documents: documents to use.
      per_document: target chunks per document.
      seed: seeds the choice of documents.
      batch: targets read together.
    """
    length, history = evaluated.model.local_context, max(sizes)
    targets = choose_targets(
        documents, length=length, history=history, most=most_documents, per_document=per_document, seed=seed
    )
    past, window = gather_tokens(documents, targets=targets, length=length, history=history)
    nats = np.zeros((len(sizes), len(targets)))
    for start in range(0, len(targets), batch):
        rows = _padded_rows(start, count=len(targets), batch=batch)
        for index, size in enumerate(sizes):
            store = read_past(evaluated, past=past[rows, (history - size) * length :])
            scores = score_window(evaluated, store=store, tokens=window[rows, :-1], targets=window[rows, 1:])
            kept = len(targets[start : start + batch])
            nats[index, start : start + kept] = chunk_nats(scores)[:kept]
    return Sweep(
        sizes=sizes,
        nats=nats,
        num_bytes=target_bytes(window[:, 1:], token_bytes=token_bytes),
        tokens=length,
        targets=tuple(targets),
    )


def measure_documents(
    evaluated: EvaluatedModel,
    *,
    documents: Documents,
    token_bytes: Int[np.ndarray, " V"],
    contexts_per_document: int,
    most_documents: int,
    seed: int,
) -> Sweep:
    """Measures the loss against the number x = 1, 2, 4, … of documents that share the memory; 0: no memory.

    There is one target per document; the memory of row i holds `contexts_per_document` contexts of the
    documents of rows i, i+1, …, i+x-1 (mod rows).
    """
    length = evaluated.model.local_context
    targets = choose_targets(
        documents, length=length, history=contexts_per_document, most=most_documents, per_document=1, seed=seed
    )
    past, window = gather_tokens(documents, targets=targets, length=length, history=contexts_per_document)
    own = read_past(evaluated, past=past)
    sizes = (0, *(2**power for power in range(len(targets).bit_length())))
    nats = []
    for size in sizes:
        store = join_rows(evaluated, store=own, shifts=range(size))
        scores = score_window(evaluated, store=store, tokens=window[:, :-1], targets=window[:, 1:])
        nats.append(chunk_nats(scores))
    return Sweep(
        sizes=sizes,
        nats=np.stack(nats),
        num_bytes=target_bytes(window[:, 1:], token_bytes=token_bytes),
        tokens=length,
        targets=tuple(targets),
    )


def chunk_nats(scores: TokenScores) -> Float[np.ndarray, " T"]:
    """Returns the summed loss of each row, in float64."""
    return scores.nats.astype(np.float64).sum(axis=1)


def _padded_rows(start: int, *, count: int, batch: int) -> np.ndarray:
    """Returns `batch` row numbers from `start` on; the last batch repeats its last row to keep the shape."""
    return np.minimum(np.arange(start, start + min(batch, count)), count - 1)
