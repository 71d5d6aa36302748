"""Commands refuse the URLs that they cannot read or write, in one line and before anything is made."""

import subprocess
import sys

import pytest

COPY = "Copy what is there with `gcloud storage cp -r`, or mount it."


def launch(command: str, *flags: str, folder) -> subprocess.CompletedProcess:
    script = f"import sys, runpy; sys.argv[0] = {command!r}; runpy.run_module('launch.{command}', run_name='__main__')"
    line = [sys.executable, "-c", f"import sys; sys.path.insert(0, {sys.path[0]!r}); {script}", *flags]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("command", "flags", "start"),
    [
        ("bench", ["--out=gs://bucket/a"], "argument --out: it must be a local path, got 'gs://bucket/a'."),
        ("read", ["--text=gs://b/a"], "argument --text: it must be a local path, got 'gs://b/a'."),
        ("make_vocabulary", ["--out=s3://b/a"], "argument --out: it must be a local path, got 's3://b/a'."),
        ("convert", ["import", "--from=https://a/b"], "argument --from: it must be a local path, got 'https://a/b'."),
    ],
)
def test_flags_that_must_be_local_refuse_urls(tmp_path, command, flags, start):
    done = launch(command, *flags, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: {start} {COPY} (--help lists the flags)\n"
    assert list(tmp_path.iterdir()) == []
