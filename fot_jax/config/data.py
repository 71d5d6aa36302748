"""Documents: sources, vocabulary, and how documents are laid into rows."""

import dataclasses

from fot_jax.config.enums import DocumentEnd, SourceKind, VocabularyKind
from fot_jax.config.errors import check


def check_scheme(text: str, path: str) -> None:
    """Raises ConfigError where a path has another scheme than gs://."""
    known = text.startswith("gs://") if "://" in text else not text.startswith("gs:")
    check(known, path, "be a path of this machine or gs://BUCKET/...", text, "Copy what is there to one of them.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of documents and its share of a mixture.

    `path` is a file, a folder or a glob (see `fot_jax.data.paths`), on a disk or at gs://BUCKET/...; empty for
    generated sources. `rate` is the share of drawn documents (rates need not sum to 1). `min_tokens` drops shorter
    documents.
    """

    name: str
    kind: SourceKind
    path: str = ""
    text_field: str = "text"
    rate: float = 1.0
    min_tokens: int = 0

    def validate(self, path: str) -> None:
        """Raises ConfigError where a value is out of range or a path is missing."""
        check(self.name.isidentifier(), f"{path}.name", "be a Python identifier", self.name)
        check(self.rate > 0, f"{path}.rate", "be > 0", self.rate)
        check(self.min_tokens >= 0, f"{path}.min_tokens", "be >= 0", self.min_tokens)
        if self.kind not in (SourceKind.STDLIB, SourceKind.DICTIONARY, SourceKind.PASSKEY):
            rule = f"name a file, a folder or a pattern for kind '{self.kind.value}'"
            check(bool(self.path), f"{path}.path", rule, self.path, f"Set it with --config.{path}.path=…")
            check_scheme(self.path, f"{path}.path")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """The vocabulary. `path` is a SentencePiece .model or a Hugging Face tokenizer.json; empty for bytes.

    It may be at gs://BUCKET/...; the files next to it are read too.
    """

    kind: VocabularyKind = VocabularyKind.BYTES
    path: str = ""

    def validate(self, path: str) -> None:
        """Raises ConfigError where a file is needed and none is named."""
        if self.kind in (VocabularyKind.SENTENCEPIECE, VocabularyKind.HF_TOKENIZER):
            check(bool(self.path), f"{path}.path", f"name a file for kind '{self.kind.value}'", self.path)
            check_scheme(self.path, f"{path}.path")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DictionaryConfig:
    """Dictionary lookup (FoT fig. 4, app. D); lengths in tokens."""

    num_symbols: int = 60  # letters; the vocabulary has also the tokens <pad> <k> <v> <q>
    key_length: int = 4
    value_length: int = 4
    definition_tokens: int = 256
    question_tokens: int = 256

    def validate(self, path: str) -> None:
        """Raises ConfigError where a value is out of range."""
        for field in dataclasses.fields(self):
            check(getattr(self, field.name) >= 1, f"{path}.{field.name}", "be >= 1", getattr(self, field.name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Documents, tokenizer and how documents are laid into rows.

    `cache_dir` holds the tokenised documents, keyed by a fingerprint of everything they depend on. Training maps them
    into memory; from gs://BUCKET/... each host copies them to its disk first. `heldout_fraction` of the documents,
    whole, is kept for evaluation.
    """

    sources: tuple[SourceConfig, ...]
    vocabulary: VocabularyConfig = VocabularyConfig()
    dictionary: DictionaryConfig = DictionaryConfig()
    document_end: DocumentEnd = DocumentEnd.PACK
    heldout_fraction: float = 0.1
    max_documents: int = 0  # per source, 0: all
    cache_dir: str = "data_cache"

    def validate(self, path: str) -> None:
        """Raises ConfigError where a value is out of range or names repeat."""
        check(len(self.sources) >= 1, f"{path}.sources", "name at least one source", self.sources)
        names = [source.name for source in self.sources]
        check(len(set(names)) == len(names), f"{path}.sources", "have distinct names", names)
        check_scheme(self.cache_dir, f"{path}.cache_dir")
        check(0 <= self.heldout_fraction < 1, f"{path}.heldout_fraction", "be in [0, 1)", self.heldout_fraction)
        for index, source in enumerate(self.sources):
            source.validate(f"{path}.sources[{index}]")
        self.vocabulary.validate(f"{path}.vocabulary")
        self.dictionary.validate(f"{path}.dictionary")
