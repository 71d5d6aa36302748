"""Random generators keyed by what they decide, so that nothing depends on what was drawn before."""

import zlib

import numpy as np

from fot_jax.config import check


def generator(seed: int, *key: int | str) -> np.random.Generator:
    """A Philox generator that is a pure function of (seed, key); words are hashed, numbers taken as they are.

    Raises ConfigError for a negative seed.
    """
    check(seed >= 0, "seed", "be >= 0", seed)
    words = [zlib.crc32(part.encode("utf-8")) if isinstance(part, str) else part for part in key]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, *words))))
