"""Attention to the first keys of each row, by all three loops, against the oracle."""

import re

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
@pytest.mark.parametrize("loop", [*cases.LOOPS, "folded heads"])
def test_cache_attention_is_the_oracle(heads, block, loop, monkeypatch):
    """Agrees in values and gradients."""
    if loop == "folded heads":
        cases.force_folded_heads(monkeypatch)
    else:
        cases.force_loop(monkeypatch, loop)
    monkeypatch.setattr(cache_attention, "CACHE_BYTES", 0)  # these problems are too small to be cut by head otherwise
    num_heads, groups = cases.HEADS[heads]
    q, k = (4, 4, num_heads, 6), (4, ENTRIES, groups, 6)
    *arguments, upstream = cases.arrays(3, q, k, k, q)

    def op(queries, keys, values):
        given = {"valid": jnp.asarray(VALID), "counts": jnp.asarray(COUNTS, jnp.int32), "block": block}
        return softmax.normalise(cache_attention.cache_attention(queries, keys, values, **given))

    sources = {"memory": tuple(arguments)}
    want = [
        oracles.attend(sources, visible),
        *oracles.attend_gradients(sources, visible, upstream)["memory"],
    ]
    got = cases.value_and_gradients(op, arguments, upstream)
    cases.assert_close(got, want, ("output", "d queries", "d keys", "d values"))


def test_few_queries_of_many_keys_fold_heads(monkeypatch):
    """Folds for 32 queries, heads counted; not for 33, one head or few keys. No head is copied out of the others."""
    monkeypatch.setattr(cache_attention, "LEAST_FOLDED_BYTES", 1 << 12)

    def folds(length, heads, key_heads, entries):
        queries, keys = jnp.ones((2, length, heads, 4)), jnp.ones((2, entries, key_heads, 4))
        return cache_attention.should_fold_heads(queries, keys)

    assert folds(1, 32, 2, 128) and folds(4, 8, 2, 128)
    assert not (folds(1, 33, 3, 128) or folds(5, 8, 2, 128) or folds(1, 32, 1, 256) or folds(1, 32, 2, 127))
    queries, keys = jnp.ones((1, 1, 4, 4)), jnp.ones((1, 256, 2, 4))
    given = {"valid": jnp.ones((1, 256), bool), "counts": jnp.full((1, 1), 256, jnp.int32), "block": 64}

    def copies_heads():
        attend = jax.jit(lambda q, k: cache_attention.cache_attention(q, k, k, **given))
        text = attend.lower(queries, keys).compile().as_text()
        return re.search(r"f32\[1,2,(64|256)", text) is not None

    assert not copies_heads()
    monkeypatch.setattr(cache_attention, "should_fold_heads", lambda *_: False)
    assert copies_heads()  # that is how one sees it


def test_small_problems_take_all_heads_at_once(monkeypatch):
    """Compiles no choice where the scores fit the cache: one loop serves every device."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *_, **__: pytest.fail("a choice was made"))
    queries, keys = jnp.ones((1, 2, 2, 4)), jnp.ones((1, 8, 1, 4))
    counts = jnp.full((1, 2), 8, jnp.int32)
    part = cache_attention.cache_attention(queries, keys, keys, valid=jnp.ones((1, 8), bool), counts=counts)
    np.testing.assert_allclose(part.total, 8.0)
