"""Meshes of any sizes, slices, and refusals that name the fix."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from fot_jax.config import ConfigError, MeshConfig
from fot_jax.sharding import MESH_AXES, batch_sharding, check_length, compiler_options, make_mesh
from fot_jax.train.state import state_shardings
from tests import shipped
from tests.train.tiny import tiny


def load(name, **mesh):
    return dataclasses.replace(shipped.load(name), mesh=MeshConfig(**mesh))


def test_mesh_splits_rows_and_positions():
    """Has its axes in order; data = -1 takes the devices that are left."""
    mesh = make_mesh(MeshConfig(data=-1, fsdp=2, context=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "context": 2, "tensor": 1}
    assert mesh.axis_names == MESH_AXES
    assert batch_sharding(mesh).shard_shape((8, 6)) == (2, 3)


def test_compiler_options_of_tpus_allow_async_permutes():
    """Asks XLA for permutes that overlap other work on TPUs, and for nothing on CPUs."""
    tpu = SimpleNamespace(devices=np.array([SimpleNamespace(platform="tpu")]))
    assert compiler_options(tpu) == {"xla_enable_async_collective_permute": True}
    assert compiler_options(make_mesh(MeshConfig())) is None


def fake_devices(slices: int, each: int, **more):
    """Devices as a multi-slice TPU names them; each is one process."""
    return [
        SimpleNamespace(id=i, slice_index=i // each, process_index=i, platform="fake", device_kind="fake", **more)
        for i in range(slices * each)
    ]


def test_mesh_puts_slices_along_data(monkeypatch):
    """Gives each of 2 slices of 4 one half of the data axis; fsdp and tensor stay inside."""
    grids = []
    monkeypatch.setattr("fot_jax.sharding.Mesh", lambda grid, *_, **__: grids.append(grid))
    make_mesh(MeshConfig(data=2, fsdp=2, tensor=2, slices=2), fake_devices(2, 4))
    make_mesh(MeshConfig(data=4, tensor=2, slices=2), fake_devices(2, 4))
    for grid in grids:
        where = np.vectorize(lambda device: device.slice_index)(grid)
        half = len(grid) // 2
        assert (where[:half] == 0).all() and (where[half:] == 1).all()


def test_mesh_refuses_slices_that_are_not_there():
    """Names the field and the number to set."""
    with pytest.raises(ConfigError, match=r"mesh\.slices must be the number of slices .* 2, got 4\. Set mesh\.slices"):
        make_mesh(MeshConfig(data=8, slices=4), fake_devices(2, 4))
    with pytest.raises(ConfigError, match=r"mesh\.data must be a multiple of mesh\.slices=2, got 1"):
        make_mesh(MeshConfig(data=1, fsdp=8, slices=2), fake_devices(2, 4))
    with pytest.raises(ConfigError, match=r"number of processes .* 1, got 2"):
        make_mesh(MeshConfig(slices=2))


@pytest.mark.parametrize(
    ("name", "mesh", "message"),
    [
        (
            "longllama:3b",
            {"tensor": 3},
            r"'vocab' has 32000 entries.* Choose mesh\.tensor from \[1, 2, 4, 8, 16, 32\]:",
        ),
        ("smollm2_135m", {"tensor": 2}, r"has (9|3) entries.* Choose mesh\.tensor from \[1, 3\]:"),
        ("longllama:3b", {"fsdp": 6}, r"'embed' has 3200 entries.* Choose mesh\.fsdp from \[1, 2, 4, 5, 8, 10, 16,"),
    ],
)
def test_parameters_that_do_not_divide_name_sizes_that_do(name, mesh, message):
    """Lists the sizes of the axis that divide."""
    config = load(name, data=1, **mesh)
    devices = jax.devices()[: config.mesh.fsdp * config.mesh.tensor]
    with pytest.raises(ConfigError, match=message):
        state_shardings(config, make_mesh(config.mesh, devices))


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("longllama:3b", {"fsdp": 4, "tensor": 2}),
        ("smollm2_135m", {"fsdp": 2, "tensor": 3}),
        ("longllama:7b", {"fsdp": 8}),
    ],
)
def test_parameters_of_real_models_are_split(name, mesh):
    """Splits every parameter of rank 2 or more: 26 layers of 3200 = 32 × 100; 9 heads over 3."""
    config = load(name, data=1, **mesh)
    devices = jax.devices()[: config.mesh.fsdp * config.mesh.tensor]
    for path, sharding in jax.tree_util.tree_leaves_with_path(
        state_shardings(config, make_mesh(config.mesh, devices)).params
    ):
        if "norm" not in jax.tree_util.keystr(path):
            assert not sharding.is_fully_replicated, path


def test_positions_that_do_not_divide_are_refused():
    """Names both fields."""
    mesh = make_mesh(MeshConfig(data=1, context=5), jax.devices()[:5])
    with pytest.raises(ConfigError, match=r"model\.local_context=24 must be a multiple of mesh\.context=5"):
        check_length(tiny().model.local_context, mesh)
