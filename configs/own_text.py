"""FoT on a folder of one's own text, at a size for two CPU cores; all but the folder is chosen by what is in it.

Command:  python -m launch.train --config=configs/own_text.py --config.data.sources[0].path=FOLDER
          python -m launch.evaluate --workdir=runs/own_text --task=perplexity
Hardware: two CPU cores.
Time:     at most 1400 steps of 1,024 tokens, a few minutes, as tiny_code.
Expected: on the 66 books of the King James Bible (4.3 MB, a file each) 1.72 bits per byte held out without memory,
          1.61 with 16 local contexts of it; 1.57 and 1.48 with a vocabulary made of the same text (docs/own_text.md).
          Measured 2026-11-30, 11 minutes next to other work (209 CPU seconds).

FOLDER may be a file or a pattern, too, here or at gs://BUCKET/... A file that ends in .txt or .md is a document, of
.jsonl a line. What was chosen is printed at the start, and every field can be set as always: --config.train.steps=500.
"""

import logging

import numpy as np
from ml_collections import config_dict

from configs import tiny_code
from fot_jax.config import DataConfig, UserError
from fot_jax.config.build import build
from fot_jax.data.survey import size, text_lengths

TOKENS, EPOCHS = 1400 * 1024, 10  # trained on at most, for minutes on two cores; more epochs are learned by heart
STREAMS, FEWEST_STREAMS, MANY = 4, 2, 16  # documents read at once: four, two of fewer than 16 documents
HELDOUT = 0.1
MEMORY, LEAST_MEMORY = (
    (0, 1, 2, 4, 8, 16),
    4,
)  # local contexts that launch.evaluate reads; every document has room for 4
BYTES, MOST_BYTES = 2, 3  # of a token: about, at most


def get_config() -> config_dict.ConfigDict:
    """Returns tiny_code without documents; `resolve` sets the fields that are None here."""
    config = tiny_code.get_config()
    config.name = "own_text"
    config.data.sources = ({"name": "text", "kind": "auto", "path": "", "min_tokens": None},)
    config.data.heldout_fraction = None
    config.train.batch_rows = config.train.steps = config.train.eval_every = config.train.checkpoint_every = None
    config.crossbatch.schedule.num_contexts = None
    config.evaluation.memory_contexts = None
    return config


def resolve(config: config_dict.ConfigDict) -> None:
    """Sets the fields that are None by the number of documents and their lengths.

    Raises UserError where there are fewer than four documents, or most of the text is in short ones.
    """
    length, train = config.model.local_context, config.train
    for source in config.data.sources:
        _set(source, "min_tokens", (LEAST_MEMORY + 1) * length + 1)
    documents = _long_documents(build(DataConfig, config.data, path="data"))
    _set(train, "batch_rows", (STREAMS if len(documents) >= MANY else FEWEST_STREAMS) * config.crossbatch.packing)
    streams = train.batch_rows // config.crossbatch.packing
    _set(config.crossbatch.schedule, "num_contexts", (train.batch_rows - config.crossbatch.packing + 1,))
    _set(config.data, "heldout_fraction", max(HELDOUT, min(streams / len(documents), 0.5)))
    tokens = int(documents.sum() * (1 - config.data.heldout_fraction)) // BYTES
    steps = min(TOKENS, EPOCHS * tokens) // (train.batch_rows * length)
    _set(train, "steps", max(steps // 4 * 4, 4))
    _set(train, "eval_every", max(train.steps // 4, 1))
    _set(train, "checkpoint_every", train.eval_every)
    rooms = [np.mean(documents >= MOST_BYTES * ((contexts + 1) * length + 1)) for contexts in MEMORY]
    _set(config.evaluation, "memory_contexts", tuple(n for n, room in zip(MEMORY, rooms, strict=True) if room > 0.9))
    logging.getLogger("fot_jax").info(
        "own_text: %d documents, %s: %d streams, %.0f %% held out, %d steps of %d tokens.",
        *(len(documents), size(documents.sum()), streams, 100 * config.data.heldout_fraction, train.steps),
        train.batch_rows * length,
    )


def _set(section: config_dict.ConfigDict | dict, name: str, value: object) -> None:
    if section[name] is None:
        section[name] = value


def _long_documents(data: DataConfig) -> np.ndarray:
    """Returns the bytes of the different documents that surely have `min_tokens`. Raises UserError as `resolve`."""
    lengths, copies = text_lengths(data)
    shortest = MOST_BYTES * max(source.min_tokens for source in data.sources)
    documents = lengths[lengths >= shortest]
    place = "data.sources[0].path"
    if documents.sum() < lengths.sum() / 2:
        raise UserError(
            f"{place} must hold documents of {size(shortest)} or more, got most of its text in shorter ones. Join what"
            " belongs together: a conversation, an author, a day."
        )
    if len(documents) < 2 * FEWEST_STREAMS:
        found = f"{len(documents)} and {copies} copies" if copies else str(len(documents))
        raise UserError(
            f"{place} must hold at least {2 * FEWEST_STREAMS} different documents of {size(shortest)} or more (two to"
            f" train on, two held out), got {found}. Give more, or split a long one, by chapters or by size:"
            " split -C 50k --additional-suffix=.txt BOOK.txt part-"
        )
    return documents
