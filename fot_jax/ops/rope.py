"""Rotary positions (Su et al. 2021) in Hugging Face's convention: dimension i pairs with i + D/2."""

import math
from typing import assert_never

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fot_jax.config import RopeConfig, RopeScaling


def rope_frequencies(config: RopeConfig, head_dim: int, context_length: int) -> tuple[np.ndarray, float]:
    """Angular frequencies per pair, and the factor that multiplies cos and sin.

        f_i = theta^(−2i/D), then scaled as Hugging Face's `rope_scaling` does.

    Args:
      config: theta and scaling.
      head_dim: D.
      context_length: tokens in the local context; DYNAMIC scaling depends on it.

    Returns:
      float64 [D/2] in radians per token, and the attention factor (1 but for YARN).
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    frequencies = config.theta**-exponents
    original, factor = config.original_context, config.factor
    if config.scaling is RopeScaling.LINEAR:
        return frequencies / factor, 1.0
    if config.scaling is RopeScaling.DYNAMIC:
        length = max(context_length, original)
        stretch = (factor * length / original - (factor - 1)) ** (head_dim / (head_dim - 2))
        return (config.theta * stretch) ** -exponents, 1.0
    if config.scaling is RopeScaling.LLAMA3:
        return _llama3(frequencies, config), 1.0
    if config.scaling is RopeScaling.YARN:
        return _yarn(frequencies, config, head_dim), 0.1 * math.log(factor) + 1.0
    if config.scaling is RopeScaling.NONE:
        return frequencies, 1.0
    assert_never(config.scaling)


def _llama3(frequencies: np.ndarray, config: RopeConfig) -> np.ndarray:
    """Long waves divided by the factor, short ones kept, a linear blend between."""
    turns = config.original_context * frequencies / (2 * math.pi)
    span = config.high_freq_factor - config.low_freq_factor
    keep = np.clip((turns - config.low_freq_factor) / span, 0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / config.factor


def _yarn(frequencies: np.ndarray, config: RopeConfig, head_dim: int) -> np.ndarray:
    """Interpolates slow dimensions, keeps fast ones, a linear ramp over dimension between (Peng et al. 2023)."""

    def dimension(turns: float) -> float:
        return head_dim * math.log(config.original_context / (turns * 2 * math.pi)) / (2 * math.log(config.theta))

    low = max(math.floor(dimension(config.beta_fast)), 0)
    high = min(math.ceil(dimension(config.beta_slow)), head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / ((high - low) or 0.001), 0.0, 1.0)
    return frequencies * (1 - ramp) + frequencies / config.factor * ramp


def rotate(
    x: Float[Array, "B L H D"],
    positions: Int[Array, "#B L"],
    frequencies: np.ndarray,
    factor: float | Float[Array, ""] = 1.0,
) -> Float[Array, "B L H D"]:
    """Rotates each pair (i, i + D/2) by position · f_i; position 0 leaves x as it is (factor 1).

    Args:
      x: queries or keys.
      positions: in tokens.
      frequencies: [D/2], radians per token.
      factor: multiplies the result.
    """
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)[None, None]
    cos, sin = jnp.cos(angles)[:, :, None, :] * factor, jnp.sin(angles)[:, :, None, :] * factor
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
