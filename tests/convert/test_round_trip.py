"""Out and in again, bit for bit; what transformers and Orbax make of the export."""

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from fot_jax.checkpoint import Checkpointer, load_params, load_stored_params
from fot_jax.config import Dtype, Family, MemoryPositions, RopeConfig, RopeScaling, UserError
from fot_jax.convert import names
from fot_jax.convert.exporting import Format, export_checkpoint
from fot_jax.convert.hf_config import Changes
from fot_jax.convert.hf_config import read_config as read_source_config
from fot_jax.convert.hf_config import write_config as hugging_face_config
from fot_jax.convert.importing import import_checkpoint
from fot_jax.data.vocabulary import load_vocabulary
from fot_jax.models.init import param_shapes
from fot_jax.workdir import read_config, with_tokenizer, write_config
from tests.convert.checkpoints import (
    SMALL,
    bpe_tokenizer,
    our_logits,
    random_tensors,
    shapes,
    their_logits,
    tokens_for,
    write_folder,
)
from tests.train.tiny import tiny

TIED = {**SMALL, "vocab_size": 400, "tie_word_embeddings": True}
STORED = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run's folder with memory layers and a tokenizer."""
    folder = tmp_path_factory.mktemp("original")
    write_folder(folder / "hf", TIED, random_tensors(TIED))
    bpe_tokenizer().save(str(folder / "hf/tokenizer.json"))
    (folder / "hf/generation_config.json").write_text("{}")
    import_checkpoint(folder / "hf", folder / "run", changes=Changes(memory_layers=(1,), local_context=32))
    return folder / "run"


@pytest.fixture
def imported(original, tmp_path):
    """A copy of it in another place."""
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def test_a_folder_may_move(original, imported, tmp_path):
    """The tokenizer next to the moved config is read; folders of before, with an absolute path, still load."""
    stored = json.loads((imported / "config.json").read_text())["data"]["vocabulary"]
    assert stored["path"] == "{workdir}/tokenizer/tokenizer.json"
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    for workdir in (original, moved):
        config = read_config(workdir)
        assert config.data.vocabulary.path == str(workdir / "tokenizer/tokenizer.json")
        assert load_vocabulary(config.data.vocabulary).encode("make demo") == bpe_tokenizer().encode("make demo").ids
    absolute = with_tokenizer(read_config(moved), str(original / "tokenizer/tokenizer.json"))
    write_config(moved, absolute)
    assert read_config(moved) == absolute


def test_every_parameter_has_one_place():
    """Each number of the model is reached by exactly one tensor, and names and shapes are Hugging Face's."""
    for tied in (True, False):
        config = dataclasses.replace(tiny().model, family=Family.LLAMA, tie_embeddings=tied, smear_keys=False)
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.int32), param_shapes(config))
        slots = names.tensor_slots(config)
        for slot in slots.values():
            names.tensor_view(params, slot)[...] += 1
        assert all((leaf == 1).all() for leaf in jax.tree.leaves(params))
        theirs = {
            "hidden_size": config.embed_dim, "intermediate_size": config.mlp_dim, "vocab_size": config.vocab_size,
            "head_dim": config.head_dim, "num_attention_heads": config.num_heads, "tie_word_embeddings": tied,
            "num_key_value_heads": config.num_kv_heads, "num_hidden_layers": config.num_layers,
        }  # fmt: skip
        assert {name: slot.shape for name, slot in slots.items()} == shapes(theirs)


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("config", [SMALL, TIED], ids=["untied", "tied"])
def test_import_of_an_export_is_the_same_bit_for_bit(tmp_path, dtype, config):
    """Special values too: the smallest float, a negative zero."""
    tensors = random_tensors(config, STORED[dtype])
    tensors["model.norm.weight"][:3] = (-0.0, 1e-45, 1e-40)
    write_folder(tmp_path / "hf", config, tensors)
    import_checkpoint(tmp_path / "hf", tmp_path / "one", dtype=Dtype(dtype))
    written = export_checkpoint(tmp_path / "one", tmp_path / "out", max_shard_bytes=3000)
    assert "model.safetensors.index.json" in written and len(written) > 4
    import_checkpoint(tmp_path / "out", tmp_path / "two", dtype=Dtype(dtype))
    (one, kind), (two, _) = load_stored_params(tmp_path / "one"), load_stored_params(tmp_path / "two")
    assert kind.value == dtype
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert a.dtype == STORED[dtype] and a.tobytes() == b.tobytes()
    loaded = load_params(tmp_path / "one")[1]
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(loaded), strict=True):
        assert b.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b))


def test_the_exported_files_hold_what_came_in(tmp_path):
    import safetensors.numpy

    tensors = random_tensors(SMALL)
    write_folder(tmp_path / "hf", SMALL, tensors, shards=3)
    import_checkpoint(tmp_path / "hf", tmp_path / "run")
    assert export_checkpoint(tmp_path / "run", tmp_path / "out") == ["config.json", "model.safetensors"]
    found = safetensors.numpy.load_file(tmp_path / "out/model.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_transformers_loads_an_export(imported, tmp_path):
    import transformers

    export_checkpoint(imported, tmp_path / "out", max_shard_bytes=20_000)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert model.config.mem_layers == [1] and model.config.fot_jax["model"]["local_context"] == 32
    assert model.config.max_position_embeddings == 64, "the trained context, not the window"
    tokens = tokens_for(400, 32)
    assert np.abs(their_logits(model.eval(), tokens) - our_logits(imported, tokens)).max() < 2e-4
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "make demo in 10 minutes"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == bpe_tokenizer().encode(text).ids
    assert (tmp_path / "out/generation_config.json").exists()


def test_settings_and_every_scaling_survive_the_round_trip(imported, tmp_path):
    config = read_config(imported)
    for index, rope in enumerate((
        RopeConfig(theta=5e5),
        RopeConfig(scaling=RopeScaling.LINEAR, factor=2.0),
        RopeConfig(scaling=RopeScaling.DYNAMIC, factor=2.0, original_context=96),
        RopeConfig(scaling=RopeScaling.LLAMA3, factor=8.0, original_context=16, low_freq_factor=0.5),
        RopeConfig(scaling=RopeScaling.YARN, factor=8.0, original_context=16, beta_fast=8.0, beta_slow=2.0),
    )):  # fmt: skip
        model = dataclasses.replace(config.model, rope=rope, memory_layers=(0, 1))
        memory = dataclasses.replace(config.memory, top_k=7, last_context_length=5)
        changed = dataclasses.replace(config, model=model, memory=memory)
        write_config(imported, changed)
        if index:  # the settings alone
            values = hugging_face_config(changed, dtype=Dtype.FLOAT32, source_values={})
            model_back, memory_back = read_source_config(values, source="config.json", changes=Changes())
            back = dataclasses.replace(changed, model=model_back, memory=memory_back)
        else:
            export_checkpoint(imported, tmp_path / "out")
            back = import_checkpoint(tmp_path / "out", tmp_path / "in")
            assert (tmp_path / "in/tokenizer/tokenizer.json").exists()
        assert back.model.rope.theta == rope.theta and back.model.rope.scaling is rope.scaling
        if rope.scaling in (RopeScaling.NONE, RopeScaling.LINEAR):  # they have no original context
            back_rope = dataclasses.replace(back.model.rope, original_context=rope.original_context)
            back = dataclasses.replace(back, model=dataclasses.replace(back.model, rope=back_rope))
        assert (back.model, back.memory) == (changed.model, changed.memory)


def test_orbax_format_is_bare_parameters(imported, tmp_path):
    import orbax.checkpoint as ocp

    written = export_checkpoint(imported, tmp_path / "out", form=Format.ORBAX)
    assert written == ["config.json", "params", "source_config.json", "tokenizer"]
    with ocp.StandardCheckpointer() as checkpointer:
        wanted = load_params(imported)[1]
        params = checkpointer.restore(tmp_path / "out/params", jax.tree.map(np.asarray, wanted))
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)
    config = read_config(tmp_path / "out")
    assert config.model == read_config(imported).model
    assert config.data.vocabulary.path == str(tmp_path / "out/tokenizer/tokenizer.json")


def test_a_step_may_be_named(imported, tmp_path):
    """The checkpoint of another step, saved as training saves it."""
    config = read_config(imported)
    doubled = jax.tree.map(lambda leaf: leaf * 2, load_params(imported)[1])
    with Checkpointer(imported, config) as checkpoints:
        checkpoints.save(7, params=doubled, optimizer={"count": np.zeros(1)}, data={"step": 7}, heldout_loss=None)
    for step, factor in ((0, 1), (7, 2), ("latest", 2)):
        out = tmp_path / f"out{step}"
        export_checkpoint(imported, out, step=step)
        import_checkpoint(out, tmp_path / f"in{step}")
        again = load_params(tmp_path / f"in{step}")[1]
        np.testing.assert_array_equal(
            again["embedding"], np.asarray(load_params(imported, step=0)[1]["embedding"]) * factor
        )
    with pytest.raises(UserError, match=r"must hold the checkpoint asked for \(3\); it has \[0, 7\]"):
        export_checkpoint(imported, tmp_path / "none", step=3)
    assert not list(tmp_path.glob("*none*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": Family.PAPER}, r"model\.family must be 'llama' .* got 'paper'\. Use --format=orbax"),
        ({"smear_keys": True}, r"model\.smear_keys must be off"),
        ({"memory_gate": True}, r"model\.memory_gate must be off"),
        ({"scan_layers": False}, r"model\.scan_layers must be on"),
        ({"memory_positions": MemoryPositions.NOPE}, r"model\.memory_positions must be 'rope0'"),
    ],
)
def test_models_that_transformers_lacks_are_refused(imported, tmp_path, change, message):
    config = read_config(imported)
    write_config(imported, dataclasses.replace(config, model=dataclasses.replace(config.model, **change)))
    with pytest.raises(UserError, match=message) as caught:
        export_checkpoint(imported, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*out*"))


def test_a_folder_that_exists_is_left_alone(imported, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("x")
    with pytest.raises(UserError, match=r"--to must name a new folder, got .*out.*exists"):
        export_checkpoint(imported, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_the_export_names_its_dtype(tmp_path):
    write_folder(tmp_path / "hf", SMALL, random_tensors(SMALL))
    import_checkpoint(tmp_path / "hf", tmp_path / "run", dtype=Dtype.BFLOAT16)
    export_checkpoint(tmp_path / "run", tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "bfloat16"
