"""Eq. (1), sec. 3.1: v = Σ_{M_top(q) ∪ C_<q} softmax(<q, key>/τ) · val. One softmax, and what it is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import Boundaries
from fot_jax.ops import memory_attention, softmax, visibility
from fot_jax.ops.softmax import heads_first
from tests import cases, oracles

K = 3
NAMES = ("output", "d queries", "d memory keys", "d memory values", "d local keys", "d local values")


def problem():
    """(queries, memory keys and values, local keys and values), upstream, valid memory entries."""
    q, m, s = (2, 4, 4, 6), (2, 9, 2, 6), (2, 4, 2, 6)
    *arguments, upstream = cases.arrays(11, q, m, m, s, s, q)
    valid = np.ones((2, 9), bool)
    valid[1, 5:] = False
    return tuple(arguments), upstream, valid


def local(*, causal: bool = True) -> oracles.Visible:
    return oracles.local_visible(np.ones((2, 4), int), boundaries="joined", causal=causal)


def check() -> None:
    """The op's values and gradients are the equation's."""
    arguments, upstream, valid = problem()
    queries, keys, values, local_keys, local_values = arguments
    sources = {"memory": (queries, keys, values), "local": (queries, local_keys, local_values)}
    visible = oracles.union(oracles.topk_visible(queries, keys, valid, k=K), local())
    memory, near = oracles.attend_gradients(sources, visible, upstream).values()
    want = [oracles.attend(sources, visible), memory[0] + near[0], *memory[1:], *near[1:]]
    cases.assert_close(cases.value_and_gradients(op, arguments, upstream), want, NAMES)


def op(queries, keys, values, local_keys, local_values):
    """The project's equation (1)."""
    ones = jnp.ones((2, 4), int)
    mask = visibility.local_mask(ones, ones, boundaries=Boundaries.JOINED)
    valid = jnp.asarray(problem()[2])
    far = memory_attention.topk_memory_partial(queries, *cases.as_read(keys, values), valid=valid, k=K)
    near = softmax.attend(*(heads_first(x) for x in (queries, local_keys, local_values)), mask=mask)
    return softmax.normalise(softmax.merge(far, jax.tree.map(heads_first, near)))


def test_memory_attention_is_equation_1_in_values_and_gradients():
    check()


@functools.cache
def ours() -> np.ndarray:
    """The op's output."""
    return np.asarray(jax.jit(op)(*cases.to_float32(*problem()[0])))


def wrong(name: str) -> np.ndarray:
    """The equation with one term wrong."""
    (queries, keys, values, local_keys, local_values), _, valid = problem()
    tau = 2.0 if name == "tau is not 1" else 1.0
    sources = {"memory": (queries / tau, keys, values), "local": (queries / tau, local_keys, local_values)}
    top = oracles.topk_visible(queries, keys, valid, k=K)
    if name == "two softmaxes, averaged":
        return (oracles.attend(sources, top) + oracles.attend(sources, local())) / 2
    if name == "keys rotated in memory":
        frequencies, _ = oracles.rope_frequencies(6, theta=100.0)
        sources["memory"] = (queries, oracles.rotate(keys, np.tile(np.arange(9), (2, 1)), frequencies), values)
    visible = {
        "k one too small": oracles.union(oracles.topk_visible(queries, keys, valid, k=K - 1), local()),
        "the k smallest": oracles.union(oracles.topk_visible(-queries, keys, valid, k=K), local()),
        "all of the memory": oracles.union(oracles.memory_visible(valid), local()),
        "memory only": top,
        "local only": local(),
        "local not causal": oracles.union(top, local(causal=False)),
        "invalid entries read": oracles.union(oracles.topk_visible(queries, keys, np.ones_like(valid), k=K), local()),
        "memory of another row": oracles.union(lambda b, l, h: [(n, 1 - r, s) for n, r, s in top(b, l, h)], local()),
    }.get(name, oracles.union(top, local()))
    return oracles.attend(sources, visible)


@pytest.mark.parametrize(
    "name",
    ["two softmaxes, averaged", "tau is not 1", "keys rotated in memory", "k one too small", "the k smallest",
     "all of the memory", "memory only", "local only", "local not causal", "invalid entries read",
     "memory of another row"],
)  # fmt: skip
def test_every_term_of_equation_1_can_be_told(name):
    assert oracles.relative_error(ours(), wrong(name)) > cases.FAR
