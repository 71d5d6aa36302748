"""Next-token loss as sums, so that micro-batches and hosts add up exactly."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@flax.struct.dataclass
class Losses:
    """Sums over the tokens that bear loss, and over rows (float32 scalars).

    Attributes:
      cross_entropy: Σ m · (logsumexp(z) − z_target), in nats.
      z_loss: Σ m · coefficient · logsumexp(z)².
      weight: Σ m, tokens.
      correct: Σ m · [argmax z = target].
      row_cross_entropy: Σ over rows of the row's mean cross-entropy; a row without such tokens adds 0.
      row_z_loss: Σ over rows of the row's mean z-loss.
    """

    cross_entropy: Array
    z_loss: Array
    weight: Array
    correct: Array
    row_cross_entropy: Array
    row_z_loss: Array


def cross_entropy(
    logits: Float[Array, "B L V"],
    targets: Int[Array, "B L"],
    mask: Float[Array, "B L"],
    *,
    z_loss: float = 0.0,
) -> Losses:
    """Sums cross-entropy, z-loss, weight and correct predictions under a mask, by token and by row.

    The mean over tokens is cross_entropy / weight. The mean over rows is row_cross_entropy / B:

        (1/B) · Σ_b Σ_l m_bl · nll_bl / max(Σ_l m_bl, 1e-10)

    A row in which no token bears loss adds 0 to it and counts in B, as in the authors' code.

    Args:
      logits: of the next token.
      targets: token ids.
      mask: 1 where a token bears loss.
      z_loss: coefficient of logsumexp² (PaLM, sec. 5).

    Source: `cross_entropy_loss_and_accuracy` of EasyLM, which LongLLaMA's JAX code uses (mean over rows).
    Differs: tokens are the default (`train.loss_mean`): a row with few of them weighs no more than they do.
    """
    logits = logits.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    correct = jnp.argmax(logits, axis=-1) == targets
    nll, penalty = mask * (normaliser - picked), mask * z_loss * normaliser**2
    row_weight = jnp.maximum(jnp.sum(mask, axis=-1), 1e-10)
    return Losses(
        cross_entropy=jnp.sum(nll),
        z_loss=jnp.sum(penalty),
        weight=jnp.sum(mask),
        correct=jnp.sum(mask * correct),
        row_cross_entropy=jnp.sum(jnp.sum(nll, axis=-1) / row_weight),
        row_z_loss=jnp.sum(jnp.sum(penalty, axis=-1) / row_weight),
    )
