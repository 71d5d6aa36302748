"""model.safetensors and an index in one folder: which is read, and that it is said."""

import json
import logging

import numpy as np
import pytest
import safetensors.numpy

from fot_jax.checkpoint import load_params
from fot_jax.config import UserError
from fot_jax.convert.importing import import_checkpoint
from tests.convert.checkpoints import SMALL, random_tensors, write_folder

INDEX = "model.safetensors.index.json"
SAID = "model.safetensors is read, as in transformers; model.safetensors.index.json names other files and is not"


def two_models(folder):
    """One model in shards with an index, and another, its negative, in model.safetensors."""
    tensors = random_tensors(SMALL)
    write_folder(folder, SMALL, tensors, shards=2)
    negative = {name: -tensor for name, tensor in tensors.items()}
    safetensors.numpy.save_file(negative, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_whole_file_wins_as_in_transformers(tmp_path, caplog):
    """The parameters are those that transformers loads from the same folder; the index is named once."""
    import transformers

    caplog.set_level(logging.WARNING, logger="fot_jax")
    folder = two_models(tmp_path / "hf")
    import_checkpoint(folder, tmp_path / "run")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    wanted = theirs.state_dict()["model.embed_tokens.weight"].numpy()
    np.testing.assert_array_equal(np.asarray(load_params(tmp_path / "run")[1]["embedding"]), wanted)
    assert caplog.text.count(SAID) == 1


@pytest.mark.parametrize("damage", ["missing shard", "no JSON"])
def test_a_stale_index_needs_nothing(tmp_path, damage):
    """Nobody reads it: its shards may be gone, and it may be damaged."""
    folder = two_models(tmp_path / "hf")
    if damage == "no JSON":
        (folder / INDEX).write_text("{")
    else:
        (folder / "model-00001-of-00002.safetensors").unlink()
    import_checkpoint(folder, tmp_path / "run")


def test_an_index_that_names_the_whole_file_is_fine(tmp_path, caplog):
    """Some writers always write one; nothing is said."""
    caplog.set_level(logging.WARNING, logger="fot_jax")
    tensors = random_tensors(SMALL)
    folder = write_folder(tmp_path / "hf", SMALL, tensors)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model.safetensors")}))
    import_checkpoint(folder, tmp_path / "run")
    assert not caplog.records


def test_of_a_tensor_in_two_shards_the_index_chooses(tmp_path):
    """Whatever the order of the files' names."""
    tensors = random_tensors(SMALL)
    name = "model.embed_tokens.weight"
    for chosen in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        folder = write_folder(tmp_path / chosen, SMALL, tensors, shards=2)
        index = json.loads((folder / INDEX).read_text())
        for file in set(index["weight_map"].values()):
            held = {n: tensors[n] for n, place in index["weight_map"].items() if place == file and n != name}
            value = tensors[name] if file == chosen else -tensors[name]
            safetensors.numpy.save_file({**held, name: value}, folder / file)
        index["weight_map"][name] = chosen
        (folder / INDEX).write_text(json.dumps(index))
        import_checkpoint(folder, tmp_path / "run" / chosen)
        got = load_params(tmp_path / "run" / chosen)[1]["embedding"]
        np.testing.assert_array_equal(np.asarray(got), tensors[name])


def test_shards_of_two_models_are_refused(tmp_path):
    """A shard that lacks what the index says."""
    folder = write_folder(tmp_path / "hf", SMALL, random_tensors(SMALL), shards=2)
    safetensors.numpy.save_file({"x": np.zeros(2, np.float32)}, folder / "model-00002-of-00002.safetensors")
    with pytest.raises(UserError, match=r"must hold .*, as .*index\.json says.* not of one model\. Download both"):
        import_checkpoint(folder, tmp_path / "run")
