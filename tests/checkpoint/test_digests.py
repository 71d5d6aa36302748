"""Digests of arrays: by an own reading of the formula, on any mesh, and what they find in a checkpoint."""

import json
import logging

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fot_jax.checkpoint import Checkpointer, save_imported
from fot_jax.checkpoint.digests import digests, first_changed
from fot_jax.config import Dtype, MeshConfig, UserError
from fot_jax.sharding import make_mesh
from tests.train.tiny import tiny


def digest(array):
    """The sum of the module's docstring, over Python's integers."""
    size = array.dtype.itemsize
    data, total = array.tobytes(), 0
    for i in range(array.size):
        word = int.from_bytes(data[i * size : (i + 1) * size], "little")
        hashed = 2654435761 * i % 2**32
        total += (word ^ word >> 16) * ((hashed ^ hashed >> 15) | 1)
    return f"{array.dtype.name} {total % 2**32:08x}"


def drawn(shape, dtype):
    return (np.random.default_rng(0).standard_normal(shape) * 50).astype(dtype)


@pytest.mark.parametrize("spec", [None, (), ("fsdp",), (None, "fsdp"), ("tensor", "fsdp")])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16, np.int32, np.int8])
def test_digest_is_the_sum_on_any_mesh(dtype, spec):
    """numpy's arrays, and arrays of one and of eight devices."""
    array = drawn((4, 8, 5), dtype)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    placed = array if spec is None else jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
    assert digests({"a": placed, "b": [array[:0]]}) == {"a": digest(array), "b/0": digest(array[:0])}


def test_digest_counts_blocks_through():
    """An array longer than the blocks that the host digests at a time, and a single number."""
    array = drawn((3, 50, 1000), ml_dtypes.bfloat16)
    assert digests({"a": array, "b": np.float32(1.5)[...]}) == {"a": digest(array), "b": digest(np.array(1.5, "f4"))}


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.uint64, np.bool_])
def test_digest_of_other_dtypes_finds_a_changed_element(dtype):
    """Numbers of 8 bytes and booleans, which a caller's own optimizer state may hold."""
    array = drawn((3, 4), dtype)
    stored = digests({"a": array, "b": array[0, 0]})
    assert first_changed({"a": array.copy(), "b": array[0, 0]}, stored) is None
    other = array.copy()
    other[2, 3] = ~other[2, 3] if dtype is np.bool_ else other[2, 3] + 1
    assert first_changed({"a": other, "b": array[0, 0]}, stored) == "a"


def test_digest_finds_every_flipped_bit():
    """Also where all elements are multiples of 2^16, as bfloat16 numbers in float32 are."""
    array = drawn((40,), ml_dtypes.bfloat16).astype(np.float32)
    stored = digests({"a": array})
    assert first_changed({"a": array}, stored) is None
    for bit in range(8 * array.nbytes):
        data = bytearray(array.tobytes())
        data[bit // 8] ^= 1 << bit % 8
        assert first_changed({"a": np.frombuffer(bytes(data), np.float32)}, stored) == "a"
    assert first_changed({"a": np.roll(array, 1)}, stored) == "a"
    assert first_changed({"a": array, "b": array}, stored) == "b"


@pytest.mark.parametrize("place", [lambda array: array, jax.numpy.asarray])
def test_digest_is_of_the_dtype_that_was_stored(place):
    """Parameters stored as bfloat16 are float32 once they are loaded."""
    array = drawn((4, 8), ml_dtypes.bfloat16)
    assert first_changed({"a": place(array.astype(np.float32))}, digests({"a": array})) is None


def trained(workdir):
    """Saves a tree as training does; where it is, and a function that restores it."""
    mesh = NamedSharding(make_mesh(MeshConfig(data=1), jax.devices()[:1]), PartitionSpec())
    tree = jax.device_put({"w": drawn((64, 256), np.float32)}, mesh)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=mesh), tree)
    with Checkpointer(workdir, tiny()) as checkpoints:
        checkpoints.save(1, params=tree, optimizer={"m": tree["w"] + 1}, data={"step": 1}, heldout_loss=None)
    return workdir / "checkpoints" / "1", lambda c: c.restore(1, params=like, optimizer={"m": like["w"]})


def imported(workdir):
    """Saves a tree as an import does; see `trained`."""
    tree = {"w": drawn((64, 256), ml_dtypes.bfloat16)}
    save_imported(workdir, tiny(), tree, dtype=Dtype.BFLOAT16, documents={})
    return workdir / "checkpoints" / "0", lambda c: c.restore_params(0, params=tree)


@pytest.mark.parametrize("save", [trained, imported])
def test_changed_byte_of_a_checkpoint_is_refused(tmp_path, save):
    """Orbax restored every one of these without a word, as other numbers."""
    folder, restore = save(tmp_path)
    large = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size > 10000]
    assert len(large) == (2 if save is trained else 1)
    with Checkpointer(tmp_path, tiny(), read_only=True) as checkpoints:
        restore(checkpoints)
        for path in large:
            whole = path.read_bytes()
            path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 4]) + whole[5001:])
            with pytest.raises(UserError, match=r"truncated or damaged \((params|optimizer) are not those saved: "):
                restore(checkpoints)
            path.write_bytes(whole)


@pytest.mark.parametrize("digests", ["none", "none of the item", "words"])
def test_missing_digests_are_told_and_damaged_ones_refused(tmp_path, caplog, digests):
    """Checkpoints of earlier versions have none; one that has them has them of every array."""
    folder, restore = trained(tmp_path)
    file = folder / "data" / "metadata"
    data = json.loads(file.read_bytes())
    saved = data.pop("digests")
    if digests != "none":
        data["digests"] = (
            {"params": saved["params"], "data": saved["data"]} if digests == "none of the item" else "words"
        )
    file.write_text(json.dumps(data))
    with Checkpointer(tmp_path, tiny(), read_only=True) as checkpoints, caplog.at_level(logging.INFO, "fot_jax"):
        if digests == "none":
            restore(checkpoints)
            assert "step 1 was saved without digests" in caplog.text
        else:
            with pytest.raises(UserError, match=r"not th(ose|e one) saved"):
                restore(checkpoints)


def test_changed_data_position_is_refused(tmp_path):
    """Digests of documents, of which evaluation asks, and counts that training goes on from."""
    save_imported(tmp_path, tiny(), {"w": drawn((4,), np.float32)}, dtype=Dtype.FLOAT32, documents={"a": "00"})
    file = tmp_path / "checkpoints" / "0" / "data" / "metadata"
    with Checkpointer(tmp_path, tiny(), read_only=True) as checkpoints:
        assert checkpoints.read_data(0) == {"step": 0, "documents": {"a": "00"}, "dtype": "float32"}
        file.write_text(file.read_text().replace('"00"', '"01"'))
        with pytest.raises(UserError, match="its data position is not the one saved"):
            checkpoints.read_data(0)
