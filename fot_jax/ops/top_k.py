"""The k largest of many scores: as scores with their indices, or as a threshold that k of them reach."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LEAST_GROUPED = 1 << 14  # scores of a query; fewer are searched one by one
COUNTED_AS_BYTES = 32  # of a query's scores at once; CPUs count a byte at a time three times as fast as an int32
GUESSES = 6  # passes that guess the k-th score from the counts so far; the later ones halve
MOST_PASSES = GUESSES + 28  # halvings of the span of a query's scores to float32's resolution
LAST_APART = 32  # queries whose closest scores take the most passes, looked at without the others


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


class _Search(NamedTuple):
    """Bisection of each query's scores: `low` is reached by at least k of them, `high`, at first the best, by fewer.

    All [T].
    """

    low: jax.Array
    high: jax.Array
    reach_low: jax.Array  # how many scores reach `low`
    reach_high: jax.Array  # 0 for the best
    threshold: jax.Array  # of the queries that are decided
    decided: jax.Array  # whether exactly k scores reach the threshold


def kth_largest(
    scores: Float[Array, "T M"], exists: Bool[Array, " M"], *, k: int
) -> tuple[Float[Array, " T"], Bool[Array, " T"]]:
    """Returns a threshold that exactly min(k, those that exist) scores of a query reach, and whether there is one.

    There is none where the k-th largest score equals the next one, or a score is not finite.
    """
    scores, number = jax.lax.stop_gradient(scores), jnp.sum(exists)
    low = jnp.where(exists, scores, jnp.inf).min(axis=1)
    begin = _Search(
        low,
        scores.max(axis=1),
        reach_low=jnp.full(low.shape, number, jnp.int32),
        reach_high=jnp.zeros(low.shape, jnp.int32),
        threshold=low,
        decided=jnp.full(low.shape, number <= k),
    )
    bisect = functools.partial(_bisect, number=number, k=k)
    several = len(scores) > LAST_APART
    step, found = bisect(scores, (0, begin), until=LAST_APART if several else 0)
    if several:  # the last queries, those with the closest scores, alone
        last = jax.lax.top_k(~found.decided, LAST_APART)[1]
        _, apart = bisect(scores[last], (step, jax.tree.map(lambda x: x[last], found)), until=0)
        found = jax.tree.map(lambda x, new: x.at[last].set(new), found, apart)
    return found.threshold, found.decided


def _bisect(scores: Float[Array, "T M"], state: tuple[Any, _Search], *, number, k: int, until: int):
    """Returns (step, search) once at most `until` queries are left undecided, or MOST_PASSES are made."""

    def go_on(state):
        step, search = state
        return (step < MOST_PASSES) & (jnp.sum(~search.decided) > until)

    def depth(reach):
        """Returns how far above the mean the score that `reach` of them reach would be if they were normal, scaled."""
        return jnp.sqrt(jnp.log(number / jnp.maximum(reach, 0.5)))

    def narrow(state):
        step, s = state
        guess = (depth(k) - depth(s.reach_low)) / (depth(s.reach_high) - depth(s.reach_low))
        share = jnp.where(step < GUESSES, jnp.clip(guess, 0.03, 0.97), 0.5)
        middle = s.low + share * (s.high - s.low)
        reach = _count(scores >= middle[:, None])
        enough = reach >= k
        return step + 1, _Search(
            low=jnp.where(enough, middle, s.low),
            high=jnp.where(enough, s.high, middle),
            reach_low=jnp.where(enough, reach, s.reach_low),
            reach_high=jnp.where(enough, s.reach_high, reach),
            threshold=jnp.where(s.decided, s.threshold, middle),
            decided=s.decided | (reach == k),
        )

    return jax.lax.while_loop(go_on, narrow, state)


def _count(seen: Bool[Array, "T M"]) -> Int[Array, " T"]:
    """Returns how many of each row are True."""
    M = seen.shape[1]
    if M % COUNTED_AS_BYTES:
        return jnp.sum(seen, axis=1, dtype=jnp.int32)
    groups = seen.reshape(len(seen), COUNTED_AS_BYTES, -1)
    return jnp.sum(jnp.sum(groups, axis=1, dtype=jnp.int8), axis=1, dtype=jnp.int32)
