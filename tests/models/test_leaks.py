"""No value and no gradient from a future token, a later row, a masked document or padding.

Every position holds a token of its own, so the gradient of one position's logits by the embedding table
tells which positions it was made from: an influence matrix [B·L, B·L], exact zeros where nothing flows.
It must be zero where the specification forbids, and non-zero wherever a path of visible keys exists
(or the test could not fail).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import AttentionBackend, Boundaries, ContextGradients, CrossbatchConfig, PlanKind, ScheduleConfig
from fot_jax.models.cache import init_cache
from fot_jax.models.inputs import TrainInputs
from fot_jax.models.transformer import Decoder
from fot_jax.ops import plans
from fot_jax.types import Plan
from tests import cases, oracles
from tests.models import decoders

ROWS, LENGTH, MASKED = 8, decoders.LENGTH, Boundaries.MASKED
MODEL = decoders.config(vocab_size=ROWS * LENGTH + 1)  # three layers, memory in 0 and 2: two hops between rows
TOKENS = np.arange(1, ROWS * LENGTH + 1, dtype=np.int32).reshape(ROWS, LENGTH)

# Two streams of four chunks (packing 4): documents 1 2 | 3 in the first, 4 5 6 in the second, padding at ends.
SEGMENTS = np.array(
    [
        [1, 1, 1, 1, 1], [1, 1, 2, 2, 2], [2, 2, 2, 2, 0], [3, 3, 3, 3, 3],
        [4, 4, 4, 4, 4], [4, 5, 5, 5, 5], [5, 5, 5, 5, 5], [5, 5, 6, 0, 0],
    ]
)  # fmt: skip
PACKED = {
    "packed": CrossbatchConfig(plan=PlanKind.PACKED, packing=4, previous_chunks=2),
    "3B segments": CrossbatchConfig(
        plan=PlanKind.SEGMENTS, packing=4, segments=((0, 0), (1, 1), (2, 1), (3, 0)), schedule=ScheduleConfig()
    ),
    "authors' range": CrossbatchConfig(plan=PlanKind.CONSTANT_RANGE, packing=4),
}


@functools.partial(jax.jit, static_argnames=("model", "boundaries"))
def influence_by_gradient(model, parameters, plan, segments, boundaries):
    """[B·L, B·L]: the norm of d logits[position] / d embedding[position's token], along a random direction."""
    direction = jax.random.normal(jax.random.key(3), (ROWS * LENGTH, model.vocab_size))

    def projected(embedding):
        out = decoders.call(
            model, {**parameters, "embedding": embedding}, jnp.asarray(TOKENS),
            segments=segments, plan=plan, boundaries=boundaries,
        ).logits  # fmt: skip
        return (out.reshape(ROWS * LENGTH, -1) * direction).sum(axis=-1)

    out, pullback = jax.vjp(projected, parameters["embedding"])
    gradients = jax.lax.map(lambda one: pullback(one)[0], jnp.eye(ROWS * LENGTH, dtype=out.dtype))
    return jnp.abs(gradients).max(axis=-1)[:, 1:]


def influence(boundaries: Boundaries, plan: Plan, segments=SEGMENTS, model=MODEL) -> np.ndarray:
    """The influence matrix as bools."""
    on_device = jax.tree.map(jnp.asarray, plan)
    got = influence_by_gradient(model, decoders.params(model), on_device, jnp.asarray(segments), boundaries)
    return np.asarray(got) > 0


def reachable(boundaries: Boundaries, plan: Plan, segments=SEGMENTS) -> np.ndarray:
    """Which positions a path of visible keys joins, layer by layer (the residual keeps the position itself)."""
    local = oracles.local_visible(segments, boundaries=boundaries.value)
    ids, own = np.asarray(plan.context_ids), np.asarray(plan.own_document)
    both = oracles.union(local, oracles.context_visible(segments, ids, own, boundaries=boundaries.value))
    reach = np.eye(ROWS * LENGTH, dtype=bool)
    for layer in range(MODEL.num_layers):
        step = np.eye(ROWS * LENGTH, dtype=bool)
        for b, l in np.ndindex(ROWS, LENGTH):
            for _, row, s in (both if layer in MODEL.memory_layers else local)(b, l, 0):
                step[b * LENGTH + l, row * LENGTH + s] = True
        reach = step @ reach
    return reach


ROW, PLACE = np.divmod(np.arange(ROWS * LENGTH), LENGTH)


def forbidden(boundaries: Boundaries, segments=SEGMENTS) -> dict[str, np.ndarray]:
    """[reader, source] pairs that the specification forbids, whatever the plan."""
    flat = segments.ravel()
    same_row = ROW[:, None] == ROW[None]
    rules = {
        "a future token": same_row & (PLACE[None] > PLACE[:, None]),
        "a later row": ROW[None] > ROW[:, None],
        "padding": np.broadcast_to(flat[None] == 0, same_row.shape) & ~np.eye(len(flat), dtype=bool),
    }
    if boundaries is MASKED:
        # an earlier document of the reader's own pack: rows of one stream, another segment
        own_stream = ROW[:, None] // 4 == ROW[None] // 4
        rules["a masked document"] = own_stream & (flat[:, None] != flat[None]) & (flat != 0)[:, None]
    return rules


@pytest.mark.parametrize(
    ("backend", "boundaries"),
    [(AttentionBackend.BLOCKWISE, b) for b in Boundaries] + [(AttentionBackend.REFERENCE, MASKED)],
)
@pytest.mark.parametrize("name", PACKED)
def test_nothing_flows_where_it_must_not_in_two_memory_layers(name, boundaries, backend):
    plan = plans.make_plan(PACKED[name], batch_rows=ROWS, num_contexts=4)
    # Smeared keys hold the key before: of the same document under MASKED, so what is visible stays the same.
    smear = backend is AttentionBackend.REFERENCE
    got = influence(boundaries, plan, model=dataclasses.replace(MODEL, attention=backend, smear_keys=smear))
    for rule, pairs in forbidden(boundaries).items():
        assert not (got & pairs).any(), f"{rule}: (reader, source) {np.argwhere(got & pairs)[:4].tolist()}"
    np.testing.assert_array_equal(got, reachable(boundaries, plan))
    assert (got & (ROW[None] < ROW[:, None])).any(), "no row reads another: the test would see no leak"


def test_previous_chunks_of_the_two_pass_form_read_nothing():
    """Rows 0-3 are C_prev, 4-7 C_curr: C_prev reads its own row only, C_curr never another C_curr row."""
    plan = plans.pad_to_power_of_two(plans.two_pass_plan(4, w=1, d=3))
    segments = np.tile(np.arange(1, 5), 2)[:, None] * np.ones((1, LENGTH), int)
    got = influence(MASKED, plan, segments)
    np.testing.assert_array_equal(got, reachable(MASKED, plan, segments))
    rows = got.reshape(ROWS, LENGTH, ROWS, LENGTH).any(axis=(1, 3))
    want = np.eye(8, dtype=bool)
    for i in range(4):
        for ahead in range(3):
            want[4 + i, (i + ahead) % 4] = True
    np.testing.assert_array_equal(rows, want)


def test_a_document_met_elsewhere_shows_nothing_of_itself():
    """Stream 1 holds an earlier chunk of the document whose later chunk is row 0 (another epoch)."""
    segments = SEGMENTS.copy()
    segments[0] = 4  # a later part of document 4, read by rows 4.. as a negative
    plan = plans.make_plan(PACKED["packed"], batch_rows=ROWS, num_contexts=6)
    assert 0 in plan.context_ids[4] or 0 in plan.context_ids[5]
    one_memory_layer = decoders.config(vocab_size=MODEL.vocab_size, memory_layers=(2,))
    got = influence(MASKED, plan, segments, one_memory_layer)
    readers, sources = np.flatnonzero((segments.ravel() == 4) & (ROW >= 4)), np.flatnonzero(ROW == 0)
    assert not got[np.ix_(readers, sources)].any()
    fives = np.flatnonzero(segments.ravel() == 5)
    assert got[np.ix_(fives, sources)].any(), "another document does read it"


def test_stopped_contexts_are_seen_but_get_no_gradient():
    """The Memorizing Transformer's memory: a row's logits depend on other rows, its gradient ends at their keys."""
    plan = jax.tree.map(jnp.asarray, plans.make_plan(PACKED["packed"], batch_rows=ROWS, num_contexts=4))
    parameters = decoders.params(MODEL)

    def last_row(embedding, gradients):
        inputs = TrainInputs(segments=jnp.asarray(SEGMENTS), plan=plan, gradients=gradients)
        parts = {**parameters, "embedding": embedding}
        return Decoder(MODEL).apply({"params": parts}, jnp.asarray(TOKENS), inputs).logits[-1, 0]

    @functools.partial(jax.jit, static_argnames="gradients")
    def value_and_gradient(embedding, gradients):
        out, pullback = jax.vjp(lambda e: last_row(e, gradients), embedding)
        return out, pullback(jax.random.normal(jax.random.key(3), out.shape))[0]

    def run(gradients):
        out, gradient = value_and_gradient(parameters["embedding"], gradients)
        return np.asarray(out), np.abs(gradient).max(axis=-1)[1:].reshape(ROWS, LENGTH)

    flowing, reach = run(ContextGradients.FLOW)
    stopped, ends = run(ContextGradients.STOPPED)
    np.testing.assert_array_equal(stopped, flowing)
    assert reach[:-1].max() > 0
    assert ends[:-1].max() == 0
    assert ends[-1].max() > 0


def test_the_check_sees_the_leak_of_rows_that_read_each_other():
    """Why one-pass plans point backwards only: with mutual reading a row's future comes back to it."""
    ids = np.full((ROWS, 4), -1, np.int32)
    ids[3, 0], ids[4, 0] = 4, 3
    mutual = Plan(context_ids=ids, own_document=np.zeros((ROWS, 4), bool))
    got = influence(MASKED, mutual)
    assert (got & forbidden(MASKED)["a future token"]).any()


@pytest.mark.parametrize("boundaries", Boundaries)
def test_values_do_not_change_when_what_must_not_be_seen_changes(boundaries):
    """Leaves logits bit for bit where tokens of the future, of later rows and of padding change."""
    plan = jax.tree.map(jnp.asarray, plans.make_plan(PACKED["packed"], batch_rows=ROWS, num_contexts=4))
    options = {"segments": jnp.asarray(SEGMENTS), "plan": plan, "boundaries": boundaries}
    before = decoders.logits(MODEL, TOKENS, **options)
    row, place = 5, 2
    changed = TOKENS.copy()
    changed[row, place + 1 :] = 7
    changed[row + 1 :] = 9
    changed[SEGMENTS == 0] = 11
    after = decoders.logits(MODEL, changed, **options)
    real = SEGMENTS != 0
    np.testing.assert_array_equal(before[:row][real[:row]], after[:row][real[:row]])
    np.testing.assert_array_equal(before[row, : place + 1], after[row, : place + 1])
    assert oracles.relative_error(after[row, place + 1 :], before[row, place + 1 :]) > cases.FAR


def test_a_cache_shows_no_later_token_and_no_other_row():
    """With a cache: uncounted tokens and other rows leave the counted logits bit for bit."""
    tokens = jnp.asarray(TOKENS[:2])
    parameters = decoders.params(MODEL)
    counts = jnp.array([2, LENGTH])

    def run(tokens):
        return decoders.call(MODEL, parameters, tokens, cache=init_cache(MODEL, 2), token_counts=counts).logits

    before, after = run(tokens), run(tokens.at[0, 2:].set(7).at[1].set(9))
    np.testing.assert_array_equal(before[0, :2], after[0, :2])
    assert oracles.relative_error(after[1], before[1]) > cases.FAR
