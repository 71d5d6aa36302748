"""Rotary positions against one loop a frequency and one loop a pair."""

import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import RopeConfig, RopeScaling
from fot_jax.ops import rope
from tests import cases, oracles

CONFIGS = {
    "llama": ({"theta": 10000.0}, {"scaling": "none"}),
    "smollm": ({"theta": 1e5}, {"scaling": "none"}),
    "linear": ({"factor": 4.0}, {"scaling": "linear", "factor": 4.0}),
    "dynamic": ({"factor": 4.0, "original_context": 512}, {"scaling": "dynamic", "factor": 4.0, "original": 512}),
    "dynamic inside the original context": (
        {"factor": 4.0, "original_context": 4096},
        {"scaling": "dynamic", "factor": 4.0, "original": 4096},
    ),
    "llama3": (
        {"factor": 8.0, "original_context": 8192, "theta": 5e5},
        {"scaling": "llama3", "factor": 8.0, "original": 8192},
    ),
    "yarn": ({"factor": 16.0, "original_context": 4096}, {"scaling": "yarn", "factor": 16.0, "original": 4096}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_frequencies_are_the_oracle_for_every_scaling(name):
    fields, wanted = CONFIGS[name]
    config = RopeConfig(scaling=RopeScaling(wanted["scaling"]), **fields)
    got, factor = rope.rope_frequencies(config, 64, 2048)
    want, want_factor = oracles.rope_frequencies(64, theta=config.theta, length=2048, **wanted)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert factor == pytest.approx(want_factor, rel=1e-12)


def test_scalings_differ_from_each_other():
    """Each scaling moves the slowest frequency, and only linear moves the fastest."""
    plain, _ = rope.rope_frequencies(RopeConfig(), 64, 2048)
    for name, (fields, wanted) in list(CONFIGS.items())[2:]:
        got, _ = rope.rope_frequencies(RopeConfig(scaling=RopeScaling(wanted["scaling"]), **fields), 64, 2048)
        base, _ = rope.rope_frequencies(RopeConfig(theta=fields.get("theta", 10000.0)), 64, 2048)
        assert (got[-1] < 0.5 * base[-1]) == (name != "dynamic inside the original context"), name
        assert (got[0] < 0.5 * plain[0]) == (name == "linear"), name


@pytest.mark.parametrize("factor", [1.0, 1.25])
def test_rotation_is_the_oracle_in_values_and_gradient(factor):
    x, upstream = cases.arrays(0, (2, 5, 3, 8), (2, 5, 3, 8))
    positions = np.array([[0, 1, 2, 3, 4], [7, 7, 100, 0, 2000]])
    frequencies, _ = oracles.rope_frequencies(8, theta=1e4)
    got = cases.value_and_gradients(
        lambda x: rope.rotate(x, jnp.asarray(positions), frequencies, factor), (x,), upstream
    )
    # a rotation's gradient is the rotation back
    want = oracles.rotate(x, positions, frequencies, factor), oracles.rotate(upstream, -positions, frequencies, factor)
    cases.assert_close(got[:1], want[:1], ("output",), tolerance=3e-5)  # 2000 radians in float32
    backwards = oracles.rotate(x, -positions, frequencies, factor)
    assert oracles.relative_error(got[0], backwards) > cases.FAR, "the other way round can be told"
    cases.assert_close(got[1:], want[1:], ("d x",), tolerance=3e-5)
    small = slice(0, 1)  # positions of a few tokens: the full tolerance
    cases.assert_close([got[0][small], got[1][small]], [want[0][small], want[1][small]], ("output", "d x"))


def test_rotated_scores_depend_on_distance_alone():
    x, y = cases.to_float32(*cases.arrays(1, (1, 1, 1, 8), (1, 1, 1, 8)))
    frequencies, _ = oracles.rope_frequencies(8, theta=1e4)

    def at(vector, position):
        return rope.rotate(vector, jnp.full((1, 1), position), frequencies)

    np.testing.assert_array_equal(at(x, 0), x)
    near, far = jnp.vdot(at(x, 5), at(y, 2)), jnp.vdot(at(x, 45), at(y, 42))
    assert float(near) == pytest.approx(float(far), rel=1e-4)
    assert abs(float(near - jnp.vdot(at(x, 6), at(y, 2)))) > 1e-2


def test_pairs_are_halves_not_neighbours():
    """One turn of the first pair moves dimensions 0 and D/2, as in Hugging Face's checkpoints."""
    x = jnp.zeros((1, 1, 1, 8)).at[..., 0].set(1.0)
    turned = rope.rotate(x, jnp.ones((1, 1), int), oracles.rope_frequencies(8, theta=1e4)[0])
    assert np.flatnonzero(np.asarray(turned).ravel()).tolist() == [0, 4]
