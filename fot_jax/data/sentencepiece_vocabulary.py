"""Opens SentencePiece models: LLaMA's as transformers 5 does, others by the sentencepiece library itself."""

import re
from collections.abc import Iterable
from typing import Any

from fot_jax.config import UserError
from fot_jax.data import llama_tokenizer
from fot_jax.data.tokenizer_settings import TokenizerSettings, read_settings
from fot_jax.data.tokenizer_vocabulary import TokenizerVocabulary, missing_bos_error


class SentencePieceVocabulary:
    """A SentencePiece model file as it is, without added tokens.

    Attributes: see Vocabulary; `special_ids` are the control pieces by name; `ends_as_model` is False where the files
      next to it name another end token than the model's own.

    Raises UserError when it has no end-of-sentence id, lacks the token that is to begin texts or one that ends them,
    or when the files next to it add tokens.
    """

    pad_id = 0

    def __init__(self, model: Any, settings: TokenizerSettings):
        self.path = str(settings.path)
        self._model = model
        self.size = model.get_piece_size()
        self.special_ids = {model.id_to_piece(i): i for i in range(self.size) if model.is_control(i)}
        strange = [token for token in settings.added if model.piece_to_id(token.content) != token.id]
        if strange:
            raise UserError(
                f"'{settings.path.with_name(strange[0].file)}' adds {strange[0].content!r} to a SentencePiece model"
                " that is no LLaMA tokenizer (BPE, text as it is). Give a tokenizer.json in place of it."
            )
        named = settings.name_of("eos")
        self.eos_id = model.eos_id() if named is None else self.special_ids.get(named, -1)
        if self.eos_id < 0:
            raise missing_eos_error(self.path)
        self.ends_as_model = self.eos_id == model.eos_id()
        self.end_ids = settings.checked_end_ids(self.size) or (self.eos_id,)
        self.bos_id = self._find_bos(settings)
        self.identity: list[object] = [self.bos_id, self.eos_id]  # the file's own digest covers the rest

    def _find_bos(self, settings: TokenizerSettings) -> int | None:
        name = settings.name_of("bos")
        found = self._model.bos_id() if name is None else self.special_ids.get(name, -1)
        if not settings.flag("add_bos_token"):
            return None
        if found < 0:
            raise missing_bos_error(self.path, name)
        return found

    def encode(self, text: str) -> list[int]:
        """See Vocabulary."""
        return self._model.encode(text)

    def encode_trusted(self, text: str) -> list[int]:
        """See Vocabulary."""
        return self._encode_around(text, self.special_ids)

    def encode_marked(self, text: str, marks: dict[str, int]) -> list[int]:
        """See MarkedVocabulary."""
        return self._encode_around(text, marks)

    def _encode_around(self, text: str, names: dict[str, int]) -> list[int]:
        """Encodes names as their ids, and the text between them as text."""
        ids: list[int] = []
        end = 0
        for found in any_of(names).finditer(text):
            ids += self.encode(text[end : found.start()])
            ids.append(names[found[0]])
            end = found.end()
        return ids + self.encode(text[end:])

    def decode(self, ids: Iterable[int]) -> str:
        """See Vocabulary."""
        return self._model.decode([int(i) for i in ids])

    def token_bytes(self, token: int) -> int:
        """See Vocabulary; counts normalised text (the space that is put before a text included)."""
        if self._model.is_byte(token):
            return 1
        if self._model.is_control(token) or self._model.is_unknown(token) or self._model.is_unused(token):
            return 0
        return len(self._model.id_to_piece(token).replace(llama_tokenizer.SPACE, " ").encode("utf-8"))


def any_of(names: Iterable[str]) -> re.Pattern[str]:
    """Compiles a pattern of the names, the longest first; without names it never matches."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def missing_eos_error(path: str) -> UserError:
    """Builds the error for a model without a token that ends texts."""
    return UserError(f"'{path}' must define an end-of-sentence piece (</s>), got none. Retrain it with one.")


def read_model(path: str) -> tuple[Any, Any]:
    """Reads a SentencePiece model: its processor and its definition. Raises UserError if the file is none."""
    import sentencepiece
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    definitions: Any = sentencepiece_model_pb2  # its classes are made at run time
    proto = definitions.ModelProto()
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=path)
        proto.ParseFromString(model.serialized_model_proto())
        for index in range(model.vocab_size()):
            model.id_to_piece(index)
    except (OSError, RuntimeError, DecodeError, UnicodeDecodeError) as error:  # the last: of pieces and messages
        raise UserError(f"data.vocabulary.path must be a SentencePiece model, got '{path}' ({error}).") from error
    return model, proto


def open_sentencepiece(path: str) -> TokenizerVocabulary | SentencePieceVocabulary:
    """Opens a SentencePiece model: as LLaMA's tokenizer where files next to it say so, else as it is.

    Raises:
      UserError: it is no SentencePiece model, or see the two vocabularies.
    """
    model, proto = read_model(path)
    settings = read_settings(path)
    of_class = settings.tokenizer_class() in ("", *llama_tokenizer.LLAMA_CLASSES)
    if not settings.stated or not of_class or not llama_tokenizer.is_plain_bpe(proto):
        return SentencePieceVocabulary(model, settings)
    for role, index in (("unk", model.unk_id()), ("bos", model.bos_id()), ("eos", model.eos_id())):
        if index >= 0:
            settings.values.setdefault(f"{role}_token", model.id_to_piece(index))
    if settings.name_of("eos") is None:
        raise missing_eos_error(path)
    return TokenizerVocabulary(llama_tokenizer.from_pieces(proto, settings), settings, add_bos=True)
