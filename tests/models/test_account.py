"""Closed forms against what is really created and computed; every config of the project, by shape."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from fot_jax.config import (
    AttentionBackend,
    CrossbatchConfig,
    Dtype,
    Family,
    ModelConfig,
    OptimizerKind,
    PlanKind,
    Remat,
)
from fot_jax.models import account
from fot_jax.models.inputs import TrainInputs
from fot_jax.models.transformer import Decoder
from fot_jax.ops.plans import make_plan
from fot_jax.train.optimizer import make_optimizer
from tests import shipped

# name: (all parameters, without embeddings). Published: OpenLLaMA 3B/7B 3,426,473,600/6,738,415,616,
# SmolLM2-135M 134,515,008; the paper's 37M, 184M, 600M and 1.2B are rounded.
PARAMETERS = {
    "paper:37m": (54_223_968, 37_774_432),
    "paper:184m": (183_945_312, 151_046_240),
    "paper:600m": (669_880_512, 604_082_368),
    "paper:1b2": (1_273_860_480, 1_208_062_336),
    "longllama:3b": (3_426_473_600, 3_221_673_600),
    "longllama:7b": (6_738_415_616, 6_476_271_616),
    "smollm2_135m": (134_515_008, 106_203_456),
    "dictionary": (37_807_200, 37_774_432),
}


load = functools.cache(shipped.load)


def shapes(model: ModelConfig):
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    return nn.unbox(jax.eval_shape(Decoder(model).init, jax.random.key(0), tokens)["params"])


def size(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_every_named_config_is_there():
    assert set(PARAMETERS) | {"tiny_code", "tiny_code_plain", "dictionary_cpu"} <= set(shipped.EXPERIMENTS)


@pytest.mark.parametrize("name", shipped.EXPERIMENTS)
def test_every_config_builds_counts_and_gives_logits(name):
    config = load(name)
    B, L = config.crossbatch.rows_per_stream * 2, config.model.local_context
    plan = make_plan(config.crossbatch, batch_rows=B, num_contexts=2)
    tokens = jax.ShapeDtypeStruct((B, L), jnp.int32)
    inputs = TrainInputs(segments=jnp.ones((B, L), jnp.int32), plan=plan)
    init = functools.partial(Decoder(config.model).init_with_output, inputs=inputs)
    output, variables = jax.eval_shape(init, jax.random.key(0), tokens)
    assert output.logits.shape == (B, L, config.model.vocab_size)
    assert output.logits.dtype == jnp.float32
    counted = account.count_parameters(config.model)
    assert counted.total == size(nn.unbox(variables["params"]))
    if name in PARAMETERS:
        assert (counted.total, counted.layers) == PARAMETERS[name]


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize(("tie_embeddings", "memory_gate"), [(True, False), (False, True)])
def test_parameter_count_of_every_switch(family, tie_embeddings, memory_gate):
    model = dataclasses.replace(
        load("tiny_code").model,
        family=family,
        num_kv_heads=2,
        tie_embeddings=tie_embeddings,
        memory_gate=memory_gate,
        scan_layers=not memory_gate,
    )
    assert account.count_parameters(model).total == size(shapes(model))


@pytest.mark.parametrize("family", list(Family))
def test_flops_agree_with_the_compiler(family):
    """XLA counts the reference backend: all L x L local and all L x CL context scores, and what is elementwise."""
    model = ModelConfig(
        family=family, num_layers=1, embed_dim=64, num_heads=4, num_kv_heads=2, head_dim=32, mlp_dim=128,
        vocab_size=256, local_context=64, memory_layers=(0,), attention=AttentionBackend.REFERENCE, scan_layers=False,
    )  # fmt: skip
    rows, contexts = 4, 2
    crossbatch = CrossbatchConfig(plan=PlanKind.CONSTANT_RANGE, stepping=False)
    plan = make_plan(crossbatch, batch_rows=rows, num_contexts=contexts)
    tokens = jax.ShapeDtypeStruct((rows, model.local_context), jnp.int32)

    def forward(params, tokens, plan):
        inputs = TrainInputs(segments=jnp.ones_like(tokens), plan=plan)
        return Decoder(model).apply({"params": params}, tokens, inputs).logits

    compiled = jax.jit(forward).lower(shapes(model), tokens, plan).compile()
    flops = account.flops_per_token(model, contexts_per_row=plan.context_ids.shape[1])  # empty slots are computed too
    causal_half = flops.local_attention * (model.local_context - 1) / (model.local_context + 1)
    expected = (flops.forward + causal_half) * rows * model.local_context
    assert compiled.cost_analysis()["flops"] == pytest.approx(expected, rel=0.12)


def test_mean_contexts_and_the_crossbatch_share():
    config = load("longllama:3b")
    plan = make_plan(config.crossbatch, batch_rows=128, num_contexts=1)
    contexts = account.mean_contexts(plan)
    assert contexts == pytest.approx((0 + 2 + 3 + 3) / 4 - 2 / 128)  # the first pack meets no other documents
    flops = account.flops_per_token(config.model, contexts_per_row=contexts)
    assert flops.crossbatch == 3 * 4 * 3200 * 2048 * contexts
    assert flops.train == 3 * flops.forward
    assert (
        6 * account.count_parameters(config.model).layers
        < flops.train
        < 8 * account.count_parameters(config.model).total
    )


@pytest.mark.parametrize(("name", "moments"), [("tiny_code", 2), ("paper:37m", 1)])
def test_optimizer_bytes_agree_with_the_optimizer(name, moments):
    config = load(name)
    assert (config.optimizer.kind is OptimizerKind.ADAMW) == (moments == 2)
    state = jax.eval_shape(make_optimizer(config.optimizer, config.train).init, shapes(config.model))
    created = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    expected = account.memory_bytes(config).optimizer
    assert created == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("remat", list(Remat))
def test_activation_estimate_holds_within_a_factor_of_two(remat):
    """Against the compiler's temporary memory of a gradient, gradients of the parameters taken off."""
    model = dataclasses.replace(load("tiny_code").model, remat=remat, num_layers=4)
    rows = 16
    tokens = jax.ShapeDtypeStruct((rows, model.local_context), jnp.int32)

    def loss(params, tokens):
        logits = Decoder(model).apply({"params": params}, tokens).logits
        return -jnp.mean(jax.nn.log_softmax(logits)[..., 0])

    compiled = jax.jit(jax.grad(loss)).lower(shapes(model), tokens).compile()
    estimate = account.activation_bytes(model, tokens=rows * model.local_context)
    assert 0.5 < compiled.memory_analysis().temp_size_in_bytes / estimate < 2


def test_bytes_of_a_memory_entry():
    model = load("longllama:3b").model
    assert account.memory_entry_bytes(model) == 2 * 3 * 32 * 100 * 2
    assert account.memory_entry_bytes(dataclasses.replace(model, dtype=Dtype.FLOAT32)) == 2 * 3 * 32 * 100 * 4
    assert account.memory_entry_bytes(load("smollm2_135m").model) == 2 * 8 * 3 * 64 * 4
