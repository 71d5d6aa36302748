"""Layers and heads that look a fact up, found by the attention from an answer to its place in the prompt.

Passkey prompts that fit one window are read in one causal pass, memory off, with the right answer appended.
For every query that predicts a token of the answer:

    mass = Σ_s softmax_s(q · k_s) over the key tokens s of the number in the prompt

averaged over queries and prompts. Layers whose best head has a large mass retrieve; memory helps in them.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fot_jax.config import MemoryPositions, ModelConfig, UserError
from fot_jax.data.vocabulary import Vocabulary
from fot_jax.eval.passkey import make_trials
from fot_jax.models.transformer import run
from fot_jax.ops.rope import rope_frequencies, rotate


@dataclasses.dataclass(frozen=True, kw_only=True)
class LookupMass:
    """Attention mass on the answer in the prompt.

    Attributes:
      mass: float [N, H], the mean over queries and prompts.
      accuracy: share of answer tokens that the model predicts, teacher-forced.
    """

    mass: np.ndarray
    accuracy: float

    def layers(self, *, least: float) -> tuple[int, ...]:
        """Returns the layers whose best head has a mass of at least `least`, ascending."""
        return tuple(int(layer) for layer in np.flatnonzero(self.mass.max(axis=1) >= least))


@functools.partial(jax.jit, static_argnames=("config",))
def _masses(
    params: Any, tokens: Int[Array, "1 L"], queries_at: Bool[Array, " L"], span: Bool[Array, " L"], *, config
) -> tuple[Float[Array, "N H"], Int[Array, " L"]]:
    """Returns the mean mass on `span` of the queries at `queries_at` per layer and head, and the predicted tokens."""
    output = run(config, params, tokens, capture=True)
    L, H, G = tokens.shape[1], config.num_heads, config.num_kv_heads
    frequencies, _ = rope_frequencies(config.rope, config.head_dim, config.local_context)
    places = jnp.arange(L)[None]
    is_memory = jnp.asarray(np.isin(np.arange(config.num_layers), config.memory_layers))
    still = is_memory & (config.memory_positions is MemoryPositions.NOPE)

    def one_layer(captured):
        queries, keys, still = captured
        # Captured queries carry YARN's factor twice and captured keys lack it: the product is right as it is.
        keys = rotate(keys, jnp.where(still, 0, places), frequencies)
        scores = jnp.einsum("LGRD,SGD->GRLS", queries[0].reshape(L, G, H // G, -1), keys[0])
        causal = places[0][:, None] >= places[0][None, :]
        weights = jax.nn.softmax(jnp.where(causal, scores.astype(jnp.float32), -jnp.inf), axis=-1)
        on_span = jnp.where(span, weights, 0.0).sum(axis=-1).reshape(H, L)
        return jnp.where(queries_at, on_span, 0.0).sum(axis=-1) / queries_at.sum()

    masses = jax.lax.map(one_layer, (output.queries, output.keys, still))
    return masses, output.logits[0].argmax(axis=-1)


def measure(
    params: Any, model: ModelConfig, *, vocabulary: Vocabulary, length: int, trials: int, seed: int
) -> LookupMass:
    """Measures every layer and head.

    Args:
      params: unboxed parameters.
      model: the decoder; its memory is not used.
      vocabulary: the model's vocabulary.
      length: tokens of the prompts; they must fit the context that the model was trained on.
      trials: prompts.
      seed: seeds keys and places.

    Raises:
      UserError: the length leaves no room for the prompt, or the vocabulary encodes the key
        differently in the prompt and in the answer.
    """
    prompts = make_trials(vocabulary, length=length, trials=trials, seed=seed)
    total, right, answered = np.zeros((model.num_layers, model.num_heads)), 0, 0
    longest = length + 16
    for prompt in prompts:
        answer = _inside(vocabulary, prompt.answer)
        tokens = np.zeros((1, longest), np.int32)
        count = len(prompt.tokens)
        tokens[0, : count + len(answer)] = [*prompt.tokens, *answer]
        queries_at = np.zeros(longest, bool)
        queries_at[count - 1 : count - 1 + len(answer)] = True
        span = _span(prompt.tokens, answer, longest)
        if not span.any():
            raise UserError(
                f"the vocabulary must write the key {prompt.answer!r} alike in the prompt and in the answer, but its"
                f" tokens {answer} are not in the prompt. This measure needs another vocabulary."
            )
        masses, predicted = _masses(params, tokens, queries_at, span, config=model)
        total += np.asarray(masses)
        right += int((np.asarray(predicted)[queries_at] == answer).sum())
        answered += len(answer)
    return LookupMass(mass=total / trials, accuracy=right / answered)


def _inside(vocabulary: Vocabulary, answer: str) -> list[int]:
    """Returns the answer's tokens as encoded after a word (a vocabulary may put a space before a text)."""
    before = "The pass key is"
    return vocabulary.encode(before + answer)[len(vocabulary.encode(before)) :]


def _span(tokens: Sequence[int], answer: Sequence[int], length: int) -> np.ndarray:
    """Returns bool [length], True wherever the answer occurs in the prompt."""
    span = np.zeros(length, bool)
    for start in range(len(tokens) - len(answer) + 1):
        if list(tokens[start : start + len(answer)]) == list(answer):
            span[start : start + len(answer)] = True
    return span
