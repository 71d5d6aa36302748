"""Settings with which glibc's malloc keeps the memory that a process frees.

On a CPU each call of a compiled program takes its temporary arrays from malloc and frees them at its end. glibc gives
blocks above 32 MiB back to the system, which fills every page with zeros when it is next touched: a fifth of a small
model's training step (docs/performance.md).
"""

import logging
import os
import re
import sys
from collections.abc import Mapping

MEBIBYTE = 2**20
VARIABLE = "GLIBC_TUNABLES"
TUNABLES = {
    "trim_threshold": 2**62,  # the end of the heap is never given back
    "top_pad": 64 * MEBIBYTE,  # the heap grows by this much more than is asked
    # Larger blocks still go back to the system. Kept, the blocks of one program would leave gaps in which those of the
    # next one do not fit, and to a program that needs such blocks the pages cost little.
    "mmap_threshold": 128 * MEBIBYTE,
    # Neither cache of small pieces: XLA's arrays are aligned, and glibc cuts the rest off a larger block. A rest in a
    # cache stays apart, so that the freed block is too small for the next array of its size and memory grows.
    "tcache_count": 0,
    "mxfast": 0,
}

logger = logging.getLogger("fot_jax")


def settings() -> str:
    """Returns TUNABLES as GLIBC_TUNABLES has them."""
    return ":".join(f"glibc.malloc.{name}={value}" for name, value in TUNABLES.items())


def tunables(environment: Mapping[str, str]) -> str | None:
    """Returns the value of GLIBC_TUNABLES that keeps freed memory; None where malloc is left as it is.

    One line is logged where the user's own settings (a MALLOC_* variable, or glibc.malloc.* in GLIBC_TUNABLES) win,
    and where the C library is another one than glibc.

    Args:
      environment: the variables that the process starts with.
    """
    given, ours = environment.get(VARIABLE, ""), settings()
    if ours in given:
        return given
    own = [name for name in environment if re.fullmatch(r"MALLOC_\w+_|MALLOC_ARENA_\w+", name)]
    own += [VARIABLE] if "glibc.malloc." in given else []
    if own:
        logger.info("malloc: left as %s of the environment sets it", " and ".join(own))
        return None
    if not _is_glibc():
        logger.info("malloc: left as it is, the C library is not glibc")
        return None
    return f"{given}:{ours}" if given else ours


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # no confstr on Windows; the name is unknown elsewhere
        return False


def keep_freed_memory() -> None:
    """Starts this process again with `tunables`, which glibc reads only at a start; returns where that is not needed.

    To be called by a command (`python -m launch.NAME`) before it reads or writes anything. The number of the process,
    its arguments and its files stay.
    """
    wanted = tunables(os.environ)
    if wanted is None or wanted == os.environ.get(VARIABLE):
        return
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {VARIABLE: wanted})
