"""Every published plan against a drawn table and against the prose derived again."""

import dataclasses
import enum
import pathlib
import re
import textwrap

import numpy as np
import pytest

from fot_jax.config import CrossbatchConfig, PlanKind, ScheduleConfig
from fot_jax.ops import plans
from tests import oracle_plans

SEGMENTS_3B = ((0, 0), (1, 1), (2, 1), (3, 0))
SEGMENTS_7B = ((0, 0), (1, 2), (2, 5), (3, 4))


def drawn(table: str) -> list[list[tuple[int, bool]]]:
    """`1+ 0` reads row 1 (own, positive) and row 0 (another document); a dot is an empty slot."""
    return [
        [(int(cell.rstrip("+")), cell.endswith("+")) for cell in line.split() if cell != "."]
        for line in table.strip().splitlines()
    ]


def as_drawn(plan) -> list[list[tuple[int, bool]]]:
    """The filled slots of a plan, in order; asserts that they come first."""
    rows = []
    for ids, own in zip(plan.context_ids, plan.own_document, strict=True):
        filled = int((ids >= 0).sum())
        assert (ids[:filled] >= 0).all(), f"an empty slot before a filled one: {ids}"
        assert not own[filled:].any(), "an empty slot is marked as own"
        rows.append([(int(i), bool(o)) for i, o in zip(ids[:filled], own[:filled], strict=True)])
    return rows


DRAWN = {
    # rows 0-3 are C_prev, 4-7 C_curr: rows i, i+1, i+2 mod 4 of C_prev, own first
    "paper, w=1 d=3": (plans.two_pass_plan(4, w=1, d=3), "\n".join("....") + "\n0+ 1 2\n1+ 2 3\n2+ 3 0\n3+ 0 1"),
    # rows 0-2 are the older previous chunks, 3-5 the newer, 6-8 C_curr
    "paper, w=2 d=2": (
        plans.two_pass_plan(3, w=2, d=2), "\n".join("......") + "\n3+ 0+ 4 1\n4+ 1+ 5 2\n5+ 2+ 3 0"
    ),
    "packed, k=4 w=1 d=3": (plans.packed_plan(8, k=4, w=1, d=3), ".\n0+\n1+\n2+\n3 2\n4+ 3 2\n5+ 3 2\n6+ 3 2"),
    "packed, k=4 w=2 d=4": (
        plans.packed_plan(8, k=4, w=2, d=4), ".\n0+\n1+ 0+\n2+ 1+\n3 2 1\n4+ 3 2 1\n5+ 4+ 3 2 1\n6+ 5+ 3 2 1"
    ),
    "LongLLaMA 3B": (
        plans.segments_plan(8, k=4, segments=SEGMENTS_3B), ".\n0+\n1+ 0+\n2+ 1+ 0+\n.\n4+ 3\n5+ 4+ 3\n6+ 5+ 4+"
    ),
    "LongLLaMA 7B": (
        plans.segments_plan(8, k=4, segments=SEGMENTS_7B),
        ".\n0+\n1+ 0+\n2+ 1+ 0+\n.\n4+ 3 2\n5+ 4+ 3 2 1 0\n6+ 5+ 4+ 3 2 1 0",
    ),
    # the authors' README: batch 8, range 6, packing 4: 0, 1, 2, 3, 0, 3, 6, 6 contexts
    "authors' range 6": (
        plans.constant_range_plan(8, k=4, r=6, stepping=True),
        ".\n0+\n1+ 0+\n2+ 1+ 0+\n.\n4+ 3 2\n5+ 4+ 3 2 1 0\n6+ 5+ 4+ 3 2 1",
    ),
    "authors' range 3 without stepping": (
        plans.constant_range_plan(6, k=2, r=3, stepping=False), ".\n0+\n1 0\n2+ 1 0\n3 2 1\n4+ 3 2"
    ),
    # without packing their code ignores the flag: row b reads all before it, r at most
    "authors' range 3 with stepping, not packed": (
        plans.constant_range_plan(6, k=1, r=3, stepping=True), ".\n0\n1 0\n2 1 0\n3 2 1\n4 3 2"
    ),
    "own past, k=4 w=2": (plans.own_past_plan(8, k=4, w=2), ".\n0+\n1+ 0+\n2+ 1+\n.\n4+\n5+ 4+\n6+ 5+"),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_plan_is_the_drawn_table(name):
    plan, table = DRAWN[name]
    assert as_drawn(plan) == drawn(table)


def test_authors_range_reads_what_their_readme_says():
    plan = plans.constant_range_plan(8, k=4, r=6, stepping=True)
    assert (plan.context_ids >= 0).sum(axis=1).tolist() == [0, 1, 2, 3, 0, 3, 6, 6]


@pytest.mark.parametrize("stepping", [True, False])
def test_authors_range_without_packing_ignores_stepping(stepping):
    """Batch 8, range 7, packing 1: row b reads the b rows before it."""
    plan = plans.constant_range_plan(8, k=1, r=7, stepping=stepping)
    assert (plan.context_ids >= 0).sum(axis=1).tolist() == list(range(8))
    assert not plan.own_document.any(), "without packing every row is a document of its own"


def test_plans_are_the_prose_over_many_sizes():
    for rows, k in ((4, 2), (8, 4), (12, 3), (16, 4)):
        for d in (1, 2, 3, 5, 64):
            for w in (1, 2, 3):
                plan = plans.packed_plan(rows, k=k, w=w, d=d)
                assert oracle_plans.reads_of(*_arrays(plan)) == oracle_plans.packed(rows, k, w, d), (rows, k, w, d)
                plan = plans.own_past_plan(rows, k=k, w=w)
                assert oracle_plans.reads_of(*_arrays(plan)) == oracle_plans.own_past(rows, k, w), (rows, k, w)
                if d <= rows:
                    plan = plans.two_pass_plan(rows, w=w, d=d)
                    assert oracle_plans.reads_of(*_arrays(plan)) == oracle_plans.two_pass(rows, w, d), (rows, w, d)
            for packing, stepping in ((k, True), (k, False), (1, True), (1, False)):
                plan = plans.constant_range_plan(rows, k=packing, r=d, stepping=stepping)
                want = oracle_plans.constant_range(rows, packing, d, stepping=stepping)
                assert oracle_plans.reads_of(*_arrays(plan)) == want, (rows, packing, d, stepping)
    for pairs in (SEGMENTS_3B, SEGMENTS_7B):
        plan = plans.segments_plan(16, k=4, segments=pairs)
        assert oracle_plans.reads_of(*_arrays(plan)) == oracle_plans.segments(16, 4, pairs)


def _arrays(plan):
    return plan.context_ids, plan.own_document


def _config(kind: PlanKind) -> CrossbatchConfig:
    fields = {"segments": SEGMENTS_3B} if kind is PlanKind.SEGMENTS else {}
    packing = 1 if kind in (PlanKind.OFF, PlanKind.TWO_PASS) else 4
    schedule = ScheduleConfig(num_contexts=(3,))
    return CrossbatchConfig(plan=kind, packing=packing, previous_chunks=1, schedule=schedule, **fields)


@pytest.mark.parametrize("kind", PlanKind)
def test_make_plan_is_the_named_plan_padded_to_a_power_of_two(kind):
    wanted = {
        PlanKind.OFF: [set()] * 8,
        PlanKind.TWO_PASS: oracle_plans.two_pass(4, 1, 3),
        PlanKind.PACKED: oracle_plans.packed(8, 4, 1, 3),
        PlanKind.SEGMENTS: oracle_plans.segments(8, 4, SEGMENTS_3B),
        PlanKind.CONSTANT_RANGE: oracle_plans.constant_range(8, 4, 3, stepping=True),
        PlanKind.OWN_PAST: oracle_plans.own_past(8, 4, 1),
    }
    plan = plans.make_plan(_config(kind), batch_rows=8, num_contexts=3)
    assert oracle_plans.reads_of(*_arrays(plan)) == wanted[kind]
    slots = plan.context_ids.shape[1]
    assert slots & (slots - 1) == 0
    assert (plan.context_ids.dtype, plan.own_document.dtype) == (np.int32, np.bool_)


def test_make_plan_refuses_an_unknown_kind():
    """A kind added to the enum alone must not train with another kind's table."""
    config = dataclasses.replace(_config(PlanKind.PACKED), plan=enum.Enum("Fake", "NEW")["NEW"])
    with pytest.raises(AssertionError, match=r"Fake\.NEW"):
        plans.make_plan(config, batch_rows=8, num_contexts=3)


def test_a_schedule_of_d_has_one_width_per_power_of_two():
    widths = [
        plans.make_plan(_config(PlanKind.PACKED), batch_rows=128, num_contexts=d).context_ids.shape[1]
        for d in range(1, 65)
    ]
    assert sorted(set(widths)) == [1, 2, 4, 8, 16, 32, 64]
    assert all(width < 2 * d for d, width in enumerate(widths, start=1))


def test_one_pass_plans_read_earlier_rows_only():
    """Mutual reading would carry a row's future back to it through the second memory layer."""
    for kind in PlanKind:
        plan = plans.make_plan(_config(kind), batch_rows=16, num_contexts=3)
        assert (plan.context_ids < np.arange(16)[:, None]).all(), kind


def test_two_pass_refuses_more_contexts_than_streams():
    with pytest.raises(ValueError, match=r"d must be in 1\.\.4 .*got 5"):
        plans.two_pass_plan(4, w=1, d=5)


def test_the_plan_that_the_docs_write_is_the_one_they_draw():
    """Runs the function of docs/plans.md; the table in its docstring shows the first four of six rows."""
    page = (pathlib.Path(__file__).parents[2] / "docs/plans.md").read_text(encoding="utf-8")
    code = page[page.index("        def aligned_plan") :].split("\n4. ")[0]
    names = dict(vars(plans))
    exec(textwrap.dedent(code), names)  # noqa: S102
    rows = re.findall(r"row \d((?: +(?:\d|\.)(?= ))+)", names["aligned_plan"].__doc__.replace("\n", " \n"))
    reads = [{int(row) for row, _ in marks} for marks in as_drawn(names["aligned_plan"](6, k=2, d=2))]
    assert len(rows) == 4
    assert [{int(cell) for cell in row.split() if cell != "."} for row in rows] == reads[:4]
