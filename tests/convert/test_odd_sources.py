"""Checkpoints in unusual files and spellings: in, out for transformers, and in again."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from fot_jax.checkpoint import load_stored_params
from fot_jax.config import VocabularyConfig
from fot_jax.convert.exporting import Format, export_checkpoint
from fot_jax.convert.importing import import_checkpoint
from fot_jax.workdir import read_config
from tests.convert.checkpoints import (
    SMALL,
    our_logits,
    random_tensors,
    their_logits,
    tokens_for,
    write_folder,
    write_gguf,
)
from tests.convert.test_gguf_split import split

VALUES = {**SMALL, "hidden_size": 32, "intermediate_size": 32, "max_position_embeddings": 256}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"type": "yarn", "factor": 4.0}


def tensors(values):
    """Small enough for ordinary logits."""
    return {name: tensor * np.float32(0.3) for name, tensor in random_tensors(values).items()}


def folder(path, **changes):
    """A Hugging Face folder whose config.json has these keys too."""
    values = {**VALUES, **changes}
    return write_folder(path / "hf", values, tensors(values))


def stale(path):
    """A folder with an index of another model."""
    made = write_folder(path / "hf", VALUES, {name: -tensor for name, tensor in tensors(VALUES).items()}, shards=2)
    safetensors.numpy.save_file(tensors(VALUES), made / "model.safetensors", metadata={"format": "pt"})
    return made


def tame(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Makes weights small enough for a softmax that is not saturated, whose logits float32 has to 1e-5."""
    return {name: np.float32(0.3) * tensor for name, tensor in tensors.items()}


SOURCES = {
    "llama3_original_at_top": lambda path: folder(path, rope_scaling=LLAMA3, original_max_position_embeddings=64),
    "yarn_original_in_both": lambda path: folder(
        path, original_max_position_embeddings=64,
        rope_scaling={**YARN, "original_max_position_embeddings": 32, "rope_theta": 3e4},
    ),
    "both_spellings": lambda path: folder(
        path, rope_scaling={"type": "linear", "factor": 4.0},
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    ),
    "newer_spelling": lambda path: folder(path, rope_scaling=None, rope_parameters={**YARN, "rope_theta": 5e5}),
    "dynamic": lambda path: folder(path, rope_scaling={"type": "dynamic", "factor": 2.0}),
    "stale_index": stale,
    "split": lambda path: split(path / "in", tame(random_tensors(SMALL)))[1][1],
    "q5_0": lambda path: write_gguf(path / "m.gguf", VALUES, tensors(VALUES), kind="Q5_0"),
    "yarn_gguf": lambda path: write_gguf(
        path / "m.gguf", VALUES, tensors(VALUES),
        metadata={"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
                  "llama.rope.scaling.original_context_length": 64},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_an_odd_source_survives_the_round_trip(tmp_path, name):
    """transformers gives our logits for the export and, of a folder, for the original; in again bit for bit."""
    import transformers

    source = SOURCES[name](tmp_path)
    config = import_checkpoint(source, tmp_path / "one")
    export_checkpoint(tmp_path / "one", tmp_path / "out")
    back = import_checkpoint(tmp_path / "out", tmp_path / "two")
    assert (back.model, back.memory) == (config.model, config.memory)
    (one, _), (two, _) = load_stored_params(tmp_path / "one"), load_stored_params(tmp_path / "two")
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert a.tobytes() == b.tobytes()
    length = min(200, config.model.local_context)
    tokens = tokens_for(config.model.vocab_size, length)
    ours = our_logits(tmp_path / "one", tokens)
    for place in [tmp_path / "out", *([source] if source.is_dir() else [])]:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(place, dtype="float32").eval()
        assert np.abs(their_logits(theirs, tokens) - ours).max() < 2e-4, place
    assert np.abs(ours).max() > 0.1, "logits that could differ"


def test_an_orbax_export_has_the_tokenizer_it_names(tmp_path):
    """Without a tokenizer there is no folder of one, and the config names none."""
    import_checkpoint(folder(tmp_path), tmp_path / "run")
    written = export_checkpoint(tmp_path / "run", tmp_path / "out", form=Format.ORBAX)
    assert written == ["config.json", "params", "source_config.json"]
    assert read_config(tmp_path / "out").data.vocabulary == VocabularyConfig()
