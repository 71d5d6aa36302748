"""Memories on disk: bit for bit, or one clear line."""

import dataclasses
import errno
import json
import logging
import re
import shutil
import zlib

import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import AttentionBackend, MemoryPositions, ModelConfig, UserError
from fot_jax.memory import files
from fot_jax.memory.fingerprint import fingerprint
from fot_jax.memory.store import MemoryStore
from fot_jax.types import KeyValue


def filled_store(*, dtype=np.float32, budget: int = 6) -> MemoryStore:
    rng = np.random.default_rng(0)
    store = MemoryStore(memory_layers=(0, 2), streams=3, kv_heads=2, head_dim=4, dtype=np.dtype(dtype), budget=budget)
    for _ in range(3):
        keys, values = (rng.standard_normal((2, 3, 4, 2, 4)).astype(dtype) for _ in range(2))
        store.append(KeyValue(keys=keys, values=values), np.array([4, 1, 0]))
    return store


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_round_trip_is_bit_identical(tmp_path, dtype):
    store = filled_store(dtype=dtype)
    files.save(store, tmp_path / "a" / "memory", fingerprint="f")
    again = files.load(tmp_path / "a" / "memory", fingerprint="f")
    assert again.dtype == store.dtype
    assert again.lengths.tolist() == store.lengths.tolist() == [6, 3, 0]
    for stream in range(3):
        for before, after in zip(
            store.take(stream, store.live(stream)), again.take(stream, again.live(stream)), strict=True
        ):
            assert before.tobytes() == after.tobytes()
    newest = files.load(tmp_path / "a" / "memory", fingerprint="f", budget=2)
    np.testing.assert_array_equal(newest.take(0, newest.live(0))[0], store.take(0, store.live(0)[-2:])[0])


def test_saving_replaces_a_memory_and_nothing_else(tmp_path):
    files.save(filled_store(), tmp_path / "memory", fingerprint="old")
    files.save(filled_store(budget=2), tmp_path / "memory", fingerprint="new")
    assert files.load(tmp_path / "memory", fingerprint="new").lengths.tolist() == [2, 2, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("1")
    with pytest.raises(UserError, match="memory folder must be new, empty or an earlier memory"):
        files.save(filled_store(), tmp_path / "thesis", fingerprint="f")
    assert (tmp_path / "thesis" / "chapter").read_text() == "1"


def _truncate(folder):
    chunk = max(path for path in (folder / "stream_0" / "values" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-5])


def _flip(folder):
    chunk = max(path for path in (folder / "stream_0" / "keys" / "c").rglob("*") if path.is_file())
    data = bytearray(chunk.read_bytes())
    data[3] ^= 1
    chunk.write_bytes(bytes(data))


def _lose_chunk(folder):
    max(path for path in (folder / "stream_1" / "keys" / "c").rglob("*") if path.is_file()).unlink()


def _edit_meta(folder, **changes):
    """Changes fields and signs meta.json anew, so that what is wrong is the field's value."""
    meta = {**json.loads((folder / "meta.json").read_text()), **changes}
    signed = {name: value for name, value in meta.items() if name != "checksum"}
    meta["checksum"] = zlib.crc32(json.dumps(signed, sort_keys=True).encode())
    (folder / "meta.json").write_text(json.dumps(meta))


def _edit_array(folder, old, new):
    file = folder / "stream_0" / "keys" / "zarr.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "is damaged: stream_0/values is truncated, changed or missing"),
        (_flip, "is damaged: stream_0/keys is truncated, changed or missing"),
        (_lose_chunk, "is damaged: stream_1/keys is truncated"),
        (lambda folder: shutil.rmtree(folder / "stream_0"), "is damaged: stream_0/keys is truncated"),
        (lambda folder: _edit_meta(folder, lengths=[5, 3, 0]), "is damaged: stream_0/keys"),
        (lambda folder: _edit_meta(folder, lengths=[1 << 39, 3, 0]), "is damaged: stream_0/keys"),
        (lambda folder: _edit_meta(folder, kv_heads="2"), "meta.json lacks a valid kv_heads"),
        (lambda folder: _edit_meta(folder, kv_heads=True), "meta.json lacks a valid kv_heads"),
        (lambda folder: _edit_meta(folder, head_dim=1 << 40), "meta.json lacks a valid head_dim"),
        (lambda folder: _edit_meta(folder, memory_layers=[0, 0]), "meta.json lacks a valid memory_layers"),
        (lambda folder: _edit_array(folder, "[1,1,6,4]", "[1,1,6,99999999999]"), "is damaged: stream_0/keys"),
        (lambda folder: _edit_array(folder, "[2,2,6,4]", "[2,2,99999999999,4]"), "is damaged: stream_0/keys"),
        (lambda folder: _edit_array(folder, '"float32"', '"int32"'), "is damaged: stream_0/keys"),
        (lambda folder: (folder / "meta.json").write_text("[" * 10**6), "meta.json cannot be read"),
        (lambda folder: (folder / "meta.json").write_text(" " * (1 << 25)), "meta.json cannot be read"),
        (lambda folder: _edit_meta(folder, dtype="int7", lengths=None), "meta.json lacks a valid dtype, lengths"),
        (lambda folder: _edit_meta(folder, checksums=[{}]), "meta.json lacks a valid checksums"),
        (lambda folder: _edit_meta(folder, format="2"), "must have format 'fot_jax memory 1', got '2'"),
        (lambda folder: (folder / "meta.json").write_text('{"format"'), "meta.json cannot be read"),
        (lambda folder: shutil.rmtree(folder), "memory folder must hold meta.json, got"),
        (lambda folder: _edit_meta(folder, logn_from=None), "meta.json lacks a valid logn_from"),
        (lambda folder: _edit_meta(folder, fingerprint="g"), r"must come from this model \(fingerprint f\), got"),
    ],
)
def test_a_damaged_missing_or_foreign_memory_is_one_clear_line(tmp_path, damage, message):
    files.save(filled_store(), tmp_path / "memory", fingerprint="f")
    damage(tmp_path / "memory")
    with pytest.raises(UserError, match=message) as error:
        files.load(tmp_path / "memory", fingerprint="f")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(file.read_bytes()[:-3]),
        lambda file: file.write_bytes(file.read_bytes().replace(b"whale", b"snail")),
    ],
)
def test_texts_are_those_saved_or_one_clear_line(tmp_path, damage):
    """Next to a memory; older memories, and those that are saved without texts, have none."""
    texts = (("a.txt", "A whale.\n"), ("text 2", "ß \u2028"))
    files.save(filled_store(), tmp_path / "memory", fingerprint="f", texts=texts)
    assert files.load_texts(tmp_path / "memory") == texts
    damage(tmp_path / "memory" / "texts.json")
    with pytest.raises(UserError, match=r"is damaged: texts\.json is truncated, changed or missing") as error:
        files.load_texts(tmp_path / "memory")
    assert "\n" not in str(error.value)
    files.save(filled_store(), tmp_path / "memory", fingerprint="f")
    assert files.load_texts(tmp_path / "memory") == ()


def test_any_changed_byte_is_noticed_or_changes_nothing(tmp_path):
    """White space in JSON changes nothing; everything else is one line."""
    files.save(filled_store(), tmp_path / "memory", fingerprint="f")
    whole = files.load(tmp_path / "memory", fingerprint="f")
    rng, errors = np.random.default_rng(1), []
    places = sorted(path for path in (tmp_path / "memory").rglob("*") if path.is_file())
    for _ in range(250):
        place = places[rng.integers(len(places))]
        before = place.read_bytes()
        data = bytearray(before)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        place.write_bytes(data)
        try:
            again = files.load(tmp_path / "memory", fingerprint="f")
        except UserError as error:
            errors.append(str(error))
        else:
            assert again.memory_layers == whole.memory_layers
            assert again.take(0, again.live(0))[0].tobytes() == whole.take(0, whole.live(0))[0].tobytes()
        place.write_bytes(before)
    assert len(errors) > 200
    assert all("\n" not in error and len(error) < 400 for error in errors)


def test_a_large_array_that_is_not_on_disk_takes_no_room(tmp_path, monkeypatch):
    """Missing chunks read as zeros: without this an edited length asks for as much memory as it says."""
    monkeypatch.setattr(files, "READ_UNSEEN", 100)
    files.save(filled_store(), tmp_path / "memory", fingerprint="f")
    files.load(tmp_path / "memory", fingerprint="f")
    _edit_meta(tmp_path / "memory", lengths=[600, 3, 0])
    _edit_array(tmp_path / "memory", "[2,2,6,4]", "[2,2,600,4]")
    _edit_array(tmp_path / "memory", "[1,1,6,4]", "[1,1,600,4]")
    with pytest.raises(UserError, match="is damaged: stream_0/keys"):
        files.load(tmp_path / "memory", fingerprint="f")


def test_an_unchecked_meta_is_read_and_a_changed_one_is_not(tmp_path, caplog):
    """Memories of earlier versions have no checksum of meta.json."""
    files.save(filled_store(), tmp_path / "memory", fingerprint="f")
    meta = json.loads((tmp_path / "memory" / "meta.json").read_text())
    (tmp_path / "memory" / "meta.json").write_text(json.dumps({**meta, "memory_layers": [0, 1]}))
    with pytest.raises(UserError, match=r"is damaged: meta\.json was changed"):
        files.load(tmp_path / "memory", fingerprint="f")
    del meta["checksum"]
    (tmp_path / "memory" / "meta.json").write_text(json.dumps(meta))
    with caplog.at_level(logging.INFO, logger="fot_jax"):
        assert files.load(tmp_path / "memory", fingerprint="f").lengths.tolist() == [6, 3, 0]
    assert "only its arrays are checked" in caplog.text


def test_memories_of_zeros_are_whole(tmp_path):
    """TensorStore leaves chunks of zeros out unless it is told to write them."""
    store = MemoryStore(memory_layers=(0,), streams=1, kv_heads=1, head_dim=4)
    zeros = np.zeros((1, 1, 3, 1, 4), np.float32)
    store.append(KeyValue(keys=zeros, values=zeros), np.array([3]))
    files.save(store, tmp_path / "memory", fingerprint="f")
    assert len([path for path in (tmp_path / "memory" / "stream_0").rglob("c/*/*/*/*") if path.is_file()]) == 2
    assert files.load(tmp_path / "memory", fingerprint="f").lengths.tolist() == [3]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_earlier_memory_alone(tmp_path, monkeypatch, error):
    files.save(filled_store(), tmp_path / "memory", fingerprint="old")
    write = files._write

    def fails_late(path, array):
        if path.parent.name == "stream_1":
            raise error
        write(path, array)

    monkeypatch.setattr(files, "_write", fails_late)
    with pytest.raises((UserError, KeyboardInterrupt)) as raised:
        files.save(filled_store(budget=2), tmp_path / "memory", fingerprint="new")
    if isinstance(error, OSError):
        assert re.fullmatch(
            r".*memory: the disk is full \(needs 512 bytes, .* free\)\. Make room .*", str(raised.value)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["memory"]
    assert files.load(tmp_path / "memory", fingerprint="old").lengths.tolist() == [6, 3, 0]


def test_a_memory_is_read_with_the_scale_it_was_written_with(tmp_path):
    files.save(filled_store(), tmp_path / "memory", fingerprint="f", scaling_from=512)
    assert files.load(tmp_path / "memory", fingerprint="f", scaling_from=512).lengths.tolist() == [6, 3, 0]
    message = (
        r"was written with memory\.log_length_scaling_from=512, got 0\."
        r" Read on with memory.log_length_scaling_from=512, or read the text again"
    )
    with pytest.raises(UserError, match=message):
        files.load(tmp_path / "memory", fingerprint="f")


def test_fingerprint_tells_models_apart_and_ignores_how_they_run():
    config = ModelConfig(
        num_layers=2, embed_dim=8, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=8, vocab_size=9, local_context=4,
        memory_layers=(1,),
    )  # fmt: skip
    params = {"a": np.ones((100, 100), np.float32), "b": {"c": np.ones(3, np.float32)}}
    changed = {"a": params["a"] * np.float32(1.0001), "b": params["b"]}
    swapped = {"a": params["a"], "c": {"b": params["b"]["c"]}}
    changes = {"memory_layers": (0,), "memory_positions": MemoryPositions.NOPE, "norm_epsilon": 1e-5}
    others = [fingerprint(p, config) for p in (changed, swapped)]
    others += [fingerprint(params, dataclasses.replace(config, **{name: value})) for name, value in changes.items()]
    assert len({fingerprint(params, config), *others}) == 6
    same = dataclasses.replace(config, attention=AttentionBackend.REFERENCE, local_context=8)
    assert fingerprint(params, same) == fingerprint(params, config)
