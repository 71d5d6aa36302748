"""Attention to memory: dense, exact top-k, given neighbours, the gate."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.ops import memory_attention, softmax, top_k
from fot_jax.ops.softmax import heads_first
from tests import cases, oracles

NAMES = ("output", "d queries", "d keys", "d values")
ENTRIES = 7


def memory_problem(heads: str = "grouped"):
    """(queries, keys, values), upstream, valid: a full row, one with holes, an empty one."""
    num_heads, groups = cases.HEADS[heads]
    q, k = (3, 4, num_heads, 6), (3, ENTRIES, groups, 6)
    *arguments, upstream = cases.arrays(3, q, k, k, q)
    valid = np.array([[True] * 7, [True, False, True, True, False, True, False], [False] * 7])
    return tuple(arguments), upstream, valid


def expected(arguments, upstream, visible) -> list[np.ndarray]:
    """The oracle's values and gradients."""
    sources = {"memory": arguments}
    return [oracles.attend(sources, visible), *oracles.attend_gradients(sources, visible, upstream)["memory"]]


def test_log_length_scale_grows_from_its_start_on():
    """Is 1 up to the start, then log n / log start."""
    counts = jnp.asarray([[0, 1, 511, 512, 1024, 512**2]])
    scale = memory_attention.log_length_scale(counts, start=512)
    np.testing.assert_allclose(scale, [[1, 1, 1, 1, 10 / 9, 2]], rtol=1e-6)


@pytest.mark.parametrize("heads", cases.HEADS)
@pytest.mark.parametrize("block", [1, 3, 1024])
def test_dense_is_the_oracle(heads, block):
    """Agrees in values and gradients."""
    arguments, upstream, valid = memory_problem(heads)

    def op(queries, keys, values):
        partial = memory_attention.dense_memory_partial(
            queries, *cases.as_read(keys, values), valid=jnp.asarray(valid), block=block
        )
        return softmax.normalise(partial)

    want = expected(arguments, upstream, oracles.memory_visible(valid))
    cases.assert_close(cases.value_and_gradients(op, arguments, upstream), want, NAMES)


@pytest.mark.parametrize("heads", cases.HEADS)
@pytest.mark.parametrize("k", [1, 3, ENTRIES, 20])
def test_topk_is_the_oracle(heads, k):
    """Agrees in values and gradients; k = M and k > M read everything, so they equal dense."""
    arguments, upstream, valid = memory_problem(heads)

    def op(queries, keys, values):
        partial = memory_attention.topk_memory_partial(
            queries, *cases.as_read(keys, values), valid=jnp.asarray(valid), k=k
        )
        return softmax.normalise(partial)

    want = expected(arguments, upstream, oracles.topk_visible(*arguments[:2], valid, k=k))
    if k >= ENTRIES:
        cases.assert_close(want, expected(arguments, upstream, oracles.memory_visible(valid)), NAMES, tolerance=1e-12)
    cases.assert_close(cases.value_and_gradients(op, arguments, upstream), want, NAMES)


@pytest.mark.parametrize("heads", cases.HEADS)
@pytest.mark.parametrize("queries_at_once", [1, 3, 100])
def test_search_by_head_prefers_the_same_of_equals(monkeypatch, heads, queries_at_once):
    """CPUs search one row and head at a time, some queries together; a last part is not full (8 or 4 queries)."""
    cases.force_loop(monkeypatch, "cpu")
    monkeypatch.setattr(memory_attention, "CACHE_BYTES", 0)  # these problems are too small to be cut by head otherwise
    monkeypatch.setattr(memory_attention, "SEARCH_BYTES", queries_at_once * 4 * ENTRIES)
    test_topk_is_the_oracle(heads, 3)
    (queries, keys, _), _, valid = memory_problem(heads)
    queries, keys = (jnp.round(jnp.asarray(x, jnp.float32)) for x in (queries, keys))  # many scores are equal
    keys = cases.as_read(keys, keys)[0]
    options = {"valid": jnp.asarray(valid), "k": 5}
    by_head = memory_attention.nearest(queries, keys, **options, recall=None)
    approximate = memory_attention.nearest(queries, keys, **options, recall=0.5)  # all are found on CPUs
    monkeypatch.setattr(memory_attention, "CACHE_BYTES", 1 << 30)
    at_once = memory_attention.nearest(queries, keys, **options, recall=None)
    for got, same, want in zip(by_head, approximate, at_once, strict=True):
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(same, want)


@pytest.mark.parametrize("heads", cases.HEADS)
@pytest.mark.parametrize("queries_at_once", [1, 3, 100])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_values_summed_whole_are_those_of_the_k_best(monkeypatch, heads, queries_at_once, k):
    """Agrees with the oracle: rows with fewer than k entries, an empty one, a last part that is not full, ties."""
    cases.force_loop(monkeypatch, "cpu")
    monkeypatch.setattr(memory_attention, "CACHE_BYTES", 0)  # these problems are too small otherwise
    monkeypatch.setattr(memory_attention, "TILE_BYTES", queries_at_once * 4 * ENTRIES)
    (queries, keys, values), _, valid = memory_problem(heads)
    for changed in (np.asarray, np.round):  # rounded ones have equal scores
        sources = changed(queries), changed(keys), values
        given = cases.to_float32(*sources)
        arrays = given[0], *cases.as_read(*given[1:])
        got = softmax.normalise(memory_attention.topk_memory_partial(*arrays, valid=jnp.asarray(valid), k=k))
        visible = oracles.topk_visible(*sources[:2], valid, k=k)
        cases.assert_close([got], [oracles.attend({"memory": sources}, visible)], ["output"])


def test_a_last_part_that_is_not_full_sorts_nothing(monkeypatch):
    """Pads with a query that is there: zeros would score equally and have their tile searched one by one."""
    cases.force_loop(monkeypatch, "cpu")
    monkeypatch.setattr(memory_attention, "CACHE_BYTES", 0)
    monkeypatch.setattr(memory_attention, "TILE_BYTES", 3 * 4 * 64)
    searched = []
    monkeypatch.setattr(jax.lax, "top_k", lambda scores, k: searched.append(scores) or pytest.fail("searched"))
    monkeypatch.setattr(jax.lax, "cond", lambda ok, yes, no: yes() if bool(ok) else no())
    monkeypatch.setattr(jax.lax, "map", lambda f, xs: jax.tree.map(lambda *x: jnp.stack(x), *map(f, xs)))
    queries, keys, values = cases.to_float32(*cases.arrays(3, (1, 4, 2, 6), (1, 64, 1, 6), (1, 64, 1, 6)))
    memory_attention.topk_memory_partial(queries, *cases.as_read(keys, values), valid=jnp.ones((1, 64), bool), k=3)
    assert not searched


@pytest.mark.parametrize("entries", [50, 64])  # 64 are counted as bytes
def test_a_threshold_leaves_k_scores_or_says_that_none_does(entries):
    """Ties at the k-th place, fewer than k entries, NaN, infinity; scores of any size; the last queries apart."""
    generator, queries = np.random.default_rng(0), top_k.LAST_APART + 8
    scores = (generator.standard_normal((queries, entries)) * np.logspace(-20, 20, queries)[:, None]).astype(np.float32)
    threshold, found = top_k.kth_largest(jnp.asarray(scores), jnp.ones(entries, bool), k=7)
    assert found.all() and ((scores >= np.asarray(threshold)[:, None]).sum(1) == 7).all()
    ties = np.sort(scores, axis=1)[:, ::-1].copy()
    ties[0, 7], ties[1, 3], ties[2, 0], ties[3, 0] = ties[0, 6], ties[1, 4], np.nan, np.inf
    _, found = top_k.kth_largest(jnp.asarray(ties), jnp.ones(entries, bool), k=7)
    assert np.flatnonzero(~np.asarray(found)).tolist() == [0, 2, 3]
    exists = jnp.arange(entries) < 7
    hidden = np.where(exists, scores, -1e30).astype(np.float32)
    threshold, found = top_k.kth_largest(jnp.asarray(hidden), exists, k=7)
    assert found.all() and ((hidden >= np.asarray(threshold)[:, None]).sum(1) == 7).all()


def test_counts_of_many_scores_are_whole():
    """Overflows no byte."""
    assert top_k._count(jnp.ones((1, 8192), bool)).tolist() == [8192]


@pytest.mark.parametrize("queries", [4, 3 * top_k.LAST_APART])
def test_a_threshold_is_found_where_scores_lie_close(queries):
    """Separates the k-th from the next one by one float32, and finds it among scores of one value but for k."""
    scores = np.tile(np.linspace(1, 2, 128, dtype=np.float32), (queries, 1))
    scores[::2, 100] = np.nextafter(scores[::2, 101], np.float32(0))
    scores[1::2, :101] = 1.0
    threshold, found = top_k.kth_largest(jnp.asarray(scores), jnp.ones(128, bool), k=27)
    assert found.all() and ((scores >= np.asarray(threshold)[:, None]).sum(1) == 27).all()


def test_decoding_copies_no_memory():
    """Makes no array as large as the memory for a token, dense or top-k."""
    queries, valid = jnp.ones((1, 1, 4, 4)), jnp.ones((1, 2048), bool)
    keys = jnp.ones((1, 2, 4, 2048))
    for attend in (
        memory_attention.dense_memory_partial,
        functools.partial(memory_attention.topk_memory_partial, k=3),
    ):
        program = jax.jit(lambda q, k, v, attend=attend: attend(q, k, v, valid=valid))
        text = program.lower(queries, keys, keys.swapaxes(2, 3)).compile().as_text()
        made = re.findall(r"= f32\[([\d,]+)\]\S* (?!parameter|bitcast)", text[text.index("ENTRY") :])
        assert max(np.prod([int(n) for n in shape.split(",")]) for shape in made) < keys.size


@pytest.mark.parametrize(("entries", "k"), [(1024, 1), (1 << 15, 5), (1 << 16, 128), (20000, 3)])
def test_top_k_in_groups_is_that_of_all(entries, k):
    """Finds the same scores and indices as a search of all, of equal scores the first ones; some rows are all equal."""
    generator = np.random.default_rng(k)
    scores = generator.integers(0, 3 * k, (2, 3, entries)).astype(np.float32)  # many are equal
    scores[0, 0], scores[0, 1, k // 2 :] = 1.0, -1e30
    best, index = top_k.top_k(jnp.asarray(scores), k)
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    np.testing.assert_array_equal(index, order)
    np.testing.assert_array_equal(best, np.take_along_axis(scores, order, axis=-1))


def test_gate_mixes_two_softmaxes_per_head():
    """v = g·v_M + (1 − g)·v_C; where the memory is empty there is no v_M and v_C is taken whole."""
    (queries, keys, values), upstream, valid = memory_problem()
    local_keys, local_values = cases.arrays(8, (3, 4, 2, 6), (3, 4, 2, 6))
    bias = cases.arrays(9, (4,))[0]
    mask = jnp.tril(jnp.ones((1, 4, 4), bool))

    def op(queries, gate_bias):
        memory = memory_attention.dense_memory_partial(
            queries, *cases.as_read(*cases.to_float32(keys, values)), valid=jnp.asarray(valid)
        )
        arrays = queries, *cases.to_float32(local_keys, local_values)
        local = heads_first(softmax.normalise(softmax.attend(*map(heads_first, arrays), mask=mask)))
        seen = memory.total > 0
        return memory_attention.gated_mix(softmax.normalise(memory), local, seen=seen, gate_bias=gate_bias)

    from_memory = {"memory": (queries, keys, values)}
    from_local = {"local": (queries, local_keys, local_values)}
    visible = oracles.memory_visible(valid), oracles.local_visible(np.ones((3, 4), int), boundaries="joined")
    v_memory, v_local = oracles.attend(from_memory, visible[0]), oracles.attend(from_local, visible[1])
    gate = (1 / (1 + np.exp(-bias)))[None, None, :, None] * valid.any(axis=1)[:, None, None, None]
    d_queries = (
        oracles.attend_gradients(from_memory, visible[0], gate * upstream)["memory"][0]
        + oracles.attend_gradients(from_local, visible[1], (1 - gate) * upstream)["local"][0]
    )
    d_bias = ((v_memory - v_local) * gate * (1 - gate) * upstream).sum(axis=(0, 1, 3))
    want = [gate * v_memory + (1 - gate) * v_local, d_queries, d_bias]
    cases.assert_close(cases.value_and_gradients(op, (queries, bias), upstream), want, (*NAMES[:2], "d gate bias"))
