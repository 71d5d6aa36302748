"""Keeps compiled programs on disk or in a bucket, so that the next process that needs them loads them.

In a bucket (gs://) each program is one object, which is never half there; of several processes the first writes it.
Nothing removes old ones: give the bucket a lifecycle rule. JAX's own limit, jax_compilation_cache_max_size, needs a
lock that a bucket does not have. Whoever may write to the folder may run code in the processes that load from it.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

from fot_jax.config import UserError

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

    Raises:
      UserError: the folder has another scheme than gs://, or it is in a bucket and JAX is to limit its size.
    """
    import jax

    from fot_jax.distributed import is_first
    from fot_jax.storage.paths import in_bucket, storage_path

    config: Any = jax.config  # knows its values at run time alone
    if folder == "off":
        config.update("jax_enable_compilation_cache", False)
        return
    chosen = folder or config.jax_compilation_cache_dir or COMPILATION_CACHE  # JAX's: of JAX_COMPILATION_CACHE_DIR
    remote = in_bucket(chosen)
    path = str(storage_path(chosen) if remote else storage_path(chosen).expanduser())  # sets up JAX's way to gs://
    if remote and config.jax_compilation_cache_max_size != -1:
        raise UserError(
            "jax_compilation_cache_max_size must be -1 for programs in a bucket, got"
            f" {config.jax_compilation_cache_max_size}: its lock would be a file of this machine. Leave it out, and let"
            " a lifecycle rule of the bucket remove old programs."
        )
    config.update("jax_compilation_cache_dir", path)
    if not remote and LEAST_SECONDS not in os.environ:
        config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if is_first():
        log(f"compilation cache: {path} (--compilation-cache=DIR or off)")
