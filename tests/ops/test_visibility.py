"""Masks against the drawn tables, and the rules that skip blocks against the masks."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import Boundaries
from fot_jax.ops import visibility
from fot_jax.ops.visibility import Sight
from fot_jax.types import Plan
from tests import cases


def test_local_mask_is_the_drawn_table():
    """Draws both tables of the docstring."""
    segments = jnp.array([[1, 1, 2, 0]])
    masked = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    joined = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]]
    for boundaries, drawn in ((Boundaries.MASKED, masked), (Boundaries.JOINED, joined)):
        got = visibility.local_mask(segments, segments, boundaries=boundaries)
        np.testing.assert_array_equal(got[0].astype(int), drawn)
        later = visibility.local_mask(segments, segments[:, 2:], boundaries=boundaries, first_key=2)
        np.testing.assert_array_equal(later[0].astype(int), np.array(drawn)[:, 2:])


def test_context_mask_is_the_drawn_table():
    """Draws the module's table, for a query of document 2 and for padding; an empty slot shows nothing."""
    queries, contexts = jnp.array([[2, 0]]), jnp.array([[1, 2, 2, 0]])
    tables = {
        (True, Boundaries.MASKED): [[0, 1, 1, 0], [0, 0, 0, 0]],
        (True, Boundaries.JOINED): [[1, 1, 1, 0], [1, 1, 1, 0]],
        (False, Boundaries.MASKED): [[1, 0, 0, 0], [1, 1, 1, 0]],
        (False, Boundaries.JOINED): [[1, 0, 0, 0], [1, 1, 1, 0]],
    }
    for (own, boundaries), drawn in tables.items():
        for filled in (True, False):
            flags = jnp.array([own]), jnp.array([filled])
            got = visibility.context_mask(queries, contexts, *flags, boundaries=boundaries)
            np.testing.assert_array_equal(got[0], np.array(drawn) * filled, err_msg=f"own={own} {boundaries}")


@pytest.mark.parametrize("boundaries", Boundaries)
def test_sees_contexts_is_any_of_the_gathered_mask(boundaries):
    """Agrees with the mask of all slots."""
    plan, segments = cases.crossbatch_case().plan, jnp.asarray(cases.SEGMENTS)
    mask = visibility.gathered_mask(
        Plan(jnp.asarray(plan.context_ids), jnp.asarray(plan.own_document)), segments, segments, boundaries=boundaries
    )
    got = visibility.sees_contexts(plan, segments, boundaries=boundaries)
    assert got.any() and not got.all()
    np.testing.assert_array_equal(got, mask.any(axis=(2, 3)))


def test_keys_in_sight_are_local_ones_and_whole_rows():
    """Draws the docstring's table."""
    plan = Plan(context_ids=np.array([[0, -1, 2], [-1, -1, -1]]), own_document=np.zeros((2, 3), bool))
    got = visibility.keys_in_sight(plan, jnp.arange(1, 4)[None])
    np.testing.assert_array_equal(got, [[7, 8, 9], [1, 2, 3]])


def sights_and_masks(boundaries: Boundaries, block: int, *, local: bool):
    """Yields each row's and block's sight and the mask of its pairs."""
    segments = jnp.asarray(cases.SEGMENTS)
    plan = cases.crossbatch_case("single").plan
    padded = jnp.pad(segments, ((0, 0), (0, -segments.shape[1] % block)))
    options = {"block": block, "boundaries": boundaries}
    if local:
        sights = visibility.local_sights(segments, padded, **options)
    else:
        sights = visibility.context_sights(plan, segments, padded, **options)
    for b, c, j in itertools.product(*map(range, sights.shape)):
        row = segments[b][None]
        if local:
            keys = padded[b][None, j * block : (j + 1) * block]
            mask = visibility.local_mask(row, keys, boundaries=boundaries, first_key=j * block)
        else:
            i = int(plan.context_ids[b, c])
            keys, own = padded[max(i, 0)][None, j * block : (j + 1) * block], jnp.asarray(plan.own_document[b, c])
            mask = visibility.context_mask(row, keys, own[None], jnp.array([i >= 0]), boundaries=boundaries)
        yield Sight(int(sights[b, c, j])), np.asarray(mask)


@pytest.mark.parametrize("boundaries", Boundaries)
@pytest.mark.parametrize("block", [2, 5])
@pytest.mark.parametrize("local", [False, True])
def test_sights_are_true_of_every_pair(boundaries, block, local):
    """Says NOBODY and EVERYBODY only where the mask agrees, and finds each of them."""
    found = set()
    for sight, mask in sights_and_masks(boundaries, block, local=local):
        found.add(sight)
        assert sight is not Sight.NOBODY or not mask.any()
        assert sight is not Sight.EVERYBODY or mask.all()
    assert found >= ({Sight.NOBODY, Sight.SOME} if local else set(Sight))


@pytest.mark.parametrize(
    ("boundaries", "own", "drawn"),
    [
        (Boundaries.MASKED, True, "E N S S N"),
        (Boundaries.JOINED, True, "E E E S N"),
        (Boundaries.MASKED, False, "N E S N N"),
        (Boundaries.JOINED, False, "N E S N N"),
    ],
)
def test_sights_are_the_drawn_table(boundaries, own, drawn):
    """Draws the table of `nobody_sees`; an empty slot is NOBODY."""
    keys = jnp.array([[2, 2], [3, 3], [1, 3], [2, 0], [0, 0]])
    plan = Plan(context_ids=jnp.array([[0, 1, 2, 3, 4, -1]]), own_document=jnp.full((1, 6), own))
    found = visibility.context_sights(plan, jnp.array([[2, 2, 2]]), keys, block=2, boundaries=boundaries)
    assert " ".join(Sight(int(sight)).name[0] for sight in found[0, :, 0]) == f"{drawn} N"
