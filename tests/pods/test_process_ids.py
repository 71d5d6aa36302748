"""Which process this is, from flags and from what TPU hosts know."""

import pytest

from fot_jax.config import UserError
from launch.multihost.process_ids import PORT, ProcessId, from_environment, from_flags


def test_flags_name_a_seat():
    assert from_flags(None, None, None) is None
    assert from_flags("host-a:9000", 4, 2) == ProcessId(host="host-a", port=9000, index=2, count=4)
    assert from_flags("[fd00::1]:9000", 4, 2) == ProcessId(host="fd00::1", port=9000, index=2, count=4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("host:9000", None, 0), "--coordinator, --num-processes, --process-id belong together; missing: --num-proc"),
        (("host", 2, 0), "--coordinator must be HOST:PORT of process 0, got 'host'"),
        (("host;x:9000", 2, 0), "--coordinator must be HOST:PORT"),
        (("host:9000", 2, 2), r"--process-id must be in \[0, --num-processes=2\), got 2"),
        (("host:65535", 2, 0), r"port must be in \[1, 65534\]"),
    ],
)
def test_flags_that_name_none(given, message):
    with pytest.raises(UserError, match=message):
        from_flags(*given)


def test_a_host_of_a_gke_slice():
    environ = {"TPU_WORKER_HOSTNAMES": "fot-0-0.fot,fot-0-1.fot", "TPU_WORKER_ID": "1"}
    names = ("fot-0-0.fot", "fot-0-1.fot")
    assert from_environment(environ) == ProcessId(host="fot-0-0.fot", port=PORT, index=1, count=2, names=names)


def test_a_host_of_the_second_of_two_slices():
    environ = {
        "TPU_WORKER_HOSTNAMES": "fot-1-0.fot,fot-1-1.fot",
        "TPU_WORKER_ID": "1",
        "MEGASCALE_COORDINATOR_ADDRESS": "fot-0-0.fot:8080",
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": "1",
    }
    assert from_environment(environ) == ProcessId(host="fot-0-0.fot", port=PORT, index=3, count=4)
    del environ["MEGASCALE_COORDINATOR_ADDRESS"]
    with pytest.raises(UserError, match="MEGASCALE_COORDINATOR_ADDRESS must be set"):
        from_environment(environ)


@pytest.mark.parametrize("endpoints", ["10.0.0.7,10.0.0.8", "unknown:0:10.0.0.7,unknown:1:10.0.0.8"])
def test_a_cloud_tpu_vm_asks_its_metadata_server(endpoints):
    values = {"agent-worker-number": "1", "worker-network-endpoints": endpoints, "tpu-env": "ZONE: 'z'\n"}
    names = ("10.0.0.7", "10.0.0.8")
    process_id = ProcessId(host="10.0.0.7", port=PORT, index=1, count=2, names=names)
    assert from_environment({}, attribute=values.get) == process_id
    values["tpu-env"] = (
        "ZONE: 'z'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
        "MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.1:8080'\n"
    )
    assert from_environment({}, attribute=values.get) == ProcessId(host="10.0.0.1", port=PORT, index=3, count=4)


def test_one_host_alone_has_no_seat():
    assert from_environment({}) is None
    assert from_environment({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}) is None
    assert from_environment({}, attribute={}.get) is None
    single = {"agent-worker-number": "0", "worker-network-endpoints": "10.0.0.7"}
    assert from_environment({}, attribute=single.get) is None
    assert from_environment({"TPU_SKIP_MDS_QUERY": "1"}, attribute={"agent-worker-number": "0"}.get) is None
