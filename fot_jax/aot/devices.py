"""Devices of an absent pod, which libtpu describes to the compiler, or the CPU's own for a dry run.

Call `prepare_environment` before the process first imports JAX.
"""

import contextlib
import fcntl
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fot_jax.aot.chips import CPU, Pod
from fot_jax.config import UserError

FOLDER = ".libtpu"  # `make libtpu` installs it here, outside of the environment
INSTALL = f"make libtpu (or: pip install --no-deps --target {FOLDER} -r requirements-aot.txt)"
LOCK = "fot_jax_libtpu.lock"


def prepare_environment(pod: Pod) -> None:
    """Sets the variables that JAX and libtpu read when they start: compiling needs no TPU, and none is looked for.

    Raises:
      UserError: libtpu is not installed.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    if pod.chip is CPU:
        flag = f"--xla_force_host_platform_device_count={pod.devices}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
        return
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "none",
        "TPU_MIN_LOG_LEVEL": "2",
    }
    if Path(FOLDER).is_dir() and str(Path(FOLDER).resolve()) not in sys.path:
        sys.path.append(str(Path(FOLDER).resolve()))
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology={pod.topology} needs libtpu, which is not installed: {INSTALL}.")


@contextlib.contextmanager
def only_libtpu(pod: Pod, *, log: Callable[[str], None] = print, folder: str | None = None) -> Iterator[None]:
    """Holds this machine's lock on libtpu, which serves one process at a time; waits for other processes of ours."""
    if pod.chip is CPU:
        yield
        return
    path = Path(folder or tempfile.gettempdir()) / LOCK
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"waiting for another process that compiles ({path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def pod_devices(pod: Pod) -> list[Any]:
    """Returns the pod's devices in JAX's order.

    Raises:
      UserError: libtpu refuses the topology, or another program holds libtpu.
    """
    import jax
    from jax.experimental import topologies

    if pod.chip is CPU:
        devices = jax.devices()
    else:
        try:
            options = dict(pod.chip.libtpu_options)
            devices = topologies.get_topology_desc(platform="tpu", topology_name=pod.topology, **options).devices
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"--topology={pod.topology} cannot be described by libtpu: {reason}") from error
    if len(devices) != pod.devices:
        raise UserError(f"--topology={pod.topology} must have {pod.devices} devices, but {len(devices)} are there.")
    return list(devices)
