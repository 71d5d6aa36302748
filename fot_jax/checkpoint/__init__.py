"""Orbax checkpoints of state and data position in a run's folder.

    WORKDIR/checkpoints/N/         after N optimizer steps: params, optimizer, data, config, metrics

`data` holds the data position and a digest of every array: one that changed on the disk is refused.
Only this package uses Orbax. Saving is asynchronous. On a disk one rename gives a whole checkpoint its number; in a
bucket its last file, commit_success.txt, makes it one. So a half-written checkpoint is never read.
"""

import fot_jax.storage.paths  # noqa: F401  # before Orbax: it chooses the file system of gs://
from fot_jax.checkpoint.checkpointer import COMMITTED, Checkpointer, newest_step
from fot_jax.checkpoint.parameters import (
    load_params,
    load_stored_params,
    num_bytes,
    save_imported,
    stored_bytes,
    trained_documents,
    write_bare_params,
)

__all__ = [
    "COMMITTED",
    "Checkpointer",
    "load_params",
    "load_stored_params",
    "newest_step",
    "num_bytes",
    "save_imported",
    "stored_bytes",
    "trained_documents",
    "write_bare_params",
]
