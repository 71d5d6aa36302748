"""Paths in a bucket and on a disk: one interface, nothing remembered, and no folder named `gs:`."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from fot_jax.config import UserError
from fot_jax.storage import paths
from fot_jax.storage.paths import storage_path
from tests.processes import environment


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    return tmp_path if request.param == "disk" else storage_path(request.getfixturevalue("bucket"))


def test_files_are_written_whole_and_read_back(folder):
    path = folder / "run" / "config.json"
    assert not path.exists()
    paths.replace_file(path, "old")
    first = paths.version(path)
    paths.replace_file(path, "né")
    assert path.read_bytes() == "né".encode()
    assert path.read_text(encoding="utf-8") == "né"
    assert paths.version(path) != first
    assert [found.name for found in path.parent.iterdir()] == ["config.json"]


def test_files_below_lists_all_of_them_in_order(folder):
    for name in ("b/2/x", "a", "b/1"):
        paths.replace_file(folder / "run" / name, "x")
    found = [os.fspath(path) for path in paths.files_below(folder / "run")]
    assert found == [os.fspath(folder / "run" / name) for name in ("a", "b/1", "b/2/x")]
    assert list(paths.files_below(folder / "none")) == []


def test_version_of_a_missing_file(folder):
    with pytest.raises(FileNotFoundError):
        paths.version(folder / "none")


def test_what_another_process_writes_is_seen_at_once(bucket):
    """gcsfs remembers listings for ever unless it is told not to."""
    folder = storage_path(bucket) / "run"
    paths.replace_file(folder / "1" / "x", "1")
    assert [path.name for path in folder.iterdir()] == ["1"]
    code = f"""
from fot_jax.storage.paths import storage_path, replace_file
replace_file(storage_path("{folder}/2/x"), "2")
replace_file(storage_path("{folder}/top"), "3")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert (folder / "2" / "x").read_text() == "2"
    assert (folder / "top").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "top"]
    assert [path.name for path in paths.files_below(folder)] == ["x", "x", "top"]


def test_local_paths_are_pathlib(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert type(storage_path("runs/a")) is type(pathlib.Path("runs/a"))
    assert storage_path("runs/a") == pathlib.Path("runs/a")
    assert paths.absolute("runs/a") == tmp_path / "runs" / "a"


def test_absolute_leaves_a_bucket_path_alone(bucket):
    assert os.fspath(paths.absolute(f"{bucket}/runs/a/")) == f"{bucket}/runs/a"
    assert paths.storage_path(paths.absolute(bucket)) == storage_path(bucket)


@pytest.mark.parametrize(
    "text", ["s3://bucket/a", "http://a.b/c", "gs://", "gs:///a", "gs://b1/a", "GS://bucket", "gs://bucket/../a"]
)
def test_other_schemes_are_refused(text):
    with pytest.raises(UserError, match=f"^a path must be a local one or gs://BUCKET/FOLDER, got '{re.escape(text)}'"):
        storage_path(text)


def test_a_scheme_with_one_slash_is_refused():
    """pathlib writes gs://bucket/a so."""
    with pytest.raises(UserError, match=r"^a path in a bucket must start with gs://, got 'gs:/bucket/a'\.$"):
        storage_path(pathlib.Path("gs://bucket/a"))


def test_a_local_path_is_asked_for():
    assert paths.local_path("a/b", what="--out") == pathlib.Path("a/b")
    with pytest.raises(UserError, match=r"^--out must be a local path, got 'gs://bucket/a'\. Copy what is there with"):
        paths.local_path("gs://bucket/a", what="--out")


def test_a_missing_bucket_shows_at_the_first_write(gcs):
    with pytest.raises(FileNotFoundError):
        paths.replace_file(storage_path("gs://no-such-bucket/a"), "x")


def test_local_paths_import_nothing_for_buckets(tmp_path):
    code = f"""
import sys
from fot_jax.storage.paths import files_below, storage_path, version, replace_file
path = storage_path({str(tmp_path)!r}) / "a" / "b"
replace_file(path, "x")
print(len(list(files_below(path.parent))), bool(version(path)))
print([name for name in ("etils", "fsspec", "gcsfs", "google.cloud", "jax") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["1 True", "[]"]


def test_tensorflow_is_not_used_for_buckets(bucket):
    """etils decides at its first path of any kind, here one of Orbax on the disk."""
    code = f"""
import sys
import fot_jax.checkpoint
from etils import epath
epath.Path("/tmp").exists()
from fot_jax.storage.paths import storage_path, replace_file
replace_file(storage_path("{bucket}/a"), "x")
print(storage_path("{bucket}/a").read_text(), "tensorflow" in sys.modules)
"""
    unset = {name: value for name, value in os.environ.items() if name != "EPATH_USE_TF"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True, env=unset)
    assert done.stdout.splitlines() == ["x False"]


def test_a_run_on_a_disk_imports_nothing_for_buckets(tmp_path):
    """JAX imports etils, and Orbax looks for google.cloud.logging: the packages behind them stay out."""
    code = f"""
import sys
import jax
from fot_jax.train import loop
from tests.train.tiny import tiny
loop.train(tiny(train__steps=2), workdir={str(tmp_path)!r}, devices=jax.devices()[:1], log=lambda line: None)
unwanted = ("fsspec", "gcsfs", "google.cloud.storage", "google.auth", "aiohttp", "requests")
print([name for name in unwanted if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=300, capture_output=True, text=True, env=environment()
    )
    assert done.stdout.splitlines() == ["[]"]
    assert (tmp_path / "checkpoints/2").is_dir() and any((tmp_path / "tensorboard").iterdir())
