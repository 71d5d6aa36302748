"""Counts the documents of a config and checks that they suffice, before anything is tokenised."""

import dataclasses

import numpy as np

from fot_jax.config import DataConfig, ExperimentConfig, SourceConfig, UserError
from fot_jax.config.errors import NotHereError
from fot_jax.data.batches import check_documents
from fot_jax.data.cache import SourceCache, no_documents
from fot_jax.data.copies import content_digest, digest_table, first_copies, is_first_copy
from fot_jax.data.documents import DocumentStore, cache_folder, open_store
from fot_jax.data.readers import read_unlogged, source_files
from fot_jax.data.streams import is_dictionary, make_vocabulary
from fot_jax.data.vocabulary import load_vocabulary

MOST_BYTES = 1 << 30  # files of more bytes than that are not read only to be counted
SPECIAL = 3  # tokens: a document has at most a token a byte, and begin, end, and a space before its first word


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """Counts of a config's files and documents.

    Attributes:
      files: per source, the number of its files; 0 for generated ones.
      bytes: per source, the bytes of its files, as they are on disk.
      store: the documents; None if there are more than MOST_BYTES of files, which are not read to be counted.
      tokenised: whether `store` holds tokens. If not, a document is as long as it can be: a token a byte.
    """

    data: DataConfig
    files: tuple[int, ...]
    bytes: tuple[int, ...]
    store: DocumentStore | None
    tokenised: bool

    def lines(self) -> list[str]:
        """Returns a line a source: files, bytes, documents, and how many of them are held out."""
        return [self._line(index) for index in range(len(self.data.sources))]

    def _line(self, index: int) -> str:
        source = self.data.sources[index]
        files = f"{self.files[index]:,} files, {size(self.bytes[index])}" if self.files[index] else "generated"
        if self.store is None:
            return f"{source.name}: {files}; documents are counted when they are tokenised"
        cache, copies = self.store.caches[index], self.store.copies[index]
        train, heldout = (self.store.counts(split)[index] for split in ("train", "heldout"))
        short = len(cache.lengths) - train - heldout
        parts = [f"{len(cache.lengths):,} documents: {train:,} to train on, {heldout:,} held out"]
        parts += [f"{short:,} shorter than min_tokens={source.min_tokens}"] if short else []
        parts += [f"{copies:,} of them copies of others"] if copies else []
        parts += [f"{len(cache.tokens):,} tokens"] if self.tokenised else []
        return f"{source.name}: {files}; {', '.join(parts)}"


def size(count: int) -> str:
    """Returns bytes for people: 1.2 MB."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


def survey(data: DataConfig, *, seed: int) -> Survey:
    """Counts the documents of all sources: those of the token caches, else by reading the files, which writes nothing.

    Raises:
      NotHereError: a path matches no file.
      UserError: a source that cannot be read.
    """
    listed = [source_files(source) for source in data.sources]
    sizes = tuple(sum(file.size for file in files) for files in listed)
    store = open_store(data, seed=seed)
    tokenised = store is not None
    if store is None and sum(sizes) <= MOST_BYTES:
        store = _untokenised_store(data, seed=seed)
    return Survey(data=data, files=tuple(map(len, listed)), bytes=sizes, store=store, tokenised=tokenised)


def text_lengths(data: DataConfig) -> tuple[np.ndarray, int]:
    """Reads the documents of all sources, tokenised or not.

    Returns:
      the bytes of each different document, int64 [documents], and the number of copies of them.

    Raises UserError for more than MOST_BYTES of files, and as `survey`.
    """
    found = sum(file.size for source in data.sources for file in source_files(source))
    if found > MOST_BYTES:
        raise UserError(
            f"data.sources must hold at most {size(MOST_BYTES)} of files to be counted, got {size(found)}."
            " Name a part of them, or write a config of its own for them (docs/configs.md)."
        )
    store = _untokenised_store(data, seed=0)
    lengths = np.concatenate([cache.lengths - SPECIAL for cache in store.caches])
    different = is_first_copy(first_copies(np.concatenate([cache.contents for cache in store.caches])))
    return lengths[different], int(np.count_nonzero(~different))


def _untokenised_store(data: DataConfig, *, seed: int) -> DocumentStore:
    caches = tuple(_untokenised(source, data=data, seed=seed) for source in data.sources)
    return DocumentStore(data=data, seed=seed, caches=caches)


def _untokenised(source: SourceConfig, *, data: DataConfig, seed: int) -> SourceCache:
    """Returns a source's documents without tokens: lengths as if every byte were a token, and digests of the texts."""
    vocabulary = load_vocabulary(data.vocabulary, data.dictionary)
    lengths, digests = [0], bytearray()
    for _, text in read_unlogged(source, vocabulary=vocabulary, seed=seed, max_documents=data.max_documents):
        if text:
            encoded = text.encode()
            lengths.append(len(encoded) + SPECIAL)
            digests += content_digest(encoded)
    if not digests:
        raise no_documents(source.name)
    return SourceCache(
        tokens=np.zeros(0, np.uint16),
        offsets=np.cumsum(lengths, dtype=np.int64),
        contents=digest_table(bytes(digests)),
        folder=cache_folder(data),
    )


def check_data(config: ExperimentConfig) -> Survey | None:
    """Checks vocabulary, documents and held-out documents of a config before anything is tokenised.

    Documents that are not tokenised yet are taken as long as they can be, so that only what cannot work is refused.

    Returns:
      the survey; None for dictionary lookup, which is generated as it is trained on.

    Raises:
      NotHereError: a file of the vocabulary or of a source is not on this machine.
      ConfigError, UserError: what `make_stream` would raise after tokenising.
    """
    make_vocabulary(config)
    if is_dictionary(config):
        return None
    found = survey(config.data, seed=config.seed)
    if found.store is not None:
        for split in ("train", "heldout")[: 2 if config.train.eval_every else 1]:
            documents = found.store.split(split)
            check_documents(documents, crossbatch=config.crossbatch, rows=config.train.batch_rows, split=split)
    return found


def data_lines(config: ExperimentConfig) -> list[str]:
    """Describes the config's documents for people, or says that they are not on this machine; checks as `check_data`.

    Raises UserError for what would stop training before its first step.
    """
    try:
        found = check_data(config)
    except NotHereError as error:
        return [f"Data: not on this machine. {error}"]
    return ["Data: generated"] if found is None else ["Data", *(f"  {line}" for line in found.lines())]
