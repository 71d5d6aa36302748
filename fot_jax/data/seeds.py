"""Makes random generators, each keyed by what it decides, so that no draw depends on earlier draws."""

import zlib

import numpy as np

from fot_jax.config import check


def generator(seed: int, *key: int | str) -> np.random.Generator:
    """Makes a Philox generator, a pure function of (seed, key); words are hashed, numbers are not.

    Raises ConfigError for a negative seed.
    """
    check(seed >= 0, "seed", "be >= 0", seed)
    words = [zlib.crc32(part.encode("utf-8")) if isinstance(part, str) else part for part in key]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, *words))))
