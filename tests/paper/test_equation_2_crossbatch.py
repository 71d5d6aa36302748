"""Eq. (2), sec. 3.2, app. B.3: two-pass (w, d) crossbatch, one softmax over local ∪ p^δ, differentiable throughout.

The function under test is the one that layers call in training, with each backend that runs on a CPU.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import Boundaries
from fot_jax.ops import crossbatch, plans
from fot_jax.ops.backends import cpu
from fot_jax.types import Plan
from tests import cases, oracles

STREAMS, LENGTH, HEADS, GROUPS, DIM = 3, 4, 4, 2, 6
W, D = 1, 2
SEGMENTS = np.repeat(np.tile(np.arange(1, STREAMS + 1), W + 1)[:, None], LENGTH, axis=1)
BACKENDS = ("reference", "xla", "cpu")


@functools.cache
def unrotated_queries() -> np.ndarray:
    """Queries that `problem` rotates."""
    return cases.arrays(20, (STREAMS * (W + 1), LENGTH, HEADS, DIM))[0]


def problem():
    """(rotated queries, rotated keys, keys, values) and the upstream gradient; the loss is on C_curr rows."""
    rows = STREAMS * (W + 1)
    q, k = (rows, LENGTH, HEADS, DIM), (rows, LENGTH, GROUPS, DIM)
    keys, values, upstream = cases.arrays(21, k, k, q)
    upstream[: STREAMS * W] = 0
    frequencies, _ = oracles.rope_frequencies(DIM, theta=100.0)
    places = np.tile(np.arange(LENGTH), (rows, 1))
    rotated_queries, rotated_keys = (
        oracles.rotate(a, places, frequencies).astype(np.float32).astype(np.float64)
        for a in (unrotated_queries(), keys)
    )
    return (rotated_queries, rotated_keys, keys, values), upstream


def contexts(*, step: int = 1, first: int = 0) -> oracles.Visible:
    """C_curr row i reads the previous chunks of streams i + first, … (`step` apart), d of them, mod the streams."""

    def visible(b: int, l: int, h: int) -> list[tuple[str, int, int]]:
        if b < STREAMS:
            return []  # C_prev rows read nothing
        rows = [(b - STREAMS + first + step * ahead) % STREAMS for ahead in range(D)]
        return [("context", row, s) for row in rows for s in range(LENGTH)]

    return visible


def local(*, causal: bool = True) -> oracles.Visible:
    return oracles.local_visible(SEGMENTS, boundaries="masked", causal=causal)


def sources_of(arguments) -> dict[str, oracles.Source]:
    """Rotated queries meet rotated local keys and unrotated context keys (rope0: contexts at position 0)."""
    queries, rotated_keys, keys, values = arguments
    return {"local": (queries, rotated_keys, values), "context": (queries, keys, values)}


def op(name: str):
    """The project's equation (2), of four arrays."""
    plan: Plan = jax.tree.map(jnp.asarray, plans.two_pass_plan(STREAMS, w=W, d=D))

    def run(*arrays):
        backend = cases.backend_of(name, Boundaries.MASKED, block=3)  # blocks that do not divide the row
        return crossbatch.crossbatch_attention(*arrays, plan, segments=jnp.asarray(SEGMENTS), backend=backend)

    return run


def check(name: str = "cpu") -> None:
    """The op's values and gradients are the equation's: gradients reach positives' and negatives' keys and values."""
    arguments, upstream = problem()
    sources, visible = sources_of(arguments), oracles.union(contexts(), local())
    near, far = oracles.attend_gradients(sources, visible, upstream).values()
    want = [oracles.attend(sources, visible), near[0] + far[0], near[1], far[1], near[2] + far[2]]
    cases.assert_close(cases.value_and_gradients(op(name), arguments, upstream), want, cases.JOINT_NAMES)


@pytest.mark.parametrize("name", BACKENDS)
def test_crossbatch_attention_is_equation_2_with_gradients(name):
    """Compares values and all gradients with the float64 loops."""
    check(name)


def test_cpu_backend_is_equation_2_one_head_at_a_time(monkeypatch):
    """Makes the scores outgrow the core's cache, so that the own chunk too is read by row and head."""
    monkeypatch.setattr(cpu, "CACHE_BYTES", 0)
    check("cpu")


@pytest.mark.parametrize("name", BACKENDS)
def test_previous_chunks_of_positives_and_negatives_get_gradient(name):
    """Sec. 5.6.1: that crossbatch is differentiable is the point. A stop_gradient would leave zeros here."""
    arguments, upstream = problem()
    *_, d_keys, d_values = cases.value_and_gradients(op(name), arguments, upstream)
    for row in range(STREAMS):
        assert np.abs(d_keys[row]).min() > 0
        assert np.abs(d_values[row]).min() > 0


@functools.cache
def ours() -> np.ndarray:
    """The op's output."""
    return np.asarray(jax.jit(op("cpu"))(*cases.to_float32(*problem()[0])))


WRONG = {
    "no causal mask": (oracles.union(contexts(), local(causal=False)), 0.0),
    "neighbours i - 1 for i + 1": (oracles.union(contexts(step=-1), local()), 0.0),
    "own previous chunk missing": (oracles.union(contexts(first=1), local()), 0.0),
    "no contexts": (local(), 0.0),
    "contexts without local": (contexts(), 0.0),
    "tau is not 1": (oracles.union(contexts(), local()), 1.0),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_term_of_equation_2_can_be_told(name):
    arguments, _ = problem()
    visible, colder = WRONG[name]
    sources = {n: (q / (1 + colder), k, v) for n, (q, k, v) in sources_of(arguments).items()}
    assert oracles.relative_error(ours(), oracles.attend(sources, visible)) > cases.FAR


def test_two_softmaxes_and_rotated_context_keys_can_be_told():
    arguments, _ = problem()
    queries, rotated_keys, keys, values = arguments
    got = ours()
    sources = sources_of(arguments)
    halves = (oracles.attend(sources, contexts()) + oracles.attend(sources, local())) / 2
    halves[:STREAMS] *= 2
    assert oracles.relative_error(got, halves) > cases.FAR
    for wrong_context in ((queries, rotated_keys, values), (unrotated_queries(), keys, values)):
        visible = oracles.union(contexts(), local())
        wrong = oracles.attend({**sources, "context": wrong_context}, visible)
        assert oracles.relative_error(got, wrong) > cases.FAR
