"""Fresh parameters of a decoder, independent or arranged for copying."""

import functools
from typing import Any, assert_never

import flax.linen as nn
import jax
import jax.numpy as jnp

from fot_jax.config import Init, ModelConfig
from fot_jax.models.transformer import Decoder

SMEAR_LOGIT = 2.0  # each key: 88 % the one before, 12 % its own


def init_params(config: ModelConfig, key: jax.Array) -> Any:
    """Fresh float32 parameters, in boxes that carry their logical axes.

    Args:
      config: the model.
      key: jax.random.key.
    """
    tokens = jnp.zeros((1, min(config.local_context, 8)), jnp.int32)
    boxed = Decoder(config).init(key, tokens)["params"]
    if config.init is Init.NORMAL:
        return boxed
    if config.init is not Init.COPYING:
        assert_never(config.init)
    values = arrange_for_copying(nn.unbox(boxed), config, jax.random.fold_in(key, 1))
    return jax.tree.map(
        lambda box, value: box.replace_boxed(value),
        boxed,
        values,
        is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata),
    )


def param_shapes(config: ModelConfig) -> Any:
    """The decoder's parameters as jax.ShapeDtypeStruct, float32, unboxed; nothing is computed."""
    return nn.unbox(boxed_shapes(config))


def shape_difference(got: Any, wanted: Any) -> tuple[str, str, str] | None:
    """The first parameter, by name, whose shape differs, for errors: (name, shape got, shape wanted), or 'missing'.

    None where all shapes are the same.
    """
    there, here = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): str(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (got, wanted)
    )
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            return name, there.get(name, "missing"), here.get(name, "missing")
    return None


@functools.lru_cache(maxsize=16)  # tracing a model takes a second, and a run asks often
def boxed_shapes(config: ModelConfig) -> Any:
    """Returns the shapes in boxes that carry their logical axes; not to be changed in place."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def arrange_for_copying(params: Any, config: ModelConfig, key: jax.Array) -> Any:
    """Memory layers that look for what a token is, and say what they find.

        queries = keys = columns of one orthonormal matrix      equal tokens match
        output  = valuesᵀ, orthonormal too                      what is read comes out as it went in
        unembedding = embeddingᵀ / √E                           and is a vote for that token
        keys are mostly those of the token before (`smear_keys`)

    With `smear_keys` this is an induction head before the first step: ... a b ... a reads b. Small models
    otherwise need far more tokens than a demo has to find it.

    Args:
      params: unboxed parameters.
      config: the model.
      key: jax.random.key.

    Source: mimetic initialisation (Trockman and Kolter 2023), here with orthonormal factors.
    """
    H, G, D, E = config.num_heads, config.num_kv_heads, config.head_dim, config.embed_dim

    def factor(layer: int, part: int) -> jax.Array:
        return _orthonormal(jax.random.fold_in(jax.random.fold_in(key, layer), part), E, G * D).reshape(E, G, D)

    def arranged(attention: Any, layer: int) -> Any:
        matching, reading = factor(layer, 0), factor(layer, 1)
        projections = dict(attention["projections"])
        projections["key"], projections["value"] = matching, reading
        projections["query"] = jnp.repeat(matching, H // G, axis=1)
        if config.smear_keys:
            projections["smear"] = jnp.full_like(projections["smear"], SMEAR_LOGIT)
        output = jnp.repeat(reading, H // G, axis=1).transpose(1, 2, 0) * (G / H)
        return {**attention, "projections": projections, "output": output}

    params = dict(params)
    if config.scan_layers:
        layers = dict(params["layers"])
        for layer in config.memory_layers:
            one = arranged(jax.tree.map(lambda leaf, layer=layer: leaf[layer], layers["attention"]), layer)
            layers["attention"] = jax.tree.map(
                lambda all_, new, layer=layer: all_.at[layer].set(new), layers["attention"], one
            )
        params["layers"] = layers
    else:
        for layer in config.memory_layers:
            block = params[f"layer_{layer}"]
            params[f"layer_{layer}"] = {**block, "attention": arranged(block["attention"], layer)}
    if not config.tie_embeddings:
        params["unembedding"] = params["embedding"].T * E**-0.5
    return params


def _orthonormal(key: jax.Array, rows: int, columns: int) -> jax.Array:
    """[rows, columns] with orthonormal columns; blocks of them where there are more columns than rows."""
    blocks = -(-columns // rows)
    drawn = [jnp.linalg.qr(jax.random.normal(k, (rows, rows)))[0] for k in jax.random.split(key, blocks)]
    return jnp.concatenate(drawn, axis=1)[:, :columns]
