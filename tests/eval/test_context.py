"""Perplexity against context: one target, three ways to read what is before it."""

import dataclasses
import logging

import jax
import numpy as np
import pytest

from fot_jax.config import PastReading, RopeConfig, RopeScaling
from fot_jax.eval import context, perplexity
from fot_jax.eval.targets import gather_tokens
from fot_jax.logging import warn_once
from fot_jax.models.transformer import Decoder
from tests.eval.tiny_models import MODEL, RandomDocuments, tiny_model

W = MODEL.local_context
BYTES = np.ones(MODEL.vocab_size, np.int64)
DOCUMENTS = RandomDocuments([90, 45, 20, 60])
SCALED = dataclasses.replace(
    MODEL, rope=RopeConfig(scaling=RopeScaling.DYNAMIC, factor=2.0, original_context=W), memory_layers=(1,)
)


def measured(tiny, reading, *, windows=(1, 2, 4)):
    """Targets of three documents in batches of three."""
    options = {"most_documents": 3, "per_document": 1, "seed": 0, "token_bytes": BYTES, "batch": 3}
    return context.measure(tiny, reading=reading, documents=DOCUMENTS, windows=windows, **options)


def losses(model, params, tokens, targets):
    """-log p of each target, by the decoder without cache or memory."""
    logits = jax.jit(Decoder(model).apply)({"params": params}, tokens).logits
    log_p = np.asarray(jax.nn.log_softmax(logits.astype(np.float32), axis=-1))
    return -np.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0].astype(np.float64)


def texts(sweep, n):
    """The targets after n − 1 windows, and the token beyond: int [T, n·W + 1]."""
    past, window = gather_tokens(DOCUMENTS, targets=list(sweep.targets), length=W, history=3)
    return np.concatenate([past[:, (4 - n) * W :], window], axis=1)


def test_memory_is_the_perplexity_task():
    tiny = tiny_model()
    sweep = measured(tiny, PastReading.MEMORY)
    other = perplexity.measure_contexts(
        tiny, documents=DOCUMENTS, token_bytes=BYTES, sizes=(0, 1, 3), most_documents=3, per_document=1, seed=0, batch=3
    )
    assert sweep.targets == other.targets
    np.testing.assert_allclose(sweep.nats, other.nats, rtol=1e-6)


def test_an_overlap_is_not_applied_and_it_says_so(caplog):
    warn_once.cache_clear()
    plain = tiny_model()
    lapped = dataclasses.replace(plain, memory=dataclasses.replace(plain.memory, overlap=3))
    with caplog.at_level(logging.WARNING):
        sweeps = [measured(tiny, PastReading.MEMORY) for tiny in (plain, lapped)]
    np.testing.assert_array_equal(sweeps[0].nats, sweeps[1].nats)
    assert [r.message.split(":")[0] for r in caplog.records] == ["memory.overlap"]


@pytest.mark.parametrize("model", [MODEL, SCALED], ids=["plain", "dynamic"])
def test_full_is_one_causal_pass(model):
    tiny = tiny_model(model)
    sweep = measured(tiny, PastReading.FULL)
    for index, n in enumerate((1, 2, 4)):
        text = texts(sweep, n)
        whole = dataclasses.replace(model, local_context=n * W, memory_layers=())
        want = losses(whole, tiny.params, text[:, :-1], text[:, 1:])[:, -W:].sum(axis=1)
        np.testing.assert_allclose(sweep.nats[index], want, rtol=1e-5)


def test_sliding_gives_every_token_a_window_and_no_more():
    tiny = tiny_model()
    sweep = measured(tiny, PastReading.SLIDING)
    text = texts(sweep, 2)
    want = np.zeros(len(text))
    for place in range(W):  # W = 8 tokens, 8 strides: each token ends a window of its own
        tokens = text[:, place + 1 : place + W + 1]
        want += losses(tiny.model, tiny.params, tokens, text[:, place + 2 : place + W + 2])[:, -1]
    np.testing.assert_allclose(sweep.nats[1], want, rtol=1e-5)
    np.testing.assert_array_equal(sweep.nats[2], sweep.nats[1])


def test_sliding_takes_pieces_of_any_length():
    """W = 12 in 8 strides: pieces of 2 tokens, the last piece as long as what is left of the window."""
    model = dataclasses.replace(MODEL, local_context=12)
    tiny = tiny_model(model)
    options = {"most_documents": 1, "per_document": 1, "seed": 0, "token_bytes": BYTES, "batch": 1}
    sweep = context.measure(tiny, reading=PastReading.SLIDING, documents=DOCUMENTS, windows=(2,), **options)
    past, window = gather_tokens(DOCUMENTS, targets=list(sweep.targets), length=12, history=1)
    text, want = np.concatenate([past, window], axis=1), 0.0
    for first in range(2, 13, 2):
        want += losses(model, tiny.params, text[:, first : first + 12], text[:, first + 1 : first + 13])[:, -2:].sum()
    np.testing.assert_allclose(sweep.nats[0, 0], want, rtol=1e-5)


def test_one_window_is_the_same_for_all():
    tiny = tiny_model()
    alone = [measured(tiny, reading, windows=(1, 4)).nats[0] for reading in PastReading]
    for nats in alone[1:]:
        np.testing.assert_allclose(nats, alone[0], rtol=1e-5)
