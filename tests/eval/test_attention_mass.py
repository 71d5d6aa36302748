"""r_d against loops, its closed form where keys tell nothing, and the drawn plan."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import Boundaries, MemoryConfig, Retrieval, UserError
from fot_jax.eval import attention_mass
from fot_jax.models.inputs import TrainInputs
from fot_jax.models.transformer import run
from fot_jax.ops.crossbatch import context_log_masses
from tests import oracles
from tests.eval.tiny_models import MODEL, RandomDocuments, tiny_model


def test_plan_as_drawn():
    plan = attention_mass.distraction_plan(np.asarray([7, 8, 7, 9]), num_contexts=3)
    assert plan.context_ids[:4].tolist() == [[-1, -1, -1]] * 4
    assert plan.context_ids[4:].tolist() == [[0, 1, 3], [1, 2, 3], [2, 3, 1], [3, 0, 1]]
    assert plan.own_document[4:].tolist() == [[True, False, False]] * 4
    assert not plan.own_document[:4].any()


def test_plan_refuses_more_contexts_than_other_documents_give():
    with pytest.raises(UserError, match="asks for 4 contexts, but held-out documents give only 3"):
        attention_mass.distraction_plan(np.asarray([7, 8, 7, 9]), num_contexts=4)


def weights_oracle(queries, keys, row: int, context_rows: list[int], *, local_row: int) -> float:
    """Σ_j w_1j / Σ_i Σ_j w_ij of one row from the whole softmax, local keys in its denominator, by loops in float64."""
    ratios = []
    for position, head in np.ndindex(queries.shape[1:3]):
        query, kv_head = queries[row, position, head], head // (queries.shape[2] // keys.shape[2])
        local = [np.exp(query @ keys[local_row, s, kv_head]) for s in range(position + 1)]
        far = [[np.exp(query @ keys[other, s, kv_head]) for s in range(keys.shape[1])] for other in context_rows]
        total = sum(local) + sum(map(sum, far))
        weights = [[score / total for score in context] for context in far]
        ratios.append(sum(weights[0]) / sum(map(sum, weights)))
    return float(np.mean(ratios))


@pytest.mark.parametrize("d", [1, 2, 4])
def test_own_share_is_the_definition(d):
    rng = np.random.default_rng(d)
    queries, keys = rng.normal(size=(8, 5, 4, 6)), rng.normal(size=(8, 5, 2, 6))
    on_device = [jnp.asarray(each, jnp.float32) for each in (queries, keys)]
    documents = np.arange(4)
    plan = attention_mass.distraction_plan(documents, num_contexts=d)
    segments = np.repeat(np.tile(documents + 1, 2)[:, None], 5, axis=1).astype(np.int32)
    masses = context_log_masses(*on_device, plan, segments=jnp.asarray(segments), boundaries=Boundaries.MASKED)
    got = np.asarray(attention_mass.own_share(masses, plan.own_document))
    for row in range(4, 8):
        want = weights_oracle(queries, keys, row, plan.context_ids[row].tolist(), local_row=row)
        assert got[row].mean() == pytest.approx(want, rel=1e-5)


def test_a_model_whose_keys_are_all_alike_has_one_over_d():
    documents = RandomDocuments([40] * 4)
    found = attention_mass.measure(tiny_model(zeros=True), documents=documents, contexts=(1, 4), rows=4, seed=0)
    assert found.curve == pytest.approx([1, 1 / 4], rel=1e-6)
    assert found.by_head.shape == (2, 1, MODEL.num_heads)


@pytest.mark.parametrize("scaling_from", [0, 8])
def test_measure_takes_the_memory_layer_and_the_measured_rows(scaling_from):
    """The curve is the oracle's, on what the decoder captured in its one memory layer for the same plan."""
    memory = MemoryConfig(retrieval=Retrieval.DENSE, log_length_scaling_from=scaling_from)
    documents, tiny, d = RandomDocuments([17, 40, 30, 25]), tiny_model(memory=memory), 4
    found = attention_mass.measure(tiny, documents=documents, contexts=(d,), rows=4, seed=0)
    length = MODEL.local_context

    def chunk(target, back):
        start = (target.chunk - back) * length
        return documents.tokens(target.document)[start : start + length]

    tokens = np.stack([chunk(target, back) for back in (1, 0) for target in found.targets]).astype(np.int32)
    owners = np.asarray([target.document for target in found.targets])
    segments = np.repeat(np.tile(owners + 1, 2)[:, None], length, axis=1).astype(np.int32)
    plan = attention_mass.distraction_plan(owners, num_contexts=d)
    captured = jax.jit(functools.partial(run, MODEL, capture=True))
    output = captured(tiny.params, tokens, TrainInputs(segments=segments, plan=plan))
    layer = MODEL.memory_layers[0]
    queries, keys = [np.asarray(each[layer], np.float64) for each in (output.queries, output.keys)]
    if scaling_from:  # one memory layer, the last: nothing else depends on its queries
        in_sight = np.arange(1, length + 1) + np.where(np.arange(len(tokens)) < 4, 0, d * length)[:, None]
        queries = queries * np.maximum(1, np.log(in_sight) / np.log(scaling_from))[:, :, None, None]
    want = oracles.distraction(queries, keys, segments, plan.context_ids, plan.own_document, boundaries="masked")
    assert found.curve == pytest.approx([want], rel=1e-4)
    assert abs(want - 1 / d) > 1e-3


def test_few_documents_give_several_chunks_each():
    rows = attention_mass.choose_rows(RandomDocuments([70, 70, 70]), length=8, contexts=(1, 8), rows=4, seed=0)
    owners = [row.document for row in rows]
    assert all(len(rows) - owners.count(document) >= 7 for document in set(owners))
    assert all(row.chunk >= 1 for row in rows)
    assert len({(row.document, row.chunk) for row in rows}) == len(rows)
