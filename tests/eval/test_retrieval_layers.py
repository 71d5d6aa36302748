"""Retrieval layers: the measured mass against loops, and that a copying layer is found."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from fot_jax.config import Family, Init, MemoryPositions, ModelConfig, UserError
from fot_jax.data.vocabulary import ByteVocabulary
from fot_jax.eval import retrieval_layers
from fot_jax.models.init import init_params
from fot_jax.models.transformer import run
from tests import oracles

MODEL = ModelConfig(
    num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=32, vocab_size=259,
    local_context=400, memory_layers=(1,), family=Family.LLAMA,
)  # fmt: skip
VOCABULARY = ByteVocabulary()


def fresh(model):
    return nn.unbox(jax.jit(functools.partial(init_params, model))(jax.random.key(0)))


@pytest.mark.parametrize("positions", list(MemoryPositions))
def test_mass_is_that_of_softmax_loops(positions):
    model = dataclasses.replace(MODEL, memory_positions=positions)
    params = jax.tree.map(lambda leaf: 2 * np.asarray(leaf), fresh(model))
    found = retrieval_layers.measure(params, model, vocabulary=VOCABULARY, length=380, trials=1, seed=4)
    (prompt,) = retrieval_layers.make_trials(VOCABULARY, length=380, trials=1, seed=4)
    tokens = np.array([*prompt.tokens, *VOCABULARY.encode(prompt.answer)], np.int32)
    output = jax.jit(functools.partial(run, model, capture=True))(params, tokens[None])
    text = prompt.prompt.encode()
    key = prompt.answer.encode()
    span = [s for s in range(len(text)) for start in range(s - len(key) + 1, s + 1) if text[start:][: len(key)] == key]
    frequencies, _ = oracles.rope_frequencies(8, theta=model.rope.theta)
    for layer in range(2):
        keys = np.asarray(output.keys[layer], np.float64)
        if layer == 0 or positions is MemoryPositions.ROPE0:
            keys = oracles.rotate(keys, np.arange(len(tokens))[None], frequencies)
        for head in range(4):
            masses = []
            for t in range(len(prompt.tokens) - 1, len(tokens) - 1):
                query = np.asarray(output.queries[layer][0, t, head], np.float64)
                weights = [np.exp(query @ keys[0, s, head // 2]) for s in range(t + 1)]
                masses.append(sum(weights[s] for s in set(span)) / sum(weights))
            assert found.mass[layer, head] == pytest.approx(np.mean(masses), rel=1e-4)


def test_a_copying_layer_is_proposed_and_others_are_not():
    model = dataclasses.replace(
        MODEL, embed_dim=128, num_heads=1, num_kv_heads=1, head_dim=128, num_layers=3, init=Init.COPYING,
        memory_positions=MemoryPositions.NOPE, family=Family.PAPER,
    )  # fmt: skip
    params = fresh(model)
    hot = params["layers"]["attention"]["projections"]["log_temperature"]
    params["layers"]["attention"]["projections"]["log_temperature"] = hot + 1.0
    found = retrieval_layers.measure(params, model, vocabulary=VOCABULARY, length=380, trials=3, seed=0)
    assert found.layers(least=0.3) == (1,), found.mass


class Odd(ByteVocabulary):
    """Writes digits in answers in another way than in prompts."""

    def encode(self, text):
        ids = super().encode(text)
        return ids if len(text) > 60 else [i + 1 for i in ids]


def test_a_vocabulary_that_writes_the_key_in_two_ways_is_refused():
    params = fresh(MODEL)
    with pytest.raises(UserError, match=r"must write the key .* alike"):
        retrieval_layers.measure(params, MODEL, vocabulary=Odd(), length=380, trials=1, seed=0)
