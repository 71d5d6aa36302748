"""Plans derived again from the prose, row by row: for each batch row, the set of (row read, is it own?).

A set because the order of slots cannot matter to a softmax. Imports nothing of `fot_jax`.
"""

import math

import numpy as np

Reads = list[set[tuple[int, bool]]]


def reads_of(context_ids, own_document) -> Reads:
    """Reads a plan's arrays as sets; a row read twice in one plan row is an error."""
    reads = []
    for ids, own in zip(np.asarray(context_ids), np.asarray(own_document), strict=True):
        pairs = [(int(row), bool(mine)) for row, mine in zip(ids, own, strict=True) if row >= 0]
        assert len(set(pairs)) == len(pairs), f"a row is read twice: {pairs}"
        reads.append(set(pairs))
    return reads


def two_pass(streams: int, w: int, d: int) -> Reads:
    """Rows p·R + s; the last R rows read the w previous chunks of streams s, s+1, … s+d-1 mod R."""
    reads: Reads = [set() for _ in range(w * streams)]
    for s in range(streams):
        row = set()
        for ahead in range(d):
            for p in range(w):
                row.add((p * streams + (s + ahead) % streams, ahead == 0))
        reads.append(row)
    return reads


def nearest(rows: int, packing: int, positives: list[int], negatives: list[int]) -> Reads:
    """Walks back from each row: up to `positives` rows of its pack, then rows of earlier packs, nearest first."""
    reads = []
    for row in range(rows):
        pack, place = divmod(row, packing)
        mine = [(other, True) for other in range(row - 1, -1, -1) if other // packing == pack][: positives[place]]
        others = [(other, False) for other in range(row - 1, -1, -1) if other // packing < pack]
        wanted = negatives[place]
        reads.append(set(mine + others[: max(wanted, 0)]))
    return reads


def packed(rows: int, packing: int, w: int, d: int) -> Reads:
    """min(j, w) nearest own rows, then the d - 1 nearest earlier rows of other streams."""
    return nearest(rows, packing, [w] * packing, [d - 1] * packing)


def own_past(rows: int, packing: int, w: int) -> Reads:
    """The w nearest own rows, nothing else."""
    return nearest(rows, packing, [w] * packing, [0] * packing)


def segments(rows: int, packing: int, pairs: tuple[tuple[int, int], ...]) -> Reads:
    """LongLLaMA: place j of a pack reads (positives, negatives)."""
    return nearest(rows, packing, [p for p, _ in pairs], [n for _, n in pairs])


def constant_range(rows: int, packing: int, r: int, *, stepping: bool) -> Reads:
    """The authors' code: each row and the rows just before it, `reach` rows in all; the row itself is no context.

    The reach is at most r + 1, and at most the rows there are. With stepping it also grows by place in the pack:
    1, 1 + step, 1 + 2·step, …; a pack of one row has no places to step through, so there the flag changes nothing.
    """
    reads = []
    for row in range(rows):
        limits = [r + 1, row + 1]
        if packing > 1 and stepping:
            step = math.ceil((r + 1) / (packing - 1))
            limits.append(1 + row % packing * step)
        seen = list(range(row, -1, -1))[: min(limits)]
        reads.append({(other, other // packing == row // packing) for other in seen[1:]})
    return reads
