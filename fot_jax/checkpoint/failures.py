"""Errors, of one line each, for checkpoints that cannot be read or saved."""

import functools
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import jax

from fot_jax.config import UserError
from fot_jax.config.errors import disk_full, is_disk_full
from fot_jax.storage.explain import bucket_error
from fot_jax.storage.paths import StoragePath, files_below, in_bucket


def raise_runtime_failure(error: Exception) -> None:
    """Raises `error` where JAX itself failed: the folder is not to blame then.

    Memory that ran out becomes a UserError. Other errors of JAX, above all about a lost process, are raised unchanged:
    the supervisors (`launch/multihost`) say which process was lost. Broken CPU collectives are plain ValueErrors.
    """
    if not (isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)):
        return
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    raise UserError(
        f"the checkpoint must fit in the memory of the devices, got: {one_line(error)}. Take more devices (mesh.fsdp),"
        " or end what else uses the memory."
    ) from error


def raise_bucket_failure(error: Exception, folder: StoragePath) -> None:
    """Raises UserError where a bucket refused a request or does not answer: the checkpoint is not to blame then."""
    found = bucket_error(error, folder) if in_bucket(folder) else None
    if found is not None:
        raise found from error


@functools.cache  # once a process: hooks would pile up
def silence_abandoned_io() -> None:
    """Drops the messages that Orbax prints around the one error that it raises when a restore or a save fails.

    TensorStore's other reads and writes then report to an event loop that Orbax has closed, from other threads and
    at the interpreter's end, and every thread of Orbax logs the traceback of the same error. The filters are set
    before the first restore or save and stay; they match the wording, and coroutines that Orbax drops.
    """
    logging.getLogger("asyncio").addFilter(lambda record: "was never retrieved" not in record.getMessage())
    logging.getLogger("absl").addFilter(lambda record: not (record.exc_info and record.levelno >= logging.ERROR))
    warnings.filterwarnings("ignore", r"coroutine '.*' was never awaited", RuntimeWarning, r"orbax|tensorstore|asyncio")
    warnings.filterwarnings("ignore", r"coroutine 'Store\.\w+' was never awaited", RuntimeWarning)
    before, before_uncaught = sys.unraisablehook, sys.excepthook

    def closed(error: Any) -> bool:
        return isinstance(error, RuntimeError) and "Event loop is closed" in str(error)

    def hook(unraisable: Any) -> None:
        code = getattr(getattr(unraisable, "object", None), "cr_code", None)
        if not (closed(unraisable.exc_value) or (code is not None and "orbax" in code.co_filename)):
            before(unraisable)

    def uncaught(kind: Any, error: Any, trace: Any) -> None:  # TensorStore's threads report here
        if not closed(error):
            before_uncaught(kind, error, trace)

    sys.unraisablehook, sys.excepthook = hook, uncaught


def save_error(folder: StoragePath, step: int, error: Exception, *, needed: int, newest: int | None) -> UserError:
    """Returns the error of a checkpoint that could not be saved: where, why, and from which step the run continues.

    Args:
      folder: the checkpoints' folder.
      step: the checkpoint that was being saved.
      error: the error that Orbax raised.
      needed: bytes of its arrays.
      newest: the newest whole checkpoint, None if there is none.
    """
    then = f"from step {newest}" if newest is not None else "from the beginning"
    if is_disk_full(error):
        return UserError(
            f"{disk_full(os.fspath(folder), error, needed=needed)} It goes on {then}: step {step} was not saved."
        )
    return UserError(
        f"{folder}: the checkpoint of step {step} could not be saved ({one_line(error)})."
        f" Once it can be written there, the same command goes on {then}."
    )


def unreadable_step(folder: StoragePath, steps: list[int]) -> int | None:
    """Returns the newest checkpoint with a metadata file that is not JSON, None where all can be parsed."""
    for step in reversed(steps):
        for file in files_below(folder / str(step)):
            if file.name in ("_CHECKPOINT_METADATA", "metrics", "_METADATA"):
                try:
                    json.loads(file.read_bytes())
                except (ValueError, RecursionError):
                    return step
    return None


def unreadable_error(folder: StoragePath, step: int, steps: Sequence[int], *, reason: str) -> UserError:
    """Returns the error of a checkpoint that cannot be read: which, why, and what to do."""
    older = [s for s in steps if s < step]
    then = f"go on from step {older[-1]}" if older else "start again from step 0"
    return UserError(
        f"the checkpoint of step {step} cannot be read, it is truncated or damaged ({reason})."
        f" Delete {folder / str(step)} to {then}, or use another --workdir."
    )


def one_line(error: object) -> str:
    """Returns an error's or a value's text in one line of 200 characters at most, its type's name if it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
