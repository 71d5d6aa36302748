"""Ring schedules of crossbatch over devices: which rows must travel, how far, in which direction.

With n devices of r rows each, row b is on device b // r. A plan says who reads whom, so the hops and the
rows worth sending are known before the step is compiled. PACKED, k = 2, d = 4, B = 8 on n = 4 devices, r = 2:

    device        0      1      2      3
    rows         0 1    2 3    4 5    6 7
    hop 1          ──01──→──23──→──45──→          whole blocks
    hop 2             ──1───→───3──→              of what has arrived, the last row only

so that device 3, whose rows 6 and 7 read 3, 4 and 5 of other streams, is sent 3, 4 and 5: d − 1 rows, however
many devices there are.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from fot_jax.config import CrossbatchConfig, PlanKind
from fot_jax.ops.plans import make_plan
from fot_jax.types import Plan, RingSchedule, RingStage


def row_order(crossbatch: CrossbatchConfig, *, batch_rows: int, shards: int) -> np.ndarray:
    """Returns order[new place] = row, int [B]: the layout in which each device holds whole streams.

    TWO_PASS stacks C_prev above C_curr; cut in two, one device would hold what the other reads:

        4 streams, 2 devices     p0s0 p0s1 p0s2 p0s3 | p1s0 p1s1 p1s2 p1s3
                              →  p0s0 p0s1 p1s0 p1s1 | p0s2 p0s3 p1s2 p1s3

    One-pass layouts, and streams that do not divide over the devices, stay as they are.
    """
    rows = np.arange(batch_rows)
    stacked = crossbatch.rows_per_stream
    if crossbatch.plan is not PlanKind.TWO_PASS or (batch_rows // stacked) % shards:
        return rows
    return rows.reshape(stacked, shards, -1).swapaxes(0, 1).reshape(-1)


def is_sorted(order: np.ndarray) -> bool:
    """Whether an order leaves the rows as they are."""
    return bool((order == np.arange(len(order))).all())


def arrange(plan: Plan, order: np.ndarray) -> Plan:
    """Returns the plan of a batch whose rows are put in this order."""
    if is_sorted(order):
        return plan
    places = np.append(np.argsort(order), -1).astype(np.int32)  # the last one answers for empty slots
    if not isinstance(plan.context_ids, np.ndarray):
        places = jnp.asarray(places)
    return dataclasses.replace(plan, context_ids=places[plan.context_ids][order], own_document=plan.own_document[order])


def schedule_of(plan: Plan, *, shards: int, axes: tuple[str, ...], heads: str, length: str) -> RingSchedule:
    """Returns the schedule of the cheaper direction of travel, for a plan known on the host.

    Args:
      plan: numpy, of a batch in the order in which the devices hold it.
      shards: the number of devices that the rows are split over evenly.
      axes: their mesh axes.
      heads: mesh axis of the heads.
      length: mesh axis of the positions.
    """
    ids = np.asarray(plan.context_ids)
    rows = ids.shape[0] // shards
    reader, slot = np.nonzero(ids >= 0)
    away = reader // rows - ids[reader, slot] // rows
    local = ids[reader, slot] % rows

    def travel(step: int) -> RingSchedule:
        hop = step * away % shards

        def slots(h: int) -> int:
            return int(np.bincount(reader[hop == h]).max(initial=0))

        stages: list[RingStage] = []
        for h in range(1, int(hop.max(initial=0)) + 1):
            stage = RingStage(rows=tuple(np.unique(local[hop >= h]).tolist()), hops=1, slots=slots(h))
            if stages and stages[-1].rows == stage.rows:
                last = stages.pop()
                stage = RingStage(rows=last.rows, hops=last.hops + 1, slots=max(last.slots, stage.slots))
            stages.append(stage)
        return RingSchedule(
            axes=axes, heads=heads, length=length, shards=shards, step=step,
            wraps=bool((step * away < 0).any()), home_slots=slots(0), stages=tuple(stages),
        )  # fmt: skip

    return min(travel(1), travel(-1), key=lambda ring: ring.rows_sent)


@functools.cache
def make_schedule(
    crossbatch: CrossbatchConfig,
    *,
    batch_rows: int,
    columns: int,
    shards: int,
    axes: tuple[str, ...],
    heads: str,
    length: str,
) -> RingSchedule:
    """Returns the schedule of every plan of `make_plan` with this many columns, in the layout of `row_order`.

    It is that of the largest d whose plan has that many columns: a schedule of d still compiles one program for
    each power of two.

    Args as `schedule_of`, and:
      crossbatch: the variant.
      batch_rows: B, all rows of the batch (of a micro-batch, with accumulation).
      columns: C of the plan.
    """

    def plan(d: int) -> Plan:
        return make_plan(crossbatch, batch_rows=batch_rows, num_contexts=d)

    two_pass = crossbatch.plan is PlanKind.TWO_PASS
    least, most = 1, batch_rows // crossbatch.rows_per_stream if two_pass else batch_rows + 1
    while least < most:  # the number of columns never falls with d
        middle = (least + most + 1) // 2
        fits = np.shape(plan(middle).context_ids)[1] <= columns
        least, most = (middle, most) if fits else (least, middle - 1)
    order = row_order(crossbatch, batch_rows=batch_rows, shards=shards)
    return schedule_of(arrange(plan(least), order), shards=shards, axes=axes, heads=heads, length=length)


def describe(ring: RingSchedule, *, row_bytes: int) -> str:
    """Returns one line for the log; `row_bytes` are those of the keys and values of one row in one layer."""
    return (
        f"crossbatch over {ring.shards} devices: ring of {ring.hops} hops along {' × '.join(ring.axes)};"
        f" in each memory layer a device sends {ring.rows_sent} rows"
        f" ({ring.rows_sent * row_bytes / 2**20:,.1f} MiB of keys and values)"
    )
