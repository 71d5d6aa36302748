"""Copying initialisation: memory layers are induction heads before the first step."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.config import Init
from fot_jax.models.init import init_params
from fot_jax.models.transformer import run
from tests.models import decoders

MODEL = decoders.paper(
    num_layers=2, memory_layers=(1,), embed_dim=128, head_dim=32, mlp_dim=64, vocab_size=40, local_context=40,
    smear_keys=True, init=Init.COPYING, attention_block=40,
)  # fmt: skip


@functools.cache
def fresh(model, seed: int):
    """Parameters in their boxes."""
    return jax.jit(functools.partial(init_params, model))(jax.random.key(seed))


def copied(model) -> float:
    """Share of second halves of repeated random texts for which the largest other logit is the token to copy."""
    params = nn.unbox(fresh(model, 0))
    first = np.stack([np.random.default_rng(row).permutation(40)[:20] for row in range(16)])
    tokens = np.concatenate([first, first], axis=1)
    logits = np.array(jax.jit(functools.partial(run, model))(params, jnp.asarray(tokens)).logits)
    np.put_along_axis(logits, tokens[:, :, None], -np.inf, axis=-1)  # the residual stream votes for the token itself
    return float((logits[:, 20:-1].argmax(-1) == tokens[:, 21:]).mean())


def test_a_fresh_model_copies_what_came_after_an_equal_token():
    assert copied(MODEL) > 0.9
    assert copied(dataclasses.replace(MODEL, init=Init.NORMAL)) < 0.2
    assert copied(dataclasses.replace(MODEL, smear_keys=False)) < 0.2


@pytest.mark.parametrize("changes", [{}, {"num_kv_heads": 2}, {"scan_layers": False}, {"tie_embeddings": True}])
def test_only_memory_layers_and_the_unembedding_are_arranged(changes):
    model = dataclasses.replace(MODEL, **changes)
    boxed, usual = fresh(model, 3), fresh(dataclasses.replace(model, init=Init.NORMAL), 3)
    assert jax.tree.structure(boxed) == jax.tree.structure(usual)  # boxes and their axes too
    params, usual = nn.unbox(boxed), nn.unbox(usual)
    layers = [
        params[f"layer_{n}"] if not model.scan_layers else jax.tree.map(lambda leaf, n=n: leaf[n], params["layers"])
        for n in range(2)
    ]
    head = layers[1]["attention"]
    query, key = head["projections"]["query"], head["projections"]["key"]
    np.testing.assert_array_equal(query, np.repeat(key, 4 // model.num_kv_heads, axis=1))
    flat = np.asarray(key).reshape(128, -1)
    np.testing.assert_allclose(flat.T @ flat, np.eye(flat.shape[1]), atol=1e-5)
    through = np.einsum("egd,hde->e", head["projections"]["value"][:, :1], head["output"][:1])
    assert (through > 0).mean() > 0.9
    if not model.tie_embeddings:
        np.testing.assert_allclose(params["unembedding"], params["embedding"].T * 128**-0.5, rtol=1e-6)
    first = usual["layer_0"] if not model.scan_layers else jax.tree.map(lambda leaf: leaf[0], usual["layers"])
    jax.tree.map(np.testing.assert_array_equal, layers[0], first)
