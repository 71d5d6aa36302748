"""Attention to the first keys of each row, by all loops, against the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.ops import cache_attention, softmax
from tests import cases, oracles

ENTRIES = 7
# The last row sees a hole and, in blocks of 3, one block whole: it alone needs no mask.
VALID = np.array(
    [[True] * 7, [True, False, True, True, False, True, False], [False] * 7, [True] * 4 + [False, True, True]]
)
COUNTS = np.array([[1, 2, 3, 4], [7, 7, 0, 5], [7, 7, 7, 7], [7, 7, 7, 7]])


def visible(b, position, head):
    """(source, row, entry) of every key that a query sees, as `oracles.attend` asks."""
    return [("memory", b, s) for s in range(ENTRIES) if VALID[b, s] and s < COUNTS[b, position]]


@pytest.mark.parametrize("heads", cases.HEADS)
@pytest.mark.parametrize("block", [1, 3, 1024])
@pytest.mark.parametrize("loop", [*cases.LOOPS, "whole"])
def test_cache_attention_is_the_oracle(heads, block, loop, monkeypatch):
    """Agrees in values and gradients."""
    if loop != "whole":
        cases.force_loop(monkeypatch, loop)
        monkeypatch.setattr(cache_attention, "CACHE_BYTES", 0)  # these problems are too small for a loop otherwise
    num_heads, groups = cases.HEADS[heads]
    q, k = (4, 4, num_heads, 6), (4, ENTRIES, groups, 6)
    *arguments, upstream = cases.arrays(3, q, k, k, q)

    def op(queries, keys, values):
        given = {"valid": jnp.asarray(VALID), "counts": jnp.asarray(COUNTS, jnp.int32), "block": block}
        return softmax.normalise(cache_attention.cache_attention(queries, *cases.as_read(keys, values), **given))

    sources = {"memory": tuple(arguments)}
    want = [
        oracles.attend(sources, visible),
        *oracles.attend_gradients(sources, visible, upstream)["memory"],
    ]
    got = cases.value_and_gradients(op, arguments, upstream)
    cases.assert_close(got, want, ("output", "d queries", "d keys", "d values"))


@pytest.mark.parametrize("heads", cases.HEADS)
@pytest.mark.parametrize("loop", [*cases.LOOPS, "narrow"])
@pytest.mark.parametrize("length", [1, 4])
def test_int8_keys_count_times_their_scales(heads, loop, length, monkeypatch):
    """Equals attention to codes times scales; one token's loop on CPUs too, in blocks of two keys."""
    monkeypatch.setattr(cache_attention, "CACHE_BYTES", 0)
    monkeypatch.setattr(cache_attention, "NARROW_BLOCK", 2)
    cases.force_loop(monkeypatch, "cpu" if loop == "narrow" else loop)
    num_heads, groups = cases.HEADS[heads]
    generator = np.random.default_rng(0)
    keys, values = generator.integers(-127, 128, (2, 4, ENTRIES, groups, 6)).astype(np.int8)
    scales = generator.uniform(0.001, 0.02, (2, 4, ENTRIES, groups, 1))
    queries = generator.standard_normal((4, length, num_heads, 6))
    want = oracles.attend({"memory": (queries, keys * scales[0], values * scales[1])}, visible)
    given = {"valid": jnp.asarray(VALID), "counts": jnp.asarray(COUNTS[:, :length], jnp.int32), "block": 3}
    held = tuple(jnp.asarray(scale[..., 0], jnp.float32).swapaxes(1, 2) for scale in scales)
    arrays = jnp.asarray(queries, jnp.float32), *cases.as_read(keys, values)
    got = softmax.normalise(cache_attention.cache_attention(*arrays, scales=held, **given))
    cases.assert_close([got], [want], ["output"])


@pytest.mark.parametrize("loop", cases.LOOPS)
def test_scales_are_not_rounded_before_they_count(loop, monkeypatch):
    """In bfloat16, codes times scales are rounded once: as near to the oracle as a memory of bfloat16."""
    monkeypatch.setattr(cache_attention, "CACHE_BYTES", 0)
    cases.force_loop(monkeypatch, loop)
    generator = np.random.default_rng(0)
    keys, values = generator.integers(-127, 128, (2, 1, 512, 1, 64)).astype(np.int8)
    scales = generator.uniform(0.01, 0.02, (2, 1, 512, 1, 1))
    queries = np.asarray(jnp.asarray(generator.standard_normal((1, 8, 1, 64)) / 16, jnp.bfloat16), np.float64)
    want = oracles.attend({"memory": (queries, keys * scales[0], values * scales[1])}, all_of(512))
    given = {"counts": jnp.full((1, 8), 512), "block": 64}
    held = tuple(jnp.asarray(scale[..., 0], jnp.float32).swapaxes(1, 2) for scale in scales)
    low = jnp.asarray(queries, jnp.bfloat16)
    attend = cache_attention.cache_attention
    got = softmax.normalise(attend(low, *cases.as_read(keys, values), scales=held, **given))
    narrow = cases.as_read(*(jnp.asarray(x * s, jnp.bfloat16) for x, s in zip((keys, values), scales, strict=True)))
    bfloat16 = softmax.normalise(attend(low, *narrow, **given))
    errors = [np.sqrt(np.mean((np.asarray(x, np.float64) - want) ** 2)) for x in (got, bfloat16)]
    assert errors[0] < 1.2 * errors[1]


def all_of(entries):
    """Every query sees all entries of its row."""
    return lambda b, position, head: [("memory", b, s) for s in range(entries)]


def test_one_token_sums_values_in_parts(monkeypatch):
    """Agrees with the oracle where a long sum is cut, for one query head of each key/value head."""
    monkeypatch.setattr(cache_attention, "SUMMED_AT_ONCE", 2)
    queries, keys, values = cases.arrays(3, (4, 1, 2, 6), (4, 6, 2, 6), (4, 6, 2, 6))

    def seen(b, position, head):
        return [("memory", b, s) for s in range(6) if s < COUNTS[b, 2]]

    counts = jnp.asarray(COUNTS[:, 2:3], jnp.int32)
    arrays = jnp.asarray(queries, jnp.float32), *cases.as_read(*cases.to_float32(keys, values))
    got = softmax.normalise(cache_attention.cache_attention(*arrays, counts=counts))
    cases.assert_close([got], [oracles.attend({"memory": (queries, keys, values)}, seen)], ["output"])


def test_small_problems_take_all_heads_at_once(monkeypatch):
    """Compiles no choice where the scores fit the cache: one program serves every device."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *_, **__: pytest.fail("a choice was made"))
    keys = jnp.ones((1, 1, 4, 8))
    counts = jnp.full((1, 2), 8, jnp.int32)
    part = cache_attention.cache_attention(jnp.ones((1, 2, 2, 4)), keys, keys.swapaxes(2, 3), counts=counts)
    np.testing.assert_allclose(part.total, 8.0)
