"""Text to token ids and back, without TensorFlow.

While a corpus is tokenised the same vocabularies run inside seqio (`fot_jax/data/tasks.py`);
everything afterwards (prompts, generated text, bits per byte) comes here.

Where a tokenizer says that texts begin with a token (BOS), documents and prompts do:

    document    [BOS] text EOS
    prompt      [BOS] text

It says so by `add_bos_token` in tokenizer_config.json, else by the post-processor of tokenizer.json, else, for a
tokenizer.model, by being LLaMA's (`tokenizer_class`). Bytes, symbols and bare SentencePiece models have none.
"""

import functools
import json
import os
from collections.abc import Iterable
from typing import Protocol, assert_never

from fot_jax.config import ConfigError, DictionaryConfig, ModelConfig, UserError, VocabularyConfig, VocabularyKind
from fot_jax.data.tokenizer_settings import adds_bos, read_settings, token_name

END_OF_TEXT_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|im_end|>")


class Vocabulary(Protocol):
    """Token ids of a text. Id 0 fills padding, which segments mask, whatever else it stands for.

    `bos_id` begins every document and prompt; None where texts begin with their first token.
    """

    size: int
    pad_id: int
    eos_id: int
    bos_id: int | None

    def encode(self, text: str) -> list[int]:
        """Ids of a text alone: no token at its beginning, none at its end."""
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
    bos_id: int | None = None
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
    bos_id: int | None = None
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
    """A SentencePiece model file; a `tokenizer_config.json` beside it may ask for a token that begins texts.

    Raises UserError when it cannot be read, has no end-of-sentence id, or lacks the token that is to begin texts.
    """

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
        self.special_ids = {
            self._model.id_to_piece(i): i for i in range(self.size) if self._model.is_control(i)
        }  # never found in text
        self.bos_id = self._find_begin()

    def _find_begin(self) -> int | None:
        settings = read_settings(self.path)
        name = token_name(settings, "bos", tokenizer=self.path)
        found = self._model.bos_id() if name is None else self.special_ids.get(name, -1)
        wanted = adds_bos(settings, tokenizer=self.path)
        if wanted and found < 0:
            raise _no_begin(self.path, name)
        if wanted is None:
            wanted = found >= 0 and str(settings.get("tokenizer_class", "")).startswith("Llama")
        return found if wanted else None

    def encode(self, text: str) -> list[int]:
        """See Vocabulary."""
        return self._model.encode(text)

    def encode_plain(self, text: str) -> list[int]:
        """The same: names of special tokens are text."""
        return self.encode(text)

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
    """A Hugging Face `tokenizer.json`; a `tokenizer_config.json` beside it may name the tokens around a text.

    Raises UserError when it cannot be read, or no end-of-text token or not the token that is to begin texts is found.
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
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = {token.content: i for i, token in added.items() if token.special}
        self._special = set(self.special_ids.values())
        # Ids may have gaps: the model needs a row for the largest one.
        self.size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        settings = read_settings(self.path)
        self.eos_id = self._find_end(token_name(settings, "eos", tokenizer=self.path))
        begin = token_name(settings, "bos", tokenizer=self.path)
        self.bos_id = self._find_begin(begin, wanted=adds_bos(settings, tokenizer=self.path))
        decoder = json.loads(self._tokenizer.to_str()).get("decoder") or {}
        self._decoders = {part["type"] for part in decoder.get("decoders", [decoder]) if "type" in part}

    def _find_end(self, named: str | None) -> int:
        names = [named] if named else list(END_OF_TEXT_NAMES)
        found = [i for i in map(self._tokenizer.token_to_id, names) if i is not None]
        if not found:
            raise UserError(
                f"'{self.path}' must hold an end-of-text token, one of {names}, got none."
                " Put a tokenizer_config.json beside it that names its eos_token."
            )
        return found[0]

    def _find_begin(self, name: str | None, *, wanted: bool | None) -> int | None:
        if wanted is None:
            return self._put_before()
        found = None if name is None else self._tokenizer.token_to_id(name)
        if wanted and found is None:
            raise _no_begin(self.path, name)
        return found if wanted else None

    def _put_before(self) -> int | None:
        """What the post-processor puts before a text."""
        text = self.encode("a")
        whole = self._tokenizer.encode("a").ids
        before = whole[: next(n for n in range(len(whole) + 1) if whole[n : n + len(text)] == text)]
        if len(before) > 1:
            raise UserError(
                f"'{self.path}' must put at most one token before a text, got {before}."
                " Set add_bos_token in a tokenizer_config.json beside it."
            )
        return before[0] if before else None

    def encode(self, text: str) -> list[int]:
        """See Vocabulary; adds no special tokens. Names of special tokens in the text stand for them."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text in which the names of special tokens are text."""
        self._tokenizer.encode_special_tokens = True
        try:
            return self.encode(text)
        finally:
            self._tokenizer.encode_special_tokens = False

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


def _no_begin(path: str, name: str | None) -> UserError:
    return UserError(
        f"'{path}' must hold the token that begins a text, since add_bos_token is true, got {name!r}."
        " Name its bos_token in the tokenizer_config.json beside it, or set add_bos_token to false."
    )


def encode_prompt(vocabulary: Vocabulary, text: str) -> list[int]:
    """Ids of a text from its beginning: the vocabulary's `bos_id`, if it has one, and the text."""
    return [*([] if vocabulary.bos_id is None else [vocabulary.bos_id]), *vocabulary.encode(text)]


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
    if config.kind is not VocabularyKind.SYMBOLS:
        assert_never(config.kind)
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
