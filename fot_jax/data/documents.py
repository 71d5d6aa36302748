"""All documents of a config as token ids: a mixture of components, split into train and held out."""

import dataclasses
import enum
import functools
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from fot_jax.config import DataConfig, SourceConfig, UserError
from fot_jax.data.cache import SourceCache, fingerprint, load_cache, open_or_build
from fot_jax.data.copies import first_copies, is_first_copy
from fot_jax.data.seeds import generator
from fot_jax.data.vocabulary import load_vocabulary
from fot_jax.logging import info_once
from fot_jax.storage.paths import StoragePath, storage_path


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentSet:
    """Documents of a store, numbered from 0, one source (component) after another.

    Attributes:
      caches: one per component.
      local_ids: per component, int64 indices of its documents in its cache.
      contents: per component, int64 [documents]: the store's index of the first document with the same
        tokens, which is the document's own index unless it is a copy.
      rates: per component, its share of drawn documents.
      sources: per component, its name.
    """

    caches: tuple[SourceCache, ...]
    local_ids: tuple[np.ndarray, ...]
    contents: tuple[np.ndarray, ...]
    rates: tuple[float, ...]
    sources: tuple[str, ...]
    lengths: np.ndarray = dataclasses.field(init=False)  # int64 [documents], in tokens, the end included
    content_ids: np.ndarray = dataclasses.field(init=False)  # int64 [documents], equal for equal documents
    segment_ids: np.ndarray = dataclasses.field(init=False)  # int32 [documents], content_ids + 1

    def __post_init__(self):
        parts = zip(self.caches, self.local_ids, strict=True)
        object.__setattr__(self, "lengths", np.concatenate([cache.lengths[ids] for cache, ids in parts]))
        object.__setattr__(self, "content_ids", np.concatenate(self.contents))
        object.__setattr__(self, "segment_ids", (self.content_ids + 1).astype(np.int32))

    @property
    def num_documents(self) -> int:
        """Number of documents in all components."""
        return len(self.lengths)

    @functools.cached_property
    def num_contents(self) -> int:
        """Number of documents in all components, copies not counted."""
        return int(np.count_nonzero(is_first_copy(self.content_ids)))

    @property
    def digests(self) -> dict[str, str]:
        """Digest of the tokens, by source."""
        return {source: cache.digest for source, cache in zip(self.sources, self.caches, strict=True)}

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of documents per component."""
        return tuple(len(ids) for ids in self.local_ids)

    def only_source(self, name: str) -> "DocumentSet":
        """Returns the documents of one source; `name` is one of `sources`."""
        index = self.sources.index(name)
        kept = {field.name: (getattr(self, field.name)[index],) for field in dataclasses.fields(self) if field.init}
        return DocumentSet(**kept)

    def _place(self, document: int) -> tuple[int, int]:
        component = 0
        while document >= len(self.local_ids[component]):
            document -= len(self.local_ids[component])
            component += 1
        return component, int(self.local_ids[component][document])

    def tokens(self, document: int, *, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns token ids start..stop-1 of a document, whose last one is the end-of-document token."""
        component, local = self._place(document)
        cache = self.caches[component]
        begin, end = int(cache.offsets[local]), int(cache.offsets[local + 1])
        last = end if stop is None else min(begin + stop, end)
        return cache.tokens[begin + start : last]

    def name(self, document: int) -> str:
        """Returns the document's name: its file and record."""
        component, local = self._place(document)
        return self.caches[component].names()[local]


class Side(enum.IntEnum):
    """Side of the split that a document is on."""

    UNDECIDED = 0  # too short in every source
    TRAIN = 1
    HELDOUT = 2


COPIES_TOGETHER = "+copies"  # in a digest, see `DocumentStore._cache_of_split`
SPLITS = {"train": Side.TRAIN, "heldout": Side.HELDOUT}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentStore:
    """Every source's tokens, and the seeded choice of whole documents held out for evaluation.

    Equal documents (the same tokens, in one source or in several) are all held out or all trained on.
    """

    data: DataConfig
    seed: int
    caches: tuple[SourceCache, ...]

    def split(self, name: str) -> DocumentSet:
        """Returns the documents of "train" or "heldout" that have at least `min_tokens` tokens.

        Raises UserError for another name, or when no document is left.
        """
        if name not in SPLITS:
            raise UserError(f"split must be one of {tuple(SPLITS)}, got {name!r}.")
        chosen = [ids[self._sides[contents] == SPLITS[name]] for ids, contents in self._eligible()]
        kept = [index for index, ids in enumerate(chosen) if len(ids)]
        for index, source in enumerate(self.data.sources):
            if name == "train" and index not in kept:
                raise UserError(
                    f"data.sources['{source.name}'] must hold a training document of at least"
                    f" min_tokens={source.min_tokens} tokens, got none{self._explain_held_out(index)}."
                    " Lower min_tokens or add documents."
                )
        if not kept:
            raise UserError(
                "data.heldout_fraction must leave documents for evaluation, got none at"
                f" {self.data.heldout_fraction}. Raise it, or add documents (two different ones or more per source)."
            )
        return DocumentSet(
            caches=tuple(self._cache_of_split(i) for i in kept),
            local_ids=tuple(chosen[i] for i in kept),
            contents=tuple(self._contents[i][chosen[i]] for i in kept),
            rates=tuple(self.data.sources[i].rate for i in kept),
            sources=tuple(self.data.sources[i].name for i in kept),
        )

    def _cache_of_split(self, index: int) -> SourceCache:
        """The cache of a source; if the source holds copies, its digest says that they share a side.

        Earlier versions chose a side for each copy: a run of theirs goes on, or is evaluated, with other documents.
        """
        cache = self.caches[index]
        return dataclasses.replace(cache, digest=cache.digest + COPIES_TOGETHER) if self.copies[index] else cache

    @functools.cached_property
    def _contents(self) -> list[np.ndarray]:
        """Per source, int64 [documents]: the store's index of the first document with the same tokens."""
        first = first_copies(np.concatenate([cache.contents for cache in self.caches]))
        return np.split(first, np.cumsum([len(cache.contents) for cache in self.caches])[:-1])

    def _eligible(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields, per source, the indices of its documents that are long enough, and their contents."""
        for source, cache, contents in zip(self.data.sources, self.caches, self._contents, strict=True):
            eligible = np.flatnonzero(cache.lengths >= source.min_tokens)
            yield eligible, contents[eligible]

    @functools.cached_property
    def _sides(self) -> np.ndarray:
        """The `Side` of each content, int8 [documents of the store].

        Each source decides the n contents that no earlier source has decided. It holds out a seeded
        choice of round(fraction * n) of them, at least one and at most n - 1.
        """
        sides = np.full(sum(len(contents) for contents in self._contents), Side.UNDECIDED, np.int8)
        for source, (_, contents) in zip(self.data.sources, self._eligible(), strict=True):
            new = contents[is_first_copy(contents) & (sides[contents] == Side.UNDECIDED)]
            wanted = self.data.heldout_fraction * len(new)
            count = min(max(1, round(wanted)), len(new) - 1) if wanted > 0 and len(new) > 1 else 0
            order = generator(self.seed, "heldout", source.name).permutation(len(new))
            sides[new[order[:count]]], sides[new[order[count:]]] = Side.HELDOUT, Side.TRAIN
        return sides

    def _explain_held_out(self, index: int) -> str:
        """Explains, for an error, that a source's long enough documents are all held-out copies; else empty."""
        eligible, _ = list(self._eligible())[index]
        return f": all {len(eligible)} are copies of documents of other sources that are held out" * bool(len(eligible))

    @functools.cached_property
    def copies(self) -> list[int]:
        """Per source, how many of its documents are copies of others."""
        starts = np.cumsum([0, *(len(contents) for contents in self._contents)])
        own = [np.arange(start, start + len(contents)) for start, contents in zip(starts, self._contents, strict=False)]
        return [int(np.count_nonzero(c != o)) for c, o in zip(self._contents, own, strict=True)]

    def counts(self, name: str) -> list[int]:
        """Counts each source's documents of "train" or "heldout", copies included."""
        return [int(np.count_nonzero(self._sides[contents] == SPLITS[name])) for _, contents in self._eligible()]

    def log_copies(self) -> None:
        """Logs, once for each source, how many of its documents are copies of others."""
        for source, contents, copies in zip(self.data.sources, self._contents, self.copies, strict=True):
            if copies:
                info_once(
                    f"data.sources['{source.name}']: {copies} of {len(contents)} documents are copies of others, token"
                    " by token. Copies are held out together, and count as one document in a batch."
                )


def build_store(data: DataConfig, *, seed: int) -> DocumentStore:
    """Opens the token caches of all sources, building those that are missing (needs TensorFlow).

    Raises UserError where a source cannot be read or holds no document.
    """
    store = DocumentStore(data=data, seed=seed, caches=tuple(_caches(data, seed=seed)))
    store.log_copies()
    return store


def open_store(data: DataConfig, *, seed: int) -> DocumentStore | None:
    """Opens the token caches of all sources to count; returns None unless every source has one.

    Of caches in a bucket the tokens are not read: only their number is right.
    """
    caches = []
    for source in data.sources:
        expected = fingerprint(source, data=data, seed=seed)
        folder = cache_folder(data) / f"{source.name}-{expected}"
        if isinstance(folder, pathlib.Path):
            cache = load_cache(folder, expected=expected)
        else:
            from fot_jax.data import bucket_cache  # imports JAX

            cache = bucket_cache.load_counts(folder, expected=expected)
        if cache is None:
            return None
        caches.append(cache)
    return DocumentStore(data=data, seed=seed, caches=tuple(caches))


def cache_folder(data: DataConfig) -> StoragePath:
    """Returns `data.cache_dir` with '~' and variables expanded."""
    return storage_path(os.path.expanduser(os.path.expandvars(data.cache_dir)))


def _caches(data: DataConfig, *, seed: int) -> Iterator[SourceCache]:
    vocab_size = load_vocabulary(data.vocabulary, data.dictionary).size
    for source in data.sources:
        expected = fingerprint(source, data=data, seed=seed)
        folder = cache_folder(data) / f"{source.name}-{expected}"
        documents = functools.partial(_tokenise, source, data=data, seed=seed)
        how = {"source": source.name, "expected": expected, "vocab_size": vocab_size}
        if isinstance(folder, pathlib.Path):
            yield open_or_build(folder, documents, **how)
        else:
            from fot_jax.data import bucket_cache  # imports JAX

            yield bucket_cache.open_or_build_copy(folder, documents, **how)


def _tokenise(source: SourceConfig, *, data: DataConfig, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    from fot_jax.data import tasks  # imports TensorFlow

    return tasks.register_task(source, data=data, seed=seed).documents()
