"""A model to hold in the hand: it reads texts into memories, and answers, continues and scores with them.

    model = load("runs/smollm2")
    book = model.read(text)                  window by window into a Memory
    book.ask("Who wrote this?")              the memory stays as it was
    book.stream("It was a")                  the same, piece by piece
    model.score(tokens, memory=book)         log-probabilities

A Memory never changes. Reading on returns another one, and a question and its answer go to a fork of it, so that
questions do not see each other. All of a text goes to memory: a question starts with an empty local context.
"""

from fot_jax.infer.progress import StopReading
from fot_jax.library.memory import Memory
from fot_jax.library.model import Model, load, open_vocabulary
from fot_jax.library.sources import Source
from fot_jax.library.texts import Text, encode

__all__ = ["Memory", "Model", "Source", "StopReading", "Text", "encode", "load", "open_vocabulary"]
