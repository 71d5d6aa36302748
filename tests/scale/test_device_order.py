"""Row shards that follow each other are next to each other on the chips' network."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from jax.experimental import mesh_utils

from fot_jax.config import MeshConfig
from fot_jax.device_order import neighbouring_rows
from fot_jax.sharding import make_mesh


def slice_of(x: int, y: int, z: int = 1, cores: int = 1, kind: str = "fake") -> list:
    """Devices as libtpu names them: x runs fastest, the cores of a chip faster still."""
    places = itertools.product(range(z), range(y), range(x), range(cores))
    return [
        SimpleNamespace(id=i, process_index=0, platform="tpu", device_kind=kind, coords=[a, b, c], core_on_chip=core)
        for i, (c, b, a, core) in enumerate(places)
    ]


def places_of(grid) -> np.ndarray:
    """[row shard, device of it, (x, y, z, core)]."""
    shards = grid.reshape(math.prod(grid.shape[:2]), -1)
    return np.array([[(*device.coords, device.core_on_chip) for device in shard] for shard in shards])


SLICES = [
    ({"x": 4, "y": 2}, (1, 8, 1, 1)),
    ({"x": 8, "y": 8}, (1, 64, 1, 1)),
    ({"x": 8, "y": 8, "kind": "TPU v5 lite"}, (2, 32, 1, 1)),
    ({"x": 16, "y": 16, "kind": "TPU v5 lite"}, (2, 64, 1, 2)),
    ({"x": 16, "y": 16}, (2, 32, 2, 2)),
    ({"x": 4, "y": 4, "z": 4, "kind": "TPU v5p"}, (1, 64, 1, 1)),
    ({"x": 4, "y": 4, "z": 4}, (1, 16, 1, 4)),
    ({"x": 8, "y": 8, "cores": 2, "kind": "TPU v3"}, (2, 64, 1, 1)),
    ({"x": 8, "y": 8, "cores": 2, "kind": "TPU v3"}, (2, 32, 1, 2)),
    ({"x": 3, "y": 5}, (15, 1, 1, 1)),
]


def moves_of(grid) -> np.ndarray:
    """[shard to the next, (x, y, z, core)]; all devices of a shard move alike, along one axis, by a tile's side."""
    places = places_of(grid)
    sides = places[0].max(axis=0) - places[0].min(axis=0) + 1
    moves = np.diff(places, axis=0)
    assert (moves == moves[:, :1]).all()
    for move in moves[:, 0]:
        assert np.count_nonzero(move) == 1 and abs(move).max() == sides[np.flatnonzero(move)[0]]
    return moves[:, 0]


@pytest.mark.parametrize(("chips", "shape"), SLICES)
def test_row_shards_are_beside_the_ones_before(chips, shape):
    """Moves all devices of a shard alike to the next, along one axis, by the side of a shard's tile."""
    before = mesh_utils.create_device_mesh(shape, slice_of(**chips), allow_split_physical_axes=True)
    grid = neighbouring_rows(before)
    assert sorted(device.id for device in grid.flat) == sorted(device.id for device in before.flat)
    places = places_of(grid)
    assert len(moves_of(grid)) == len(places) - 1
    within = {tuple(map(tuple, shard - shard.min(axis=0))) for shard in places_of(before)}
    assert {tuple(map(tuple, shard - shard.min(axis=0))) for shard in places} == within


@pytest.mark.parametrize(
    ("chips", "shape", "closed"),
    [
        ({"x": 4, "y": 2}, (1, 8, 1, 1), True),
        ({"x": 8, "y": 8}, (64, 1, 1, 1), True),
        ({"x": 3, "y": 4}, (1, 12, 1, 1), True),
        ({"x": 4, "y": 3}, (1, 12, 1, 1), True),
        ({"x": 4, "y": 4, "z": 4}, (1, 64, 1, 1), True),
        ({"x": 3, "y": 3, "z": 2}, (1, 18, 1, 1), True),
        ({"x": 8, "y": 8, "cores": 2, "kind": "TPU v3"}, (1, 128, 1, 1), True),
        ({"x": 16, "y": 16}, (1, 64, 2, 2), True),
        ({"x": 2, "y": 2}, (1, 4, 1, 1), True),
        ({"x": 2, "y": 1}, (1, 2, 1, 1), True),
        ({"x": 5, "y": 1}, (1, 5, 1, 1), False),  # a line
        ({"x": 3, "y": 5}, (1, 15, 1, 1), False),  # an odd number
        ({"x": 8, "y": 8}, (2, 32, 1, 1), False),  # blocks
    ],
)
def test_row_shards_close_the_ring_where_they_can(chips, shape, closed):
    """Puts the last next to the first, except on lines, odd numbers and blocks."""
    grid = neighbouring_rows(mesh_utils.create_device_mesh(shape, slice_of(**chips), allow_split_physical_axes=True))
    places = places_of(grid)
    sides = places[0].max(axis=0) - places[0].min(axis=0) + 1
    home = places[0] - places[-1]
    axes = np.flatnonzero(home[0])
    assert (home == home[0]).all() and (len(axes) == 1 and abs(home[0][axes[0]]) == sides[axes[0]]) == closed
    moves_of(grid)


def test_row_shards_keep_fsdp_within_blocks_of_chips():
    """Gives 2 × 32 shards on 8 × 8 chips fsdp groups that are the two halves."""
    grid = neighbouring_rows(np.array(slice_of(8, 8), dtype=object).reshape(2, 32, 1, 1))
    halves = [{tuple(device.coords) for device in group.flat} for group in grid]
    assert halves == [{(x, y, 0) for x in range(8) for y in ys} for ys in (range(4), range(4, 8))]


def test_moves_of_a_path_line_by_line_are_refused():
    """Fails on 8 × 8 chips line by line: from the end of a line to the next both coordinates change."""
    grid = np.array(slice_of(8, 8), dtype=object).reshape(1, 64, 1, 1)
    with pytest.raises(AssertionError):
        moves_of(grid)


@pytest.mark.parametrize("shape", [(16, 16, 1, 1), (8, 32, 1, 1), (2, 64, 1, 2), (16, 1, 4, 4)])
def test_row_shards_keep_groups_of_data_alike(shape):
    """Adds gradients up over data in groups that do not zigzag across the slice, in any order."""
    grid = neighbouring_rows(mesh_utils.create_device_mesh(shape, slice_of(16, 16), allow_split_physical_axes=True))
    places = places_of(grid)[:, 0].reshape(*shape[:2], -1)
    steps = np.diff(places, axis=0)
    assert (steps == steps[:, :1]).all()


def test_row_shards_that_would_mirror_stay_as_they_are():
    """Leaves 16 × 16 shards on 16 × 16 chips: a block is a line, the next one would run back."""
    grid = np.array(slice_of(16, 16), dtype=object).reshape(16, 16, 1, 1)
    assert neighbouring_rows(grid) is grid


def test_mesh_orders_row_shards_in_each_slice(monkeypatch):
    """Orders each slice for itself; data runs over slices first."""
    grids = []
    monkeypatch.setattr("fot_jax.sharding.Mesh", lambda grid, *_, **__: grids.append(grid))
    make_mesh(MeshConfig(data=1, fsdp=16), slice_of(4, 4))
    two = [device for i in range(2) for device in slice_of(4, 4)]
    for i, device in enumerate(two):
        device.id, device.slice_index = i, i // 16
    make_mesh(MeshConfig(data=32, slices=2), two)
    for grid in (grids[0], *np.split(grids[1], 2)):
        moves_of(grid)
        assert len({getattr(device, "slice_index", 0) for device in grid.flat}) == 1


def test_row_shards_without_a_network_stay_as_they_are():
    """Leaves devices without coordinates."""
    devices = np.array([SimpleNamespace(id=i) for i in range(8)], dtype=object).reshape(2, 2, 1, 2)
    assert neighbouring_rows(devices) is devices


@pytest.mark.parametrize("swapped", [(0, 5), (1, 6)], ids=["places within a shard", "shards that are no lattice"])
def test_row_shards_of_unequal_tiles_stay_as_they_are(swapped):
    """Leaves shards whose devices are not the same tile everywhere."""
    devices = np.array(slice_of(4, 4), dtype=object)
    a, b = swapped
    devices[[a, b]] = devices[[b, a]]
    grid = devices.reshape(1, 8, 1, 2)
    assert neighbouring_rows(grid) is grid
