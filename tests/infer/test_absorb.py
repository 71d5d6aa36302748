"""Reading into memory leaves out what reaches no entry; the entries are those of whole layers, bit for bit."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from fot_jax.config import Family, MemoryConfig, ModelConfig, Retrieval
from fot_jax.infer import past
from fot_jax.infer.cuts import window_lengths
from fot_jax.infer.past import append_window
from fot_jax.infer.reading import start_reading
from fot_jax.infer.steps import absorb, extend_cache, memory_entries
from fot_jax.infer.windows import read
from fot_jax.memory.views import ViewSource
from fot_jax.models.cache import init_cache
from fot_jax.models.layer_ranges import first_layers, up_to_last_memory_layer
from fot_jax.models.transformer import Decoder

MODEL = ModelConfig(
    num_layers=4, embed_dim=64, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=96, vocab_size=31, local_context=16,
    memory_layers=(1, 2),
)  # fmt: skip
DENSE = MemoryConfig(retrieval=Retrieval.DENSE, last_context_length=5)
TEXTS = [np.random.default_rng(i).integers(0, 31, n).astype(np.int32) for i, n in enumerate((150, 61, 150))]
TEXTS[2][:90] = TEXTS[0][:90]


def whole_layers(params, model: ModelConfig, text, memory: MemoryConfig):
    """The store after a text was read alone, one window after another, by every layer up to the last memory layer."""
    reading, held, start = start_reading(model, memory, None, batch=1), None, 0
    lower = up_to_last_memory_layer(model)
    params, cuts = first_layers(lower, params), window_lengths(len(text), model, memory)
    for number, cut in enumerate(cuts[:-1]):
        again = memory.overlap if number else 0
        block = np.zeros((1, model.local_context), np.int32)
        block[0, : again + cut] = text[start - again : start + cut]
        counts = np.array([again + cut], np.int32)
        cache = extend_cache(params, lower, block, counts, init_cache(lower, 1), reading.view())
        entries = jax.tree.map(np.asarray, memory_entries(lower, cache))
        kept = np.array([memory.overlap if number < len(cuts) - 2 else 0])
        held = append_window(reading, entries, counts, kept, held)
        start += cut
    return reading.store


def parameters(model: ModelConfig):
    return nn.unbox(jax.jit(Decoder(model).init)(jax.random.key(3), np.zeros((1, 2), np.int32))["params"])


CASES = {
    "two": ({}, DENSE),
    "one": ({"memory_layers": (2,)}, DENSE),
    "first": ({"memory_layers": (0,)}, DENSE),
    "last": ({"memory_layers": (0, 3)}, DENSE),
    "unstacked": ({"scan_layers": False}, DENSE),
    "paper": ({"family": Family.PAPER}, dataclasses.replace(DENSE, overlap=3)),
    "paper one": ({"family": Family.PAPER, "memory_layers": (2,)}, dataclasses.replace(DENSE, overlap=3)),
    "smeared": ({"smear_keys": True}, dataclasses.replace(DENSE, overlap=3)),
    "smeared one": ({"smear_keys": True, "memory_layers": (1,)}, DENSE),
    "exact": ({}, dataclasses.replace(DENSE, retrieval=Retrieval.EXACT, top_k=3)),
    "budget": ({"memory_layers": (1,)}, dataclasses.replace(DENSE, budget=40)),
    "scaled": ({}, dataclasses.replace(DENSE, log_length_scaling_from=20)),
}


QUICK = ("two", "first", "smeared one")


@pytest.fixture
def one_window_at_once(monkeypatch):
    """Matrix products of several windows at once round differently."""
    monkeypatch.setattr(past, "TOKENS_AT_ONCE", 0)


def entries(store, row: int):
    return store.take(row, store.live(row))


@pytest.mark.usefixtures("one_window_at_once")
@pytest.mark.parametrize(
    ("changes", "memory"),
    [pytest.param(*case, id=name, marks=[] if name in QUICK else [pytest.mark.slow]) for name, case in CASES.items()],
)
def test_entries_are_those_of_whole_layers(changes, memory):
    model = dataclasses.replace(MODEL, **changes)
    params = parameters(model)
    together = read(params, model, TEXTS, memory=memory)
    for row, text in enumerate(TEXTS):
        alone = whole_layers(params, model, text, memory)
        assert alone.appended[0] == together.store.appended[row] > 0
        for got, wanted in zip(entries(together.store, row), entries(alone, 0), strict=True):
            np.testing.assert_array_equal(got, wanted)


ONE = {"memory_layers": (2,), "smear_keys": True}


@pytest.mark.parametrize("memory", [DENSE, dataclasses.replace(DENSE, overlap=3, budget=100)], ids=["plain", "overlap"])
def test_windows_side_by_side_give_the_same_entries(monkeypatch, memory):
    """One memory layer, six windows at once of three rows; rounding differs with the shape of a matrix product."""
    model = dataclasses.replace(MODEL, **ONE)
    params = parameters(model)
    sizes = []

    def counting(params, config, tokens, *inputs):
        sizes.append(len(tokens))
        return absorb(params, config, tokens, *inputs)

    monkeypatch.setattr(past, "absorb", counting)
    monkeypatch.setattr(past, "TOKENS_AT_ONCE", 6 * 3 * model.local_context)
    together = read(params, model, TEXTS, memory=memory)
    assert len(sizes) == {0: 2, 3: 2}[memory.overlap] and max(sizes) == 16
    for row, text in enumerate(TEXTS):
        for got, wanted in zip(
            entries(together.store, row), entries(whole_layers(params, model, text, memory), 0), strict=True
        ):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_no_view_is_made_where_no_window_reads(monkeypatch):
    """A model with one memory layer makes one view, for the last window, however long the text."""
    made = []
    view = ViewSource.view
    monkeypatch.setattr(ViewSource, "view", lambda self, rows=None: made.append(1) or view(self, rows))
    model = dataclasses.replace(MODEL, **ONE)
    read(parameters(model), model, TEXTS, memory=DENSE)
    assert len(made) == 1
