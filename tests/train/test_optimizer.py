"""Schedules against closed forms, the decay mask by name, and updates that do not depend on scanning."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fot_jax.config import LearningRateKind, OptimizerConfig, OptimizerKind, TrainConfig
from fot_jax.train.optimizer import decay_mask, layerwise, learning_rate, make_optimizer
from fot_jax.train.state import abstract_params
from tests.train.tiny import tiny

TRAIN = TrainConfig(steps=5000, batch_rows=8)


def rates(kind: LearningRateKind, counts, *, warmup=1000, steps=5000, decay=0):
    config = OptimizerConfig(
        learning_rate=2e-2, min_learning_rate=1e-2, schedule=kind, warmup_steps=warmup, decay_steps=decay
    )
    return [float(learning_rate(config, steps=steps)(count)) for count in counts]


def test_inverse_square_root_of_the_papers_37m_model():
    """Max 2e-2, min 1e-2, 1000 warm-up steps: the floor is met at step 4000 = 1000 · (2e-2 / 1e-2)²."""
    steps = np.array([1, 500, 1000, 1001, 2000, 3999, 4001, 5000])
    expected = [2e-2 * min(s / 1000, math.sqrt(1000 / s)) for s in steps]
    expected[-2:] = [1e-2, 1e-2]
    np.testing.assert_allclose(rates(LearningRateKind.INVERSE_SQRT, steps - 1), expected, rtol=1e-6)


def test_constant_and_cosine_after_warm_up():
    assert rates(LearningRateKind.CONSTANT, [0, 1, 3, 4, 400], warmup=4) == pytest.approx(
        [5e-3, 1e-2, 2e-2, 2e-2, 2e-2], rel=1e-6
    )
    cosine = rates(LearningRateKind.COSINE, [3, 53, 103, 500], warmup=4, steps=104)
    assert cosine == pytest.approx([2e-2, 1.5e-2, 1e-2, 1e-2], rel=1e-6)
    assert rates(LearningRateKind.CONSTANT, [0], warmup=0) == pytest.approx([2e-2], rel=1e-6)


def test_wsd_is_stable_and_then_decays_to_the_end_of_the_run():
    wsd = rates(LearningRateKind.WSD, [0, 3, 49, 50, 74, 99, 500], warmup=4, steps=100, decay=50)
    assert wsd == pytest.approx([5e-3, 2e-2, 2e-2, 1.98e-2, 1.5e-2, 1e-2, 1e-2], rel=1e-6)


@pytest.mark.parametrize("scan", [True, False])
def test_weight_decay_shrinks_matrices_alone(scan):
    config = tiny(model__family="paper", model__memory_gate=True, model__scan_layers=scan)
    leaves = jax.tree_util.tree_leaves_with_path(decay_mask(nn.unbox(abstract_params(config))))
    assert {path[-1].key for path, decays in leaves if decays} == {
        *("embedding", "unembedding", "query", "key", "value", "output", "up", "down")
    }
    assert {path[-1].key for path, decays in leaves if not decays} == {"scale", "bias", "log_temperature", "gate"}


@pytest.mark.parametrize("kind", OptimizerKind)
def test_decay_is_scaled_by_the_learning_rate(kind):
    """With no gradient, p ← p · (1 − lr · decay) for matrices; norms stay."""
    config = OptimizerConfig(kind=kind, learning_rate=0.5, weight_decay=0.1)
    optimizer = make_optimizer(config, TRAIN)
    params = {"matrix": jnp.full((2, 3), 2.0), "scale": jnp.full((3,), 2.0)}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)
    np.testing.assert_allclose(moved["matrix"], 2.0 * (1 - 0.5 * 0.1), rtol=1e-6)
    np.testing.assert_array_equal(moved["scale"], 2.0)


def test_adamw_against_the_formula():
    """Two steps with a clipped gradient, by hand: m/(1−β1^t) / (sqrt(v/(1−β2^t)) + ε)."""
    config = OptimizerConfig(learning_rate=0.1, beta1=0.9, beta2=0.95, clip_norm=1.0)
    optimizer = make_optimizer(config, TRAIN)
    params = {"w": jnp.array([1.0, -2.0])}
    state, m, v, expected = optimizer.init(params), 0.0, 0.0, np.array([1.0, -2.0])
    for t, gradient in enumerate([np.array([3.0, 4.0]), np.array([0.3, -0.4])], start=1):
        updates, state = optimizer.update({"w": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        clipped = gradient / max(1.0, np.linalg.norm(gradient))
        m, v = 0.9 * m + 0.1 * clipped, 0.95 * v + 0.05 * clipped**2
        expected = expected - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
    np.testing.assert_allclose(params["w"], expected, rtol=1e-5)


def test_adafactor_of_scanned_layers_equals_layer_by_layer():
    """Layers of very different sizes, large enough to be factored."""
    optimizer = make_optimizer(OptimizerConfig(kind=OptimizerKind.ADAFACTOR, learning_rate=1e-2, clip_norm=0.0), TRAIN)
    rng = np.random.default_rng(0)
    layers = [{"up": jnp.asarray(rng.normal(size=(128, 130)) * 10.0**n, jnp.float32)} for n in range(3)]
    gradients = [{"up": jnp.asarray(rng.normal(size=(128, 130)) * 10.0**-n, jnp.float32)} for n in range(3)]

    def stack(trees):
        return {"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)}

    scanned, _ = optimizer.update(stack(gradients), optimizer.init(stack(layers)), stack(layers))
    plain_params = {f"layer_{n}": layer for n, layer in enumerate(layers)}
    plain_gradients = {f"layer_{n}": layer for n, layer in enumerate(gradients)}
    plain, _ = optimizer.update(plain_gradients, optimizer.init(plain_params), plain_params)
    for n in range(3):
        np.testing.assert_allclose(scanned["layers"]["up"][n], plain[f"layer_{n}"]["up"], rtol=1e-5)
    assert layerwise(optax.identity()).init({"w": jnp.ones(2)}) == optax.EmptyState()
