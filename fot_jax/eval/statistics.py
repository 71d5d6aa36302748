"""Scores of language models and the uncertainty of their differences."""

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """The summed loss of some held-out tokens.

    Attributes:
      nats: summed negative log-likelihood.
      tokens: number of scored tokens.
      num_bytes: UTF-8 bytes of these tokens.
    """

    nats: float
    tokens: int
    num_bytes: int

    @property
    def nats_per_token(self) -> float:
        """Mean loss, nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nats per token); infinite where that overflows."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """nats / (ln 2 · bytes): comparable between vocabularies; NaN if the tokens have no bytes."""
        return self.nats / (math.log(2) * self.num_bytes) if self.num_bytes else math.nan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with the ends of its confidence interval; NaN where there is none."""

    estimate: float
    low: float
    high: float

    def percent(self, digits: int) -> str:
        """Returns '+1.2% [+0.8%, +1.6%]', without an interval '+1.2% [–]'."""
        ends = f"{self.low:+.{digits}%}, {self.high:+.{digits}%}" if math.isfinite(self.low) else "–"
        return f"{self.estimate:+.{digits}%} [{ends}]"


def paired_bootstrap(
    treated: Float[np.ndarray, " T"],
    *,
    control: Float[np.ndarray, " T"],
    groups: Int[np.ndarray, " T"] | None = None,
    samples: int = 5000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Bootstraps the relative difference of two summed losses of the same targets.

        estimate = (sum_t treated_t - sum_t control_t) / sum_t control_t

    Each resample draws targets with replacement and keeps the pair (treated_t, control_t) together,
    so what is hard for both cancels. With `groups` whole groups are drawn (all targets of one
    document), which is wider, and honest where targets of one document resemble each other. One group alone has no
    interval: all resamples of it are the same.

    Args:
      treated: losses (nats) per target with the treatment, e.g. with memory.
      control: losses (nats) of the same targets without it.
      groups: the group of each target; None: every target is its own group.
      samples: number of bootstrap resamples.
      confidence: mass between `low` and `high` (percentile interval).
      seed: seeds the resampling.

    Raises:
      ValueError: lengths differ, or there is no target.
    """
    if treated.shape != control.shape or treated.size == 0:
        raise ValueError(
            f"paired_bootstrap needs two equally long, non-empty arrays, got {treated.shape} and {control.shape}"
        )
    labels = np.arange(treated.size) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums = np.stack([np.bincount(labels, weights=losses) for losses in (treated, control)])  # [2, groups]
    count = sums.shape[1]
    estimate = float(treated.sum() / control.sum() - 1.0)
    if count == 1:
        return Interval(estimate=estimate, low=math.nan, high=math.nan)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=samples)
    with_treatment, without = (draws @ sums.T).T
    differences = with_treatment / without - 1.0
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(differences, [tail, 100.0 - tail])
    return Interval(estimate=estimate, low=float(low), high=float(high))


def wilson(successes: int, *, trials: int, confidence: float = 0.95) -> Interval:
    """Returns Wilson's score interval of a share: honest at 0 and 1 and for few trials.

        (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)

    Args:
      successes: 0..trials.
      trials: n, at least 1.
      confidence: mass between `low` and `high`.

    Raises:
      ValueError: successes outside 0..trials, or no trial.

    Source: Wilson 1927.
    """
    if not (trials >= 1 and 0 <= successes <= trials):
        raise ValueError(f"wilson needs 0 <= successes <= trials >= 1, got {successes} of {trials}")
    return _score_interval(successes / trials, trials=trials, confidence=confidence)


def bounded_mean(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Returns Wilson's score interval of the mean of values in 0..1, of which nothing else is known.

    Their variance is at most p(1−p), the variance of zeros and ones: with values in between, the interval is
    wider than necessary.

    Args:
      values: at least one, in 0..1.
      confidence: mass between `low` and `high`, at least.

    Raises:
      ValueError: a value outside 0..1, or no value.
    """
    if not values or min(values) < 0 or max(values) > 1:
        raise ValueError(f"bounded_mean needs at least one value, all in 0..1, got {list(values)}")
    return _score_interval(math.fsum(values) / len(values), trials=len(values), confidence=confidence)


def _score_interval(share: float, *, trials: int, confidence: float) -> Interval:
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    middle = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return Interval(estimate=share, low=max(0.0, (middle - half) / scale), high=min(1.0, (middle + half) / scale))


def min_max(values: Sequence[float]) -> Interval:
    """Returns the mean of several runs (seeds), with the smallest and the largest as its ends."""
    return Interval(estimate=float(np.mean(values)), low=float(min(values)), high=float(max(values)))
