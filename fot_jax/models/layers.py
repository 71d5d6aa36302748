"""The parts of a decoder block: projections, norms, feed-forward. Every parameter names its logical axes."""

from typing import assert_never

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fot_jax.config import Dtype, Family, ModelConfig
from fot_jax.ops.linear import project

DTYPES = {Dtype.FLOAT32: jnp.float32, Dtype.BFLOAT16: jnp.bfloat16}


def scaled_normal(fan_in: int) -> nn.initializers.Initializer:
    """Normal with standard deviation 1/sqrt(fan_in)."""
    return nn.initializers.normal(stddev=fan_in**-0.5)


def residual_init(config: ModelConfig, fan_in: int) -> nn.initializers.Initializer:
    """Smaller by sqrt(2N) for what is added to the residual stream, so that N layers add up to order 1."""
    return nn.initializers.normal(stddev=(fan_in * 2 * config.num_layers) ** -0.5)


def embedding_init(config: ModelConfig) -> nn.initializers.Initializer:
    """Order 1, as what layers add, so that a token stays legible above; 1/sqrt(E) where it also unembeds."""
    return nn.initializers.normal(stddev=config.embed_dim**-0.5 if config.tie_embeddings else 1.0)


def weight(module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...], init) -> jax.Array:
    """A float32 parameter with logical axes."""
    value = module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)
    return value  # pyright: ignore[reportReturnType]: linen unboxes it


class Norm(nn.Module):
    """RMSNorm (LLAMA) or LayerNorm with scale and bias (PAPER), computed in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, L, E] -> [B, L, E], same dtype."""
        config = self.config
        y = x.astype(jnp.float32)
        scale = weight(self, "scale", (x.shape[-1],), ("norm",), nn.initializers.ones)
        if config.family is Family.PAPER:
            y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + config.norm_epsilon)
        y = y * scale[None, None]
        if config.family is Family.PAPER:
            y = y + weight(self, "bias", (x.shape[-1],), ("norm",), nn.initializers.zeros)[None, None]
        return y.astype(x.dtype)


class FeedForward(nn.Module):
    """SwiGLU (LLAMA): (silu(x W_gate) ⊙ x W_up) W_down. GELU (PAPER): gelu(x W_up) W_down."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, L, E] -> [B, L, E]."""
        config = self.config
        E, F = config.embed_dim, config.mlp_dim
        up = weight(self, "up", (E, F), ("embed", "mlp"), scaled_normal(E))
        down = weight(self, "down", (F, E), ("mlp", "embed"), residual_init(config, F))
        hidden = project(x, up.astype(x.dtype))
        if config.family is Family.LLAMA:
            gate = weight(self, "gate", (E, F), ("embed", "mlp"), scaled_normal(E))
            hidden = jax.nn.silu(project(x, gate.astype(x.dtype))) * hidden
        elif config.family is Family.PAPER:
            hidden = jax.nn.gelu(hidden)
        else:
            assert_never(config.family)
        return project(hidden, down.astype(x.dtype))


class Projections(nn.Module):
    """Queries, keys and values of a chunk; queries come out scaled for a plain inner product.

    LLAMA: q / sqrt(D). PAPER: q and k are L2-normalised and q is multiplied by a learnable
    temperature per head, stored as its logarithm (FoT app. B.1). `smear_keys`: see `smear`.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, *, follows: jax.Array, before: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Projects a chunk.

        Args:
          x: [B, L, E].
          follows: bool [B, L], whether the token before is known and of the same text.
          before: [B, G, D], product of the token before the first one; None: there is none.

        Returns:
          queries [B, L, H, D], keys [B, L, G, D], values [B, L, G, D], none rotated; and the bare
          products of the keys [B, L, G, D], for `before`.
        """
        config = self.config
        E, H, G, D = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        wq = weight(self, "query", (E, H, D), ("embed", "heads", "head_dim"), scaled_normal(E))
        wk = weight(self, "key", (E, G, D), ("embed", "kv_heads", "head_dim"), scaled_normal(E))
        wv = weight(self, "value", (E, G, D), ("embed", "kv_heads", "head_dim"), scaled_normal(E))
        queries = project(x, wq.astype(x.dtype))
        keys = products = project(x, wk.astype(x.dtype))
        values = project(x, wv.astype(x.dtype))
        if config.smear_keys:
            share = jax.nn.sigmoid(weight(self, "smear", (G,), ("kv_heads",), nn.initializers.zeros))
            keys = smear(products, share=share, follows=follows, before=before)
        if config.family is Family.LLAMA:
            return queries * D**-0.5, keys, values, products
        if config.family is not Family.PAPER:
            assert_never(config.family)
        log_temperature = weight(
            self, "log_temperature", (H,), ("heads",), nn.initializers.constant(float(np.log(D**0.5)))
        )
        temperature = jnp.exp(log_temperature)[None, None, :, None].astype(x.dtype)
        return _unit(queries) * temperature, _unit(keys), values, products


def smear(keys: jax.Array, *, share: jax.Array, follows: jax.Array, before: jax.Array | None) -> jax.Array:
    """k_t ← (1 − a) k_t + a k_{t−1}: a query for what a token is also finds what came after it.

    Args:
      keys: [B, L, G, D].
      share: a [G].
      follows: bool [B, L]; where False, k_t stays.
      before: k_{−1} [B, G, D], or None.

    Source: Olsson et al. 2022, "In-context learning and induction heads" (smeared keys).
    """
    first = keys[:, :1] if before is None else before[:, None].astype(keys.dtype)
    previous = jnp.concatenate([first, keys[:, :-1]], axis=1)
    mixed = share.astype(keys.dtype)[None, None, :, None] * (previous - keys)
    return keys + jnp.where(follows[:, :, None, None], mixed, 0)


def _unit(x: jax.Array) -> jax.Array:
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt(jnp.sum(y * y, axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)
