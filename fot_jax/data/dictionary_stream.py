"""Batches of dictionary lookup in the rows of a plan; every document is fresh."""

import numpy as np

from fot_jax.config import ConfigError, CrossbatchConfig, DictionaryConfig, PlanKind
from fot_jax.data.batches import bears_loss, check_rows, row_chunk
from fot_jax.data.seeds import generator
from fot_jax.data.synthetic import dictionary
from fot_jax.data.vocabulary import SymbolVocabulary
from fot_jax.types import Batch

MOST_SEGMENTS = 1 << 30


class DictionaryStream:
    """Documents of `definition_tokens` + `question_tokens`, cut into chunks; loss on answers only.

    TWO_PASS: a document has exactly w + 1 chunks and a step takes a whole fresh document per
    stream (app. D: definitions are C_prev, questions C_curr). Other plans: a document has n chunks,
    and chunk t of a stream (`fot_jax/data/batches.py`) is chunk t % n of its document t // n.
    """

    def __init__(self, config: DictionaryConfig, *, crossbatch: CrossbatchConfig, rows: int, length: int, seed: int):
        self.num_streams = check_rows(rows, crossbatch)
        self.digests: dict[str, str] = {}  # made from the config alone
        tokens = config.definition_tokens + config.question_tokens
        self._chunks = tokens // length
        if tokens % length:
            raise ConfigError(
                f"data.dictionary.definition_tokens + question_tokens must be a multiple of"
                f" model.local_context={length}, got {tokens}."
            )
        if crossbatch.plan is PlanKind.TWO_PASS and self._chunks != crossbatch.rows_per_stream:
            raise ConfigError(
                f"data.dictionary.definition_tokens + question_tokens must be {crossbatch.rows_per_stream} chunks"
                f" (crossbatch.previous_chunks + 1) of model.local_context={length}, got {tokens}."
            )
        self._config = config
        self._crossbatch = crossbatch
        self._rows = rows
        self._length = length
        self._seed = seed

    def _place(self, row: int, step: int) -> tuple[int, int, int]:
        """Returns the (stream, document, chunk of the document) of a row."""
        if self._crossbatch.plan is PlanKind.TWO_PASS:
            stream, chunk = row_chunk(row, step=0, rows=self._rows, crossbatch=self._crossbatch)
            return stream, step, chunk
        stream, chunk = row_chunk(row, step=step, rows=self._rows, crossbatch=self._crossbatch)
        return stream, *divmod(chunk, self._chunks)

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """See `fot_jax.data.batches.Stream`."""
        wanted = range(self._rows)[rows or slice(None)]
        shape = (len(wanted), self._length)
        tokens, targets, segments = (np.zeros(shape, np.int32) for _ in range(3))
        loss_mask = np.zeros(shape, np.float32)
        made: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        for place, row in enumerate(wanted):
            stream, document, chunk = self._place(row, step)
            if (stream, document) not in made:
                made[stream, document] = self._document(stream, document)
            read, answers = made[stream, document]
            start = chunk * self._length
            window = slice(start, start + self._length)
            following = slice(start + 1, start + self._length + 1)
            tokens[place] = read[window]
            targets[place] = read[following]
            segment = 1 + (document * self.num_streams + stream) % MOST_SEGMENTS
            segments[place] = np.where(tokens[place] == SymbolVocabulary.pad_id, 0, segment)
            if bears_loss(row, rows=self._rows, crossbatch=self._crossbatch):
                loss_mask[place] = answers[following]
        return Batch(tokens=tokens, targets=targets, loss_mask=loss_mask, segments=segments)

    def _document(self, stream: int, document: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns tokens and answer mask of one document, each with one extra entry for the last target."""
        tokens, answers = dictionary(
            generator(self._seed, "dictionary", stream, document),
            self._config,
            definition_tokens=self._config.definition_tokens,
            question_tokens=self._config.question_tokens,
        )
        return np.append(tokens, SymbolVocabulary.pad_id), np.append(answers, False)
