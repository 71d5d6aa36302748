"""Reading and generating with a memory over eight devices: the tokens of one device, in a single compiled step."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from fot_jax.config import MemoryConfig, ModelConfig, Retrieval, UserError
from fot_jax.infer.generate import generate
from fot_jax.infer.sampling import SamplingConfig
from fot_jax.infer.steps import decode_logits
from fot_jax.infer.windows import read
from fot_jax.memory import device_copy
from fot_jax.memory.store import MemoryStore
from fot_jax.models.transformer import Decoder
from tests.scale.memory_cases import collectives, mesh_of

MODEL = ModelConfig(
    num_layers=3, embed_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24, vocab_size=31, local_context=8,
    memory_layers=(0, 2),
)  # fmt: skip
TEXTS = [np.random.default_rng(0).integers(0, 31, n).astype(np.int32) for n in (45, 18)]
ALIKE = [TEXTS[0], np.concatenate([TEXTS[0][:40], TEXTS[1][:5]])]  # five windows read once for both
CASES = {  # retrieval, mesh, texts, whether all rows share one memory
    "exact, rows, entries and heads": (Retrieval.EXACT, {"data": 2, "fsdp": 2, "tensor": 2}, TEXTS, False),
    "dense, one memory shared": (Retrieval.DENSE, {"data": 2, "fsdp": 2, "context": 2}, TEXTS, True),
    "approx, rows with one past": (Retrieval.APPROX, {"data": 1, "fsdp": 4, "tensor": 2}, ALIKE, False),
}


@pytest.fixture(scope="module")
def params():
    return nn.unbox(jax.jit(Decoder(MODEL).init)(jax.random.key(3), np.zeros((1, 2), np.int32))["params"])


def run(params, memory: MemoryConfig, texts, *, shared: bool, mesh=None):
    """(logits after reading, tokens [B, 12], programs compiled for decoding, entries in memory, reading)."""
    store = MemoryStore.for_model(MODEL, streams=1) if shared else None
    reading = read(params, MODEL, texts, memory=memory, store=store, mesh=mesh)
    logits, programs = np.asarray(reading.logits), decode_logits._cache_size()
    tokens = list(generate(params, MODEL, reading, sampling=SamplingConfig(), max_new_tokens=12))
    return logits, np.stack(tokens, axis=1), decode_logits._cache_size() - programs, reading


@pytest.mark.parametrize("case", CASES)
def test_tokens_are_those_of_one_device_in_one_compiled_step(params, case):
    """Twelve tokens slide each cache more than once, so that the memory grows within its capacity."""
    retrieval, mesh, texts, shared = CASES[case]
    memory = MemoryConfig(retrieval=retrieval, top_k=3, last_context_length=5, log_length_scaling_from=9)
    want, expected, _, _ = run(params, memory, texts, shared=shared)
    got, tokens, programs, reading = run(params, memory, texts, shared=shared, mesh=mesh_of(**mesh))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5)
    np.testing.assert_array_equal(tokens, expected)
    assert programs == 1
    assert reading.store.appended.sum() > sum(len(text) - 5 for text in texts)
    assert len(reading.view().layers[0].keys.sharding.device_set) == 8


def test_parameters_on_other_devices_are_refused(params):
    held = jax.device_put(params, jax.devices()[0])
    message = "params must be on the 8 devices of the mesh, got some on 1. Move them there: jax.device_put"
    with pytest.raises(UserError, match=message):
        read(held, MODEL, TEXTS, memory=MemoryConfig(retrieval=Retrieval.DENSE), mesh=mesh_of(data=2, fsdp=4))


def test_decoding_sends_scores_and_no_entries(params):
    """The step as compiled: no collective's result is as large as one device's keys of one layer."""
    memory = MemoryConfig(retrieval=Retrieval.EXACT, top_k=3, last_context_length=5)
    reading = read(params, MODEL, TEXTS[:1], memory=memory, mesh=mesh_of(data=1, fsdp=8))
    token, view = np.zeros((1, 1), np.int32), reading.view()
    lowered = decode_logits.lower(params, MODEL, token, np.ones(1, np.int32), reading.cache, view, reading.logits)
    found = collectives(lowered.compile().as_text())
    best = MODEL.num_heads * 8 * 3 * 4  # a float32 of each of 8 devices' 3 best
    assert found["all-gather"] == [best] * len(MODEL.memory_layers)
    assert set(found) == {"all-gather", "all-reduce"}
    assert max(found["all-reduce"]) <= MODEL.num_heads * MODEL.head_dim * 4


def test_the_capacity_is_what_compiles(params, monkeypatch):
    """A memory that outgrows its capacity while decoding compiles the step once more, and no more than that."""
    monkeypatch.setattr(device_copy, "SMALLEST_CAPACITY", 16)
    memory = MemoryConfig(retrieval=Retrieval.EXACT, top_k=3, last_context_length=5)
    model = dataclasses.replace(MODEL, memory_layers=(1,))
    mesh = mesh_of(data=1, fsdp=4, tensor=2)
    reading = read(params, model, [TEXTS[0][:20]], memory=memory, mesh=mesh)
    assert (reading.store.appended[0], reading.view().layers[0].keys.shape[3]) == (15, 16)
    programs = decode_logits._cache_size()
    for _ in generate(params, model, reading, sampling=SamplingConfig(), max_new_tokens=12):
        pass
    assert reading.view().layers[0].keys.shape[3] == 32
    assert decode_logits._cache_size() - programs == 2
