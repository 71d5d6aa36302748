"""What the loops over blocks know of a block before they look at its pairs."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import Boundaries
from fot_jax.ops import blocks
from fot_jax.ops.blocks import Rule, Sight
from fot_jax.types import Plan
from tests import cases


def sights_and_masks(rule: Rule, plan: Plan, segments: np.ndarray):
    """Of each row and place its sight and the mask of its pairs."""
    padded = jnp.pad(jnp.asarray(segments), ((0, 0), (0, -segments.shape[1] % rule.block)))
    places = blocks.schedule(rule, plan.context_ids.shape[1], padded.shape[1])
    sights = blocks.sights(rule, plan, jnp.asarray(segments), padded, places)
    places = np.stack(places, axis=1)
    for b, p in itertools.product(range(len(segments)), range(len(places))):
        slot, start = places[p]
        ids = jnp.asarray(plan.context_ids[b : b + 1, slot])
        keys = padded[b if rule.causal else jnp.maximum(ids[0], 0)][None, start : start + rule.block]
        own = jnp.asarray(plan.own_document[b : b + 1, slot])
        given = (jnp.asarray(segments[b : b + 1]), keys, own, ids >= 0, start, rule.block)
        yield Sight(int(sights[b, p])), np.asarray(blocks.block_mask(rule, *given))


def rule_of(boundaries: Boundaries, block: int, *, causal: bool) -> Rule:
    return Rule(boundaries=boundaries, causal=causal, block=block, repeats=1)


@pytest.mark.parametrize("boundaries", Boundaries)
@pytest.mark.parametrize("block", [2, 5])
@pytest.mark.parametrize("causal", [False, True])
def test_nobody_and_all_are_true_of_every_pair(boundaries, block, causal):
    plan = cases.crossbatch_case("single").plan
    if causal:
        plan = Plan(context_ids=np.zeros((6, 1), np.int32), own_document=np.ones((6, 1), bool))
    seen = set()
    for sight, mask in sights_and_masks(rule_of(boundaries, block, causal=causal), plan, cases.SEGMENTS):
        seen.add(sight)
        assert sight is not Sight.NOBODY or not mask.any()
        assert sight is not Sight.ALL or mask.all()
    assert seen >= ({Sight.NOBODY, Sight.SOME} if causal else set(Sight))


@pytest.mark.parametrize(
    ("boundaries", "own", "drawn"),
    [
        (Boundaries.MASKED, True, "A N S S N"),
        (Boundaries.JOINED, True, "A A A S N"),
        (Boundaries.MASKED, False, "N A S N N"),
        (Boundaries.JOINED, False, "N A S N N"),
    ],
)
def test_sights_are_the_drawn_table(boundaries, own, drawn):
    keys = np.array([[2, 2], [3, 3], [1, 3], [2, 0], [0, 0]], np.int32)
    plan = Plan(context_ids=jnp.array([[0, 1, 2, 3, 4, -1]]), own_document=jnp.full((1, 6), own))
    rule = rule_of(boundaries, 2, causal=False)
    places = blocks.schedule(rule, 6, 2)
    found = blocks.sights(rule, plan, jnp.array([[2, 2, 2]]), jnp.asarray(keys), places)[0]
    assert " ".join(Sight(int(sight)).name[0] for sight in found) == f"{drawn} N"
