"""Makes Orbax write large parameters quietly and with little memory."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

_CHUNK_BYTES = 2**23  # chunks of arrays written in streams; a few at a time are compressed


@contextlib.contextmanager
def quiet_absl(least: int = logging.ERROR) -> Iterator[None]:
    """Drops Orbax's log messages below a level: its warnings."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(least)
    try:
        yield
    finally:
        absl.setLevel(level)


def streaming_handlers() -> dict[str, Any]:
    """Returns Orbax's handlers for a checkpoint that is written as it is compressed.

    They do without OCDBT, a database in few files that stays in memory until 2 GB of it are full: every chunk is
    a file of its own.
    """
    json_handler = ocp.JsonCheckpointHandler
    return {
        "params": ocp.StandardCheckpointHandler(use_ocdbt=False),
        "data": json_handler(),
        "config": json_handler(),
        "metrics": json_handler(),
    }


def chunked_save_args(params: Any) -> Any:
    """Returns the chunk size of each array that is written in streams; a tree like `params`."""
    return jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), params)


@contextlib.contextmanager
def write_without_copy() -> Iterator[None]:
    """Lets Orbax write numpy arrays in place: it copies them first, as they could change while it saves.

    It warns here of things that are wanted (another handler for arrays, no OCDBT to merge). An error is raised once the
    save ends; the tracebacks that each of Orbax's threads logs of it are dropped.
    """
    kinds = ocp.type_handlers
    with quiet_absl(logging.CRITICAL):
        before = kinds.get_type_handler(np.ndarray)
        kinds.register_type_handler(np.ndarray, kinds.NumpyHandler(deepcopy_host_arrays=False), override=True)
        try:
            yield
        finally:
            kinds.register_type_handler(np.ndarray, before, override=True)
