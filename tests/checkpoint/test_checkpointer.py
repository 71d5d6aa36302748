"""Checkpoints on disk: what is kept, what is refused, and that a damaged one is never used silently."""

import dataclasses
import shutil
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fot_jax.checkpoint import Checkpointer, load_params
from fot_jax.checkpoint.failures import silence_abandoned_io
from fot_jax.config import MeshConfig, UserError
from fot_jax.sharding import make_mesh
from fot_jax.train.state import abstract_state, create_state
from fot_jax.workdir import compare_config, read_config, write_config
from tests.train.tiny import tiny


def save_all(workdir, config, losses, state=None):
    """One checkpoint per held-out loss, numbered from 1; params of step n are those of the state times n."""
    state = state or create_state(config, make_mesh(config.mesh, jax.devices()[:1]))
    write_config(workdir, config)
    with Checkpointer(workdir, config) as checkpoints:
        for step, loss in enumerate(losses, start=1):
            params = jax.tree.map(lambda leaf, step=step: leaf * step, state.params)
            checkpoints.save(step, params=params, optimizer=state.opt_state, data={"step": step}, heldout_loss=loss)
    return state


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    return workdir, save_all(workdir, tiny(), [3.0, 1.0, 2.5, 2.0, None])


def test_the_last_and_the_best_are_kept(saved):
    workdir, state = saved
    with Checkpointer(workdir, tiny(), read_only=True) as checkpoints:
        assert checkpoints.steps() == [2, 4, 5]
        assert (checkpoints.latest_step(), checkpoints.best_step()) == (5, 2)
    for step, number in {"latest": 5, "best": 2, 4: 4}.items():
        config, params, found = load_params(workdir, step=step)
        assert found == number and config == tiny()
        np.testing.assert_array_equal(params["embedding"], state.params["embedding"] * number)
    with pytest.raises(UserError, match=r"asked for \(3\); it has \[2, 4, 5\]"):
        load_params(workdir, step=3)


def test_a_checkpoint_is_restored_onto_another_mesh(saved):
    workdir, state = saved
    config = dataclasses.replace(tiny(), mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    abstract = abstract_state(config, make_mesh(config.mesh))
    with Checkpointer(workdir, config, read_only=True) as checkpoints:
        params, optimizer, data = checkpoints.restore(4, params=abstract.params, optimizer=abstract.opt_state)
    assert data == {"step": 4}
    assert jax.tree.structure(optimizer) == jax.tree.structure(state.opt_state)
    for leaf, wanted, old in zip(
        jax.tree.leaves(params), jax.tree.leaves(abstract.params), jax.tree.leaves(state.params), strict=True
    ):
        assert leaf.sharding == wanted.sharding
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(old) * 4)


def test_the_step_may_go_on_while_a_checkpoint_is_written(tmp_path):
    """Donating the saved arrays right after `save` does not change what is saved."""
    increase = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    device = NamedSharding(make_mesh(MeshConfig(data=1), jax.devices()[:1]), PartitionSpec())
    tree = jax.device_put({f"w{i}": np.zeros((256, 1024), np.float32) for i in range(8)}, device)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), tree)
    config = tiny(train__keep_checkpoints=9)
    with Checkpointer(tmp_path, config) as checkpoints:
        for step in (10, 20, 30):
            for _ in range(10):
                tree = increase(tree)
            optimizer = {"count": jnp.zeros(())}
            checkpoints.save(step, params=tree, optimizer=optimizer, data={"step": step}, heldout_loss=None)
    with Checkpointer(tmp_path, config, read_only=True) as checkpoints:
        for step in (10, 20, 30):
            for leaf in jax.tree.leaves(checkpoints.restore_params(step, params=abstract)):
                np.testing.assert_array_equal(np.asarray(leaf), step)


def restored(workdir, abstract):
    """(number, params) of the newest checkpoint, or the error's message."""
    try:
        with Checkpointer(workdir, tiny()) as checkpoints:
            step = checkpoints.latest_step()
            params, _, data = checkpoints.restore(step, params=abstract.params, optimizer=abstract.opt_state)
    except UserError as error:
        return str(error)
    assert data == {"step": step}
    return step, params


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax drops its other reads
@pytest.mark.usefixtures("abandoned_reads")
def test_every_file_cut_short_gives_one_line_or_a_whole_state(tmp_path, saved):
    """Each file of the newest checkpoint in turn loses its second half, then all of it."""
    original, state = saved
    workdir = tmp_path / "run"
    shutil.copytree(original, workdir)
    abstract = abstract_state(tiny(), make_mesh(tiny().mesh, jax.devices()[:1]))
    refused = 0
    for file in sorted(path for path in (workdir / "checkpoints" / "5").rglob("*") if path.is_file()):
        whole = file.read_bytes()
        for length in {len(whole) // 2, 0} if whole else ():
            file.write_bytes(whole[:length])
            found = restored(workdir, abstract)
            if isinstance(found, str):
                refused += 1
                assert "\n" not in found
                assert "checkpoint of step 5" in found and "Delete" in found and "go on from step 4" in found
            else:
                step, params = found
                for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True):
                    np.testing.assert_array_equal(np.asarray(a), np.asarray(b) * step, err_msg=f"{file} at {length}")
            file.write_bytes(whole)
    assert refused >= 6, "the files of parameters, optimizer and data position"


def test_a_failed_restore_leaves_nothing_but_its_error(saved, monkeypatch, request):
    """TensorStore's other reads end when Orbax's event loop is closed; Python would print what they raise."""
    workdir, state = saved
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    silence_abandoned_io.cache_clear()
    request.addfinalizer(silence_abandoned_io.cache_clear)  # the hook goes with monkeypatch

    def restore(step, args):
        for error in (RuntimeError("Event loop is closed"), RuntimeError("another")):
            sys.unraisablehook(types.SimpleNamespace(exc_value=error))
        raise ValueError("OUT_OF_RANGE")

    with Checkpointer(workdir, tiny(), read_only=True) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "restore", restore)
        with pytest.raises(UserError, match=r"truncated or damaged \(OUT_OF_RANGE\)"):
            checkpoints.restore(5, params=state.params, optimizer=state.opt_state)
    assert [str(late.exc_value) for late in printed] == ["another"]


OUT_OF_MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
LOST = "UNKNOWN: Gloo AllGather failed: Connection reset by peer"


@pytest.mark.parametrize(
    ("raised", "expected", "said"),
    [
        (ValueError(LOST), ValueError, "^UNKNOWN: Gloo"),  # as CPUs say it
        (jax.errors.JaxRuntimeError("UNAVAILABLE: lost"), jax.errors.JaxRuntimeError, "^UNAVAILABLE"),
        (OUT_OF_MEMORY, UserError, "must fit in the memory .* got: RESOURCE_EXHAUSTED"),
    ],
)
def test_what_jax_itself_says_is_not_blamed_on_the_folder(saved, tmp_path, monkeypatch, raised, expected, said):
    """A lost process ends its peers' collectives inside Orbax; the supervisors name it."""
    workdir, state = saved

    def fail(*args, **kwargs):
        raise raised

    with Checkpointer(workdir, tiny(), read_only=True) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "restore", fail)
        with pytest.raises(expected, match=said) as caught:
            checkpoints.restore(5, params=state.params, optimizer=state.opt_state)
        assert caught.type is expected  # a UserError is a ValueError too
    monkeypatch.setattr("orbax.checkpoint.CheckpointManager", fail)
    with pytest.raises(expected, match=said) as caught:
        Checkpointer(tmp_path / "run", tiny())
    assert caught.type is expected


def test_a_half_written_checkpoint_is_never_used(tmp_path, saved):
    workdir = tmp_path / "run"
    shutil.copytree(saved[0], workdir)
    folder = workdir / "checkpoints"
    shutil.copytree(folder / "5", folder / "9.orbax-checkpoint-tmp")
    with Checkpointer(workdir, tiny(), read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 5
    with Checkpointer(workdir, tiny()) as checkpoints:
        assert checkpoints.latest_step() == 5
    for _ in range(100):  # Orbax deletes in the background
        if not (folder / "9.orbax-checkpoint-tmp").exists():
            break
        time.sleep(0.1)
    assert not (folder / "9.orbax-checkpoint-tmp").exists()


def test_a_folder_belongs_to_one_config(tmp_path):
    assert compare_config(tmp_path / "missing", tiny()) == []
    write_config(tmp_path, tiny())
    assert read_config(tmp_path) == tiny() and compare_config(tmp_path, tiny()) == []
    other = tiny(train__steps=9, model__mlp_dim=64)
    both = r"model\.mlp_dim: 32 -> 64; train\.steps: 6 -> 9\. .*--allow-change=model\.mlp_dim,train\.steps"
    with pytest.raises(UserError, match=both):
        compare_config(tmp_path, other)
    with pytest.raises(UserError, match=r"model\.mlp_dim: 32 -> 64\. Use another --workdir"):
        compare_config(tmp_path, other, allow_changes=["train.steps"])
    accepted = compare_config(tmp_path, other, allow_changes=["train", "model.mlp_dim"])
    assert accepted == ["model.mlp_dim: 32 -> 64", "train.steps: 6 -> 9"]


def test_folders_without_a_run_say_so(tmp_path):
    with pytest.raises(UserError, match=r"must hold a run \(a config\.json\).*Train it first"):
        load_params(tmp_path)
    write_config(tmp_path, tiny())
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        load_params(tmp_path)
    (tmp_path / "config.json").write_text('{"name": "ti')
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        compare_config(tmp_path, tiny())
