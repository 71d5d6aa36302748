"""The k largest of many scores: as scores with their indices, or as a threshold that k of them reach."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fot_jax.ops import softmax

LEAST_GROUPED = 1 << 14  # scores of a query; fewer are searched one by one
MOST_HALVINGS = 28  # of the span of a query's scores: to float32's resolution


def top_k(scores: Float[Array, "*queries M"], k: int) -> tuple[Float[Array, "*queries K"], Int[Array, "*queries K"]]:
    """Returns the K = min(k, M) largest scores, best first, and their indices; of equal ones the lower index first.

    As `jax.lax.top_k`, which on CPUs looks at one score after another on one core. There the largest of every few
    neighbouring scores are taken first, on all cores, and then the scores of the K groups where these are largest: no
    other group can hold one of the K. (TPUs have an algorithm of their own.)
    """
    M = scores.shape[-1]
    width = 1 << max(0, (M // (4 * k)).bit_length() // 2)  # about √(M / K): as many groups as candidates
    rows = scores.reshape(-1, M)
    together = functools.partial(jax.lax.top_k, k=min(k, M))
    if M % width or M < LEAST_GROUPED or width == 1:
        found = together(rows)
    else:
        grouped = functools.partial(_top_k_of_groups, k=k, width=width)
        found = jax.lax.platform_dependent(rows, cpu=grouped, default=lambda rows: tuple(together(rows)))
    best, index = (x.reshape(*scores.shape[:-1], -1) for x in found)
    return best, index


def _top_k_of_groups(scores: Float[Array, "T M"], *, k: int, width: int):
    groups = scores.reshape(len(scores), -1, width)
    chosen = jnp.sort(jax.lax.top_k(groups.max(axis=-1), k)[1], axis=-1)  # in order, for the rule of equal scores
    candidates = jnp.take_along_axis(groups, chosen[:, :, None], axis=1).reshape(len(groups), -1)
    best, place = jax.lax.top_k(candidates, k)
    return best, jnp.take_along_axis(chosen, place // width, axis=1) * width + place % width


def kth_largest(
    scores: Float[Array, "M T"], exists: Bool[Array, "M 1"], *, k: int
) -> tuple[Float[Array, " T"], Bool[Array, " T"]]:
    """Returns a threshold that exactly min(k, those that exist) scores of a query reach, and whether there is one.

    There is none where the k-th largest score equals the next one, or a score is not finite.
    """
    scores, few = jax.lax.stop_gradient(scores), jnp.sum(exists) <= k
    low, high = jnp.where(exists, scores, jnp.inf).min(axis=0), scores.max(axis=0)

    def undecided(state):
        *_, count, step = state
        return (step < MOST_HALVINGS) & jnp.any(count != k) & ~few

    def halve(state):
        low, high, threshold, count, step = state
        middle = 0.5 * (low + high)
        reached = jnp.sum(scores >= middle[None], axis=0, dtype=jnp.int32)
        decided, enough = count == k, reached >= k
        return (
            jnp.where(enough, middle, low),
            jnp.where(enough, high, middle),
            jnp.where(decided, threshold, middle),
            jnp.where(decided, count, reached),
            step + 1,
        )

    start = low, high, low, jnp.zeros(low.shape, jnp.int32), 0
    _, _, threshold, count, _ = jax.lax.while_loop(undecided, halve, start)
    return jnp.where(few, softmax.LOWEST_PEAK, threshold), few | (count == k)
