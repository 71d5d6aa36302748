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

# Documents of rows, 0: padding.
ONE_DOCUMENT_A_ROW = np.array([[4, 4, 4, 4, 4], [4, 4, 4, 4, 4], [2, 2, 2, 2, 2], [7, 7, 7, 0, 0]])


def sights_and_masks(rule: Rule, plan: Plan, segments: np.ndarray):
    """For each row and place, its sight and the mask of its pairs."""
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
        yield b, int(slot), Sight(int(sights[b, p])), np.asarray(blocks.block_mask(rule, *given))


def rule_of(boundaries: Boundaries, block: int, *, causal: bool) -> Rule:
    return Rule(boundaries=boundaries, causal=causal, block=block, repeats=1)


@pytest.mark.parametrize("boundaries", Boundaries)
@pytest.mark.parametrize("block", [2, 5])
@pytest.mark.parametrize("causal", [False, True])
def test_nobody_and_all_are_true_of_every_pair(boundaries, block, causal):
    plan = cases.crossbatch_case("single").plan
    if causal:
        plan = Plan(context_ids=np.zeros((len(cases.SEGMENTS), 1), np.int32), own_document=np.ones((6, 1), bool))
    seen = set()
    for _, _, sight, mask in sights_and_masks(rule_of(boundaries, block, causal=causal), plan, cases.SEGMENTS):
        seen.add(sight)
        assert sight is not Sight.NOBODY or not mask.any()
        assert sight is not Sight.ALL or mask.all()
    assert seen >= ({Sight.NOBODY, Sight.SOME} if causal else set(Sight))


def test_rows_of_one_document_need_no_mask():
    """Row 0 is the past of row 1. What ends in padding is looked at, as what it reads or as the reader."""
    ids = np.array([[-1, -1, -1, -1], [0, 2, 0, 3], [0, 1, -1, -1], [2, -1, -1, -1]], np.int32)
    own = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], bool)
    plan = Plan(context_ids=ids, own_document=own)
    table = {}
    for b, slot, sight, _ in sights_and_masks(rule_of(Boundaries.MASKED, 5, causal=False), plan, ONE_DOCUMENT_A_ROW):
        table[b, slot] = sight.name[0]
    drawn = ["".join(table[b, slot] for slot in range(4)) for b in range(4)]
    assert drawn == ["NNNN", "AANS", "AANN", "SNNN"]
