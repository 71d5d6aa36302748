"""The step: accumulation, meshes, donation, one program per power of two."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from fot_jax.config import ConfigError, MeshConfig
from fot_jax.data.streams import make_stream
from fot_jax.models.inputs import TrainInputs
from fot_jax.models.transformer import run
from fot_jax.ops.losses import cross_entropy
from fot_jax.ops.plans import make_plan
from fot_jax.sharding import make_mesh
from fot_jax.train.context_schedule import ContextSchedule
from fot_jax.train.state import abstract_state, create_state
from fot_jax.train.step import loss_gradient, make_eval_step, make_train_step, micro_batches
from fot_jax.types import Batch, Plan
from tests import oracles
from tests.train.tiny import tiny

SCALED = {"log_length_scaling_from": 24}
PACKED = {"plan": "packed", "packing": 2, "schedule": {"num_contexts": [3]}}


def mesh_of(config):
    mesh = config.mesh
    return make_mesh(mesh, jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor])


def losses(config, steps=4):
    """The loss curve, without the loop."""
    mesh = mesh_of(config)
    state, step, stream = create_state(config, mesh), make_train_step(config, mesh), make_stream(config, "train")
    rows = config.train.batch_rows // config.train.accumulation
    schedule = ContextSchedule(config.crossbatch.schedule, config.seed)
    curve = []
    for index in range(steps):
        plan = make_plan(config.crossbatch, batch_rows=rows, num_contexts=schedule.num_contexts(index))
        state, metrics = step(state, stream.batch(index), plan)
        curve.append(float(metrics.loss))
    return np.array(curve), step, state


def full_batch_plan(config, pieces):
    """The plan of the whole batch that keeps micro-batches apart (one-pass layouts)."""
    rows = config.train.batch_rows // pieces
    piece = make_plan(config.crossbatch, batch_rows=rows, num_contexts=3)
    ids = np.concatenate([np.where(piece.context_ids < 0, -1, piece.context_ids + m * rows) for m in range(pieces)])
    return piece, Plan(context_ids=ids, own_document=np.tile(piece.own_document, (pieces, 1)))


def accumulated(config, pieces):
    train = dataclasses.replace(config.train, accumulation=pieces)
    return dataclasses.replace(config, train=train)


def unequal(config):
    """The batch of step 3, whose last row bears half of its loss and its first row none."""
    batch = make_stream(config, "train").batch(3)
    mask = np.asarray(batch.loss_mask).copy()
    mask[-1, ::2] = 0
    mask[0] = 0
    return jax.tree.map(jnp.asarray, batch.replace(loss_mask=mask))


@pytest.mark.parametrize("mean", ["tokens", "rows"])
def test_accumulation_equals_the_full_batch(mean):
    """Micro-batches of two streams that read each other, with unequal numbers of tokens that bear loss."""
    options = {"train__z_loss": 1e-2, "train__loss_mean": mean}
    config = tiny(crossbatch=PACKED | SCALED, memory=SCALED, **options)
    piece_plan, whole_plan = full_batch_plan(config, 2)
    params = create_state(config, mesh_of(config)).params
    batch = unequal(config)

    def gradient(config, plan):
        return jax.jit(lambda p, b, q: loss_gradient(p, b, q, config=config))(params, batch, plan)

    whole, whole_sums = gradient(config, whole_plan)
    pieces, piece_sums = gradient(accumulated(config, 2), piece_plan)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(pieces), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(a).max())
    for a, b in zip(jax.tree.leaves(whole_sums), jax.tree.leaves(piece_sums), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@functools.cache
def decoder(model):
    """The jitted decoder: (parameters, tokens, inputs) -> its output."""
    return jax.jit(functools.partial(run, model))


def row_mean(config, params, batch, plan):
    """The authors' loss of a batch, from the decoder's logits, in float64."""
    inputs = TrainInputs(segments=batch.segments, boundaries=config.crossbatch.boundaries, plan=plan)
    logits = decoder(config.model)(params, batch.tokens, inputs).logits
    rows = slice(config.train.batch_rows - config.crossbatch.loss_rows(config.train.batch_rows), None)
    arrays = (np.asarray(array)[rows] for array in (logits, batch.targets, batch.loss_mask))
    return oracles.row_mean_loss(*arrays)


@pytest.mark.parametrize("crossbatch", [PACKED, {"plan": "two_pass", "schedule": {"num_contexts": [2]}}])
def test_the_row_mean_loss_is_the_authors(crossbatch):
    """The step reports it and follows its gradient; C_prev's rows, which bear no loss by design, are not counted."""
    config = tiny(crossbatch=crossbatch, train__loss_mean="rows")
    mesh = mesh_of(config)
    state, batch = create_state(config, mesh), unequal(config)
    plan = make_plan(config.crossbatch, batch_rows=8, num_contexts=2)
    want = row_mean(config, state.params, batch, plan)
    gradient, _ = jax.jit(lambda p, b, q: loss_gradient(p, b, q, config=config))(state.params, batch, plan)
    params, gradient = jax.tree.map(np.asarray, (state.params, gradient))
    length = np.sqrt(sum(np.vdot(leaf, leaf) for leaf in jax.tree.leaves(gradient)))
    moved = [
        row_mean(
            config,
            jax.tree.map(lambda p, g, step=step: p + step * g / length, params, gradient),
            batch,
            plan,
        )
        for step in (-1e-2, 1e-2)
    ]
    np.testing.assert_allclose((moved[1] - moved[0]) / 2e-2, length, rtol=2e-3)
    _, metrics = make_train_step(config, mesh)(state, batch, plan)
    np.testing.assert_allclose(metrics.row_mean_loss, want, rtol=1e-6)
    assert abs(float(metrics.loss) - want) > 1e-2, "the mean over tokens is another number"


def test_rows_and_tokens_agree_where_rows_are_alike():
    """Every C_curr row of a dictionary's questions bears the same number of loss tokens."""
    curves = [losses(tiny(train__loss_mean=mean, train__z_loss=1e-2))[0] for mean in ("tokens", "rows")]
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-6)


def test_the_step_trains_with_queries_that_grow_as_log_n():
    """Its loss is that of the decoder with `log_length_scaling_from`, another one than without."""
    config = tiny(crossbatch=PACKED | SCALED, memory=SCALED)
    params = create_state(config, mesh_of(config)).params
    batch = jax.tree.map(jnp.asarray, make_stream(config, "train").batch(3))
    plan = make_plan(config.crossbatch, batch_rows=8, num_contexts=3)

    def loss(scaling_from):
        inputs = TrainInputs(
            segments=batch.segments,
            boundaries=config.crossbatch.boundaries,
            plan=plan,
            log_length_scaling_from=scaling_from,
        )
        logits = decoder(config.model)(params, batch.tokens, inputs).logits
        return float(cross_entropy(logits, batch.targets, batch.loss_mask, z_loss=0.0).cross_entropy)

    _, sums = jax.jit(lambda p, b, q: loss_gradient(p, b, q, config=config))(params, batch, plan)
    np.testing.assert_allclose(sums.cross_entropy, loss(24), rtol=1e-6)
    assert abs(loss(0) - loss(24)) > 1e-4 * loss(0)


def test_micro_batches_are_whole_streams():
    """Rows by name: two-pass stacks C_prev (p0) above C_curr (p1); one-pass keeps streams together."""
    rows = np.arange(8, dtype=np.int32)[:, None] * np.ones((1, 3), np.int32)
    batch = Batch(tokens=rows, targets=rows, loss_mask=rows, segments=rows)
    two_pass = micro_batches(batch, crossbatch=tiny().crossbatch, accumulation=2)
    np.testing.assert_array_equal(two_pass.tokens[:, :, 0], [[0, 1, 4, 5], [2, 3, 6, 7]])
    one_pass = micro_batches(batch, crossbatch=tiny(crossbatch=PACKED).crossbatch, accumulation=2)
    np.testing.assert_array_equal(one_pass.tokens[:, :, 0], [[0, 1, 2, 3], [4, 5, 6, 7]])


@pytest.mark.parametrize(
    ("mean", "attention"), [("tokens", "blockwise"), pytest.param("rows", "reference", marks=pytest.mark.slow)]
)
def test_loss_curves_agree_on_1_2_and_8_devices(mean, attention):
    """Data, fsdp and tensor axes, with accumulation on the largest; 1e-5 relative."""
    options = {"train__loss_mean": mean, "model__attention": attention}
    reference, _, _ = losses(tiny(**options))
    assert len(set(reference)) == 4
    for data, fsdp, tensor in [(2, 1, 1), (2, 2, 2)]:
        config = tiny(mesh={"data": data, "fsdp": fsdp, "tensor": tensor}, **options)
        curve, _, state = losses(config)
        np.testing.assert_allclose(curve, reference, rtol=1e-5, err_msg=f"mesh {data}×{fsdp}×{tensor}")
        up = state.params["layers"]["feed_forward"]["up"]
        assert up.sharding.shard_shape(up.shape) == (2, 16 // fsdp, 32 // tensor)
        moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == up.shape]
        assert moments and all(leaf.sharding == up.sharding for leaf in moments)


def test_adafactor_lies_on_a_mesh():
    """Lowered, not compiled: momentum as the parameter, row and column means whole."""
    model = {"embed_dim": 128, "mlp_dim": 256}
    config = tiny(optimizer__kind="adafactor", mesh={"data": 1, "fsdp": 2, "tensor": 2})
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **model))
    mesh = mesh_of(config)
    state = abstract_state(config, mesh)
    placed = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        if "['feed_forward']['up']" in jax.tree_util.keystr(path):
            placed[leaf.shape] = leaf.sharding.spec
    assert placed[(2, 128, 256)] == PartitionSpec(None, "fsdp", "tensor")
    assert placed[(2, 128)] == placed[(2, 256)] == PartitionSpec()
    plan = make_plan(config.crossbatch, batch_rows=8, num_contexts=1)
    make_train_step(config, mesh).lower(state, make_stream(config, "train").batch(0), plan)


def test_one_program_per_power_of_two_and_donated_buffers():
    """d drawn from 1…4 over 12 steps: C = 1, 2, 4 and no more; every parameter moves, its old buffer is gone."""
    config = tiny(crossbatch__schedule={"kind": "random", "num_contexts": [1, 2, 3, 4]})
    schedule = ContextSchedule(config.crossbatch.schedule, config.seed)
    assert {schedule.num_contexts(step) for step in range(12)} == {1, 2, 3, 4}
    before = create_state(config, mesh_of(config))
    old = jax.tree.map(np.array, before.params)
    _, step, after = losses(config, steps=12)
    assert step._cache_size() == 3
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), old, after.params)
    for path, distance in jax.tree_util.tree_leaves_with_path(moved):
        assert distance > 0, f"{jax.tree_util.keystr(path)} never moved"
    step(before, make_stream(config, "train").batch(0), make_plan(config.crossbatch, batch_rows=8, num_contexts=1))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.opt_state)))


def test_the_compiler_gets_the_meshs_options(monkeypatch):
    """On CPUs there are none: an unknown one is refused where the step is compiled."""
    config = tiny()
    mesh = mesh_of(config)
    batch, plan = make_stream(config, "train").batch(0), None
    monkeypatch.setattr("fot_jax.train.step.compiler_options", lambda mesh: {"xla_no_such_option": True})
    state = create_state(config, mesh)
    for lowered in (
        make_train_step(config, mesh).lower(state, batch, plan),
        make_eval_step(config, mesh).lower(state.params, batch, plan),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
            lowered.compile()


def test_indivisible_meshes_name_the_mesh_and_the_devices():
    with pytest.raises(ConfigError, match=r"mesh\.data=3.* must multiply to the 8 devices"):
        make_mesh(MeshConfig(data=3))
    config = tiny(model__num_kv_heads=1, mesh={"data": 1, "fsdp": 1, "tensor": 2})
    with pytest.raises(ConfigError, match=r"parameter .* 'kv_heads' has 1 entries.* Choose mesh\.tensor"):
        make_train_step(config, mesh_of(config))
    eight = make_mesh(MeshConfig(data=8))
    with pytest.raises(ConfigError, match=r"train\.batch_rows / train\.accumulation = 4 .* 8 devices"):
        make_train_step(tiny(train__accumulation=2), eight)
