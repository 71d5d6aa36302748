"""The one line about contexts that a plan lacks, from its real tables."""

import numpy as np
import pytest

from fot_jax.config import PlanKind
from fot_jax.data.streams import make_stream
from fot_jax.train.plan_notice import plan_notice, unseen_notice
from fot_jax.types import Batch
from launch.explain import REASONS, explain
from tests.scale.ring_cases import VARIANTS
from tests.train.tiny import tiny

SEGMENTS = {"plan": "segments", "packing": 2, "segments": [[0, 0], [1, 0]]}


def d(*ds, **more):
    return {"schedule": {"num_contexts": list(ds), **more}}


def switch(*ds):
    return d(*ds, kind="switch_at_step", switch_step=3)


NOTICES = {
    "constant range by its defaults": (
        {"plan": "constant_range"},
        "has no positives at d = 1: no row reads an earlier",
    ),
    "packed by its default d": ({"plan": "packed", "packing": 2}, "'packed' has no negatives at d = 1: rows read"),
    "two_pass by its default d": ({"plan": "two_pass"}, "'two_pass' has no negatives at d = 1: rows read"),
    "before a switch": ({"plan": "two_pass", **switch(1, 4)}, "has no negatives at d = 1 (before the switch)"),
    "some of the drawn": ({"plan": "packed", "packing": 2, **d(1, 3, kind="random")}, "at d = 1 (of 1, 3)"),
    "segments without negatives": (SEGMENTS, "'segments' has no negatives: rows read"),
    "one pack of segments": (
        {**SEGMENTS, "segments": [[0, 0], [0, 0]]},
        "'segments' has no contexts: training is plain",
    ),
    "packing as wide as the batch": ({"plan": "packed", "packing": 8, **d(3)}, "has no negatives at d = 3"),
}


@pytest.mark.parametrize("name", NOTICES)
def test_plan_notice_says_what_is_missing(name):
    """In one line with the fix; launch.explain has the same."""
    crossbatch, said = NOTICES[name]
    config = tiny(crossbatch=crossbatch)
    notice = plan_notice(config)
    assert notice is not None and said in notice and "\n" not in notice and " Raise " in notice
    lines = explain(config, num_contexts=config.crossbatch.schedule.num_contexts[0], shown_rows=8).splitlines()
    assert f"note: {notice}" in lines


@pytest.mark.parametrize(
    "crossbatch",
    [
        {"plan": "off"},
        {"plan": "two_pass", **d(2)},
        {"plan": "packed", "packing": 2, **d(2)},
        {"plan": "own_past", "packing": 2},
        {"plan": "constant_range", "packing": 4, **d(6)},
        {"plan": "packed", "packing": 2, "gradients": "stopped"},
        {"plan": "segments", "packing": 2, "segments": [[0, 0], [1, 1]]},
    ],
)
def test_plan_notice_is_silent_where_nothing_is_missing(crossbatch):
    """Own past alone is what OWN_PAST and the Memorizing Transformer's training mean."""
    assert plan_notice(tiny(crossbatch=crossbatch)) is None


def test_unseen_notice_finds_contexts_that_are_masked():
    """Own past alone, and each chunk another document: every context is masked. One document over two rows is seen."""
    config = tiny(crossbatch={"plan": "own_past", "packing": 2})
    batch = make_stream(config, "train").batch(0)

    def notice(first_column, **changes):
        segments = np.repeat(np.asarray(first_column, np.int32)[:, None], batch.tokens.shape[1], axis=1)
        made = Batch(tokens=batch.tokens, targets=batch.targets, loss_mask=batch.loss_mask, segments=segments)
        return unseen_notice(tiny(crossbatch={**changes}), made, num_contexts=2)

    own = {"plan": "own_past", "packing": 2}
    text = notice([1, 2, 3, 4, 5, 6, 7, 8], **own)
    assert text is not None and "no query sees a key of its contexts in the first batch" in text
    assert notice([1, 2, 3, 4, 5, 6, 7, 7], **own) is None
    assert notice([1, 2, 3, 4, 5, 6, 7, 8], **own, boundaries="joined") is None
    assert notice([1, 2, 3, 4, 5, 6, 7, 8], plan="packed", packing=2, **d(2)) is None
    assert "'packed': no query" in str(notice([1, 0, 1, 0, 1, 0, 1, 0], plan="packed", packing=2, **d(2)))
    assert notice([1, 1, 0, 0, 0, 0, 0, 0], plan="off") is None
    assert notice([0, 1, 0, 1, 0, 1, 0, 1], **own) == text


def test_every_plan_is_explained_and_travels():
    """Names the lists that a new `PlanKind` must join: the reasons of launch.explain, the plans of the ring's tests."""
    assert set(REASONS) == set(PlanKind)
    assert {fields["plan"] for fields, _ in VARIANTS.values()} == {kind.value for kind in PlanKind} - {"off"}
