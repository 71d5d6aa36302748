"""Decides which documents a stream reads and where each begins: pure functions of the seed."""

from typing import assert_never

import numpy as np

from fot_jax.config import DocumentEnd
from fot_jax.data.documents import DocumentSet
from fot_jax.data.seeds import generator

DRAWS_PER_BLOCK = 1000


def quotas(rates: tuple[float, ...]) -> np.ndarray:
    """Counts each component's draws in a block: the shares of `rates` by largest remainder, at least 1.

    Returns int64 [components] that sum to DRAWS_PER_BLOCK.
    """
    exact = np.asarray(rates, np.float64) / sum(rates) * DRAWS_PER_BLOCK
    counts = np.maximum(np.floor(exact).astype(np.int64), 1)
    for _ in range(DRAWS_PER_BLOCK - int(counts.sum())):
        counts[np.argmax(exact - counts)] += 1
    while counts.sum() > DRAWS_PER_BLOCK:
        counts[np.argmax(counts)] -= 1
    return counts


class DocumentOrder:
    """The endless sequence of drawn documents of a mixture.

    Draw n belongs to block n // DRAWS_PER_BLOCK. In each block every component has its quota, in an
    order permuted by (seed, block). The k-th draw of a component is the k-th document of its
    epochs, each a permutation by (seed, component, epoch): no document comes twice in an epoch.
    """

    def __init__(self, documents: DocumentSet, *, seed: int):
        self._sizes = documents.sizes
        self._starts = np.concatenate([[0], np.cumsum(documents.sizes)[:-1]])
        self._sources = documents.sources
        self._quotas = quotas(documents.rates)
        self._seed = seed

    def components(self, block: int) -> np.ndarray:
        """Returns the component of each draw of a block, int64 [DRAWS_PER_BLOCK]."""
        order = generator(self._seed, "block", block).permutation(DRAWS_PER_BLOCK)
        return np.repeat(np.arange(len(self._quotas)), self._quotas)[order]

    def documents(self, start: int, stop: int) -> np.ndarray:
        """Returns the documents of draws start..stop-1, int64 [stop - start]."""
        first, last = start // DRAWS_PER_BLOCK, -(-stop // DRAWS_PER_BLOCK)
        drawn = np.concatenate([self._block(block) for block in range(first, last)])
        return drawn[start - first * DRAWS_PER_BLOCK : stop - first * DRAWS_PER_BLOCK]

    def _block(self, block: int) -> np.ndarray:
        components = self.components(block)
        drawn = np.empty(DRAWS_PER_BLOCK, np.int64)
        for component, quota in enumerate(self._quotas):
            ranks = block * quota + np.arange(quota)
            drawn[components == component] = self._starts[component] + self._documents_at(component, ranks)
        return drawn

    def _documents_at(self, component: int, ranks: np.ndarray) -> np.ndarray:
        size = self._sizes[component]
        epochs, places = np.divmod(ranks, size)
        orders = {
            epoch: generator(self._seed, "epoch", self._sources[component], epoch).permutation(size)
            for epoch in np.unique(epochs).tolist()
        }
        return np.array([orders[epoch][place] for epoch, place in zip(epochs.tolist(), places.tolist(), strict=True)])


class StreamLayout:
    """Places of the drawn documents in each stream, found by cumulative lengths.

    Stream s reads draws s, s + R, s + 2R, ... in order. A draw is skipped if its stream has just read the
    same document or a copy of it: it would see its answers in the keys of the first one. A corpus of one
    document, or of copies of one, is read again and again.

    PACK: a document takes its length. PAD: its length rounded up to whole chunks.
    The table grows when a later token is asked for; nothing is read from the documents.
    """

    def __init__(self, documents: DocumentSet, *, streams: int, length: int, document_end: DocumentEnd, seed: int):
        self._order = DocumentOrder(documents, seed=seed)
        self._streams = streams
        occupied = documents.lengths
        if document_end is DocumentEnd.PAD:
            occupied = -(-occupied // length) * length
        elif document_end is not DocumentEnd.PACK:
            assert_never(document_end)
        self._occupied = occupied
        self._contents = documents.content_ids
        self._repeats = not (self._contents != self._contents[0]).any()
        self._drawn = np.empty((streams, 0), np.int64)  # [streams, draws]
        self._ends = np.empty((streams, 0), np.int64)  # [streams, draws], tokens

    def _grow(self) -> None:
        known = self._drawn.shape[1]
        more = max(16, min(known, (1 << 20) // self._streams))
        order = self._order.documents(known * self._streams, (known + more) * self._streams)
        drawn = order.reshape(more, self._streams).T
        content = self._contents[drawn]
        before = self._contents[self._drawn[:, -1:]] if known else np.full((self._streams, 1), -1)
        taken = self._occupied[drawn]
        if not self._repeats:
            taken = np.where(content == np.concatenate([before, content[:, :-1]], axis=1), 0, taken)
        start = self._ends[:, -1:] if known else np.zeros((self._streams, 1), np.int64)
        self._drawn = np.concatenate([self._drawn, drawn], axis=1)
        self._ends = np.concatenate([self._ends, start + np.cumsum(taken, axis=1)], axis=1)

    def spans(self, stream: int, start: int, stop: int) -> list[tuple[int, int, int, int]]:
        """Finds the draws that cover tokens start..stop-1 of a stream.

        Returns (draw, document, first, last) in order: each covers tokens first..last-1 of the document's
        own part of the stream, which includes its padding.
        """
        while self._ends.shape[1] == 0 or self._ends[stream, -1] < stop:
            self._grow()
        ends = self._ends[stream]
        draw = int(np.searchsorted(ends, start, side="right"))
        found = []
        while start < stop:
            begin = int(ends[draw - 1]) if draw else 0
            last = min(stop, int(ends[draw]))
            if last > start:
                found.append((draw, int(self._drawn[stream, draw]), start - begin, last - begin))
                start = last
            draw += 1
        return found
