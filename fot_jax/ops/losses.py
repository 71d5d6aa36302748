"""Next-token loss as sums, so that micro-batches and hosts add up exactly."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@flax.struct.dataclass
class Losses:
    """Sums over the tokens that bear loss (float32 scalars).

    Attributes:
      cross_entropy: Σ m · (logsumexp(z) − z_target), in nats.
      z_loss: Σ m · coefficient · logsumexp(z)².
      weight: Σ m, tokens.
      correct: Σ m · [argmax z = target].
    """

    cross_entropy: Array
    z_loss: Array
    weight: Array
    correct: Array


def token_cross_entropy(logits: Float[Array, "B L V"], targets: Int[Array, "B L"]) -> Float[Array, "B L"]:
    """−log softmax(logits)[target], in nats, float32."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def cross_entropy(
    logits: Float[Array, "B L V"],
    targets: Int[Array, "B L"],
    mask: Float[Array, "B L"],
    *,
    z_loss: float = 0.0,
) -> Losses:
    """Sums cross-entropy, z-loss, weight and correct predictions under a mask.

    Args:
      logits: of the next token.
      targets: token ids.
      mask: 1 where a token bears loss.
      z_loss: coefficient of logsumexp² (PaLM, sec. 5).
    """
    logits = logits.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    correct = jnp.argmax(logits, axis=-1) == targets
    return Losses(
        cross_entropy=jnp.sum(mask * (normaliser - picked)),
        z_loss=jnp.sum(mask * z_loss * normaliser**2),
        weight=jnp.sum(mask),
        correct=jnp.sum(mask * correct),
    )
