"""The most filler that fits, found as a scan over every number of fillers finds it."""

import numpy as np
import pytest

from fot_jax.config import UserError
from fot_jax.data.filling import fill_prompt


@pytest.mark.parametrize("step", ["even", "growing", "uneven", "flat"])
def test_the_largest_number_that_fits(step):
    rng = np.random.default_rng(0)
    steps = {
        "even": np.full(400, 7),
        "growing": 1 + np.arange(400) // 40,
        "uneven": rng.integers(0, 40, 400),
        "flat": np.where(np.arange(400) % 100 == 99, 500, 0),
    }[step]
    lengths = 11 + np.concatenate([[0], np.cumsum(steps)])
    for wanted in [*rng.integers(11, lengths[-1], 60).tolist(), 11, int(lengths[5])]:
        calls = []

        def tokens_of(fillers, calls=calls):
            calls.append(fillers)
            return [0] * int(lengths[fillers])

        found = fill_prompt(tokens_of, length_tokens=wanted, what="a prompt", most=400)
        assert found.fillers == max(n for n in range(401) if lengths[n] <= wanted)
        assert len(found.tokens) == lengths[found.fillers]
        if step in ("even", "growing"):
            assert len(calls) < 12


def test_too_short_and_too_long_are_refused():
    def tokens_of(fillers):
        return [0] * (11 + 7 * fillers)

    with pytest.raises(UserError, match="length_tokens must be >= 11, a prompt without filler, got 10"):
        fill_prompt(tokens_of, length_tokens=10, what="a prompt")
    assert fill_prompt(tokens_of, length_tokens=11, what="a prompt").fillers == 0
    assert fill_prompt(tokens_of, length_tokens=32, what="a prompt", most=3).fillers == 3
    with pytest.raises(UserError, match="length_tokens must be <= 32, a prompt with all 3 fillers, got 33"):
        fill_prompt(tokens_of, length_tokens=33, what="a prompt", most=3)
