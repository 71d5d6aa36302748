"""Finds which process of a run this is: from flags, or from the environment of a TPU host.

| machine | source of the number of processes, of this one's number and of the first host |
|---|---|
| GKE (JobSet)            | TPU_WORKER_HOSTNAMES, TPU_WORKER_ID; with several slices MEGASCALE_* |
| Cloud TPU VM            | the metadata server: worker-network-endpoints, agent-worker-number, tpu-env |
| anything else           | --coordinator=HOST:PORT --num-processes=N --process-id=I |

Source: the variables and attributes that jax.distributed.initialize reads (jax/_src/clusters).
"""

import dataclasses
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from fot_jax.config import UserError

PORT = 8490  # of the preflight on the first host of a TPU slice; JAX's coordinator takes the next one
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
_METADATA_SECONDS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessId:
    """Process number `index` of `count`; process 0 runs the preflight on `host`:`port`.

    Attributes:
      names: host of every process if the environment tells, else empty.
    """

    host: str
    port: int
    index: int
    count: int
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UserError(f"--process-id must be in [0, --num-processes={self.count}), got {self.index}.")
        if not 1 <= self.port <= 65534:
            raise UserError(f"--coordinator's port must be in [1, 65534] (the next one is JAX's), got {self.port}.")


def from_flags(coordinator: str | None, num_processes: int | None, process_id: int | None) -> ProcessId | None:
    """Returns the ProcessId that the three flags name; None where none is given.

    Raises:
      UserError: one of them is missing or out of range.
    """
    given = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    if coordinator is None or num_processes is None or process_id is None:
        raise UserError(f"{', '.join(given)} belong together; missing: {', '.join(missing)}.")
    match = re.fullmatch(r"\[?([A-Za-z0-9_.:-]+?)\]?:(\d{1,5})", coordinator)
    if not match:
        raise UserError(f"--coordinator must be HOST:PORT of process 0, got {coordinator!r}.")
    return ProcessId(host=match[1], port=int(match[2]), index=process_id, count=num_processes)


def from_environment(
    environ: Mapping[str, str] = os.environ, *, attribute: Callable[[str], str | None] | None = None
) -> ProcessId | None:
    """Returns the ProcessId of a TPU host; None elsewhere and where there is only one process.

    Args:
      environ: the environment variables.
      attribute: reads an attribute of the metadata server, None if it has none; None: there is no such server.

    Raises:
      UserError: the environment contradicts itself.
    """
    names = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    worker = environ.get("TPU_WORKER_ID")
    slices = {name: environ.get(f"MEGASCALE_{name}") for name in ("COORDINATOR_ADDRESS", "NUM_SLICES", "SLICE_ID")}
    if names is None:
        if attribute is None or environ.get("TPU_SKIP_MDS_QUERY"):
            return None
        worker = attribute("agent-worker-number")
        if worker is None:
            return None
        names = _addresses(attribute("worker-network-endpoints") or "")
        settings = dict(re.findall(r"^\s*(\w+)\s*:\s*'?([^'\n]*)'?\s*$", attribute("tpu-env") or "", re.MULTILINE))
        slices = {name: slices[name] or settings.get(f"MEGASCALE_{name}") for name in slices}
    hosts = tuple(name.rsplit(":", 1)[0] if name.count(":") == 1 else name for name in names.split(","))
    number = int(worker or 0)
    num_slices, which = int(slices["NUM_SLICES"] or 1), int(slices["SLICE_ID"] or 0)
    if num_slices * len(hosts) == 1:
        return None
    if num_slices > 1 and not slices["COORDINATOR_ADDRESS"]:
        raise UserError(f"MEGASCALE_COORDINATOR_ADDRESS must be set where MEGASCALE_NUM_SLICES={num_slices}.")
    first = (slices["COORDINATOR_ADDRESS"] or hosts[0]).split(":")[0]
    return ProcessId(
        host=first,
        port=PORT,
        index=which * len(hosts) + number,
        count=num_slices * len(hosts),
        names=hosts if num_slices == 1 else (),
    )


def _addresses(endpoints: str) -> str:
    """Returns the addresses of `worker-network-endpoints`: plain ones, or NAME:NUMBER:ADDRESS each."""
    return ",".join(endpoint.split(":")[-1] for endpoint in endpoints.split(","))


def metadata_attribute() -> Callable[[str], str | None] | None:
    """Returns a reader of the metadata server on a Cloud TPU VM; None on any other machine, where nothing is asked."""
    product = Path("/sys/class/dmi/id/product_name")
    chips = Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()
    if not chips or not product.is_file() or product.read_text().strip() != "Google Compute Engine":
        return None

    def read(name: str) -> str | None:
        request = urllib.request.Request(_METADATA + name, headers={"Metadata-Flavor": "Google"})
        try:
            with urllib.request.urlopen(request, timeout=_METADATA_SECONDS) as response:
                return response.read().decode()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise UserError(f"{_METADATA}{name} must be readable on a Cloud TPU VM, got {error}.") from error
        except OSError as error:
            raise UserError(
                f"{_METADATA}{name} must be readable on a Cloud TPU VM, got {error}. Name this process by"
                " --coordinator, --num-processes and --process-id, or train on this host alone with --hosts=one."
            ) from error

    return read
