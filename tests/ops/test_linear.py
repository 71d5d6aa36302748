"""The projection: the numbers and gradients of an einsum in float64, whatever axes are contracted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from fot_jax.ops.linear import project, unembed

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


BF16_ROUNDING = 2.0**-8  # of one number, relative


def in_float64(x):
    return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_products_are_summed_in_float32(name):
    """512 positions of numbers between 1 and 4: a bfloat16 sum would stop growing at 256 times one of them."""
    x_shape, w_shape, contracted, letters = CASES[name]
    rng = np.random.default_rng(1)
    x, w = in_float64(1 + rng.random((8, 64, *x_shape[2:]))), in_float64(1 + rng.random(w_shape))
    inputs, output = letters.split("->")
    left, right = inputs.split(",")
    want = np.einsum(letters, x, w)
    g = in_float64(1 + rng.random(want.shape))
    want_dx, want_dw = np.einsum(f"{output},{right}->{left}", g, w), np.einsum(f"{left},{output}->{right}", x, g)

    low = [jnp.asarray(a, jnp.bfloat16) for a in (x, w, g)]
    got, back = jax.vjp(lambda x, w: project(x, w, contracted), *low[:2])
    for have, wanted in zip((got, *back(low[2])), (want, want_dx, want_dw), strict=True):
        assert np.abs(np.asarray(have, np.float64) - wanted).max() <= BF16_ROUNDING * np.abs(wanted).max()


def test_cpu_products_of_bfloat16_have_float32_results():
    """XLA takes a CPU's matrix unit for these alone."""
    products = lowered_products()
    assert len(products) == 5
    assert all(line.endswith("xf32>") and line.count("xbf16>") == 2 for line in products), products


def test_programs_for_a_tpu_keep_narrow_projections():
    device = AbstractDevice(device_kind="TPU v5e", num_cores=1, platform="tpu")
    for axes in (((), ()), ((1,), ("data",))):
        with jax.sharding.use_abstract_mesh(AbstractMesh(*axes, abstract_device=device)):
            products = lowered_products()
        assert sum(line.endswith("xbf16>") and line.count("xbf16>") == 3 for line in products) == 3, products


def lowered_products():
    """The matrix products of a projection and an unembedding, forward and backward, as StableHLO."""
    x, w = jnp.ones((1, 4, 8), jnp.bfloat16), jnp.ones((8, 16), jnp.bfloat16)
    table = jnp.ones((32, 16), jnp.bfloat16)

    def loss(x, w):
        return (unembed(project(x, w), table, tied=True) ** 2).sum()

    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, w).as_text()
    return [line.rstrip() for line in text.splitlines() if "stablehlo.dot_general" in line]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2 * BF16_ROUNDING)])
def test_unembedding_is_the_einsum_in_values_and_gradients(dtype, tolerance, tied):
    rng = np.random.default_rng(2)
    letters = "ve" if tied else "ev"
    x, g = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 3, 11))
    table = rng.normal(size=(11, 5) if tied else (5, 11))
    low = [jnp.asarray(a, dtype) for a in (x, table)]
    x, table = (np.asarray(a, np.float64) for a in low)
    got, back = jax.vjp(lambda x, table: unembed(x, table, tied=tied), *low)
    dx, dtable = back(jnp.float32(g))
    assert (got.dtype, dx.dtype, dtable.dtype) == (jnp.float32, jnp.dtype(dtype), jnp.dtype(dtype))
    wanted = (
        np.einsum(f"ble,{letters}->blv", x, table),
        np.einsum(f"blv,{letters}->ble", g, table),
        np.einsum(f"blv,ble->{letters}", g, x),
    )
    for have, want in zip((got, dx, dtable), wanted, strict=True):
        assert np.abs(np.asarray(have, np.float64) - want).max() <= tolerance * np.abs(want).max()
