"""Turns text into token ids and back, without TensorFlow.

While a corpus is tokenised the same vocabularies run inside seqio (`fot_jax/data/tasks.py`);
everything afterwards (prompts, generated text, bits per byte) comes here.

Where a tokenizer says that texts begin with a token (BOS), documents and prompts do:

    document    [BOS] text EOS     encode            names of special tokens are text
    prompt      [BOS] text         encode_trusted    names of special tokens are special tokens

It says so by `add_bos_token` in tokenizer_config.json, else by the post-processor of tokenizer.json, else, for a
tokenizer.model, by being LLaMA's (`tokenizer_class`). Bytes, symbols and bare SentencePiece models have none.
"""

import functools
import os
from collections.abc import Iterable
from typing import Protocol, assert_never, runtime_checkable

from fot_jax.config import ConfigError, DictionaryConfig, ModelConfig, UserError, VocabularyConfig, VocabularyKind
from fot_jax.config.errors import NotHereError
from fot_jax.data.llama_tokenizer import as_llama
from fot_jax.data.plain_vocabularies import ByteVocabulary, SymbolVocabulary
from fot_jax.data.sentencepiece_vocabulary import open_sentencepiece
from fot_jax.data.tokenizer_copies import copied_tokenizer
from fot_jax.data.tokenizer_settings import read_settings
from fot_jax.data.tokenizer_vocabulary import TokenizerVocabulary, read_definition
from fot_jax.logging import info_once
from fot_jax.storage.paths import in_bucket

__all__ = [
    "ByteVocabulary",
    "MarkedVocabulary",
    "SymbolVocabulary",
    "Vocabulary",
    "check_ids",
    "check_vocabulary",
    "encode_prompt",
    "encode_text",
    "existing_file",
    "load_vocabulary",
    "open_tokenizer_json",
    "tokens_beyond",
]


class Vocabulary(Protocol):
    """Map from text to token ids and back. Id 0 fills padding, which segments mask, whatever else it means.

    Attributes:
      size: one more than the largest id.
      eos_id: ends every document.
      end_ids: each ends generated text.
      bos_id: begins every document and prompt; None where texts begin with their first token.
      special_ids: the special tokens by name.
    """

    size: int
    pad_id: int
    eos_id: int
    end_ids: tuple[int, ...]
    bos_id: int | None
    special_ids: dict[str, int]

    @property
    def identity(self) -> list[object]:
        """Values by which token caches know the vocabulary, next to its kind and its file."""
        ...

    def encode(self, text: str) -> list[int]:
        """Returns ids of a text alone, without BOS or EOS. Names of special tokens in it are text."""
        ...

    def encode_trusted(self, text: str) -> list[int]:
        """Returns ids of a text in which names of special tokens are special tokens; otherwise as `encode`."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of some ids; special tokens have none."""
        ...

    def token_bytes(self, token: int) -> int:
        """Counts the UTF-8 bytes of a token's text (0 for special tokens), for bits per byte."""
        ...


@runtime_checkable
class MarkedVocabulary(Protocol):
    """A vocabulary of files, which may hold a chat template."""

    path: str
    special_ids: dict[str, int]

    def encode_marked(self, text: str, marks: dict[str, int]) -> list[int]:
        """Returns ids of a text in which each mark is a special token, and all else, names included, is text.

        The text is encoded as one: the ids equal those of `encode_trusted` with names in place of the marks.

        Args:
          text: may hold marks.
          marks: the token of each mark, a character that occurs for nothing else.
        """
        ...


def encode_text(vocabulary: Vocabulary, text: str) -> list[int]:
    """Returns ids of a text that begins a document: the vocabulary's `bos_id`, if any, and the text as text."""
    return [*([] if vocabulary.bos_id is None else [vocabulary.bos_id]), *vocabulary.encode(text)]


def encode_prompt(vocabulary: Vocabulary, text: str) -> list[int]:
    """Returns ids of a user's own prompt: the vocabulary's `bos_id`, if any, and the text, trusted."""
    return [*([] if vocabulary.bos_id is None else [vocabulary.bos_id]), *vocabulary.encode_trusted(text)]


def existing_file(path: str) -> str:
    """Expands '~' and variables in a path; a bucket's file is copied to this machine with the files next to it.

    Raises:
      NotHereError: no such file exists.
      UserError: the bucket cannot be read.
    """
    expanded = os.path.expanduser(os.path.expandvars(path))
    if in_bucket(expanded):
        return str(copied_tokenizer(expanded))
    if not os.path.isfile(expanded):
        raise NotHereError(f"data.vocabulary.path must name a file, got '{path}', which does not exist.")
    return expanded


def open_tokenizer_json(path: str) -> TokenizerVocabulary:
    """Opens a Hugging Face tokenizer.json and the files next to it. Raises UserError."""
    settings = read_settings(path)
    return TokenizerVocabulary(as_llama(read_definition(path), settings), settings)


@functools.lru_cache(maxsize=8)
def load_vocabulary(config: VocabularyConfig, dictionary: DictionaryConfig | None = None) -> Vocabulary:
    """Loads the vocabulary of a config; `dictionary` gives the number of symbols of kind SYMBOLS.

    Raises:
      UserError: the file is missing or not of its kind.
      ConfigError: kind SYMBOLS without a DictionaryConfig.
    """
    if config.kind is VocabularyKind.BYTES:
        return ByteVocabulary()
    if config.kind is VocabularyKind.SENTENCEPIECE:
        return open_sentencepiece(existing_file(config.path))
    if config.kind is VocabularyKind.HF_TOKENIZER:
        return open_tokenizer_json(existing_file(config.path))
    if config.kind is not VocabularyKind.SYMBOLS:
        assert_never(config.kind)
    if dictionary is None:
        raise ConfigError("data.dictionary must be given for data.vocabulary.kind='symbols', got None.")
    return SymbolVocabulary(dictionary.num_symbols)


def tokens_beyond(vocabulary: Vocabulary, rows: int) -> tuple[dict[int, str], list[int]]:
    """Finds the tokens without a row in an embedding of that many rows.

    Returns:
      The special tokens by id that no document and no generated text needs, and the ids of all others, in order.
    """
    needed = {vocabulary.eos_id, vocabulary.bos_id, *vocabulary.end_ids}
    special = {i: name for name, i in vocabulary.special_ids.items() if i >= rows and i not in needed}
    return special, [i for i in range(rows, vocabulary.size) if i not in special]


def check_vocabulary(vocabulary: Vocabulary, model: ModelConfig) -> None:
    """Checks that every token of a text has a row in the model's embedding table.

    Special tokens may have none, such as a <pad> that is added after the last row: no text holds them, unless a
    trusted one names them (`check_ids`), and no text is generated with them. They are logged.

    Raises:
      ConfigError: a token that is not special, BOS or the end of documents has no row.
    """
    rows = model.vocab_size
    special, others = tokens_beyond(vocabulary, rows)
    if others:
        raise ConfigError(
            f"model.vocab_size must be >= {vocabulary.size}, the size of the vocabulary of `data.vocabulary`,"
            f" got {rows}. Raise model.vocab_size or choose a smaller vocabulary."
        )
    if special:
        names = ", ".join(special.values())
        info_once(f"special tokens without a row in the model's embedding ({rows} rows), never chosen: {names}.")


def check_ids(vocabulary: Vocabulary, ids: Iterable[int], model: ModelConfig) -> None:
    """Raises UserError where a prompt names a special token that has no row in the model's embedding table."""
    beyond = sorted({i for i in ids if i >= model.vocab_size})
    if beyond:
        names = {index: name for name, index in vocabulary.special_ids.items()}
        raise UserError(
            f"a prompt must hold tokens of the model, got {names.get(beyond[0])!r}, token {beyond[0]}: the model's"
            f" embedding has {model.vocab_size} rows. Leave it out."
        )
