"""A kind of input that goes wrong as its text says: what the harness itself is tested with."""

import os
import time
from pathlib import Path

from hypothesis import strategies as st

from tests.fuzz.edits import Edit
from tests.fuzz.kind import Kind, require

WORDS = ("fine", "refuse", "leave", "wrong", "raise", "crash", "grow", "hang")


def _attempt(source: Path, target: Path, intact: Path) -> None:
    from fot_jax.config import UserError

    word = (source / "word").read_text()
    if word == "leave":
        target.mkdir()
    if word in ("refuse", "leave"):
        raise UserError("the word must be 'fine'.")
    if word == "crash":
        os.abort()
    if word == "grow":
        print(len(b"x" * (3 * 10**9)))
    if word == "raise":
        raise KeyError("a bug")
    while word == "hang":
        time.process_time()
    require(word != "wrong", "other numbers")


def edit(word: str) -> Edit:
    """Writes another word."""
    return Edit("word", "put", (0, word.encode()))


KINDS = [
    Kind(
        name="toy",
        files=lambda: {"word": b"fine"},
        edits=lambda files: st.sampled_from(WORDS).map(edit),
        attempt=_attempt,
    )
]
