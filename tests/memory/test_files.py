"""Memories on disk: bit for bit, or one clear line."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import AttentionForm, MemoryPositions, ModelConfig, UserError
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
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "is damaged: stream_0/values is truncated, changed or missing"),
        (_flip, "is damaged: stream_0/keys is truncated, changed or missing"),
        (_lose_chunk, "is damaged: stream_1/keys is truncated"),
        (lambda folder: shutil.rmtree(folder / "stream_0"), "is damaged: stream_0/keys is truncated"),
        (lambda folder: _edit_meta(folder, lengths=[5, 3, 0]), "is damaged: stream_0/keys"),
        (lambda folder: _edit_meta(folder, kv_heads="2"), "meta.json lacks a valid kv_heads"),
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


def test_a_memory_is_read_with_the_scale_it_was_written_with(tmp_path):
    files.save(filled_store(), tmp_path / "memory", fingerprint="f", logn_from=512)
    assert files.load(tmp_path / "memory", fingerprint="f", logn_from=512).lengths.tolist() == [6, 3, 0]
    with pytest.raises(UserError, match=r"logn_from=512, got 0\. Read on with --logn-from=512, or read the text again"):
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
    same = dataclasses.replace(config, attention=AttentionForm.REFERENCE, local_context=8)
    assert fingerprint(params, same) == fingerprint(params, config)
