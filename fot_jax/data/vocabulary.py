"""Text to token ids and back, without TensorFlow.

While a corpus is tokenised the same vocabularies run inside seqio (`fot_jax/data/tasks.py`);
everything afterwards (prompts, generated text, bits per byte) comes here.
"""

import functools
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Protocol

from fot_jax.config import ConfigError, DictionaryConfig, ModelConfig, UserError, VocabularyConfig, VocabularyKind

END_OF_TEXT_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|im_end|>")


class Vocabulary(Protocol):
    """Token ids of a text. Id 0 fills padding, which segments mask, whatever else it stands for."""

    size: int
    pad_id: int
    eos_id: int

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without an end-of-document token."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; special tokens have none."""
        ...

    def token_bytes(self, token: int) -> int:
        """UTF-8 bytes of text that one token stands for (0 for special tokens): for bits per byte."""
        ...


class ByteVocabulary:
    """0 <pad>, 1 end of document, 2 unknown, then byte b as b + 3 (as `seqio.ByteVocabulary`)."""

    size = 259
    pad_id = 0
    eos_id = 1
    first_byte = 3

    def encode(self, text: str) -> list[int]:
        """See Vocabulary."""
        return [byte + self.first_byte for byte in text.encode("utf-8")]

    def decode(self, ids: Iterable[int]) -> str:
        """See Vocabulary; bytes that are not UTF-8 show as U+FFFD."""
        return bytes(i - self.first_byte for i in ids if i >= self.first_byte).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> int:
        """See Vocabulary."""
        return int(token >= self.first_byte)


class SymbolVocabulary:
    """<pad>, <k>, <v>, <q> and then letters, for dictionary lookup (app. D); it holds no text."""

    pad_id = 0
    eos_id = 0
    key_id = 1
    value_id = 2
    question_id = 3
    first_letter = 4

    def __init__(self, num_symbols: int):
        self.size = self.first_letter + num_symbols
        self._names = ["<pad>", "<k>", "<v>", "<q>"] + [f"s{i}" for i in range(num_symbols)]
        self._ids = {name: i for i, name in enumerate(self._names)}

    def encode(self, text: str) -> list[int]:
        """Ids of symbols separated by spaces, such as "<q> s3 s1 <v>". Raises UserError for an unknown one."""
        unknown = [word for word in text.split() if word not in self._ids]
        if unknown:
            raise UserError(f"prompt must hold symbols <k>, <v>, <q>, s0..{self._names[-1]}, got {unknown[0]!r}.")
        return [self._ids[word] for word in text.split()]

    def decode(self, ids: Iterable[int]) -> str:
        """See Vocabulary."""
        return " ".join(self._names[i] for i in ids)

    def token_bytes(self, token: int) -> int:
        """A symbol counts as one byte (bits per symbol)."""
        return int(token != self.pad_id)


class SentencePieceVocabulary:
    """A SentencePiece model file. Raises UserError when it cannot be read or has no end-of-sentence id."""

    pad_id = 0

    def __init__(self, path: str):
        import sentencepiece

        self.path = existing_file(path)
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=self.path)
        except (OSError, RuntimeError) as error:
            message = f"data.vocabulary.path must be a SentencePiece model, got '{self.path}' ({error})."
            raise UserError(message) from error
        self.size = self._model.get_piece_size()
        self.eos_id = self._model.eos_id()
        if self.eos_id < 0:
            raise UserError(
                f"'{self.path}' must define an end-of-sentence piece (</s>), got none. Retrain it with one."
            )

    def encode(self, text: str) -> list[int]:
        """See Vocabulary."""
        return self._model.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """See Vocabulary."""
        return self._model.decode([int(i) for i in ids])

    def token_bytes(self, token: int) -> int:
        """See Vocabulary; counts normalised text (the space that is put before a text included)."""
        if self._model.is_byte(token):
            return 1
        if self._model.is_control(token) or self._model.is_unknown(token) or self._model.is_unused(token):
            return 0
        return len(self._model.id_to_piece(token).replace("▁", " ").encode("utf-8"))


class HuggingFaceVocabulary:
    """A Hugging Face `tokenizer.json`; a `tokenizer_config.json` beside it may name the end token.

    Raises UserError when it cannot be read or no end-of-text token is found.
    """

    pad_id = 0

    def __init__(self, path: str):
        import tokenizers

        self.path = existing_file(path)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(self.path)
        except Exception as error:  # the library raises bare Exception
            message = f"data.vocabulary.path must be a Hugging Face tokenizer.json, got '{self.path}' ({error})."
            raise UserError(message) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._special = {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        # Ids may have gaps: the model needs a row for the largest one.
        self.size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.eos_id = self._find_end()
        decoder = json.loads(self._tokenizer.to_str()).get("decoder") or {}
        self._decoders = {part["type"] for part in decoder.get("decoders", [decoder]) if "type" in part}

    def _find_end(self) -> int:
        names = list(END_OF_TEXT_NAMES)
        beside = pathlib.Path(self.path).with_name("tokenizer_config.json")
        if beside.is_file():
            try:
                named = json.loads(beside.read_text("utf-8")).get("eos_token")
                named = named["content"] if isinstance(named, dict) else named
            except (ValueError, KeyError, AttributeError) as error:
                raise UserError(f"'{beside}' must be a Hugging Face tokenizer_config.json, got {error!r}.") from error
            names = [named] if named else names
        found = [i for i in map(self._tokenizer.token_to_id, names) if i is not None]
        if not found:
            raise UserError(
                f"'{self.path}' must hold an end-of-text token, one of {names}, got none."
                " Put a tokenizer_config.json beside it that names its eos_token."
            )
        return found[0]

    def encode(self, text: str) -> list[int]:
        """See Vocabulary; adds no special tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """See Vocabulary."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def token_bytes(self, token: int) -> int:
        """See Vocabulary. Raises UserError unless the tokenizer is byte-level or SentencePiece-like."""
        piece = self._tokenizer.id_to_token(token)
        if piece is None or token in self._special:
            return 0
        if "ByteLevel" in self._decoders:
            return len(piece)  # one printable character stands for one byte
        if self._decoders & {"Metaspace", "ByteFallback", "Replace"}:
            is_byte = len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
            return 1 if is_byte else len(piece.replace("▁", " ").encode("utf-8"))
        raise UserError(
            f"'{self.path}' must have a ByteLevel, Metaspace or ByteFallback decoder for bits per byte,"
            f" got {sorted(self._decoders)}."
        )


def existing_file(path: str) -> str:
    """The path with '~' and variables expanded. Raises UserError when no such file exists."""
    expanded = os.path.expanduser(os.path.expandvars(path))
    if not os.path.isfile(expanded):
        raise UserError(f"data.vocabulary.path must name a file, got '{path}', which does not exist.")
    return expanded


@functools.lru_cache(maxsize=8)
def load_vocabulary(config: VocabularyConfig, dictionary: DictionaryConfig | None = None) -> Vocabulary:
    """The vocabulary of a config; `dictionary` gives the number of symbols of kind SYMBOLS.

    Raises:
      UserError: the file is missing or not of its kind.
      ConfigError: kind SYMBOLS without a DictionaryConfig.
    """
    if config.kind is VocabularyKind.BYTES:
        return ByteVocabulary()
    if config.kind is VocabularyKind.SENTENCEPIECE:
        return SentencePieceVocabulary(config.path)
    if config.kind is VocabularyKind.HF_TOKENIZER:
        return HuggingFaceVocabulary(config.path)
    if dictionary is None:
        raise ConfigError("data.dictionary must be given for data.vocabulary.kind='symbols', got None.")
    return SymbolVocabulary(dictionary.num_symbols)


def check_vocabulary(vocabulary: Vocabulary, model: ModelConfig) -> None:
    """Raises ConfigError where a token id would fall outside the model's embedding table."""
    if vocabulary.size > model.vocab_size:
        raise ConfigError(
            f"model.vocab_size must be >= {vocabulary.size}, the size of the vocabulary of `data.vocabulary`,"
            f" got {model.vocab_size}. Raise model.vocab_size or choose a smaller vocabulary."
        )
