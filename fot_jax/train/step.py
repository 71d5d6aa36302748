"""One optimizer step: micro-batches of whole streams, their gradients summed, one update.

    loss_mean = TOKENS    Σ over micro-batches, tokens of (cross-entropy + z-loss) / Σ loss_mask
    loss_mean = ROWS      Σ over micro-batches, rows of the row's mean of (cross-entropy + z-loss) / rows that bear loss

The divisor is that of the whole batch, so accumulation gives the full batch's gradient. ROWS is the authors' loss;
it counts every row, those whose mask is empty included, but not C_prev where only C_curr bears loss.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, assert_never

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fot_jax.config import CrossbatchConfig, ExperimentConfig, LossMean, PlanKind
from fot_jax.models.inputs import TrainInputs
from fot_jax.models.layer_ranges import above, below
from fot_jax.models.transformer import run
from fot_jax.ops.distributed import ring_schedule
from fot_jax.ops.losses import Losses, cross_entropy
from fot_jax.sharding import (
    batch_sharding,
    check_length,
    check_rows,
    compiler_options,
    constrain,
    mesh_axes,
    replicated,
    shards,
)
from fot_jax.train.optimizer import learning_rate, make_optimizer
from fot_jax.train.state import TrainState, global_norm, state_shardings
from fot_jax.train.trainable import first_trained, frozen, only, trainable_mask
from fot_jax.types import Batch, Plan, RingSchedule


@flax.struct.dataclass
class StepMetrics:
    """Metrics of a step; float32 scalars. With `loss_tokens` 0 the means are 0 and mean nothing.

    Attributes:
      loss: mean cross-entropy of the tokens that bear loss, in nats, whatever `train.loss_mean` says.
      z_loss: mean z-loss of these tokens, coefficient included.
      accuracy: share of those tokens predicted exactly.
      row_mean_loss: mean over rows of each row's mean cross-entropy; None unless the step minimises it (ROWS).
      loss_tokens: how many tokens bore loss.
      grad_norm: global norm of the gradient before clipping.
      param_norm: global norm of the parameters after the update.
      learning_rate: of this step.
    """

    loss: jax.Array
    z_loss: jax.Array
    accuracy: jax.Array
    row_mean_loss: jax.Array | None
    loss_tokens: jax.Array
    grad_norm: jax.Array
    param_norm: jax.Array
    learning_rate: jax.Array


def micro_batches(batch: Batch, *, crossbatch: CrossbatchConfig, accumulation: int, devices: int = 1) -> Batch:
    """Cuts [B, L] arrays into [A, B/A, L], each piece whole streams in the plan's row layout.

    Each piece is put in `ring_schedule.row_order` for the devices that hold its rows.

    One-pass plans keep a stream in consecutive rows; TWO_PASS stacks all C_prev above all C_curr:

        rows  p0s0 p0s1 p0s2 p0s3 | p1s0 p1s1 p1s2 p1s3   with A = 2 →   p0s0 p0s1 p1s0 p1s1
                                                                         p0s2 p0s3 p1s2 p1s3
    """
    stacked = crossbatch.rows_per_stream if crossbatch.plan is PlanKind.TWO_PASS else 1
    order = ring_schedule.row_order(crossbatch, batch_rows=len(batch.tokens) // accumulation, shards=devices)

    def cut(x: jax.Array) -> jax.Array:
        B, L = x.shape
        pieces = x.reshape(stacked, accumulation, B // (stacked * accumulation), L)
        pieces = pieces.swapaxes(0, 1).reshape(accumulation, B // accumulation, L)
        if not ring_schedule.is_sorted(order):
            pieces = pieces[:, order]
        return constrain(pieces, None, "batch", "length")

    return jax.tree.map(cut, batch)


def _losses(params: Any, batch: Batch, plan: Plan | None, *, config: ExperimentConfig, first: int = 0) -> Losses:
    """Sums over one micro-batch; no gradient goes below layer `first`, where no layer reads memory."""
    model, hidden, crossbatch = config.model, None, config.crossbatch
    inputs = TrainInputs(segments=batch.segments, boundaries=crossbatch.boundaries)
    if first:
        lower, fixed = below(model, params, first)
        hidden = jax.lax.stop_gradient(run(lower, fixed, batch.tokens, inputs).hidden)
        model, params = above(model, params, first)
    inputs = dataclasses.replace(
        inputs,
        plan=plan,
        gradients=crossbatch.gradients,
        log_length_scaling_from=crossbatch.log_length_scaling_from,
    )
    output = run(model, params, batch.tokens, inputs, hidden=hidden)
    return cross_entropy(output.logits, batch.targets, batch.loss_mask, z_loss=config.train.z_loss)


def crossbatch_ring(config: ExperimentConfig, mesh: Mesh, *, columns: int) -> RingSchedule | None:
    """How the rows of a micro-batch travel between devices for plans of this many columns; None: on one device."""
    if config.crossbatch.plan is PlanKind.OFF or shards(mesh, "batch") * shards(mesh, "length") == 1:
        return None
    return ring_schedule.make_schedule(
        config.crossbatch,
        batch_rows=config.train.batch_rows // config.train.accumulation,
        columns=columns,
        shards=shards(mesh, "batch"),
        axes=mesh_axes("batch"),
        heads=mesh_axes("heads")[0],
        length=mesh_axes("length")[0],
    )


def _on_mesh(batch: Batch, plan: Plan | None, *, config: ExperimentConfig, mesh: Mesh | None) -> tuple[Batch, Any]:
    """The micro-batches, and the plan with its ring schedule, in the order in which the devices hold them."""
    accumulation, devices = config.train.accumulation, 1 if mesh is None else shards(mesh, "batch")
    pieces = micro_batches(batch, crossbatch=config.crossbatch, accumulation=accumulation, devices=devices)
    if plan is None or mesh is None:
        return pieces, plan
    order = ring_schedule.row_order(config.crossbatch, batch_rows=pieces.tokens.shape[1], shards=devices)
    ring = crossbatch_ring(config, mesh, columns=plan.context_ids.shape[1])
    return pieces, dataclasses.replace(ring_schedule.arrange(plan, order), ring=ring)


def loss_gradient(
    params: Any, batch: Batch, plan: Plan | None, *, config: ExperimentConfig, mesh: Mesh | None = None
) -> tuple[Any, Losses]:
    """Gradient of the loss over the whole batch, and the sums; `mesh` where it is traced in one.

    Parameters that `train.trainable` leaves out have a gradient of zero.
    """
    pieces, plan = _on_mesh(batch, plan, config=config, mesh=mesh)
    minimised = _minimised(config, batch)
    mask = trainable_mask(config.model, params, config.train.trainable)
    first = first_trained(config.model, config.train.trainable)

    def objective(params, piece):
        params = frozen(params, mask)
        sums = _losses(params, piece, plan, config=config, first=first)
        return minimised(sums), sums

    def add(total, piece):
        return jax.tree.map(jnp.add, total, jax.grad(objective, has_aux=True)(params, piece)), None

    if config.train.accumulation == 1:
        gradient, sums = jax.grad(objective, has_aux=True)(params, jax.tree.map(lambda x: x[0], pieces))
        return only(gradient, mask), sums
    zero = jnp.zeros((), jnp.float32)
    nothing = Losses(**{field.name: zero for field in dataclasses.fields(Losses)})
    start = (jax.tree.map(jnp.zeros_like, params), nothing)
    gradient, sums = jax.lax.scan(add, start, pieces)[0]
    return only(gradient, mask), sums


def _minimised(config: ExperimentConfig, batch: Batch) -> Callable[[Losses], jax.Array]:
    """The share of a micro-batch in the loss of the whole batch, from its sums."""
    match config.train.loss_mean:
        case LossMean.TOKENS:
            weight = jnp.maximum(jnp.sum(batch.loss_mask), 1.0)
            return lambda sums: (sums.cross_entropy + sums.z_loss) / weight
        case LossMean.ROWS:
            rows = config.crossbatch.loss_rows(len(batch.tokens))
            return lambda sums: (sums.row_cross_entropy + sums.row_z_loss) / rows
        case unknown:
            assert_never(unknown)


def check_batch(config: ExperimentConfig, mesh: Mesh) -> None:
    """Raises ConfigError unless the rows and positions of a micro-batch divide over the mesh."""
    check_rows(config.train.batch_rows // config.train.accumulation, mesh)
    check_length(config.model.local_context, mesh)


def _in_mesh(function: Callable, mesh: Mesh) -> Callable:
    """Traces `function` where `sharding.constrain` sees the mesh."""

    def traced(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    traced.__name__ = function.__name__
    return traced


def make_train_step(
    config: ExperimentConfig, mesh: Mesh
) -> Callable[[TrainState, Batch, Plan | None], tuple[TrainState, StepMetrics]]:
    """The jitted step (state, batch, plan) → (state, metrics); the given state's buffers are donated.

    `batch` holds `train.batch_rows` rows; `plan` is that of one micro-batch of batch_rows / accumulation
    rows (None for plain training). One program is compiled for each number of plan columns.

    Raises:
      ConfigError: rows or positions of a micro-batch, or a parameter, do not divide over the mesh.
    """
    check_batch(config, mesh)
    optimizer = make_optimizer(config.optimizer, config.train)
    rate = learning_rate(config.optimizer, steps=config.train.steps)
    shardings = state_shardings(config, mesh)

    def train_step(state: TrainState, batch: Batch, plan: Plan | None) -> tuple[TrainState, StepMetrics]:
        gradient, sums = loss_gradient(state.params, batch, plan, config=config, mesh=mesh)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            # Frozen parameters have zero gradients, but weight decay would still move them.
            updates = only(updates, trainable_mask(config.model, state.params, config.train.trainable))
            params = jax.tree.map(jnp.add, state.params, updates)
        weight = jnp.maximum(sums.weight, 1.0)
        by_row = config.train.loss_mean is LossMean.ROWS
        rows = config.crossbatch.loss_rows(config.train.batch_rows)
        metrics = StepMetrics(
            loss=sums.cross_entropy / weight,
            z_loss=sums.z_loss / weight,
            accuracy=sums.correct / weight,
            row_mean_loss=sums.row_cross_entropy / rows if by_row else None,
            loss_tokens=sums.weight,
            grad_norm=global_norm(gradient),
            param_norm=global_norm(params),
            learning_rate=rate(state.step),
        )
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return jax.jit(
        _in_mesh(train_step, mesh),
        in_shardings=(shardings, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )


def make_eval_step(config: ExperimentConfig, mesh: Mesh) -> Callable[[Any, Batch, Plan | None], Losses]:
    """The jitted (params, batch, plan) → sums of losses over the whole batch; plan as in training.

    Raises:
      ConfigError: rows or positions of a micro-batch, or a parameter, do not divide over the mesh.
    """
    check_batch(config, mesh)

    def eval_step(params: Any, batch: Batch, plan: Plan | None) -> Losses:
        pieces, plan = _on_mesh(batch, plan, config=config, mesh=mesh)
        sums = jax.lax.map(lambda piece: _losses(params, piece, plan, config=config), pieces)
        return jax.tree.map(jnp.sum, sums)

    return jax.jit(
        _in_mesh(eval_step, mesh),
        in_shardings=(state_shardings(config, mesh).params, batch_sharding(mesh), replicated(mesh)),
        out_shardings=replicated(mesh),
        compiler_options=compiler_options(mesh),
    )
