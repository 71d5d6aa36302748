"""An import over a mesh of eight CPU devices (tests/conftest.py makes them): the same numbers, a share for each."""

import jax
import ml_dtypes
import numpy as np
import pytest

from fot_jax import checkpoint
from fot_jax.checkpoint import load_stored_params
from fot_jax.config import ConfigError, Dtype, MeshConfig
from fot_jax.convert.importing import import_checkpoint
from fot_jax.models.init import boxed_shapes
from fot_jax.sharding import make_mesh, param_shardings
from tests.convert.checkpoints import SMALL, random_tensors, write_folder

STORED = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
MESHES = [
    ("float32", MeshConfig(data=1, fsdp=8), 8, False),
    ("bfloat16", MeshConfig(data=2, fsdp=2, tensor=2), 4, True),
]


@pytest.mark.parametrize(("dtype", "mesh", "parts", "tied"), MESHES, ids=["fsdp8", "data2_fsdp2_tensor2"])
def test_the_same_numbers_and_no_device_holds_a_whole_matrix(tmp_path, monkeypatch, dtype, mesh, parts, tied):
    values = {**SMALL, "tie_word_embeddings": tied}
    tensors = random_tensors(values, STORED[dtype])
    if tied:  # a head of its own that equals the embedding
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    write_folder(tmp_path / "hf", values, tensors)
    import_checkpoint(tmp_path / "hf", tmp_path / "plain", dtype=Dtype(dtype))
    plain, _ = load_stored_params(tmp_path / "plain")
    stacks = [leaf.shape for leaf in jax.tree.leaves(plain) if leaf.shape not in ((2, 16), (16,))]  # not the norms
    whole = {*stacks, *(shape[1:] for shape in stacks if len(shape) > 2)}
    before = {id(array): array for array in jax.live_arrays()}
    looks, saved = [], []

    def look(progress):
        arrays = [array for array in jax.live_arrays() if id(array) not in before and array.dtype == STORED[dtype]]
        matrices = [array for array in arrays if array.shape in whole]  # views of one device's share have other shapes
        for array in matrices:
            assert all(shard.data.size * parts == array.size for shard in array.addressable_shards), array.shape
        looks.append(len(matrices))

    def save(folder, config, params, **fields):
        saved.append(jax.tree.map(lambda leaf: leaf.sharding, params))
        save_imported(folder, config, params, **fields)

    save_imported = checkpoint.save_imported
    monkeypatch.setattr(checkpoint, "save_imported", save)
    config = import_checkpoint(tmp_path / "hf", tmp_path / "spread", dtype=Dtype(dtype), mesh=mesh, progress=look)
    monkeypatch.undo()
    assert len(looks) == 21 - tied and looks[-1] >= 9 - tied, "every matrix was looked at"
    wanted = param_shardings(boxed_shapes(config.model), make_mesh(mesh))
    assert jax.tree.leaves(saved[0]) == jax.tree.leaves(wanted)
    ours, kind = load_stored_params(tmp_path / "spread")
    assert kind.value == dtype and jax.tree.structure(ours) == jax.tree.structure(plain)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert a.dtype == b.dtype == STORED[dtype] and a.tobytes() == b.tobytes()


def test_meshes_that_do_not_fit(tmp_path):
    write_folder(tmp_path / "hf", SMALL, random_tensors(SMALL))
    with pytest.raises(ConfigError, match="must multiply to the 8 devices present"):
        import_checkpoint(tmp_path / "hf", tmp_path / "run", mesh=MeshConfig(fsdp=3))
    with pytest.raises(ConfigError, match=r"heads.* has 4 entries.*into 8 parts unevenly"):
        import_checkpoint(tmp_path / "hf", tmp_path / "run", mesh=MeshConfig(tensor=8))
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
