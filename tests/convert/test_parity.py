"""Logits and greedy text of imported models against Hugging Face's own code."""

import copy
import dataclasses

import numpy as np
import pytest

from fot_jax.checkpoint import load_params
from fot_jax.config import Dtype, MemoryConfig, RopeConfig
from fot_jax.convert.hf_config import Changes
from fot_jax.convert.importing import import_checkpoint
from fot_jax.infer.generate import generate
from fot_jax.infer.sampling import SamplingConfig
from fot_jax.infer.windows import read
from tests.convert.checkpoints import llama, our_logits, their_logits, tokens_for

LENGTH = 520
TOLERANCE = 2e-4  # float32

CASES = {
    "multi_head_untied_64": {},
    "multi_head_tied_80_yarn": {
        "hidden_size": 320, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0,
                            "original_max_position_embeddings": 128},
    },
    "grouped_tied_64_linear": {
        "num_key_value_heads": 2, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
    },
    "grouped_untied_80_dynamic": {
        "hidden_size": 320, "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    },
    "grouped_untied_128_llama3": {
        "num_key_value_heads": 2, "head_dim": 128,
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                            "high_freq_factor": 4.0, "original_max_position_embeddings": 128},
    },
}  # fmt: skip
ONE = "grouped_untied_128_llama3"
SCALED = [name for name in CASES if name != "multi_head_untied_64"]


@pytest.fixture(scope="module", params=CASES)
def imported(request, tmp_path_factory):
    """(name, transformers' model, our folder) of one case."""
    folder = tmp_path_factory.mktemp(request.param)
    model = llama(**CASES[request.param])
    model.save_pretrained(folder / "hf")
    import_checkpoint(folder / "hf", folder / "ours")
    return request.param, model, folder / "ours"


def test_logits_agree(imported, record_property):
    name, model, workdir = imported
    tokens = tokens_for(model.config.vocab_size, LENGTH)
    wanted, got = their_logits(model, tokens), our_logits(workdir, tokens)
    difference = float(np.abs(wanted - got).max())
    record_property("max_abs_difference", difference)
    print(f"{name}: max |difference| {difference:.2e} of logits with standard deviation {wanted.std():.2f}")
    assert wanted.std() > 0.5
    assert difference <= TOLERANCE


@pytest.mark.parametrize("imported", SCALED, indirect=True)
def test_the_logits_depend_on_the_scaling(imported):
    """Or the test above would not see a wrong one. Dynamic scaling starts past the original context, not reached."""
    name, model, workdir = imported
    tokens = tokens_for(model.config.vocab_size, LENGTH)
    config = load_params(workdir)[0].model
    plain = dataclasses.replace(config, rope=RopeConfig(theta=config.rope.theta))
    changed = np.abs(our_logits(workdir, tokens, plain) - our_logits(workdir, tokens)).max()
    assert (changed == 0) if "dynamic" in name else (changed > 0.1)


def test_dynamic_scaling_agrees_for_one_whole_local_context(tmp_path):
    """Past the original context: theirs stretches by the length of this forward pass, ours by the local context."""
    model = llama(max_position_embeddings=256, rope_parameters={"rope_type": "dynamic", "factor": 4.0})
    model.save_pretrained(tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "ours", changes=Changes(local_context=LENGTH))
    tokens = tokens_for(model.config.vocab_size, LENGTH)
    shorter = their_logits(model, tokens[:, :400])  # first: they remember the longest length
    wanted, got = their_logits(model, tokens), our_logits(tmp_path / "ours", tokens)
    assert np.abs(wanted - got).max() <= TOLERANCE
    assert np.abs(shorter - got[:, :400]).max() > 0.1, "the documented difference, on the same prefix"


@pytest.mark.parametrize("imported", [ONE], indirect=True)
def test_bfloat16_is_as_near_to_float32_as_theirs(imported):
    """Rounding depends on the order of operations: the bound is 1.5 times what transformers' bfloat16 loses."""
    import torch

    _, model, workdir = imported
    tokens = tokens_for(model.config.vocab_size, LENGTH)
    exact = their_logits(model, tokens)
    theirs = their_logits(copy.deepcopy(model).to(torch.bfloat16), tokens) - exact
    config = dataclasses.replace(load_params(workdir)[0].model, dtype=Dtype.BFLOAT16)
    ours = our_logits(workdir, tokens, config) - exact
    root_mean_square = [float(np.sqrt(np.mean(error.astype(np.float64) ** 2))) for error in (ours, theirs)]
    largest = [float(np.abs(error).max()) for error in (ours, theirs)]
    print(f"ours, theirs: root mean square {root_mean_square}, largest {largest}, logits {exact.std():.2f}")
    assert root_mean_square[0] <= 1.5 * root_mean_square[1]
    assert largest[0] <= 1.5 * largest[1]
    assert root_mean_square[0] > 1e-3 * exact.std(), "or it was not computed in bfloat16"


def test_greedy_text_is_the_same_over_64_tokens(imported):
    import torch

    _, model, workdir = imported
    prompt = tokens_for(model.config.vocab_size, 100)
    model.generation_config.eos_token_id = None  # both go on after the end
    with torch.no_grad():
        wanted = model.generate(
            torch.from_numpy(prompt.astype(np.int64)), attention_mask=torch.ones(prompt.shape, dtype=torch.int64),
            max_new_tokens=64, do_sample=False, pad_token_id=0,
        )[0, 100:].tolist()  # fmt: skip
    config, params, _ = load_params(workdir)
    reading = read(params, config.model, [prompt[0]], memory=MemoryConfig())
    steps = generate(params, config.model, reading, sampling=SamplingConfig(), max_new_tokens=64)
    assert [int(step[0]) for step in steps] == wanted
    assert len(set(wanted)) > 10
