"""Whole decoders of both families against float64 loops: values and gradients; shapes and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import AttentionBackend, Boundaries, Family, MemoryPositions, RopeConfig, RopeScaling
from fot_jax.models.cache import init_cache
from fot_jax.models.inputs import ReadInputs, TrainInputs
from fot_jax.models.transformer import Decoder
from tests import cases, oracles
from tests.models import decoders

MODELS = {
    "llama rope0": decoders.config(),
    "llama nope, tied": decoders.config(memory_positions=MemoryPositions.NOPE, tie_embeddings=True),
    "paper": decoders.paper(),
    "paper rope0, reference form": decoders.config(family=Family.PAPER, attention=AttentionBackend.REFERENCE),
    "llama smeared": decoders.config(smear_keys=True),
    "paper smeared": decoders.paper(smear_keys=True),
    "llama gated": decoders.config(memory_gate=True),
}


@pytest.mark.parametrize(
    ("name", "boundaries"),
    [(name, Boundaries.MASKED) for name in MODELS]
    + [("llama rope0", Boundaries.JOINED), ("llama smeared", Boundaries.JOINED)],
)
def test_crossbatch_decoder_is_the_oracle(name, boundaries):
    model, tokens, case = MODELS[name], decoders.tokens_for(6), decoders.hard_case()
    got = decoders.logits(model, tokens, boundaries=boundaries, **case)
    want = decoders.oracle_logits(model, decoders.params(model), tokens, boundaries=boundaries, **case)
    cases.assert_close([got], [want], ["logits"])


@pytest.mark.parametrize("name", ["llama rope0", "paper", "paper rope0, reference form"])
def test_crossbatch_decoder_that_grows_with_log_n_is_the_oracle(name):
    """From seven keys on: rows without contexts see five and stay as they are."""
    model, tokens, case = MODELS[name], decoders.tokens_for(6), decoders.hard_case()
    got = decoders.logits(model, tokens, log_length_scaling_from=7, **case)
    want = decoders.oracle_logits(model, decoders.params(model), tokens, log_length_scaling_from=7, **case)
    cases.assert_close([got], [want], ["logits"])
    plain = decoders.logits(model, tokens, **case)
    reads = (np.asarray(case["plan"].context_ids) >= 0).any(axis=1)
    assert 0 < reads.sum() < len(reads)
    np.testing.assert_array_equal(got[~reads], plain[~reads])
    assert oracles.relative_error(got[reads], plain[reads]) > cases.FAR


@pytest.mark.parametrize("name", ["llama rope0", "paper", "llama gated"])
def test_decoder_with_memory_is_the_oracle(name):
    model, tokens = MODELS[name], decoders.tokens_for(2)
    memory = decoders.memory_for(model, rows=2, entries=7)
    ones = np.ones(tokens.shape, int)
    got = decoders.logits(model, tokens, memory=memory)
    want = decoders.oracle_logits(model, decoders.params(model), tokens, segments=ones, memory=memory)
    cases.assert_close([got], [want], ["logits"])


@pytest.mark.parametrize("name", ["llama rope0", "paper", "paper smeared", "llama gated"])
def test_gradient_of_every_parameter_is_the_oracle(name):
    model, tokens = MODELS[name], decoders.tokens_for(6)
    case, parameters = decoders.hard_case(), decoders.params(MODELS[name])
    (upstream,) = cases.arrays(51, (6, decoders.LENGTH, model.vocab_size))

    def loss(parameters):
        out = decoders.call(model, parameters, jnp.asarray(tokens), **case).logits
        return (out * jnp.asarray(upstream, jnp.float32)).sum()

    gradients = jax.jit(jax.grad(loss))(parameters)
    rng, step = np.random.default_rng(2), 1e-6  # float64: 1e-4 shows the third derivative
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), parameters)
    leaves, tree = jax.tree.flatten_with_path(exact)
    for index, (path, leaf) in enumerate(leaves):
        direction, sides = rng.standard_normal(leaf.shape), []
        for sign in (1, -1):
            moved = [value + sign * step * direction if i == index else value for i, (_, value) in enumerate(leaves)]
            out = decoders.oracle_logits(model, jax.tree.unflatten(tree, moved), tokens, **case)
            sides.append((out * upstream).sum())
        got = np.asarray(jax.tree.leaves(gradients)[index], np.float64)
        want = (sides[0] - sides[1]) / (2 * step)
        assert abs((got * direction).sum() - want) <= 2e-5 * np.linalg.norm(got), jax.tree_util.keystr(path)
        assert np.linalg.norm(got) > 1e-3, f"{jax.tree_util.keystr(path)} gets no gradient"


def test_mutants_of_the_decoder_are_far_from_it():
    """Shows what the comparison above catches: each is the oracle with one thing wrong."""
    model, tokens, case = MODELS["llama rope0"], decoders.tokens_for(6), decoders.hard_case()
    parameters = decoders.params(model)
    got = decoders.logits(model, tokens, **case)

    def far(changed_model, changed_parameters=parameters, **changes):
        want = decoders.oracle_logits(changed_model, changed_parameters, tokens, **{**case, **changes})
        assert oracles.relative_error(got, want) > cases.FAR

    far(model, plan=None)
    far(model, segments=np.ones_like(case["segments"]))
    far(model, boundaries=Boundaries.JOINED)
    far(decoders.config(memory_positions=MemoryPositions.NOPE))
    smeared = jax.tree.map(lambda leaf: leaf, parameters)
    smeared["layers"]["attention"]["projections"]["smear"] = np.zeros((3, 2))
    far(decoders.config(smear_keys=True), smeared)
    far(decoders.config(memory_layers=(1,)))
    far(decoders.config(memory_layers=(0,)))
    hotter = jax.tree.map(lambda leaf: leaf, parameters)
    query = hotter["layers"]["attention"]["projections"]["query"]
    hotter["layers"]["attention"]["projections"]["query"] = 2 * query  # τ = 1 where 1/√D belongs (D = 4)
    far(model, hotter)


def test_captured_arrays_are_what_memory_needs():
    """Keys come out unrotated in every layer; attending them as memory equals reading them as context."""
    model, tokens = decoders.config(), decoders.tokens_for(2)
    output = decoders.call(model, decoders.params(model), jnp.asarray(tokens), capture=True)
    assert output.queries.shape == (3, 2, decoders.LENGTH, 4, 4)
    assert output.keys.shape == output.values.shape == (3, 2, decoders.LENGTH, 2, 4)
    # layer 0's keys depend on tokens alone: the same token at two positions has the same raw key
    same = decoders.call(model, decoders.params(model), jnp.full((1, decoders.LENGTH), 3), capture=True)
    np.testing.assert_allclose(same.keys[0, 0, 0], same.keys[0, 0, -1], rtol=1e-6)
    assert oracles.relative_error(same.queries[0, 0, 0], same.queries[0, 0, -1]) > cases.FAR  # rotated under rope0


@pytest.mark.parametrize("positions", list(MemoryPositions))
def test_yarn_scales_far_scores_as_local_ones(positions):
    """At position 0 rotation is the identity: local scores carry factor² (queries and keys), so far queries must."""
    yarn = RopeConfig(theta=100.0, scaling=RopeScaling.YARN, factor=8.0, original_context=64)
    plain, scaled = (decoders.config(memory_positions=positions, rope=rope) for rope in (RopeConfig(theta=100.0), yarn))
    tokens, factor = jnp.asarray(decoders.tokens_for(2)), 0.1 * np.log(8.0) + 1.0
    want, got = (
        decoders.call(model, decoders.params(plain), tokens, capture=True).queries for model in (plain, scaled)
    )
    expected = factor**2 if positions is MemoryPositions.ROPE0 else 1.0
    np.testing.assert_allclose(got[0, :, 0], expected * want[0, :, 0], rtol=1e-5)  # layer 0 holds memory


def test_inputs_have_a_plan_or_a_memory_and_a_cache():
    """Keeps apart by type what excludes each other: a plan is of training, memory and cache are of reading."""
    model, plan = decoders.config(), decoders.hard_case()["plan"]
    for name, other in {"memory": decoders.memory_for(model, 6, 3), "cache": init_cache(model, 6)}.items():
        with pytest.raises(TypeError, match=name):
            TrainInputs(plan=plan, **{name: other})
    with pytest.raises(TypeError, match="plan"):
        ReadInputs(plan=plan)


def test_a_plan_needs_segments():
    model, inputs = decoders.config(), TrainInputs(plan=decoders.hard_case()["plan"])
    with pytest.raises(ValueError, match="plan needs segments"):
        Decoder(model).apply({"params": decoders.params(model)}, decoders.tokens_for(6), inputs)


def test_cache_excludes_segments():
    """Refuses documents of a row that attention to the cache would not keep apart."""
    model, tokens = decoders.config(), decoders.tokens_for(6)
    inputs = ReadInputs(cache=init_cache(model, 6), segments=jnp.ones(tokens.shape, jnp.int32))
    with pytest.raises(ValueError, match="a cache excludes segments"):
        Decoder(model).apply({"params": decoders.params(model)}, tokens, inputs)


def test_gate_of_the_memorizing_transformer_is_trained_and_read():
    model, tokens = decoders.config(memory_gate=True), decoders.tokens_for(2)
    parameters, memory = decoders.params(model), decoders.memory_for(model, 2, 6)
    gate = parameters["layers"]["attention"]["gate"]
    assert gate.shape == (3, 4)

    def run(gate):
        changed = jax.tree.map(lambda leaf: leaf, parameters)
        changed["layers"]["attention"]["gate"] = gate
        return decoders.call(model, changed, jnp.asarray(tokens), memory=memory).logits

    gradient = jax.jit(jax.grad(lambda gate: (run(gate) ** 2).sum()))(gate)
    assert np.abs(np.asarray(gradient)[[0, 2]]).min() > 0
    assert not np.asarray(gradient)[1].any(), "a layer without memory has nothing to gate"
    closed = np.asarray(run(jnp.full_like(gate, -1e9)))  # g = 0: memory is not read
    cases.assert_close([closed], [decoders.logits(model, tokens)], ["closed gate"])
