"""Optimizers and learning-rate schedules of the paper (Adafactor) and of LongLLaMA (AdamW)."""

from collections.abc import Callable
from typing import Any, assert_never

import jax
import jax.numpy as jnp
import optax

from fot_jax.config import LearningRateKind, OptimizerConfig, OptimizerKind, TrainConfig

STACKED = "layers"  # the parameter collection that the decoder stacks along N when it scans its layers


def learning_rate(config: OptimizerConfig, *, steps: int) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    """Returns the learning rate as a function of the optimizer step.

    With s = count + 1 (the first step is 1) and W = max(warmup_steps, 1), for s <= W: max · s / W; after that

        INVERSE_SQRT  max(min, max · sqrt(W / s))
        CONSTANT      max
        COSINE        min + (max − min) · (1 + cos(π · (s − W) / (steps − W))) / 2, then min
        WSD           max; over the last D = decay_steps steps linearly to min at s = steps; then min

    Warm-up starts below `min_learning_rate`: the floor holds for the decay only.

    Args:
      config: the optimizer section of the experiment.
      steps: the length of the run in optimizer steps (COSINE and WSD end there).

    Returns:
      A function of `count`, the optimizer steps done so far.

    Source: FoT app. B.1 (inverse square root, 1000 warm-up steps); app. A.2 (LongLLaMA: constant);
    WSD: Hu et al. 2024 (MiniCPM), arXiv 2404.06395.
    """
    peak, floor = config.learning_rate, config.min_learning_rate
    warmup = max(config.warmup_steps, 1)

    def schedule(count):
        step = jnp.asarray(count, jnp.float32) + 1
        if config.schedule is LearningRateKind.INVERSE_SQRT:
            decayed = jnp.maximum(floor, peak * jnp.sqrt(warmup / step))
        elif config.schedule is LearningRateKind.COSINE:
            progress = jnp.clip((step - warmup) / max(steps - warmup, 1), 0, 1)
            decayed = floor + (peak - floor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        elif config.schedule is LearningRateKind.WSD:
            left = jnp.clip((steps - step) / config.decay_steps, 0, 1)
            decayed = floor + (peak - floor) * left
        elif config.schedule is LearningRateKind.CONSTANT:
            decayed = jnp.full((), peak, jnp.float32)
        else:
            assert_never(config.schedule)
        return jnp.where(step <= warmup, peak * step / warmup, decayed)

    return schedule


def decay_mask(params: Any) -> Any:
    """Returns True for parameters that weight decay shrinks: matrices, not norms, biases, temperatures or gates.

    A parameter of one layer counts as a matrix when it has two axes or more; the axis N of scanned layers
    is not counted.
    """

    def is_matrix(path, leaf) -> bool:
        return leaf.ndim - (path[0] == jax.tree_util.DictKey(STACKED)) >= 2

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def layerwise(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies `inner` to each scanned layer separately, so that scanning does not change the update.

    Adafactor looks at whole parameters (row and column means, root mean squares): over a stack of N layers
    these would mix the layers.
    """

    def split(tree):
        return {STACKED: tree[STACKED]}, {name: leaf for name, leaf in tree.items() if name != STACKED}

    def init(params):
        if STACKED not in params:
            return inner.init(params)
        layers, rest = split(params)
        return {"each_layer": jax.vmap(inner.init)(layers), "rest": inner.init(rest)}

    def update(updates, state, params=None):
        if STACKED not in updates:
            return inner.update(updates, state, params)
        layer_updates, rest_updates = split(updates)
        layer_params, rest_params = split(params)
        layer_updates, layer_state = jax.vmap(inner.update)(layer_updates, state["each_layer"], layer_params)
        rest_updates, rest_state = inner.update(rest_updates, state["rest"], rest_params)
        merged = {name: (layer_updates | rest_updates)[name] for name in updates}
        return merged, {"each_layer": layer_state, "rest": rest_state}

    return optax.GradientTransformation(init, update)


def make_optimizer(config: OptimizerConfig, train: TrainConfig) -> optax.GradientTransformation:
    """Returns the optimizer: clipping by the global norm, then AdamW or Adafactor, decay scaled by the learning rate.

    ADAFACTOR: factored second moments (decay 1 − t^−0.8), updates clipped to root mean square 1 and scaled
    by each parameter's own root mean square, momentum beta1; only AdamW uses `beta2` and `epsilon`.

    Source: FoT app. B.1 (Adafactor, beta1 0.9), app. A.2 (LongLLaMA: AdamW, weight decay 0.01).
    Differs: T5X multiplies by the learning rate before the momentum, this code after it, as AdamW does.
    """
    if config.kind is OptimizerKind.ADAMW:
        direction = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon)
    elif config.kind is OptimizerKind.ADAFACTOR:
        direction = layerwise(
            optax.chain(
                optax.scale_by_factored_rms(decay_rate=0.8, min_dim_size_to_factor=128, epsilon=1e-30),
                optax.clip_by_block_rms(1.0),
                optax.scale_by_param_block_rms(min_scale=1e-3),
                optax.ema(config.beta1, debias=False),
            )
        )
    else:
        assert_never(config.kind)
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts.append(direction)
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=decay_mask))
    parts.append(optax.scale_by_learning_rate(learning_rate(config, steps=train.steps)))
    return optax.chain(*parts)
