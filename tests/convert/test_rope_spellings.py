"""Rotary positions in every spelling of config.json: the frequencies are those of transformers' own module."""

import itertools
import json
import logging

import numpy as np
import pytest

from fot_jax.config import UserError
from fot_jax.convert.hf_config import Changes, read_config
from fot_jax.convert.importing import import_checkpoint
from fot_jax.ops.rope import rope_frequencies
from tests.convert.checkpoints import SMALL, random_tensors, write_folder

POSITIONS = 4096
BASE = {key: value for key, value in SMALL.items() if key != "rope_theta"} | {
    "hidden_size": 256, "num_key_value_heads": 4, "max_position_embeddings": POSITIONS,
}  # fmt: skip
KINDS = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 8.0},
}
ORIGINAL = "original_max_position_embeddings"
ORIGINALS = {"nowhere": (None, None), "top": (512, None), "inside": (None, 1024), "both": (512, 1024)}
THETAS = {"nowhere": (None, None), "top": (5e5, None), "inside": (None, 1e6), "both": (5e5, 1e6)}
PLACES = ("rope_scaling", "rope_parameters", "both", "empty_scaling")


def spelled(kind, key, place, original, theta):
    """A config.json."""
    (at_top, inside), (theta_top, theta_inside) = ORIGINALS[original], THETAS[theta]
    scaling = {key: kind, **KINDS[kind]}
    scaling |= {} if inside is None else {ORIGINAL: inside}
    scaling |= {} if theta_inside is None else {"rope_theta": theta_inside}
    values = {**BASE}
    values |= {} if at_top is None else {ORIGINAL: at_top}
    values |= {} if theta_top is None else {"rope_theta": theta_top}
    other = {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e4}
    return (
        values
        | {
            "rope_scaling": {"rope_scaling": scaling},
            "rope_parameters": {"rope_parameters": scaling},
            "both": {"rope_scaling": scaling, "rope_parameters": other},
            "empty_scaling": {"rope_scaling": None, "rope_parameters": scaling},
        }[place]
    )


def theirs(values):
    """Frequencies and attention factor of transformers."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    module = LlamaRotaryEmbedding(LlamaConfig.from_dict(json.loads(json.dumps(values))))
    return module.inv_freq.numpy(), module.attention_scaling


def ours(values):
    """Frequencies and attention factor of the config that is read."""
    model, _ = read_config(values, source="config.json")
    return rope_frequencies(model.rope, model.head_dim, POSITIONS)


def assert_equal(values):
    """Float32 rounding apart."""
    (wanted, factor), (got, scale) = theirs(values), ours(values)
    np.testing.assert_allclose(got, wanted, rtol=2e-6, err_msg=json.dumps(values))
    assert abs(factor - scale) < 1e-12, values


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_spelling_gives_their_frequencies(kind, place):
    """Kind, place, name of the kind, and places of the original context and of theta in all combinations."""
    frequencies = set()
    for key, original, theta in itertools.product(("type", "rope_type"), ORIGINALS, THETAS):
        values = spelled(kind, key, place, original, theta)
        assert_equal(values)
        frequencies.add(tuple(ours(values)[0]))
    contexts = 3 if kind in ("llama3", "yarn") else 1  # all positions, 512, 1024
    assert len(frequencies) == contexts * 3, "each statement counts for something"


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 4.0}},
        {"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "yarn", "factor": None, ORIGINAL: 1024}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": None, "beta_slow": None}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.1 * np.log(4.0) + 1}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 4}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 100_000, "rope_theta": 2.0}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 1.0, ORIGINAL: 1024.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 4, "finetuned": True, "beta_fast": 3.0}},
    ],
)
def test_rare_spellings_give_their_frequencies(changes):
    """Nulls, both names of the kind, an original context so short or so long that YARN's ramp is cut off."""
    assert_equal({**BASE, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": None}, "rope_theta must be a finite number, got None"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": None}}, r"rope_scaling\.rope_theta must be"),
        ({ORIGINAL: None, "rope_scaling": {"type": "yarn", "factor": 2.0}}, f"{ORIGINAL} must be a finite number"),
        ({"rope_scaling": {"type": "llama3", "factor": None, "low_freq_factor": 1, "high_freq_factor": 4}},
         r"rope_scaling\.factor must be a finite number, got None"),
        ({"rope_scaling": {"rope_type": None, "type": "linear", "factor": 2.0}}, "rope_type must be one of"),
        ({"rope_parameters": "linear"}, "rope_parameters must be an object, got 'linear'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
         r"rope_scaling\.partial_rotary_factor must be 1"),
    ],
)  # fmt: skip
def test_what_transformers_cannot_use_is_refused(changes, message):
    """transformers fails too, when it reads them or at the first forward pass."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    values = {**BASE, **changes}
    with pytest.raises(UserError, match=message) as caught:
        read_config(values, source="config.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(Exception):  # noqa: B017, PT011 (errors of many kinds)
        LlamaForCausalLM(LlamaConfig.from_dict(values))(torch.zeros((1, 8), dtype=torch.long))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 1000.0}}, r"rope_scaling\.alpha must be absent"),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [8, 8]}}, r"mrope_section must be absent"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}},
            "rope_parameters must hold the numbers of all layers, got an object for 'full_attention'",
        ),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor must be 1 .* got 0\.5"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, ORIGINAL: 100.5}}, "must be a whole number, got 100.5"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "rope_theta": 1.0}}, r"theta must be > 1 for yarn"),
        ({"rope_theta": 10**400}, "rope_theta must be a finite number"),
    ],
)
def test_positions_of_other_models_are_refused(changes, message):
    """transformers drops them without a word; a checkpoint that states them was trained with them."""
    with pytest.raises(UserError, match=message):
        read_config({**BASE, **changes}, source="config.json")


def test_keys_that_are_not_read_are_logged(caplog):
    """Once by name, where another key wins as in transformers, or the kind has no use for them."""
    caplog.set_level(logging.WARNING, logger="fot_jax")
    ours({**BASE, "rope_scaling": {"type": "dynamic", "factor": 2.0, ORIGINAL: 64}})
    assert f"'dynamic' is read without {ORIGINAL}, as in transformers" in caplog.text
    caplog.clear()
    ours(spelled("yarn", "type", "both", "both", "both"))
    for said in ("rope_parameters is not", f"{ORIGINAL} 512 at the top is read", "500000.0 at the top is not"):
        assert caplog.text.count(said) == 1
    caplog.clear()
    ours(spelled("yarn", "type", "rope_scaling", "inside", "top"))
    assert not caplog.records, "nothing is left out"


def test_frequencies_beyond_floats_are_refused(tmp_path):
    """A factor so large that dynamic scaling overflows; nothing is left."""
    values = {**SMALL, "rope_scaling": {"type": "dynamic", "factor": 1e300}, "max_position_embeddings": 64}
    folder = write_folder(tmp_path / "hf", values, random_tensors(values))
    for window in (10**9, 10**4):  # infinite, and a power that Python refuses
        with pytest.raises(UserError, match="must give finite frequencies above 0"):
            import_checkpoint(folder, tmp_path / "to/run", changes=Changes(local_context=window))
    assert not (tmp_path / "to").exists()
