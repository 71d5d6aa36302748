"""What to say, in one line, when a checkpoint cannot be read."""

import functools
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from fot_jax.config import UserError


def raise_of_the_machine(error: Exception) -> None:
    """Raises where JAX itself failed, as the folder is not to blame then.

    That memory ran out is a UserError. What else JAX says, of a process that was lost above all, is raised as it is:
    who was lost is for the supervisors to say (`launch/multihost`). Broken collectives of CPUs are plain ValueErrors.
    """
    if not (isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)):
        return
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    raise UserError(
        f"the checkpoint must fit in the memory of the devices, got: {one_line(error)}. Take more devices (mesh.fsdp),"
        " or end what else uses the memory."
    ) from error


@functools.cache  # once a process: hooks would pile up
def silence_pending_reads() -> None:
    """When a restore fails, TensorStore's other reads report to an event loop that Orbax has closed.

    They do so from other threads, before the failure comes back too, so the filters stand before a restore and
    stay. The failure itself is raised as one error; they drop what would be printed around it, by its wording.
    """
    logging.getLogger("asyncio").addFilter(lambda record: "was never retrieved" not in record.getMessage())
    warnings.filterwarnings("ignore", r"coroutine 'Store\.\w+' was never awaited", RuntimeWarning)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
            before(unraisable)

    sys.unraisablehook = hook


def unreadable_step(folder: Path, steps: list[int]) -> int | None:
    """The newest checkpoint with a metadata file that is no JSON, None where all can be parsed."""
    for step in reversed(steps):
        for file in (folder / str(step)).rglob("*"):
            if file.is_file() and file.name in ("_CHECKPOINT_METADATA", "metrics", "_METADATA"):
                try:
                    json.loads(file.read_bytes())
                except (ValueError, RecursionError):
                    return step
    return None


def damaged(folder: Path, step: int, steps: Sequence[int], *, reason: str) -> UserError:
    """The error of a checkpoint that cannot be read: which, why, and what to do."""
    older = [s for s in steps if s < step]
    then = f"go on from step {older[-1]}" if older else "start again from step 0"
    return UserError(
        f"the checkpoint of step {step} cannot be read, it is truncated or damaged ({reason})."
        f" Delete {folder / str(step)} to {then}, or use another --workdir."
    )


def one_line(error: Exception) -> str:
    """An error's text in one line of 200 characters at most; its type's name where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
