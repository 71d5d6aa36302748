"""Crossbatch plans: every published variant as an integer table `context_ids[row, slot]`.

Plans are made on the host with numpy (once per d) and given to the jitted step as an array.
One-pass plans point only to EARLIER rows: if two rows read each other, the second memory layer
would carry a row's future back to it. First rows therefore read fewer contexts.
"""

from typing import assert_never

import numpy as np

from fot_jax.config import CrossbatchConfig, PlanKind
from fot_jax.types import Plan

Row = list[tuple[int, bool]]  # (context row, is it the reader's own document) per filled slot


def make_plan(crossbatch: CrossbatchConfig, *, batch_rows: int, num_contexts: int) -> Plan:
    """The plan of a batch, its slots padded with empty columns to a power of two.

    So a whole schedule of d compiles at most one program per power of two.

    Args:
      crossbatch: the variant and its parameters.
      batch_rows: B, all rows of the batch.
      num_contexts: d (sec. 3.2): for TWO_PASS the streams a row reads, its own included; for PACKED
        1 + the rows of other streams; for CONSTANT_RANGE the authors' range r; ignored by
        SEGMENTS, OWN_PAST and OFF.
    """
    k, w = crossbatch.packing, crossbatch.previous_chunks
    match crossbatch.plan:
        case PlanKind.OFF:
            plan = _table([[] for _ in range(batch_rows)])
        case PlanKind.TWO_PASS:
            plan = two_pass_plan(batch_rows // (w + 1), w=w, d=num_contexts)
        case PlanKind.PACKED:
            plan = packed_plan(batch_rows, k=k, w=w, d=num_contexts)
        case PlanKind.SEGMENTS:
            plan = segments_plan(batch_rows, k=k, segments=crossbatch.segments)
        case PlanKind.CONSTANT_RANGE:
            plan = constant_range_plan(batch_rows, k=k, r=num_contexts, stepping=crossbatch.stepping)
        case PlanKind.OWN_PAST:
            plan = own_past_plan(batch_rows, k=k, w=w)
        case unknown:
            assert_never(unknown)
    return pad_to_power_of_two(plan)


def two_pass_plan(streams: int, *, w: int, d: int) -> Plan:
    """The paper's form: C_curr row i reads the w previous chunks of streams i, i+1, …, i+d−1 mod R.

    R = 3 streams, w = 1, d = 2; rows 0–2 are C_prev, rows 3–5 C_curr:

        row 0 1 2   . .
        row 3       0 1      (own previous chunk, then the next stream's)
        row 4       1 2
        row 5       2 0

    Args:
      streams: R; the batch has (w + 1)·R rows, oldest chunks first, C_curr last.
      w: previous chunks per stream.
      d: streams read, the own one included; at most R.

    Raises:
      ValueError: d is larger than R.

    Source: FoT sec. 3.2, app. B.3.
    """
    if not 1 <= d <= streams:
        raise ValueError(f"d must be in 1..{streams} (the streams of the batch), got {d}; raise the batch or lower d")
    rows: list[Row] = [[] for _ in range(w * streams)]
    for i in range(streams):
        neighbours = [(i + offset) % streams for offset in range(d)]
        rows.append([(p * streams + n, n == i) for n in neighbours for p in reversed(range(w))])
    return _table(rows)


def packed_plan(batch_rows: int, *, k: int, w: int, d: int) -> Plan:
    """One pass: the min(j, w) nearest own rows, then the nearest d−1 earlier rows of other streams.

    d = 1 is own past only; d − 1 rows are those of ⌈(d−1)/k⌉ other documents.
    B = 4, k = 2, w = 1, d = 2 (row 3 is place j = 1 of stream 1):

        row 0   . .
        row 1   0 .      own; no other stream is above it
        row 2   1 .      other
        row 3   2 1      own, other
    """
    rows = [_nearest(b, k=k, positives=min(b % k, w), negatives=d - 1) for b in range(batch_rows)]
    return _table(rows)


def segments_plan(batch_rows: int, *, k: int, segments: tuple[tuple[int, int], ...]) -> Plan:
    """LongLLaMA: place j of a pack reads `segments[j]` = (positives, negatives).

    3B: (0,0) (1,1) (2,1) (3,0); 7B: (0,0) (1,2) (2,5) (3,4). Second pack of the 3B, k = 4:

        row 4   . . .
        row 5   4 3 .        1 own, 1 other
        row 6   5 4 3        2 own, 1 other
        row 7   6 5 4        3 own

    Source: FoT app. B.3 and the LongLLaMA model cards.
    """
    rows = [_nearest(b, k=k, positives=segments[b % k][0], negatives=segments[b % k][1]) for b in range(batch_rows)]
    return _table(rows)


def constant_range_plan(batch_rows: int, *, k: int, r: int, stepping: bool) -> Plan:
    """The authors' code: row b reads b−1, b−2, …, as many as a range r allows.

        stepping and k > 1    min((b mod k)·⌈(r+1)/max(k−1,1)⌉ + 1, r+1, b+1) − 1
        otherwise             min(r+1, b+1) − 1

    Without packing (k = 1) the authors ignore stepping. Contexts of rows 0…7, B = 8, r = 6:

        k = 4, stepping       0 1 2 3 0 3 6 6
        k = 4, no stepping    0 1 2 3 4 5 6 6
        k = 1, either         0 1 2 3 4 5 6 6

    Source: the README of the authors' JAX code (method of app. B.3).
    """
    rows = []
    for b in range(batch_rows):
        reach = min(r + 1, b + 1)
        if stepping and k > 1:
            step = -(-(r + 1) // max(k - 1, 1))
            reach = min((b % k) * step + 1, reach)
        rows.append([(b - i, (b - i) // k == b // k) for i in range(1, reach)])
    return _table(rows)


def own_past_plan(batch_rows: int, *, k: int, w: int) -> Plan:
    """d = 1: only the min(j, w) nearest earlier chunks of the reader's own stream."""
    return _table([_nearest(b, k=k, positives=min(b % k, w), negatives=0) for b in range(batch_rows)])


def pad_to_power_of_two(plan: Plan) -> Plan:
    """Adds empty columns until C is a power of two (at least 1)."""
    C = plan.context_ids.shape[1]
    extra = (1 << max(C - 1, 0).bit_length()) - C
    return Plan(
        context_ids=np.pad(plan.context_ids, [(0, 0), (0, extra)], constant_values=-1),
        own_document=np.pad(plan.own_document, [(0, 0), (0, extra)]),
    )


def _nearest(b: int, *, k: int, positives: int, negatives: int) -> Row:
    """The nearest own rows, then the nearest earlier rows of other packs."""
    first = b - b % k  # first row of the own pack; all rows before it are other documents
    own = [(b - i, True) for i in range(1, min(positives, b % k) + 1)]
    return own + [(first - i, False) for i in range(1, min(negatives, first) + 1)]


def _table(rows: list[Row]) -> Plan:
    C = max(1, max(len(row) for row in rows))
    ids = np.full((len(rows), C), -1, np.int32)
    own = np.zeros((len(rows), C), bool)
    for b, row in enumerate(rows):
        for c, (context, mine) in enumerate(row):
            ids[b, c], own[b, c] = context, mine
    return Plan(context_ids=ids, own_document=own)
