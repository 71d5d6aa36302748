"""Keeps compiled programs on disk, so that the next process that needs them loads them."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

COMPILATION_CACHE = "~/.cache/fot_jax/xla"
# JAX keeps only what took a second to compile. Starting a command compiles dozens of smaller programs, which a local
# disk holds at less cost; from a bucket each would be a request.
LEAST_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--compilation-cache`."""
    parser.add_argument(
        "--compilation-cache",
        metavar="DIR",
        help=f"keep compiled programs there; default: JAX_COMPILATION_CACHE_DIR or {COMPILATION_CACHE}; 'off': nowhere",
    )


def use(folder: str | None, *, log: Callable[[str], object]) -> None:
    """Keeps compiled programs between processes, and says where; to be called before anything is compiled.

    Args:
      folder: of --compilation-cache; None: JAX's, or else the default one; "off": nowhere.
      log: called with one line.
    """
    import jax

    from fot_jax.distributed import is_first

    config: Any = jax.config  # knows its values at run time alone
    if folder == "off":
        config.update("jax_enable_compilation_cache", False)
        return
    chosen = folder or config.jax_compilation_cache_dir or COMPILATION_CACHE  # JAX's: of JAX_COMPILATION_CACHE_DIR
    remote = "://" in chosen
    path = chosen if remote else str(Path(chosen).expanduser())
    config.update("jax_compilation_cache_dir", path)
    if not remote and LEAST_SECONDS not in os.environ:
        config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if is_first():
        log(f"compilation cache: {path} (--compilation-cache=DIR or off)")
