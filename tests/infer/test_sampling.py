"""Sampling: the distributions, by definition and by count; streaming text."""

import collections

import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import ConfigError
from fot_jax.infer.sampling import SamplingConfig, sample, truncated_probabilities
from fot_jax.infer.text_stream import TextStream

LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.3, 0.15], np.float32))


def by_definition(*, temperature: float, top_k: int, top_p: float) -> dict[int, float]:
    weights = {token: float(np.exp(LOGITS[token] / temperature)) for token in range(5)}
    kept = sorted(weights, key=lambda token: -weights[token])[: top_k or None]
    total, mass, nucleus = sum(weights[token] for token in kept), 0.0, []
    for token in kept:
        if nucleus and mass >= top_p:
            break
        nucleus.append(token)
        mass += weights[token] / total
    total = sum(weights[token] for token in nucleus)
    return {token: weights[token] / total for token in nucleus}


SETTINGS = [
    {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
    {"temperature": 0.5, "top_k": 0, "top_p": 1.0},
    {"temperature": 2.0, "top_k": 3, "top_p": 1.0},
    {"temperature": 1.0, "top_k": 0, "top_p": 0.69},
    {"temperature": 1.0, "top_k": 0, "top_p": 0.71},
    {"temperature": 1.0, "top_k": 3, "top_p": 0.55},
    {"temperature": 1.0, "top_k": 1, "top_p": 0.01},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_truncated_distribution_and_counts(setting):
    want = by_definition(**setting)
    probabilities, tokens = truncated_probabilities(jnp.asarray(LOGITS)[None], **setting)
    got = {int(t): float(p) for t, p in zip(tokens[0], probabilities[0], strict=True) if p > 0}
    assert got == pytest.approx(want, rel=1e-5)
    draws = 4000
    logits = jnp.broadcast_to(jnp.asarray(LOGITS), (draws, 5))
    counts = collections.Counter(np.asarray(sample(logits, SamplingConfig(seed=1, **setting), step=0)).tolist())
    assert set(counts) <= set(want)
    for token, probability in want.items():
        deviation = (probability * (1 - probability) / draws) ** 0.5
        assert counts[token] / draws == pytest.approx(probability, abs=4 * deviation + 1e-9)


def test_draws_follow_seed_and_step_and_not_the_batch():
    logits = jnp.zeros((64, 5))

    def draw(rows: int, seed: int, step: int) -> list[int]:
        return np.asarray(sample(logits[:rows], SamplingConfig(temperature=1.0, seed=seed), step=step)).tolist()

    assert draw(64, 0, 0) == draw(64, 0, 0)
    assert draw(64, 0, 0) != draw(64, 1, 0)
    assert draw(64, 0, 0) != draw(64, 0, 1)
    assert draw(3, 0, 0) == draw(64, 0, 0)[:3]
    assert len(set(draw(64, 0, 0))) == 5


def test_temperature_zero_is_greedy():
    greedy = sample(jnp.asarray([LOGITS, LOGITS[::-1]]), SamplingConfig(), step=5)
    assert np.asarray(greedy).tolist() == [1, 3]


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_ids_beyond_the_vocabulary_are_never_chosen(temperature):
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((64, 9)), jnp.float32).at[:, 6:].add(5.0)
    free = sample(logits, SamplingConfig(temperature=temperature), step=0)
    limited = sample(logits, SamplingConfig(temperature=temperature, vocab_limit=6), step=0)
    assert (np.asarray(free) >= 6).any()
    assert (np.asarray(limited) < 6).all()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -1.0}, "sampling.temperature must be >= 0"),
        ({"top_k": -1}, "sampling.top_k must be >= 0"),
        ({"top_p": 0.0}, r"sampling.top_p must be in \(0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**setting).validate("sampling")


def decode_bytes(ids) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def decode_pieces(ids) -> str:
    """Joins as SentencePiece does: a piece begins with a space, which the text's first one loses."""
    return "".join([" one", " two", "\n", "three"][i] for i in ids).removeprefix(" ")


@pytest.mark.parametrize(
    ("decode", "ids"),
    [
        (decode_bytes, list("naïve — 日本\n\n🙂 ok".encode())),
        (decode_bytes, [0x61, 0xFF, 0x62, 0xE2, 0x82]),
        (decode_pieces, [0, 1, 2, 1, 0, 3, 2, 2, 0]),
    ],
)
def test_streamed_pieces_join_to_the_whole_text(decode, ids):
    stream = TextStream(decode)
    pieces = [stream.push(i) for i in ids]
    assert all("\ufffd" not in piece[-1:] for piece in pieces)
    assert "".join(pieces) + stream.finish() == decode(ids)
    assert sum(map(bool, pieces)) >= 2
