"""The projection: the numbers and gradients of an einsum in float64, whatever axes are contracted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.ops.linear import project

CASES = {
    "feed-forward": ((2, 3, 5), (5, 7), 1, "ble,ef->blf"),
    "to heads": ((2, 3, 5), (5, 2, 4), 1, "ble,ehd->blhd"),
    "from heads": ((2, 3, 2, 4), (2, 4, 5), 2, "blhd,hde->ble"),
}


@pytest.mark.parametrize("name", CASES)
def test_project_is_the_einsum_in_values_and_gradients(name):
    x_shape, w_shape, contracted, letters = CASES[name]
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=x_shape), rng.normal(size=w_shape)
    inputs, output = letters.split("->")
    left, right = inputs.split(",")
    want = np.einsum(letters, x, w)
    g = rng.normal(size=want.shape)
    want_dx, want_dw = np.einsum(f"{output},{right}->{left}", g, w), np.einsum(f"{left},{output}->{right}", x, g)

    got, back = jax.vjp(lambda x, w: project(x, w, contracted), jnp.float32(x), jnp.float32(w))
    dx, dw = back(jnp.float32(g))
    for have, wanted in ((got, want), (dx, want_dx), (dw, want_dw)):
        assert have.shape == wanted.shape
        assert np.abs(have - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_project_keeps_the_compute_dtype():
    x, w = jnp.ones((1, 2, 3), jnp.bfloat16), jnp.ones((3, 4), jnp.bfloat16)
    dx, dw = jax.grad(lambda x, w: project(x, w).astype(jnp.float32).sum(), argnums=(0, 1))(x, w)
    assert (project(x, w).dtype, dx.dtype, dw.dtype) == (jnp.bfloat16,) * 3
