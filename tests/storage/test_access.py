"""Rights that a bucket refuses: each is named before a run, in one line with its roles."""

import json
import os
import subprocess
import sys

import pytest

from fot_jax.config import UserError
from fot_jax.storage.access import check_access
from fot_jax.storage.paths import files_below, storage_path
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
