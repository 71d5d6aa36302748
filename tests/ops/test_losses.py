"""Cross-entropy and z-loss against loops and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np

from fot_jax.ops import losses
from tests import cases, oracles

COEFFICIENT = 0.3


def problem():
    """(logits, targets, mask) with a masked row and a masked token."""
    (logits,) = cases.arrays(0, (3, 4, 6), scale=3.0)
    targets = np.random.default_rng(1).integers(0, 6, (3, 4))
    targets[0, 0] = logits[0, 0].argmax()
    mask = np.ones((3, 4))
    mask[1], mask[2, 3] = 0, 0
    return logits, targets, mask


def test_sums_are_the_oracle():
    logits, targets, mask = problem()
    numbers, weights = cases.to_float32(logits, mask)
    got = losses.cross_entropy(numbers, jnp.asarray(targets), weights, z_loss=COEFFICIENT)
    want = oracles.cross_entropy(logits, targets, mask)
    names = ("cross_entropy", "z_loss", "weight", "correct")
    wanted = [want["nll"], COEFFICIENT * want["z"], want["weight"], want["correct"]]
    assert want["correct"] >= 1
    assert abs(float(got.z_loss) - COEFFICIENT * want["z"] ** 0.5) > cases.FAR, "z not squared can be told"
    cases.assert_close([getattr(got, name) for name in names], wanted, names)


def test_row_sums_are_the_authors_loss():
    """Rows of 4, 0 and 3 loss tokens weigh the same, the empty one too; the mean over tokens is another number."""
    logits, targets, mask = problem()
    numbers, weights = cases.to_float32(logits, mask)
    sums = losses.cross_entropy(numbers, jnp.asarray(targets), weights, z_loss=COEFFICIENT)
    want = oracles.row_mean_loss(logits, targets, mask)
    cases.assert_close([sums.row_cross_entropy / 3], [want], ["row mean"])
    assert abs(float(sums.cross_entropy / sums.weight) - want) > 0.1
    ones = losses.cross_entropy(numbers, jnp.asarray(targets), jnp.ones_like(weights), z_loss=COEFFICIENT)
    wanted = [ones.cross_entropy / ones.weight, ones.z_loss / ones.weight]
    cases.assert_close([ones.row_cross_entropy / 3, ones.row_z_loss / 3], wanted, ["nll", "z"])


def test_an_empty_row_has_no_gradient():
    """The division by 1e-10 stays out of it: its tokens are masked before."""
    logits, targets, mask = problem()
    numbers, weights = cases.to_float32(logits, mask)

    def loss(logits):
        return losses.cross_entropy(logits, jnp.asarray(targets), weights, z_loss=1.0).row_cross_entropy

    gradient = np.asarray(jax.grad(loss)(numbers))
    assert np.isfinite(gradient).all() and not gradient[mask == 0].any() and gradient[0].any()


def test_gradient_is_the_oracle_by_finite_differences():
    logits, targets, mask = problem()

    def oracle(logits: np.ndarray) -> float:
        sums = oracles.cross_entropy(logits, targets, mask)
        return sums["nll"] + COEFFICIENT * sums["z"]

    def ours(logits):
        sums = losses.cross_entropy(logits, jnp.asarray(targets), jnp.asarray(mask, jnp.float32), z_loss=COEFFICIENT)
        return sums.cross_entropy + sums.z_loss

    want, step = np.zeros(logits.shape), 1e-5
    for index in np.ndindex(*logits.shape):
        up, down = logits.copy(), logits.copy()
        up[index] += step
        down[index] -= step
        want[index] = (oracle(up) - oracle(down)) / (2 * step)
    got = np.asarray(jax.grad(ours)(*cases.to_float32(logits)))
    cases.assert_close([got], [want], ["d logits"])
    assert not got[mask == 0].any()


def test_logits_of_a_thousand_are_finite():
    logits = jnp.array([[[1000.0, -1000.0]]])
    sums = losses.cross_entropy(logits, jnp.array([[1]]), jnp.ones((1, 1)), z_loss=0.0)
    assert float(sums.cross_entropy) == 2000.0
