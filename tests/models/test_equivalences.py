"""Two ways to the same numbers: what must be equal, and with each a check that the comparison can fail."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import (
    AttentionBackend,
    Boundaries,
    CrossbatchConfig,
    Dtype,
    MemoryConfig,
    MemoryPositions,
    PlanKind,
    Remat,
    Retrieval,
)
from fot_jax.memory.views import DeviceView
from fot_jax.models.attention_layer import rotations
from fot_jax.models.cache import init_cache, slide
from fot_jax.models.inputs import ReadInputs, TrainInputs
from fot_jax.models.transformer import Decoder
from fot_jax.ops import crossbatch, plans
from fot_jax.types import LayerMemory, Plan
from tests import cases, jaxprs, oracles
from tests.models import decoders

LENGTH = decoders.LENGTH
BASE = decoders.config()


def loss(model, parameters, tokens, **arguments):
    """A scalar of all logits."""
    return (decoders.call(model, parameters, tokens, **arguments).logits ** 2).mean()


@functools.cache
def values_and_gradients(model) -> tuple[jax.Array, Any]:
    """(loss, gradients) in the hard case, under the parameters of the scanned model of the same sizes."""
    parameters = decoders.params(BASE)
    step = jax.jit(jax.value_and_grad(functools.partial(loss, model)))
    parameters = parameters if model.scan_layers else unroll(parameters)
    return step(parameters, jnp.asarray(decoders.tokens_for(6)), **decoders.hard_case())


def unroll(tree):
    """Parameters or gradients of scanned layers as those of layers one by one."""
    per_layer = {f"layer_{n}": jax.tree.map(lambda leaf, n=n: leaf[n], tree["layers"]) for n in range(BASE.num_layers)}
    return {**{key: value for key, value in tree.items() if key != "layers"}, **per_layer}


def assert_same(got, want):
    """Two (loss, gradients) agree leaf by leaf."""
    (paths, leaves), wanted = zip(*jax.tree.leaves_with_path(got), strict=True), jax.tree.leaves(want)
    cases.assert_close(leaves, wanted, [jax.tree_util.keystr(path) for path in paths])


def test_exact_topk_equals_dense_for_all_entries_only():
    model, tokens = decoders.config(), decoders.tokens_for(2)
    dense = decoders.logits(model, tokens, memory=decoders.memory_for(model, 2, 9))
    for k in (9, 50):
        exact = decoders.logits(model, tokens, memory=decoders.memory_for(model, 2, 9, k=k))
        cases.assert_close([exact], [dense], ["logits"])
    fewer = decoders.logits(model, tokens, memory=decoders.memory_for(model, 2, 9, k=2))
    assert oracles.relative_error(fewer, dense) > cases.FAR


@pytest.mark.parametrize("k", [2, 3])
def test_own_past_without_positions_equals_causal_attention(k):
    """d = 1, all layers memory layers, no positions: k rows of one document are one row of k·L tokens."""
    model = decoders.config(memory_layers=(0, 1, 2), memory_positions=MemoryPositions.NOPE)
    tokens = decoders.tokens_for(k)
    table = plans.own_past_plan(k, k=k, w=k - 1) if k > 2 else plans.two_pass_plan(1, w=1, d=1)
    rows = decoders.logits(model, tokens, plan=jax.tree.map(jnp.asarray, table))
    whole = decoders.logits(model, tokens.reshape(1, -1))
    cases.assert_close([rows.reshape(1, k * LENGTH, -1)], [whole], ["logits"])
    assert oracles.relative_error(decoders.logits(model, tokens).reshape(whole.shape), whole) > cases.FAR


@pytest.mark.parametrize("scaling_from", [0, 7])
def test_memory_of_the_previous_window_equals_its_context(scaling_from):
    """Inference (eq. 1, dense) on what training read (eq. 2, d = 1): the same logits, under rope0 too."""
    model, tokens = decoders.config(), decoders.tokens_for(2)
    plan = jax.tree.map(jnp.asarray, plans.two_pass_plan(1, w=1, d=1))
    trained = decoders.logits(model, tokens, plan=plan, log_length_scaling_from=scaling_from)[1:]
    first = decoders.call(model, decoders.params(model), jnp.asarray(tokens[:1]), capture=True)
    layers = np.array(model.memory_layers)
    how = MemoryConfig(retrieval=Retrieval.DENSE, log_length_scaling_from=scaling_from)
    held = tuple(LayerMemory(*cases.as_read(first.keys[layer], first.values[layer])) for layer in layers)
    memory = DeviceView.of(held, jnp.array([LENGTH], jnp.int32), config=how)
    cases.assert_close([decoders.logits(model, tokens[1:], memory=memory)], [trained], ["logits"])


def test_memory_off_equals_plain():
    """No memory layers, a plan of empty slots and an empty memory are all the plain decoder; the first bit for bit."""
    model, tokens = decoders.config(), decoders.tokens_for(4)
    plain = decoders.logits(model, tokens)
    empty = decoders.memory_for(model, 4, 3).replace(valid=jnp.zeros((4, 3), bool))
    off = plans.make_plan(CrossbatchConfig(plan=PlanKind.OFF), batch_rows=4, num_contexts=1)
    without = dataclasses.replace(model, memory_layers=())
    parameters = decoders.params(model)
    same = {
        "empty plan": decoders.logits(model, tokens, plan=jax.tree.map(jnp.asarray, off)),
        "empty memory": decoders.logits(model, tokens, memory=empty),
        "no memory layers": np.asarray(decoders.call(without, parameters, jnp.asarray(tokens)).logits),
    }
    cases.assert_close(list(same.values()), [plain] * 3, list(same), tolerance=1e-6)
    np.testing.assert_array_equal(same["no memory layers"], plain)
    full = decoders.logits(model, tokens, memory=decoders.memory_for(model, 4, 3))
    assert oracles.relative_error(full, plain) > cases.FAR


@pytest.mark.parametrize("backend", [AttentionBackend.BLOCKWISE, AttentionBackend.REFERENCE])
@pytest.mark.parametrize("boundaries", Boundaries)
def test_reading_without_a_memory_equals_training_without_a_plan(boundaries, backend):
    """Compares the two kinds of inputs on packed documents and padding, where neither cache nor memory is given."""
    model, tokens = dataclasses.replace(BASE, attention=backend), jnp.asarray(decoders.tokens_for(6))
    fields = {"segments": jnp.asarray(cases.SEGMENTS, jnp.int32), "boundaries": boundaries}
    apply = jax.jit(functools.partial(Decoder(model).apply, {"params": decoders.params(model)}))
    read, trained = (apply(tokens, kind(**fields)).logits for kind in (ReadInputs, TrainInputs))
    cases.assert_close([read], [trained], ["logits"])
    whole = apply(tokens, ReadInputs()).logits
    assert oracles.relative_error(whole, trained) > cases.FAR


def test_blockwise_equals_reference_in_loss_and_every_gradient():
    reference = dataclasses.replace(BASE, attention=AttentionBackend.REFERENCE)
    assert_same(values_and_gradients(BASE), values_and_gradients(reference))


def test_scanned_layers_equal_unrolled_layers():
    value, gradients = values_and_gradients(BASE)
    unrolled = values_and_gradients(dataclasses.replace(BASE, scan_layers=False))
    assert_same(unrolled, (value, unroll(gradients)))


@pytest.mark.parametrize(("remat", "scan"), [(Remat.DOTS, True), (Remat.FULL, True), (Remat.FULL, False)])
def test_remat_equals_plain_and_does_rematerialise(remat, scan):
    plain = dataclasses.replace(BASE, scan_layers=scan)
    rematted = dataclasses.replace(plain, remat=remat)
    assert_same(values_and_gradients(rematted), values_and_gradients(plain))
    parameters = decoders.params(BASE) if scan else unroll(decoders.params(BASE))
    marks, tokens = {"checkpoint", "remat", "remat2"}, jnp.asarray(decoders.tokens_for(6))
    for model in (plain, rematted):
        step = jax.value_and_grad(functools.partial(loss, model))
        names = jaxprs.primitives(jax.make_jaxpr(step)(parameters, tokens, **decoders.hard_case()))
        assert bool(names & marks) == (model is rematted)


@pytest.mark.parametrize("remat", [Remat.DOTS, Remat.FULL])
def test_remat_does_not_read_contexts_again(remat, monkeypatch):
    """Rows order what they read once forward and once backward; without the name that remat keeps, twice forward."""
    model, tokens = dataclasses.replace(BASE, remat=remat), jnp.asarray(decoders.tokens_for(6))

    def readings() -> int:
        step = jax.grad(lambda params: (Decoder(model).apply({"params": params}, tokens, inputs).logits ** 2).mean())
        jaxpr = jax.make_jaxpr(step)(decoders.params(BASE))
        return sum(equation.primitive.name == "sort" for equation in jaxprs.equations(jaxpr))

    inputs = TrainInputs(**decoders.hard_case())
    assert readings() == 2
    monkeypatch.setattr(crossbatch, "checkpoint_name", lambda x, name: x)
    assert readings() == 3


@pytest.mark.parametrize(("layers", "scan", "held"), [(1, True, True), (3, False, True), (3, True, False)])
def test_remat_waits_for_the_gradient_where_no_loop_makes_it(layers, scan, held):
    """XLA unrolls a loop of one layer: without a barrier it runs the layer again before the unembedding's product."""
    model = dataclasses.replace(BASE, num_layers=layers, memory_layers=(0,), remat=Remat.FULL, scan_layers=scan)
    step = jax.jit(jax.value_and_grad(functools.partial(loss, model)))
    inputs = (decoders.params(model), jnp.asarray(decoders.tokens_for(6)))
    text = step.lower(*inputs, **decoders.hard_case()).as_text()
    assert ("optimization_barrier" in text) is held


@pytest.mark.parametrize(
    "model",
    [decoders.config(), decoders.paper(), decoders.paper(smear_keys=True)],
    ids=["llama", "paper", "paper smeared"],
)
def test_prefill_in_chunks_of_any_size_equals_one_shot(model):
    """Rows of different lengths, padded chunks, one token at a time: all give the logits of the whole row."""
    tokens = decoders.tokens_for(3)
    want = decoders.logits(model, tokens)
    for chunks in ([LENGTH], [2, 3], [1] * LENGTH):
        cache, got, start = init_cache(model, 3), [], 0
        for size in chunks:
            part = jnp.asarray(tokens[:, start : start + size])
            output = decoders.call(model, decoders.params(model), part, cache=cache)
            cache, start = output.cache, start + size
            got.append(np.asarray(output.logits))
        cases.assert_close([np.concatenate(got, axis=1)], [want], [f"chunks {chunks}"])
        assert cache.lengths.tolist() == [LENGTH] * 3


@pytest.mark.parametrize("smear", [False, True])
def test_rows_of_one_cache_are_extended_each_at_its_own_end(smear):
    model, tokens = decoders.config(smear_keys=smear), decoders.tokens_for(3)
    want = decoders.logits(model, tokens)
    counts = [jnp.array([1, 2, 3]), jnp.array([3, 3, 2]), jnp.array([1, 0, 0])]
    cache, seen = init_cache(model, 3), np.zeros(3, int)
    for count in counts:
        part = np.full((3, 3), 30, np.int32)  # what does not count is junk
        for row in range(3):
            part[row, : count[row]] = tokens[row, seen[row] : seen[row] + count[row]]
        output = decoders.call(model, decoders.params(model), jnp.asarray(part), cache=cache, token_counts=count)
        for row in range(3):
            got = np.asarray(output.logits)[row, : count[row]]
            if len(got):
                place = slice(seen[row], seen[row] + int(count[row]))
                cases.assert_close([got], [want[row, place]], [f"row {row} at {place}"])
        cache, seen = output.cache, seen + np.asarray(count)
    assert cache.lengths.tolist() == [LENGTH] * 3


def test_a_slid_cache_of_one_layer_equals_reading_the_rest_alone():
    """Keys are rotated anew at their new index, so what remains is at the positions of a fresh window."""
    model, tokens = decoders.config(num_layers=1, memory_layers=(0,)), decoders.tokens_for(2, length=6)
    prefix = decoders.call(model, decoders.params(model), jnp.asarray(tokens[:, :LENGTH]), cache=init_cache(model, 2))
    cache, leaving = slide(model, prefix.cache, jnp.array([2, 3]), rotate=rotations(model))
    assert cache.lengths.tolist() == [3, 2]
    np.testing.assert_array_equal(leaving.keys[0, 0, :2], prefix.cache.layers[0].keys[0, :2])
    np.testing.assert_array_equal(leaving.values[0, 1, :3], prefix.cache.layers[0].values[1, :, :3].swapaxes(0, 1))
    got = decoders.call(model, decoders.params(model), jnp.asarray(tokens[:, LENGTH:]), cache=cache).logits
    for row, left in ((0, 2), (1, 3)):
        want = decoders.logits(model, tokens[row : row + 1, left:])[:, -1]
        cases.assert_close([got[row : row + 1, 0]], [want], [f"row {row}"])


def test_a_batch_equals_its_rows_one_by_one():
    model, tokens = decoders.config(), decoders.tokens_for(3)
    memory = decoders.memory_for(model, 3, 6, k=3)
    together = decoders.logits(model, tokens, memory=memory)
    for row in range(3):
        one = slice(row, row + 1)
        own = memory.replace(keys=memory.keys[:, one], values=memory.values[:, one], valid=memory.valid[one])
        cases.assert_close([decoders.logits(model, tokens[one], memory=own)], [together[one]], [f"row {row}"])


def test_bfloat16_is_close_to_float32_with_float32_parameters():
    model, tokens = decoders.config(), decoders.tokens_for(6)
    low = dataclasses.replace(model, dtype=Dtype.BFLOAT16)
    assert {leaf.dtype for leaf in jax.tree.leaves(decoders.params(low))} == {jnp.dtype(jnp.float32)}
    exact = decoders.logits(model, tokens, **decoders.hard_case())
    output = decoders.call(low, decoders.params(model), jnp.asarray(tokens), **decoders.hard_case())
    assert output.logits.dtype == jnp.float32
    assert 1e-5 < oracles.relative_error(output.logits, exact) < 0.05


def test_masked_documents_equal_documents_in_rows_of_their_own():
    """Document 2 starts inside row 0 and goes on in row 1: without document 1 nothing of it changes."""
    model = decoders.config()
    tokens = decoders.tokens_for(2)
    packed_segments = jnp.array([[1, 1, 2, 2, 2], [2, 2, 2, 3, 3]])
    alone_segments = jnp.array([[0, 0, 2, 2, 2], [2, 2, 2, 0, 0]])
    plan = Plan(context_ids=jnp.array([[-1], [0]], jnp.int32), own_document=jnp.array([[False], [True]]))
    is_two = np.asarray(packed_segments) == 2
    for boundaries in Boundaries:
        options = {"plan": plan, "boundaries": boundaries}
        packed = decoders.logits(model, tokens, segments=packed_segments, **options)
        alone = decoders.logits(model, np.where(is_two, tokens, 0), segments=alone_segments, **options)
        error = oracles.relative_error(packed[is_two], alone[is_two])
        assert error <= cases.TOLERANCE if boundaries is Boundaries.MASKED else error > cases.FAR


def test_a_masked_document_reads_the_same_wherever_it_starts():
    """RoPE is relative: a document packed behind another equals the document alone at position 0."""
    model, tokens = decoders.config(), decoders.tokens_for(1)
    packed = decoders.logits(model, tokens, segments=jnp.array([[1, 1, 2, 2, 2]]))
    alone = decoders.logits(model, tokens[:, 2:])
    cases.assert_close([packed[:, 2:]], [alone], ["logits"])


def test_a_decoder_is_a_pure_function_of_its_arguments():
    """Gives the same bits in a second call, and inside another jit."""
    model, tokens = decoders.config(), jnp.asarray(decoders.tokens_for(2))
    run = functools.partial(Decoder(model).apply, {"params": decoders.params(model)})
    once, again = jax.jit(run)(tokens).logits, jax.jit(lambda tokens: run(tokens))(tokens).logits
    np.testing.assert_array_equal(once, again)
