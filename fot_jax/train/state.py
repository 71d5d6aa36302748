"""The state of training, created sharded."""

import functools
import logging
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax.sharding import Mesh

from fot_jax import distributed
from fot_jax.config import ExperimentConfig, UserError
from fot_jax.models.init import boxed_shapes, init_params, param_shapes, shape_difference
from fot_jax.sharding import param_shardings, replicated
from fot_jax.train.optimizer import make_optimizer

logger = logging.getLogger(__name__)


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: int32 scalar, optimizer steps done.
      params: float32 parameters of the decoder.
      opt_state: the optimizer's moments and counts.
    """

    step: jax.Array
    params: Any
    opt_state: Any


def abstract_params(config: ExperimentConfig) -> Any:
    """Returns shapes and logical axes of the parameters, without making them."""
    return boxed_shapes(config.model)


def _abstract(config: ExperimentConfig) -> TrainState:
    """Returns the state as shapes and dtypes."""
    return jax.eval_shape(functools.partial(_init, config), param_shapes(config.model))


def _init(config: ExperimentConfig, params: Any = None) -> TrainState:
    if params is None:
        params = nn.unbox(init_params(config.model, jax.random.key(config.seed)))
    opt_state = make_optimizer(config.optimizer, config.train).init(params)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=opt_state)


def state_shardings(config: ExperimentConfig, mesh: Mesh) -> TrainState:
    """Returns the sharding of every array of the state.

    Parameters follow their logical axes. A moment with its parameter's shape is sharded as the parameter is;
    smaller arrays (Adafactor's row and column means, counts) are whole on every device.

    Raises:
      ConfigError: a parameter does not divide over the mesh.
    """
    params = param_shardings(abstract_params(config), mesh)
    abstract = _abstract(config)
    by_path = {
        jax.tree_util.keystr(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(abstract.params), jax.tree.leaves(params), strict=True
        )
    }

    def moment(path, leaf):
        for start in range(len(path)):
            shape, sharding = by_path.get(jax.tree_util.keystr(path[start:]), (None, None))
            if shape == leaf.shape:
                return sharding
        return replicated(mesh)

    opt_state = jax.tree_util.tree_map_with_path(moment, abstract.opt_state)
    return TrainState(step=replicated(mesh), params=params, opt_state=opt_state)


def abstract_state(config: ExperimentConfig, mesh: Mesh) -> TrainState:
    """Returns the state as shapes, dtypes and shardings, into which a checkpoint is restored."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        _abstract(config),
        state_shardings(config, mesh),
    )


def create_state(config: ExperimentConfig, mesh: Mesh, *, params: Any = None) -> TrainState:
    """Creates the state before the first step, a pure function of config and seed on every mesh.

    Args:
      config: the experiment.
      mesh: the devices that hold it.
      params: unboxed parameters to start from; None: fresh ones. The gates of a Memorizing Transformer
        (`model.memory_gate`) may be missing: they start fresh, half memory and half local context.

    Raises:
      ConfigError: a parameter does not divide over the mesh.
      UserError: `params` are not of this model.
    """
    shardings = state_shardings(config, mesh)
    if params is None:
        return jax.jit(lambda: _init(config), out_shardings=shardings)()
    params = _with_fresh_gates(params, config)
    _check_same(params, param_shapes(config.model), config=config)
    params = distributed.put(params, shardings.params)
    return jax.jit(functools.partial(_init, config), out_shardings=shardings)(params)


def _with_fresh_gates(params: Any, config: ExperimentConfig) -> Any:
    """Adds the gates of `model.memory_gate` where the parameters come from a model without gates."""
    held: dict[tuple, Any] = dict(traverse_util.flatten_dict(params))
    wanted: dict[tuple, Any] = dict(traverse_util.flatten_dict(param_shapes(config.model)))
    missing = {
        path: np.zeros(leaf.shape, leaf.dtype)
        for path, leaf in wanted.items()
        if path[-2:] == ("attention", "gate") and path not in held
    }
    if missing:
        logger.warning("train.init_from: no gates there; they start at 0, half memory and half local context")
    return traverse_util.unflatten_dict({**held, **missing})


def _check_same(params: Any, wanted: Any, *, config: ExperimentConfig) -> None:
    """Raises UserError where a parameter of `train.init_from` is missing, unknown or of another shape."""
    difference = shape_difference(params, wanted)
    if difference is not None:
        name, there, here = difference
        raise UserError(
            f"train.init_from='{config.train.init_from}' must hold parameters of this model, but {name} is"
            f" {there} there and {here} here. Give `model` the sizes of that run."
        )


def parameter_table(config: ExperimentConfig) -> str:
    """Returns one line for each parameter: name, shape, logical axes, count; the total last."""
    boxes = jax.tree_util.tree_leaves_with_path(
        abstract_params(config), is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    )
    rows = [
        (
            "/".join(str(getattr(key, "key", key)) for key in path),
            "×".join(map(str, box.value.shape)),
            " ".join(map(str, box.names)),
            f"{int(np.prod(box.value.shape)):,}",
        )
        for path, box in boxes
    ]
    total = sum(int(np.prod(box.value.shape)) for _, box in boxes)
    rows.append(("total", "", "", f"{total:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows)


def global_norm(tree: Any) -> jax.Array:
    """Returns the root of the sum of squares of all entries, float32."""
    return optax.tree_utils.tree_norm(tree)
