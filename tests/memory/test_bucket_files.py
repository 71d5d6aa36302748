"""Memories in a bucket: bit for bit, seen whole or not at all, and readable on a disk when they are copied there."""

import functools
import os
import pathlib
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import UserError
from fot_jax.memory import files, replacement
from fot_jax.memory.meta import meta_checksum
from fot_jax.storage.paths import bucket_files, storage_path
from tests.memory.test_files import _edit_meta, filled_store

TEXTS = (("a.txt", "one"), ("b.txt", "two"))


def check(loaded, store):
    assert loaded.lengths.tolist() == store.lengths.tolist()
    for stream in range(store.streams):
        pair = (found.take(stream, found.live(stream)) for found in (store, loaded))
        for before, after in zip(*pair, strict=True):
            assert before.tobytes() == after.tobytes()


def names(folder) -> set[str]:
    """The first parts of what is in a folder."""
    found = bucket_files().find(str(folder))
    return {name.removeprefix(str(folder).removeprefix("gs://") + "/").partition("/")[0] for name in found}


@pytest.fixture
def place(bucket):
    return storage_path(f"{bucket}/book.mem")


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.int8])
def test_round_trip_is_bit_identical(place, dtype):
    store = filled_store(dtype=dtype)
    assert not files.is_memory(place)
    files.save(store, place, fingerprint="f", texts=TEXTS)
    check(files.load(str(place), fingerprint="f"), store)
    assert files.is_memory(place) and files.load_texts(place) == TEXTS
    arrays = names(place) - {"meta.json"}
    assert len(arrays) == 1 and replacement.ARRAYS.fullmatch(arrays.pop())


def test_a_memory_is_replaced_and_nothing_else(place, bucket):
    files.save(filled_store(), place, fingerprint="old", texts=TEXTS)
    first = names(place)
    files.save(filled_store(budget=2), place, fingerprint="new")
    assert files.load(place, fingerprint="new").lengths.tolist() == [2, 2, 0]
    assert files.load_texts(place) == ()
    assert len(names(place)) == 2 and names(place) & first == {"meta.json"}
    bucket_files().pipe_file(f"{bucket}/thesis/chapter", b"1")
    with pytest.raises(UserError, match="memory folder must be new, empty or an earlier memory, got 'gs://"):
        files.save(filled_store(), f"{bucket}/thesis", fingerprint="f")
    assert names(f"{bucket}/thesis") == {"chapter"}


def test_a_save_that_fails_leaves_the_earlier_memory_alone(place, monkeypatch):
    files.save(filled_store(), place, fingerprint="f")
    before, write, done = bucket_files().find(str(place)), files._write, []

    def failing(path, array):
        done.append(path)
        if len(done) == 3:
            raise KeyboardInterrupt
        write(path, array)

    monkeypatch.setattr(files, "_write", failing)
    with pytest.raises(KeyboardInterrupt):
        files.save(filled_store(budget=2), place, fingerprint="f")
    assert bucket_files().find(str(place)) == before
    check(files.load(place, fingerprint="f"), filled_store())


def test_a_killed_save_is_never_read(place):
    """Its arrays are left, and the folder can be saved to again."""
    files.save(filled_store(), place, fingerprint="f")
    code = f"""
import os, signal
from fot_jax.memory import files
from tests.memory.test_files import filled_store
files.write_meta = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
files.save(filled_store(budget=2), {str(place)!r}, fingerprint="f")
"""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(names(place)) == 3
    check(files.load(place, fingerprint="f"), filled_store())
    files.save(filled_store(budget=1), place, fingerprint="f")
    check(files.load(place, fingerprint="f"), filled_store(budget=1))


def test_what_a_killed_first_save_leaves_is_no_other_folder(place):
    bucket_files().pipe_file(f"{place}/arrays-0123456789abcdef/stream_0/keys/zarr.json", b"{}")
    files.save(filled_store(), place, fingerprint="f")
    check(files.load(place, fingerprint="f"), filled_store())


def test_a_memory_can_be_copied_to_a_disk_and_back(place, bucket, tmp_path):
    store = filled_store()
    files.save(store, place, fingerprint="f", texts=TEXTS)
    bucket_files().get(str(place), str(tmp_path / "copy"), recursive=True)
    check(files.load(tmp_path / "copy", fingerprint="f"), store)
    assert files.load_texts(tmp_path / "copy") == TEXTS
    files.save(store, tmp_path / "local", fingerprint="f", texts=TEXTS)
    target = f"{bucket}/back"
    bucket_files().put(f"{tmp_path}/local", target, recursive=True)
    check(files.load(target, fingerprint="f"), store)
    assert "stream_0" in names(target)
    files.save(filled_store(budget=2), target, fingerprint="f")
    check(files.load(target, fingerprint="f"), filled_store(budget=2))
    assert len(names(target)) == 2


def damage(place, how: str) -> None:
    stored = bucket_files()
    chunk = max(name for name in stored.find(str(place)) if "/stream_0/keys/c/" in name)
    if how == "lost":
        stored.rm(chunk)
    elif how == "changed":
        data = bytearray(stored.cat_file(chunk))
        data[3] ^= 1
        stored.pipe_file(chunk, bytes(data))
    elif how == "texts":
        stored.rm(max(name for name in stored.find(str(place)) if name.endswith("texts.json")))
    else:
        stored.rm(f"{place}/meta.json")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("lost", "is damaged: stream_0/keys is truncated, changed or missing"),
        ("changed", "is damaged: stream_0/keys is truncated, changed or missing"),
        ("texts", r"is damaged: texts\.json is truncated, changed or missing"),
        ("meta", r"memory folder must hold meta\.json, got 'gs://"),
    ],
)
def test_a_damaged_memory_is_one_line(place, how, message):
    files.save(filled_store(), place, fingerprint="f", texts=TEXTS)
    damage(place, how)
    read = files.load_texts if how == "texts" else functools.partial(files.load, fingerprint="f")
    with pytest.raises(UserError, match=message):
        read(place)


@pytest.mark.parametrize("arrays", ["../other", "arrays-0123456789abcde", "", 1])
def test_only_folders_that_a_save_makes_are_read(tmp_path, arrays):
    files.save(filled_store(), tmp_path / "memory", fingerprint="f")
    _edit_meta(tmp_path / "memory", arrays=arrays)
    with pytest.raises(UserError, match=r"meta\.json lacks a valid arrays"):
        files.load(tmp_path / "memory", fingerprint="f")


def test_a_missing_bucket_is_one_line(gcs):
    for do in (lambda: files.load("gs://no-such-bucket/m", fingerprint="f"),
               lambda: files.save(filled_store(), "gs://no-such-bucket/m", fingerprint="f")):  # fmt: skip
        with pytest.raises(UserError, match="gs://no-such-bucket") as error:
            do()
        assert "\n" not in str(error.value)


def test_local_memories_are_as_before(tmp_path):
    """Has no folder of arrays of its own, and takes no client of buckets."""
    files.save(filled_store(), tmp_path / "memory", fingerprint="f")
    assert "arrays" not in (tmp_path / "memory" / "meta.json").read_text()
    found = sorted(path.name for path in pathlib.Path(tmp_path / "memory").iterdir())
    assert found == ["meta.json", "stream_0", "stream_1"]
    assert meta_checksum({"a": 1, "checksum": 2}) == meta_checksum({"a": 1})
