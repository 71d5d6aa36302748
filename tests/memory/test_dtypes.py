"""Memories held in fewer bytes than the model computes in: what is kept, read, saved and split over devices."""

import jax
import numpy as np
import pytest

from fot_jax.config import Dtype, MemoryConfig, MemoryDtype, ModelConfig, Retrieval, UserError
from fot_jax.memory import device_copy, files
from fot_jax.memory.store import MemoryStore, quantise
from fot_jax.memory.views import ViewSource
from fot_jax.models import account
from tests.memory.stores import QUERIES, B, D, G, append_random, check_view, read_all_layers
from tests.scale.memory_cases import mesh_of

DTYPES = ["bfloat16", "int8"]


def store_of(dtype: str, counts=(30, 9), *, budget: int = 0) -> MemoryStore:
    store = MemoryStore(memory_layers=(1, 4), streams=B, kv_heads=G, head_dim=D, dtype=np.dtype(dtype), budget=budget)
    append_random(store, np.random.default_rng(0), list(counts))
    return store


def test_a_quantised_vector_is_off_by_half_a_scale_at_most():
    """Long, short, zero and one-sided vectors; the largest component is kept."""
    x = np.random.default_rng(0).standard_normal((50, D)).astype(np.float32) * np.logspace(-20, 20, 50)[:, None]
    x = np.concatenate([x.astype(np.float32), np.zeros((1, D), np.float32), -np.ones((1, D), np.float32)])
    codes, scales = quantise(x)
    assert codes.dtype == np.int8 and scales.dtype == np.float32 and scales.shape == (52, 1)
    assert (np.abs(codes * scales - x) <= scales * 0.5001).all()
    denormal = np.array([[190e-45, 1e-45]], np.float32)  # steps of a scale of one unit are rounded up to 136
    assert quantise(denormal)[0].tolist() == [[127, 1]]
    np.testing.assert_allclose(np.abs(codes * scales).max(1), np.abs(x).max(1), rtol=1e-6)
    assert not codes[50].any() and not scales[50].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("retrieval", list(Retrieval))
def test_a_narrow_memory_is_read_as_what_it_holds(dtype, retrieval, monkeypatch):
    """Equals a loop over the values that it gives back, while it grows past a doubling and over a full ring."""
    monkeypatch.setattr(device_copy, "SMALLEST_CAPACITY", 16)
    store, rng = store_of(dtype, (2, 1), budget=40), np.random.default_rng(1)
    source = ViewSource(store, MemoryConfig(retrieval=retrieval, top_k=3, budget=40))
    for counts in ([0, 0], [20, 3], [5, 4], [30, 9]):
        if max(counts):
            append_random(store, rng, counts)
        check_view(source.view(), store, None if retrieval is Retrieval.DENSE else 3, tolerance=2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("retrieval", [Retrieval.DENSE, Retrieval.EXACT])
def test_a_narrow_memory_is_split_over_devices(dtype, retrieval):
    """Scales are split as the entries that they belong to."""
    store = store_of(dtype)
    config = MemoryConfig(retrieval=retrieval, top_k=3)
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    split, whole = (ViewSource(store, config, mesh=each).view() for each in (mesh, None))
    np.testing.assert_allclose(read_all_layers(split, QUERIES), read_all_layers(whole, QUERIES), rtol=2e-5, atol=2e-5)


def test_int8_takes_a_quarter_and_a_scale():
    model = ModelConfig(
        num_layers=1, embed_dim=8, num_heads=4, num_kv_heads=2, head_dim=64, mlp_dim=8, vocab_size=8, local_context=8,
        memory_layers=(0,), dtype=Dtype.FLOAT32,
    )  # fmt: skip
    bytes_of = {dtype: MemoryStore.for_model(model, streams=1, dtype=dtype).entry_bytes for dtype in MemoryDtype}
    each = 2 * 1 * 2  # keys and values, layers, heads
    assert bytes_of == {
        MemoryDtype.MODEL: each * 256, MemoryDtype.FLOAT32: each * 256, MemoryDtype.BFLOAT16: each * 128,
        MemoryDtype.INT8: each * (64 + 4),
    }  # fmt: skip
    assert bytes_of == {dtype: account.memory_entry_bytes(model, dtype) for dtype in MemoryDtype}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_narrow_memory_is_saved_bit_for_bit(dtype, tmp_path):
    """With a budget the newest entries are kept; a fork is another store's no longer once it grows."""
    store = store_of(dtype)
    files.save(store, tmp_path / "memory", fingerprint="f")
    again = files.load(tmp_path / "memory", fingerprint="f")
    newest = files.load(tmp_path / "memory", fingerprint="f", budget=7)
    for stream in range(B):
        live = store.live(stream)
        for got, kept, want in zip(*(s.stored(stream, slice(None), s.live(stream)) for s in (again, newest, store)),
                                   strict=True):  # fmt: skip
            np.testing.assert_array_equal(got, want)
            np.testing.assert_array_equal(kept, want[:, :, -min(7, len(live)) :])
    fork = again.fork()
    append_random(fork, np.random.default_rng(2), [1, 1])
    np.testing.assert_array_equal(again.take(0, again.live(0))[0], store.take(0, store.live(0))[0])


def test_a_changed_scale_is_noticed(tmp_path):
    store = store_of("int8")
    files.save(store, tmp_path / "memory", fingerprint="f")
    chunk = next(
        path
        for path in (tmp_path / "memory/stream_0/value_scales").rglob("*")
        if path.is_file() and path.name != "zarr.json"
    )
    damaged = bytearray(chunk.read_bytes())
    damaged[0] ^= 1
    chunk.write_bytes(bytes(damaged))
    with pytest.raises(UserError, match="damaged: stream_0/value_scales"):
        files.load(tmp_path / "memory", fingerprint="f")


def test_entries_that_are_not_finite_are_refused():
    store = store_of("int8")
    broken = jax.tree.map(np.copy, store.stored(0, slice(None), store.live(0)))
    broken[2][0, 0, 0] = np.inf
    empty = MemoryStore(memory_layers=(1, 4), streams=1, kv_heads=G, head_dim=D, dtype=np.dtype(np.int8))
    with pytest.raises(UserError, match="memory keys must be finite, got inf"):
        empty.restore(0, *broken)
