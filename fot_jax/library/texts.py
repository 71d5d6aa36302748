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
    if isinstance(text, Path):
        try:
            text = decode_file(text.read_bytes(), where=f"'{text}'")
        except OSError as error:
            raise UserError(f"a text's file must be readable, got '{text}' ({error.strerror}).") from error
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
