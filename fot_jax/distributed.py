"""Joins several processes into one run, places each one's rows of a batch, and checks that they agree.

Every function also works for one process alone. `launch/multihost` finds out before JAX starts which processes are
there, and whether all run the same config and code.
"""

import dataclasses
import os
import zlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from fot_jax.config import UserError

JOIN_SECONDS = 300
SILENT_SECONDS = 100  # JAX takes a process for dead after this silence; launch/multihost notices sooner
CPU_THREADS = 16  # with two threads, collectives of processes with four CPU devices hang (experiments/scale.md)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One process of a run: number `process` of `processes`, which meet at `coordinator` (process 0's HOST:PORT)."""

    coordinator: str
    process: int
    processes: int


def join(member: Member) -> None:
    """Joins the devices of all processes into one system. Call it before anything touches a device."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    os.environ.setdefault("NPROC", str(max(os.cpu_count() or 1, CPU_THREADS)))  # threads in XLA's CPU pool
    jax.distributed.initialize(
        coordinator_address=member.coordinator,
        num_processes=member.processes,
        process_id=member.process,
        cluster_detection_method="deactivate",
        initialization_timeout=JOIN_SECONDS,
        heartbeat_timeout_seconds=SILENT_SECONDS,
    )


def leave() -> None:
    """Waits until every process has called it, then ends the connection."""
    jax.distributed.shutdown()


def is_first() -> bool:
    """True in the process that writes and prints for all."""
    return jax.process_index() == 0


def put(tree: Any, shardings: Any) -> Any:
    """Puts the arrays of a tree on the devices of all processes; every process holds all values whole.

    Args:
      tree: arrays, equal in all processes.
      shardings: one for all leaves, or a tree of them.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def one(value: Any, sharding: Sharding) -> jax.Array:
        value = np.asarray(value)
        places = sharding.addressable_devices_indices_map(value.shape)
        shards = [jax.device_put(value[index], device) for device, index in places.items()]
        return jax.make_array_from_single_device_arrays(value.shape, sharding, shards)

    return jax.tree.map(one, tree, shardings)


def local_rows(sharding: Sharding, rows: int) -> list[slice]:
    """Returns the rows of [rows, ...] arrays on this process's devices, as few slices as possible, ascending.

    8 rows over 2 processes × 4 devices:  process 0  [0:4]    process 1  [4:8]
    """
    places = sharding.addressable_devices_indices_map((rows,)).values()
    spans: list[tuple[int, int]] = []
    for start, stop in sorted({place[0].indices(rows)[:2] for place in places if place is not None}):
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
        else:
            spans.append((start, stop))
    return [slice(start, stop) for start, stop in spans]


def put_rows(parts: list[Any], sharding: Sharding, *, rows: int) -> Any:
    """Assembles one batch on the devices of all processes from the rows that each made.

    Args:
      parts: this process's rows, a tree of [part rows, ...] arrays for every slice of `local_rows`.
      sharding: the sharding of the whole [rows, ...] arrays.
      rows: the number of rows in the whole batch.
    """

    def one(*pieces: np.ndarray) -> jax.Array:
        mine = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return jax.make_array_from_process_local_data(sharding, mine, (rows, *mine.shape[1:]))

    return jax.tree.map(one, *parts)


def check_agreement(what: str, text: str) -> None:
    """Raises UserError, naming the processes, unless `text` is the same in all of them."""
    if jax.process_count() == 1:
        return
    digests = multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode())))
    others = [process for process, digest in enumerate(digests.tolist()) if digest != digests[0]]
    if others:
        raise UserError(
            f"{what} must be the same in every process, but differ from process 0 in {others}."
            " Give every host the same files."
        )
