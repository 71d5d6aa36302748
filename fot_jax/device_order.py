"""Orders chips along the rows of a mesh so that neighbours follow each other: a hop of the ring crosses one link.

    8 row shards on 4 × 2 chips      0 → 1 → 2 → 3
                                     ↑           ↓
                                     7 ← 6 ← 5 ← 4

`mesh_utils.create_device_mesh` goes line by line: its hop 3 → 4 crosses the whole slice. On v5e beyond 4 × 4 chips the
compiler then waits for each permute instead of running it during attention (libtpu 0.0.42).
"""

import math

import numpy as np


def neighbouring_rows(grid: np.ndarray) -> np.ndarray:
    """Returns the grid with its row shards on a circle: each is next to the one before, and the last to the first.

    The order is a path instead of a circle
      - where both data and fsdp split rows: the path takes one block of chips after another, so that parameters are
        gathered within blocks;
      - where the slice has no circle: a line, or an odd number of shards.
    The devices of one row shard keep their places within it. The grid is returned unchanged
      - where devices have no place on a network (CPUs);
      - where the shards are not equal tiles of the slice;
      - where neighbouring blocks would mirror each other (an odd number of lines): gradients, summed over data, would
        cross the slice.

    Args:
      grid: [data, fsdp, context, tensor] of devices of one slice.
    """
    shards = grid.reshape(math.prod(grid.shape[:2]), -1)
    if not all(hasattr(device, "coords") for device in shards.flat):
        return grid
    places = np.array(
        [[(*device.coords[::-1], getattr(device, "core_on_chip", 0)) for device in row] for row in shards]
    )
    corners = places.min(axis=1)  # [shard, (z, y, x, core)]
    within = places - corners[:, None]
    # A step of the path is as long as a tile's side: the axis with the widest tiles changes least often.
    slowest_first = np.argsort(-within.max(axis=(0, 1)), kind="stable")
    lattice = [np.unique(corners[:, axis], return_inverse=True)[1] for axis in slowest_first]
    sizes = [int(side.max()) + 1 for side in lattice]
    if (within != within[0]).any() or math.prod(sizes) != len(shards):
        return grid
    shard_at = np.empty(sizes, int)
    shard_at[tuple(lattice)] = np.arange(len(shards))
    path = _snake if min(grid.shape[:2]) > 1 else _circle
    order = shard_at[tuple(np.transpose(path(sizes)))]
    blocks = np.diff(corners[order].reshape(*grid.shape[:2], -1), axis=0)  # from a shard to that in the next block
    if grid.shape[1] > 1 and (blocks != blocks[:, :1]).any():
        return grid
    return shards[order].reshape(grid.shape)


def _snake(sizes: list[int]) -> list[tuple[int, ...]]:
    """Returns all places of a lattice back and forth, the last axis fastest: each step changes one axis by 1."""
    if not sizes:
        return [()]
    inner = _snake(sizes[1:])
    return [(i, *rest) for i in range(sizes[0]) for rest in (inner if i % 2 == 0 else inner[::-1])]


def _circle(sizes: list[int]) -> list[tuple[int, ...]]:
    """Returns all places of a lattice on a path that ends next to its start; `_snake`'s path where there is none.

    The path goes back and forth over all columns but the first, and returns along the first.
    """
    first, *others = sizes
    if first == 1 and others:
        return [(0, *place) for place in _circle(others)]
    line = _snake(others)
    turned = first % 2 == 1  # the number of turns must be odd: turn at the ends of the other side
    long, wide = (len(line), first) if turned else (first, len(line))
    if long % 2 or wide == 1:
        return _snake(sizes)
    lanes = [[(i, j) for j in range(1, wide)] for i in range(long)]
    away = [place for i, lane in enumerate(lanes) for place in (lane if i % 2 == 0 else lane[::-1])]
    circle = [(0, 0), *away, *((i, 0) for i in reversed(range(1, long)))]
    return [(j, *line[i]) if turned else (i, *line[j]) for i, j in circle]
