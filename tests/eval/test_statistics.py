"""Perplexity, bits per byte and the paired bootstrap on data whose answers are known."""

import math

import numpy as np
import pytest

from fot_jax.eval.statistics import Interval, Score, min_max, paired_bootstrap, wilson


def test_score_of_a_uniform_guess():
    """256 equally likely tokens: perplexity 256, 8 bits a token; tokens of two bytes halve the bits per byte."""
    nats = 10 * math.log(256)
    score = Score(nats=nats, tokens=10, num_bytes=20)
    assert score.perplexity == pytest.approx(256)
    assert score.nats_per_token == pytest.approx(math.log(256))
    assert score.bits_per_byte == pytest.approx(4.0)
    assert Score(nats=nats, tokens=10, num_bytes=10).bits_per_byte == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0), (19, 20, 0.7639, 0.9911), (5, 10, 0.2366, 0.7634)],
)
def test_wilson_intervals_of_the_textbook(successes, trials, low, high):
    found = wilson(successes, trials=trials)
    assert (found.estimate, found.low, found.high) == pytest.approx((successes / trials, low, high), abs=1e-4)
    with pytest.raises(ValueError, match="wilson needs"):
        wilson(trials + 1, trials=trials)


def test_bootstrap_of_a_constant_ratio_has_no_width():
    control = np.random.default_rng(0).uniform(1, 100, 30)
    found = paired_bootstrap(0.9 * control, control=control)
    assert (found.estimate, found.low, found.high) == pytest.approx((-0.1, -0.1, -0.1))


def test_one_document_has_no_interval():
    """All resamples of one group are the same: an interval without width would claim certainty."""
    control = np.array([3.0, 5.0, 4.0])
    found = paired_bootstrap(0.9 * control, control=control, groups=np.zeros(3, int))
    assert found.estimate == pytest.approx(-0.1)
    assert math.isnan(found.low) and math.isnan(found.high)
    assert found.percent(1) == "-10.0% [–]"
    assert Interval(estimate=0.012, low=0.008, high=0.016).percent(2) == "+1.20% [+0.80%, +1.60%]"


def test_perplexity_of_a_lost_model_is_infinite():
    assert Score(nats=1e6, tokens=10, num_bytes=20).perplexity == math.inf


def test_bootstrap_width_is_that_of_the_normal_approximation():
    """Equal controls: the relative difference is a mean of n differences, its error std/√n."""
    differences = np.random.default_rng(1).normal(-0.05, 0.2, 400)
    found = paired_bootstrap(1 + differences, control=np.ones(400), samples=20000)
    error = 1.96 * differences.std() / math.sqrt(400)
    assert found.estimate == pytest.approx(differences.mean())
    assert found.low == pytest.approx(differences.mean() - error, abs=0.06 * error)
    assert found.high == pytest.approx(differences.mean() + error, abs=0.06 * error)


def test_groups_are_drawn_whole():
    """Four copies of every target add no information: as wide as one copy, twice as wide as if independent."""
    once = 1 + np.random.default_rng(2).normal(0, 0.2, 100)
    copies, owners = np.repeat(once, 4), np.repeat(np.arange(100), 4)

    def width(**options):
        found = paired_bootstrap(copies, control=np.ones(400), samples=20000, **options)
        return found.high - found.low

    alone = paired_bootstrap(once, control=np.ones(100), samples=20000)
    assert width(groups=owners) == pytest.approx(alone.high - alone.low, rel=0.05)
    assert width(groups=owners) / width() == pytest.approx(2, rel=0.1)


def test_bootstrap_refuses_what_is_not_paired():
    with pytest.raises(ValueError, match=r"equally long, non-empty arrays, got \(3,\) and \(2,\)"):
        paired_bootstrap(np.ones(3), control=np.ones(2))


def test_min_max_over_seeds():
    spread = min_max([0.5, 0.9, 0.7])
    assert (spread.estimate, spread.low, spread.high) == pytest.approx((0.7, 0.5, 0.9))
