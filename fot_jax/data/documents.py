"""All documents of a config as token ids: a mixture of components, split into train and held out."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from fot_jax.config import DataConfig, SourceConfig, UserError
from fot_jax.data.cache import SourceCache, fingerprint, open_or_build
from fot_jax.data.seeds import generator
from fot_jax.data.vocabulary import load_vocabulary

SPLITS = ("train", "heldout")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentSet:
    """Some documents of a store, numbered from 0, those of one source (component) together.

    Attributes:
      caches: one per component.
      local_ids: per component, int64 indices of its documents in its cache.
      first_ids: per component, the global index of its cache's first document.
      rates: per component, its share of drawn documents.
      sources: per component, its name.
    """

    caches: tuple[SourceCache, ...]
    local_ids: tuple[np.ndarray, ...]
    first_ids: tuple[int, ...]
    rates: tuple[float, ...]
    sources: tuple[str, ...]
    lengths: np.ndarray = dataclasses.field(init=False)  # int64 [documents], tokens with the final one
    segment_ids: np.ndarray = dataclasses.field(init=False)  # int32 [documents], global index + 1

    def __post_init__(self):
        parts = list(zip(self.caches, self.local_ids, self.first_ids, strict=True))
        object.__setattr__(self, "lengths", np.concatenate([cache.lengths[ids] for cache, ids, _ in parts]))
        segments = np.concatenate([ids + first + 1 for _, ids, first in parts]).astype(np.int32)
        object.__setattr__(self, "segment_ids", segments)

    @property
    def num_documents(self) -> int:
        """Documents of all components."""
        return len(self.lengths)

    @property
    def digests(self) -> dict[str, str]:
        """Per source, the digest of its tokens."""
        return {source: cache.digest for source, cache in zip(self.sources, self.caches, strict=True)}

    @property
    def sizes(self) -> tuple[int, ...]:
        """Documents per component."""
        return tuple(len(ids) for ids in self.local_ids)

    def of_source(self, name: str) -> "DocumentSet":
        """The documents of one source; `name` is one of `sources`."""
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
        """Token ids of a document from `start` to `stop`, its final end-of-document token included."""
        component, local = self._place(document)
        cache = self.caches[component]
        begin, end = int(cache.offsets[local]), int(cache.offsets[local + 1])
        last = end if stop is None else min(begin + stop, end)
        return cache.tokens[begin + start : last]

    def name(self, document: int) -> str:
        """The document's name: its file and record."""
        component, local = self._place(document)
        return self.caches[component].names()[local]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentStore:
    """Every source's tokens, and the seeded choice of whole documents held out for evaluation."""

    data: DataConfig
    seed: int
    caches: tuple[SourceCache, ...]

    def split(self, name: str) -> DocumentSet:
        """The documents of "train" or "heldout", those shorter than `min_tokens` left out.

        Raises UserError for another name, or when no document is left.
        """
        if name not in SPLITS:
            raise UserError(f"split must be one of {SPLITS}, got {name!r}.")
        chosen = [self._local_ids(index, name) for index in range(len(self.caches))]
        kept = [index for index, ids in enumerate(chosen) if len(ids)]
        for index, source in enumerate(self.data.sources):
            if name == "train" and index not in kept:
                raise UserError(
                    f"data.sources['{source.name}'] must hold a training document of at least"
                    f" min_tokens={source.min_tokens} tokens, got none. Lower min_tokens or add documents."
                )
        if not kept:
            raise UserError(
                "data.heldout_fraction must leave documents for evaluation, got none at"
                f" {self.data.heldout_fraction}. Raise it, or add documents (two or more per source)."
            )
        first = np.concatenate([[0], np.cumsum([len(cache.offsets) - 1 for cache in self.caches])])
        return DocumentSet(
            caches=tuple(self.caches[i] for i in kept),
            local_ids=tuple(chosen[i] for i in kept),
            first_ids=tuple(int(first[i]) for i in kept),
            rates=tuple(self.data.sources[i].rate for i in kept),
            sources=tuple(self.data.sources[i].name for i in kept),
        )

    def _local_ids(self, index: int, split: str) -> np.ndarray:
        """Held out: a seeded choice of round(fraction * n) of a source's n long enough documents, at least one."""
        source = self.data.sources[index]
        eligible = np.flatnonzero(self.caches[index].lengths >= source.min_tokens)
        wanted = self.data.heldout_fraction * len(eligible)
        count = min(max(1, round(wanted)), len(eligible) - 1) if wanted > 0 and len(eligible) > 1 else 0
        order = generator(self.seed, "heldout", source.name).permutation(len(eligible))
        return eligible[np.sort(order[:count] if split == "heldout" else order[count:])]


def build_store(data: DataConfig, *, seed: int) -> DocumentStore:
    """Opens the token caches of all sources, building those that are missing (needs TensorFlow).

    Raises UserError where a source cannot be read or holds no document.
    """
    return DocumentStore(data=data, seed=seed, caches=tuple(_caches(data, seed=seed)))


def cache_folder(data: DataConfig) -> pathlib.Path:
    """`data.cache_dir` with '~' and variables expanded."""
    return pathlib.Path(os.path.expanduser(os.path.expandvars(data.cache_dir)))


def _caches(data: DataConfig, *, seed: int) -> Iterator[SourceCache]:
    vocab_size = load_vocabulary(data.vocabulary, data.dictionary).size
    for source in data.sources:
        expected = fingerprint(source, data=data, seed=seed)
        folder = cache_folder(data) / f"{source.name}-{expected}"
        documents = functools.partial(_tokenise, source, data=data, seed=seed)
        yield open_or_build(folder, documents, source=source.name, expected=expected, vocab_size=vocab_size)


def _tokenise(source: SourceConfig, *, data: DataConfig, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    from fot_jax.data import tasks  # imports TensorFlow

    return tasks.register_task(source, data=data, seed=seed).documents()
