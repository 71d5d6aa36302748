"""Document-aware batches: each a pure function of (seed, step).

Rows of a batch, R streams of documents, k = packing, w = previous_chunks:

    OFF          R = B          row s        = chunk t of stream s
    one-pass     R = B / k      row s*k + j  = chunk t*k + j of stream s
    TWO_PASS     R = B / (w+1)  row p*R + s  = chunk t + p of stream s (p = w: C_curr)
"""

from typing import Protocol

import numpy as np

from fot_jax.config import Boundaries, ConfigError, CrossbatchConfig, DataConfig, PlanKind
from fot_jax.data.document_order import StreamLayout
from fot_jax.data.documents import DocumentSet
from fot_jax.types import Batch

PAD_TOKEN = 0


class Stream(Protocol):
    """Source of the batch of each step.

    Attributes:
      num_streams: how many documents are read in parallel.
      digests: per source of text, the digest of its tokens; empty for generated documents.
    """

    num_streams: int
    digests: dict[str, str]

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """Returns the rows of a step's global batch (all, or one host's share) as numpy arrays."""
        ...


def row_chunk(row: int, *, step: int, rows: int, crossbatch: CrossbatchConfig) -> tuple[int, int]:
    """Returns the (stream, chunk) that a row of a batch holds at a step, by the table above."""
    streams = rows // crossbatch.rows_per_stream
    if crossbatch.plan is PlanKind.TWO_PASS:
        return row % streams, step + row // streams
    packing = crossbatch.rows_per_stream
    return row // packing, step * packing + row % packing


def bears_loss(row: int, *, rows: int, crossbatch: CrossbatchConfig) -> bool:
    """True if a row has a loss: every row but C_prev rows of TWO_PASS without loss_on_previous."""
    if crossbatch.plan is not PlanKind.TWO_PASS or crossbatch.loss_on_previous:
        return True
    return row >= rows - rows // crossbatch.rows_per_stream


def check_rows(rows: int, crossbatch: CrossbatchConfig) -> int:
    """Returns the number of streams. Raises ConfigError unless streams fill the rows evenly."""
    if rows < 1 or rows % crossbatch.rows_per_stream:
        raise ConfigError(
            f"train.batch_rows must be a multiple of {crossbatch.rows_per_stream}, the rows one stream fills"
            f" under crossbatch.plan='{crossbatch.plan.value}', got {rows}."
        )
    return rows // crossbatch.rows_per_stream


def check_documents(documents: DocumentSet, *, crossbatch: CrossbatchConfig, rows: int, split: str) -> None:
    """Raises ConfigError if a split has fewer different documents than streams; plain training needs none."""
    streams, found = check_rows(rows, crossbatch), documents.num_contents
    if crossbatch.plan is not PlanKind.OFF and found < streams:
        raise ConfigError(
            f"data must give the {split} split at least {streams} documents, one a stream"
            f" (train.batch_rows={rows}, {crossbatch.rows_per_stream} rows a stream), got {found}"
            f"{_copies_note(documents)}. Lower train.batch_rows, raise crossbatch.packing, or give more documents"
            + ("." if split == "train" else ", or raise data.heldout_fraction, or set train.eval_every=0.")
        )


def _copies_note(documents: DocumentSet) -> str:
    """Counts, for an error, the documents that are copies of others; empty where none is."""
    copies = documents.num_documents - documents.num_contents
    return f" and {copies} copies of them" if copies else ""


class BatchStream:
    """Batches of the documents of a split; a document stays in its stream's rows to its end.

    `targets` are the next tokens of the same stream. `loss_mask` is 0
      - at padding and at the token before it;
      - where the next token belongs to another document, unless boundaries are JOINED;
      - in copies. If a batch holds a document twice (small corpora, epoch borders, equal documents), one
        copy's keys hold the other's answers. Of copies within one stream the first keeps its loss, because
        rows read only earlier rows.

    Documents of equal tokens count as one: they share a segment id. So an attention layer treats a copy in
    another stream's row as the reader's own document, which is masked there under both `boundaries`, and
    never as a negative that holds the answers.
    """

    def __init__(
        self,
        documents: DocumentSet,
        *,
        crossbatch: CrossbatchConfig,
        data: DataConfig,
        rows: int,
        length: int,
        seed: int,
        split: str = "train",
    ):
        self.num_streams = check_rows(rows, crossbatch)
        check_documents(documents, crossbatch=crossbatch, rows=rows, split=split)
        self.digests = documents.digests
        self._documents = documents
        self._crossbatch = crossbatch
        self._rows = rows
        self._length = length
        self._layout = StreamLayout(
            documents, streams=self.num_streams, length=length, document_end=data.document_end, seed=seed
        )

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """See Stream: int32 [B, L] tokens, targets, segments; float32 [B, L] loss_mask."""
        wanted = range(self._rows)[rows or slice(None)]
        shape = (len(wanted), self._length)
        copies = self._copies(step)
        tokens, targets, segments = (np.zeros(shape, np.int32) for _ in range(3))
        loss_mask = np.zeros(shape, np.float32)
        for place, row in enumerate(wanted):
            stream, chunk = row_chunk(row, step=step, rows=self._rows, crossbatch=self._crossbatch)
            read, ids, draws = self._read(stream, chunk * self._length, (chunk + 1) * self._length + 1)
            tokens[place], targets[place], segments[place] = read[:-1], read[1:], ids[:-1]
            if bears_loss(row, rows=self._rows, crossbatch=self._crossbatch):
                joined = self._crossbatch.boundaries is Boundaries.JOINED
                here = (ids[:-1] > 0) & (ids[1:] > 0) & (joined | (draws[:-1] == draws[1:]))
                loss_mask[place] = here & ~np.isin(draws[:-1], [draw for owner, draw in copies if owner == stream])
        return Batch(tokens=tokens, targets=targets, loss_mask=loss_mask, segments=segments)

    def _copies(self, step: int) -> set[tuple[int, int]]:
        """Returns the (stream, draw) pairs of a batch that may find their answers in the keys of other rows."""
        if self._crossbatch.plan is PlanKind.OFF:
            return set()
        places = [row_chunk(row, step=step, rows=self._rows, crossbatch=self._crossbatch) for row in range(self._rows)]
        holders: dict[int, set[tuple[int, int]]] = {}  # by document; copies count as one
        for stream in range(self.num_streams):
            chunks = [chunk for owner, chunk in places if owner == stream]
            spans = self._layout.spans(stream, min(chunks) * self._length, (max(chunks) + 1) * self._length)
            for draw, document, _, _ in spans:
                holders.setdefault(int(self._documents.content_ids[document]), set()).add((stream, draw))
        copies: set[tuple[int, int]] = set()
        for held in holders.values():
            in_one_stream = len({stream for stream, _ in held}) == 1
            copies |= held - {min(held)} if in_one_stream else held
        return copies

    def _read(self, stream: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns tokens, segments and draws start..stop-1 of a stream; padding is token 0, segment 0."""
        tokens, segments, draws = (np.zeros(stop - start, np.int64) for _ in range(3))
        tokens[:] = PAD_TOKEN
        at = 0
        for draw, document, first, last in self._layout.spans(stream, start, stop):
            text = self._documents.tokens(document, start=first, stop=last)
            tokens[at : at + len(text)] = text
            segments[at : at + len(text)] = self._documents.segment_ids[document]
            draws[at : at + last - first] = draw
            at += last - first
        return tokens, segments, draws
