"""Choice of the next token: greedy, temperature, top-k, top-p."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fot_jax.config import check


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Options of sampling. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 cut nothing off; both may be set.

    `vocab_limit`: ids from this one on are never chosen (a model may have more rows than its vocabulary
    has tokens); 0: all ids are allowed.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    vocab_limit: int = 0

    def validate(self, path: str) -> None:
        """Raises ConfigError if a value is out of range."""
        check(self.temperature >= 0, f"{path}.temperature", "be >= 0 (0: greedy)", self.temperature)
        check(self.top_k >= 0, f"{path}.top_k", "be >= 0 (0: all tokens)", self.top_k)
        check(self.vocab_limit >= 0, f"{path}.vocab_limit", "be >= 0 (0: all ids)", self.vocab_limit)
        check(0 < self.top_p <= 1, f"{path}.top_p", "be in (0, 1]", self.top_p)


def truncated_probabilities(
    logits: Float[Array, "B V"], *, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array
) -> tuple[Float[Array, "B V"], Int[Array, "B V"]]:
    """Returns the distribution that is sampled, most probable token first.

    p = softmax(logits / temperature); the top_k most probable tokens are kept, of these the
    fewest whose total probability (renormalised after top_k) reaches top_p, and at least one.

    Returns:
      probabilities in falling order (0 where cut off), and the token of each.
    """
    V = logits.shape[-1]
    tokens = jnp.argsort(-logits, axis=-1, stable=True)
    ordered = jnp.take_along_axis(logits, tokens, axis=-1) / temperature
    rank = jnp.arange(V)[None]
    ordered = jnp.where(rank < jnp.where(top_k > 0, top_k, V), ordered, -jnp.inf)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = jnp.where((before < top_p) | (rank == 0), probabilities, 0.0)
    return kept / kept.sum(axis=-1, keepdims=True), tokens


@jax.jit
def _draw(logits, key, temperature, top_k, top_p):
    probabilities, tokens = truncated_probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(logits.shape[0]))
    places = jax.vmap(jax.random.categorical)(keys, jnp.log(probabilities))
    return jnp.take_along_axis(tokens, places[:, None], axis=-1)[:, 0]


_most_probable = jax.jit(lambda logits: jnp.argmax(logits, axis=-1))


def sample(logits: Float[Array, "B V"], config: SamplingConfig, *, step: int) -> Int[Array, " B"]:
    """Returns the next token of each row; a pure function of logits, config, row and step.

    Args:
      logits: logits of the next token.
      config: how to choose, and the seed.
      step: number of the generated token; each token is drawn with its own key.
    """
    if config.vocab_limit:
        logits = jnp.where(jnp.arange(logits.shape[-1])[None] < config.vocab_limit, logits, -jnp.inf)
    if config.temperature == 0:
        return _most_probable(logits)
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    return _draw(logits, key, jnp.float32(config.temperature), jnp.int32(config.top_k), jnp.float32(config.top_p))
