"""Rows of a process, and values on a mesh; one process stands for several by a mesh of a part of its devices."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fot_jax import distributed
from fot_jax.config import MeshConfig
from fot_jax.sharding import batch_sharding, make_mesh


class Places:
    """A sharding of which this process holds some rows."""

    def __init__(self, *spans):
        self.spans = spans

    def addressable_devices_indices_map(self, shape):
        return {number: (slice(*span),) for number, span in enumerate(self.spans)}


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([(4, 6), (6, 8), (4, 6), (6, 8)], [(4, 8)]),  # two devices along tensor hold the same rows
        ([(0, 2), (4, 6)], [(0, 2), (4, 6)]),
        ([(None, None)], [(0, 8)]),
    ],
)
def test_the_rows_of_a_process(spans, expected):
    assert distributed.local_rows(Places(*spans), 8) == [slice(*span) for span in expected]


@pytest.mark.parametrize(
    "mesh", [MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(data=1, tensor=8)]
)
def test_a_batch_of_parts_is_the_batch(mesh):
    sharding = batch_sharding(make_mesh(mesh))
    whole = {"tokens": np.arange(24).reshape(8, 3), "mask": np.arange(24.0).reshape(8, 3)}
    parts = [jax.tree.map(lambda x: x[span], whole) for span in (slice(0, 2), slice(2, 8))]  # noqa: B023
    placed = distributed.put_rows(parts, sharding, rows=8)
    assert placed["tokens"].sharding == sharding and placed["tokens"].shape == (8, 3)
    jax.tree.map(np.testing.assert_array_equal, placed, whole)


def test_a_value_is_put_on_a_mesh_as_device_put_does(monkeypatch):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    tree = {"x": np.arange(32, dtype=np.float32).reshape(8, 4), "n": np.int32(3)}
    shardings = {"x": NamedSharding(mesh, PartitionSpec("a", "b")), "n": NamedSharding(mesh, PartitionSpec())}
    expected = distributed.put(tree, shardings)
    monkeypatch.setattr(jax, "process_count", lambda: 2)  # the way that several processes take
    with jax.transfer_guard("disallow"):
        placed = distributed.put(tree, shardings)
    for a, b in zip(jax.tree.leaves(placed), jax.tree.leaves(expected), strict=True):
        assert a.sharding == b.sharding and a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
