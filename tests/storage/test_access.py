"""Rights that a bucket refuses: each is named before a run, in one line with its roles."""

import json
import os
import subprocess
import sys

import pytest

from fot_jax.config import UserError
from fot_jax.storage.access import check_access
from fot_jax.storage.paths import files_below, storage_path
from tests.processes import environment
from tests.storage.proxy import proxied

CHECK = """
import json, sys
from fot_jax.config import UserError
from fot_jax.storage.access import check_access
for line in sys.stdin:
    try:
        check_access(json.loads(line))
        print("ok", flush=True)
    except UserError as error:
        print(json.dumps(str(error)), flush=True)
"""
REFUSED = {
    "storage.buckets.get": r"^GET /storage/v1/b/[^/?]+(\?|$)",  # Orbax asks for it
    "storage.objects.list": r"^GET /storage/v1/b/[^/]+/o\?",
    "storage.objects.create": r"^POST /upload/.*uploadType=media",  # TensorStore alone uploads so
    "storage.objects.delete": r"^DELETE ",
}


def test_a_folder_that_can_be_used_stays_as_it_was(bucket, tmp_path):
    check_access(f"{bucket}/run")
    assert list(files_below(storage_path(bucket) / "run")) == []
    check_access(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_bucket_is_named(gcs):
    with pytest.raises(UserError, match=r"^gs://no-such-bucket must exist\. Make it with `gcloud storage buckets"):
        check_access("gs://no-such-bucket/run")


def test_every_missing_right_is_named_with_its_roles(gcs, bucket):
    """One process for all, whose requests go through a proxy that refuses one kind after another."""
    with proxied(gcs) as (proxy, variables):
        command = [sys.executable, "-c", CHECK]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=os.environ | variables, **pipes) as process:
            assert process.stdin is not None and process.stdout is not None

            def check() -> str:
                process.stdin.write(json.dumps(f"{bucket}/run") + "\n")
                process.stdin.flush()
                return process.stdout.readline().strip()

            found = {}
            assert check() == "ok"
            for proxy.permission, proxy.refused in REFUSED.items():
                found[proxy.permission] = json.loads(check())
            proxy.refused = None
            assert check() == "ok"
            process.stdin.close()
    for permission, said in found.items():
        start = f"{bucket}/run cannot be written by this account ({permission} is missing). Give it roles/storage.obj"
        assert said.startswith(start), said
        assert said.endswith(f"and roles/storage.legacyBucketReader on {bucket}.")


@pytest.mark.slow
def test_a_bucket_that_cannot_be_reached_is_one_line(bucket):
    """Half a minute of gcsfs's own trials goes before; it would print the traceback of every error that it raises."""
    nowhere = {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:9", "NO_GCE_CHECK": "true"}
    command = [sys.executable, "-m", "launch.generate", f"--workdir={bucket}/run", "--prompt=a"]
    done = subprocess.run(
        command, env=environment() | nowhere, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING:google.auth")]
    assert lines[-1].startswith(f"error: {bucket}/run/config.json cannot be read, got ClientConnectorError: ")
    assert len(lines) <= 2 and "Traceback" not in done.stderr, done.stderr  # the cache of compiled programs
