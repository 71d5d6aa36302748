"""Turns what a user calls a text (a str, a file, token ids) into token ids of a model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from fot_jax.config import ModelConfig, UserError, check
from fot_jax.data.chat import encode_chat
from fot_jax.data.utf8 import decode_file
from fot_jax.data.vocabulary import Vocabulary, check_ids, encode_prompt

Text = str | Path | Sequence[int] | np.ndarray  # a text, a file of UTF-8 text, or token ids


def encode(
    vocabulary: Vocabulary, text: str, *, chat: bool = False, system: str | None = None
) -> Int[np.ndarray, " n"]:
    """Returns the token ids of a prompt from its beginning (BOS).

    Args:
      vocabulary: the model's.
      text: the prompt. Names of special tokens in it are special tokens; with `chat` they are text.
      chat: makes the text the user's message in the chat template of the checkpoint.
      system: the system's message, with `chat`; None: the template's own.
    """
    ids = encode_chat(vocabulary, user=text, system=system) if chat else encode_prompt(vocabulary, text)
    return np.asarray(ids, np.int32)


def name_texts(texts: Sequence[Text], *, first: int = 1) -> list[tuple[str, Text]]:
    """Returns name and content of each text: a file's path and text, else "text 3" for the third one.

    Args:
      texts: texts, files or token ids.
      first: the number of the first one.

    Raises:
      UserError: a file cannot be read.
    """
    numbered = enumerate(texts, first)
    return [(str(text) if isinstance(text, Path) else f"text {number}", load_text(text)) for number, text in numbered]


def only_texts(named: Sequence[tuple[str, Text]]) -> tuple[tuple[str, str], ...]:
    """Returns those that are texts, not token ids."""
    return tuple((name, text) for name, text in named if isinstance(text, str))


def load_text(text: Text) -> str | Sequence[int] | np.ndarray:
    """Returns a text or token ids; of a file, its text. Raises UserError where it cannot be read."""
    if not isinstance(text, Path):
        return text
    try:
        return decode_file(text.read_bytes(), where=f"'{text}'")
    except OSError as error:
        raise UserError(f"a text's file must be readable, got '{text}' ({error.strerror}).") from error


def to_ids(vocabulary: Vocabulary, model: ModelConfig, text: Text, *, begins: bool = True) -> Int[np.ndarray, " n"]:
    """Returns the token ids of a text; given ids are not yet compared with the model's.

    Args:
      vocabulary: the model's.
      model: its config.
      text: a text, a file or token ids.
      begins: whether a text begins with BOS, where the vocabulary has one; False: it continues another.

    Raises:
      UserError: no text, an empty one, a file that cannot be read, or a special token that the model lacks.
    """
    text = load_text(text)
    if isinstance(text, str):
        check(bool(text), "a text", "hold at least one character", text)
        ids = encode(vocabulary, text) if begins else np.asarray(vocabulary.encode_trusted(text), np.int32)
        check_ids(vocabulary, ids.tolist(), model)
        return ids
    ids = np.asarray(text)
    if ids.size and (ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer)):
        got = f"a {type(text).__name__} of {ids.dtype} with shape {ids.shape}"
        fix = "Several texts are read by read(*texts) or read_each(texts), asked by ask_each(texts)."
        raise UserError(f"a text must be a str, a Path or one sequence of token ids, got {got}. {fix}")
    return ids.astype(np.int64)
