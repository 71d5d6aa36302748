"""The protocol of perplexity against memory: same targets, one softmax over memory and local context."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from fot_jax.config import MemoryConfig, Retrieval, UserError
from fot_jax.eval import perplexity
from fot_jax.eval.reading import borrow_memory_layers, join_rows, read_past
from fot_jax.eval.targets import Target, choose_targets, gather_tokens
from fot_jax.models.transformer import Decoder
from tests.eval.tiny_models import MODEL, POSITIONLESS, RandomDocuments, tiny_model

LENGTH = MODEL.local_context
BYTES = np.r_[0, 0, 0, np.full(MODEL.vocab_size - 3, 2)]
DOCUMENTS = RandomDocuments([90, 45, 20, 60])  # of 8-token chunks: the third has too few for a memory of 4


def contexts(tiny, sizes=(0, 4), **changes):
    """Five targets in two batches of three, the last one padded (all tests share these compiled shapes)."""
    options = {"most_documents": 4, "per_document": 2, "seed": 0, "token_bytes": BYTES, "batch": 3} | changes
    return perplexity.measure_contexts(tiny, documents=DOCUMENTS, sizes=sizes, **options)


def test_a_uniform_model_has_perplexity_v():
    sweep = contexts(tiny_model(POSITIONLESS, zeros=True))
    for index in range(2):
        score = sweep.score(index)
        assert score.perplexity == pytest.approx(MODEL.vocab_size, rel=1e-5)
        assert score.bits_per_byte == pytest.approx(math.log2(MODEL.vocab_size) / 2, rel=1e-5)
    assert sweep.change(1).estimate == pytest.approx(0, abs=1e-6)


def test_choose_targets_takes_one_of_equal_documents():
    """A copy among the documents of a memory would hold the answers."""
    documents = RandomDocuments([50] * 4)
    options = {"length": LENGTH, "history": 2, "most": 4, "per_document": 1, "seed": 0}
    documents.content_ids = np.array([0, 1, 0, 1])
    assert [target.document for target in choose_targets(documents, **options)] == [0, 1]


def test_a_curve_has_the_ends_of_the_tables_interval():
    """Two documents of loss 100 and 300 that memory changes by −10 % and +10 %: −10 % … +10 % of 200 of 400 bytes."""
    targets = (Target(document=0, chunk=1), Target(document=1, chunk=1))
    nats = np.array([[100.0, 300.0], [90.0, 330.0]])
    sweep = perplexity.Sweep(sizes=(0, 1), nats=nats, num_bytes=np.array([200, 200]), tokens=10, targets=targets)
    change = sweep.change(1)
    assert (change.estimate, change.low, change.high) == pytest.approx((0.05, -0.1, 0.1))
    bits = sweep.curve(lambda score: score.bits_per_byte)
    assert bits["y"] == pytest.approx([400 / 400 / math.log(2), 420 / 400 / math.log(2)])
    assert math.isnan(bits["low"][0]) and math.isnan(bits["high"][0])
    assert (bits["low"][1], bits["high"][1]) == pytest.approx((360 / 400 / math.log(2), 440 / 400 / math.log(2)))
    found = sweep.curve(lambda score: score.perplexity)
    assert (found["low"][1], found["high"][1]) == pytest.approx((math.exp(360 / 20), math.exp(440 / 20)))


def test_losses_that_are_not_finite_are_refused():
    """A mean over them would be NaN in the table and in JSON."""
    broken = tiny_model(POSITIONLESS)
    params = jax.tree.map(np.array, broken.params)
    params["final_norm"]["scale"][:] = np.nan
    with pytest.raises(UserError, match=r"losses of tiny must be finite, got nan at token 0 of row 0\. Check"):
        contexts(dataclasses.replace(broken, params=params))


def test_targets_are_shared_spread_and_have_their_history():
    targets = choose_targets(DOCUMENTS, length=LENGTH, history=4, most=4, per_document=2, seed=0)
    assert [(t.document, t.chunk) for t in targets] == [(0, 5), (1, 4), (3, 4), (0, 9), (3, 6)]
    past, window = gather_tokens(DOCUMENTS, targets=targets, length=LENGTH, history=4)
    assert past.shape == (5, 32)
    assert np.array_equal(np.r_[past[3], window[3]], DOCUMENTS.tokens(0)[5 * LENGTH : 10 * LENGTH + 1])
    single = choose_targets(DOCUMENTS, length=LENGTH, history=4, most=4, per_document=1, seed=0)
    assert [(t.document, t.chunk) for t in single] == [(0, 7), (1, 4), (3, 5)]  # middles, not beginnings
    with pytest.raises(UserError, match=r"after 12 others \(105 tokens\), but the longest has 90"):
        choose_targets(DOCUMENTS, length=LENGTH, history=12, most=4, per_document=2, seed=0)


@pytest.mark.parametrize(
    "memory", [MemoryConfig(retrieval=Retrieval.DENSE), MemoryConfig(retrieval=Retrieval.EXACT, top_k=512)]
)
def test_memory_without_positions_is_causal_attention(memory):
    """m windows in memory and one local equal one causal pass over the m + 1 windows (all layers read memory)."""
    tiny = tiny_model(POSITIONLESS, memory=memory)
    sizes = (0, 1, 3)
    sweep = contexts(tiny, sizes=sizes)
    past, window = gather_tokens(DOCUMENTS, targets=list(sweep.targets), length=LENGTH, history=3)
    for index, size in enumerate(sizes):
        tokens = np.concatenate([past[:, (3 - size) * LENGTH :], window[:, :-1]], axis=1)
        logits = jax.jit(Decoder(POSITIONLESS).apply)({"params": tiny.params}, tokens).logits[:, -LENGTH:]
        log_p = np.asarray(jax.nn.log_softmax(logits.astype(np.float32), axis=-1))
        want = -np.take_along_axis(log_p, window[:, 1:, None], axis=-1).sum(axis=(1, 2))
        np.testing.assert_allclose(sweep.nats[index], want, rtol=1e-5)
    assert np.abs(sweep.nats[2] / sweep.nats[0] - 1).min() > 1e-4  # memory does matter to this model


def test_shared_memory_starts_as_the_documents_own():
    """x = 0 is no memory, x = 1 the target's own contexts; other documents change the loss."""
    tiny = tiny_model(POSITIONLESS)
    shared = perplexity.measure_documents(
        tiny, documents=DOCUMENTS, token_bytes=BYTES, contexts_per_document=4, most_documents=4, seed=0
    )
    alone = contexts(tiny, sizes=(0, 4), per_document=1)
    assert shared.sizes == (0, 1, 2)
    assert shared.targets == alone.targets
    np.testing.assert_allclose(shared.nats[:2], alone.nats, rtol=1e-5)
    assert np.abs(shared.nats[2] / shared.nats[1] - 1).min() > 1e-5


def test_joined_rows_hold_the_next_rows_entries():
    tiny = tiny_model(POSITIONLESS)
    store = read_past(tiny, past=np.arange(3, 33).reshape(3, 10).astype(np.int32))
    joined = join_rows(tiny, store=store, shifts=range(2))
    assert joined.lengths.tolist() == [20, 20, 20]
    for row in range(3):
        want = [store.take(stream, store.live(stream))[0] for stream in (row, (row + 1) % 3)]
        got = joined.take(row, joined.live(row))[0]
        assert np.array_equal(got, np.concatenate(want, axis=2))
    assert join_rows(tiny, store=store, shifts=range(0)) is None


def test_a_baseline_without_memory_layers_borrows_them():
    bare = dataclasses.replace(MODEL, memory_layers=())
    assert borrow_memory_layers(bare, lender=MODEL).memory_layers == MODEL.memory_layers
    assert borrow_memory_layers(POSITIONLESS, lender=MODEL) is POSITIONLESS
    with pytest.raises(UserError, match="cannot borrow"):
        borrow_memory_layers(dataclasses.replace(bare, num_layers=1), lender=MODEL)
