"""Choice of the measured chunks of held-out documents, fixed by the documents and the seed alone."""

import dataclasses
from typing import Protocol

import numpy as np

from fot_jax.config import UserError
from fot_jax.data.copies import is_first_copy


class Documents(Protocol):
    """Held-out documents, as the measurements need them (`fot_jax.data.documents.DocumentSet`)."""

    num_documents: int
    lengths: np.ndarray
    content_ids: np.ndarray  # equal for equal documents

    def tokens(self, i: int) -> np.ndarray:
        """Returns all tokens of one document."""
        ...

    def name(self, i: int) -> str:
        """Returns the document's origin."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Chunk `chunk` (0-based, of `local_context` tokens) of document `document`."""

    document: int
    chunk: int


def choose_targets(
    documents: Documents, *, length: int, history: int, most: int, per_document: int, seed: int
) -> list[Target]:
    """Chooses chunks with at least `history` chunks before them: the middles of equal parts of each document.

    A single target is a document's middle, not its beginning, where most of a text is still to come. Of equal
    documents only one is measured: in a memory of several documents a copy would hold its answers.

    Args:
      documents: the held-out documents.
      length: tokens per chunk.
      history: whole chunks that must precede a target.
      most: documents to choose (fewer where fewer are long enough).
      per_document: targets per document (fewer where the document is shorter).
      seed: seeds the choice among documents that are long enough.

    Returns:
      Targets ordered by place: every document's first target, then every document's second, …

    Raises:
      UserError: no document is long enough.
    """
    needed = (history + 1) * length + 1  # the last token of a chunk predicts one token beyond it
    eligible = np.flatnonzero((np.asarray(documents.lengths) >= needed) & is_first_copy(documents.content_ids))
    if not len(eligible):
        longest = int(max(documents.lengths, default=0))
        raise UserError(
            f"documents must hold a chunk of {length} tokens after {history} others ({needed} tokens),"
            f" but the longest has {longest}. Lower evaluation.memory_contexts (context_windows), raise"
            " data.heldout_fraction or give longer ones."
        )
    chosen = sorted(np.random.default_rng(seed).permutation(eligible)[:most].tolist())
    places: dict[int, list[int]] = {}
    for document in chosen:
        last = (int(documents.lengths[document]) - 1) // length - 1
        count = min(per_document, last - history + 1)
        middles = (np.arange(count) + 0.5) / count * (last - history + 1)
        places[document] = (history + middles.astype(int)).tolist()
    return [
        Target(document=document, chunk=places[document][place])
        for place in range(per_document)
        for document in chosen
        if place < len(places[document])
    ]


def gather_tokens(
    documents: Documents, *, targets: list[Target], length: int, history: int
) -> tuple[np.ndarray, np.ndarray]:
    """Gathers the targets and the tokens before them.

    Returns:
      past int32 [T, history · length], the tokens before each target, and
      window int32 [T, length + 1], the target and the one token beyond it.
    """
    rows = []
    for target in targets:
        start = (target.chunk - history) * length
        rows.append(documents.tokens(target.document)[start : start + (history + 1) * length + 1])
    tokens = np.stack(rows).astype(np.int32)
    return tokens[:, : history * length], tokens[:, history * length :]
