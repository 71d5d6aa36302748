"""The train step's loss and gradient on meshes equal those of one device, and gather no keys of the batch."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fot_jax.data.streams import make_stream
from fot_jax.ops import crossbatch
from fot_jax.ops.backends.cpu import Cpu
from fot_jax.ops.backends.pallas import Pallas
from fot_jax.ops.backends.reference import Reference
from fot_jax.ops.backends.xla import Xla
from fot_jax.ops.distributed.ring import Ring
from fot_jax.ops.plans import make_plan
from fot_jax.ops.softmax import heads_first
from fot_jax.sharding import batch_sharding, make_mesh, replicated
from fot_jax.train.state import abstract_state, create_state, state_shardings
from fot_jax.train.step import crossbatch_ring, loss_gradient, make_eval_step, make_train_step
from tests import jaxprs, oracles
from tests.scale.ring_cases import VARIANTS, in_mesh, interpreted_kernels
from tests.train.tiny import tiny

LENGTH = 24  # of tiny(): no other axis of its arrays is as long
EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}
MESHES = [{"data": 2}, {"data": 1, "fsdp": 4}, {"data": 8}, EIGHT, {"data": 2, "context": 2, "tensor": 2}]


def experiment(variant: str, mesh: dict[str, int], **changes):
    """tiny() with a plan and queries that grow as log n, 8 rows, on a mesh; grouped heads where `tensor` is 1."""
    crossbatch, d = VARIANTS[variant]
    crossbatch = crossbatch | {"schedule": {"num_contexts": [d]}, "log_length_scaling_from": LENGTH}
    if crossbatch["plan"] == "two_pass":  # a stream's chunks are one dictionary and its questions
        changes["data__dictionary__definition_tokens"] = LENGTH * crossbatch.get("previous_chunks", 1)
    changes = {"model__attention": "blockwise", "memory__log_length_scaling_from": LENGTH, **changes}
    return tiny(crossbatch=crossbatch, mesh=mesh, **changes)


def inputs(config):
    mesh = make_mesh(config.mesh, jax.devices()[: np.prod([getattr(config.mesh, a) for a in EIGHT | {"context": 1}])])
    d = config.crossbatch.schedule.num_contexts[0]
    plan = make_plan(config.crossbatch, batch_rows=config.train.batch_rows // config.train.accumulation, num_contexts=d)
    return mesh, make_stream(config, "train").batch(1), plan


def traced(config):
    """The traced gradient of the step, and (parameters, batch, plan) placed as it takes them."""
    mesh, batch, plan = inputs(config)
    params = create_state(config, mesh).params
    shardings = state_shardings(config, mesh).params, batch_sharding(mesh), replicated(mesh)

    def gradient(params, batch, plan):
        return loss_gradient(params, batch, plan, config=config, mesh=mesh)

    program = jax.jit(in_mesh(gradient, mesh), in_shardings=shardings).trace(params, batch, plan)
    return program, jax.device_put((params, batch, plan), shardings)


def compiled(config):
    """The compiled gradient of the step and what it gives: (gradient, losses)."""
    program, placed = traced(config)
    program = program.lower().compile()
    return program, program(*placed)


def gathers(program, config) -> list[str]:
    """All-gathers in the optimised HLO of floats of all positions (keys …) and of more rows than a device has."""
    own = config.train.batch_rows // config.train.accumulation // (config.mesh.data * config.mesh.fsdp)
    lines = re.findall(r"= (.*) all-gather(?:-start)?\(", program.as_text())
    shapes = [shape.split(",") for line in lines for shape in re.findall(r"\b(?:f32|bf16)\[([\d,]+)\]", line)]
    return [shape for shape in shapes if str(LENGTH) in shape and int(shape[0]) > own]


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        error = oracles.relative_error(a, b)
        assert error <= 1e-5, f"{jax.tree_util.keystr(path)}: relative error {error:.1e}"


@pytest.fixture(scope="module")
def one_device():
    """variant -> loss and gradient on one device, made once."""
    made = {}

    def get(variant):
        if variant not in made:
            made[variant] = compiled(experiment(variant, {"data": 1}))[1]
        return made[variant]

    return get


def check(variant, mesh, one_device):
    config = experiment(variant, mesh)
    program, got = compiled(config)
    devices, _, plan = inputs(config)
    ring = crossbatch_ring(config, devices, columns=plan.context_ids.shape[1])
    assert ring is not None
    travels = ring.hops > 0 or config.mesh.context > 1  # else every reader's rows are on its own device
    assert ("collective-permute" in program.as_text()) == travels
    if config.mesh.context == 1:
        assert not gathers(program, config)
    assert_same(got, one_device(variant))


def test_step_on_a_mixed_mesh_is_that_of_one_device(one_device):
    """Compares the gradient: packed, d = 4 with 2 rows a device, over data × fsdp × tensor."""
    check("packed", EIGHT, one_device)


@pytest.mark.parametrize(
    ("mesh", "remat"),
    [
        pytest.param(EIGHT, "full", marks=pytest.mark.slow),
        pytest.param(EIGHT, "none", marks=pytest.mark.slow),
        pytest.param({"data": 2, "context": 2, "tensor": 2}, "dots", marks=pytest.mark.slow),
    ],
)
def test_step_by_kernels_is_that_of_one_device_by_blocks(mesh, remat, one_device, monkeypatch):
    """Interprets kernels in the ring and for the own chunk; nothing is left to blocks in XLA."""
    want = one_device("packed")
    for blocks in (Xla, Cpu):
        monkeypatch.setattr(blocks, "forward", None)
        monkeypatch.setattr(blocks, "gradients", None)
    config = experiment("packed", mesh, model__attention="pallas", model__remat=remat)
    with interpreted_kernels(query_block=8):
        program, got = compiled(config)
    if config.mesh.context == 1:
        assert not gathers(program, config)
    assert_same(got, want)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_step_runs_no_kernel_forward_twice(remat):
    """Counts one forward kernel for the own chunk and one for each hop; nothing is compiled."""
    config = experiment("packed", EIGHT, model__attention="pallas", model__remat=remat)
    mesh, batch, plan = inputs(config)

    def gradient(params, batch, plan):
        return loss_gradient(params, batch, plan, config=config, mesh=mesh)

    with interpreted_kernels(query_block=8):
        program = jax.make_jaxpr(in_mesh(gradient, mesh))(abstract_state(config, mesh).params, batch, plan)
    names = [e.params["name"] for e in jaxprs.equations(program) if e.primitive.name == "pallas_call"]
    hops = 1 + crossbatch_ring(config, mesh, columns=plan.context_ids.shape[1]).hops
    for kernel in ("forward", "queries_gradient", "keys_gradient"):
        assert names.count(f"crossbatch_attention_{kernel}") == 1 + hops, (kernel, names)


LAYERS = 3  # as long as no other scan of the step
BACKENDS = {"reference": Reference, "blockwise": Cpu, "pallas": Pallas, "auto": Cpu}


def projections(params):
    """The parts of a tree of parameters that make queries, keys and values."""
    return params["layers"]["attention"]["projections"]


@pytest.mark.parametrize("mesh", [{"data": 1}, {"data": 8}], ids=str)
@pytest.mark.parametrize("name", BACKENDS)
def test_equation_2_is_the_function_that_trains(name, mesh, monkeypatch):
    """Puts zeros in the place of `crossbatch._attention`: no query, key or value then matters to the step's loss.

    It would to a layer that attended by any other function. The zeros are once in the scanned layers' body, and take
    the place of the backend that the config names, in the ring where rows are split.
    """
    asked = []

    @jax.jit
    def zeros_of_equation_2(queries, values):
        return heads_first(0 * queries).astype(values.dtype)

    def zeros(backend, stopped, queries, keys, context_keys, values, plan, *_):
        if plan is not None:  # it is None where parameters are initialised
            asked.append(backend)
        return zeros_of_equation_2(queries, values)

    monkeypatch.setattr(crossbatch, "_attention", zeros)
    config = experiment("packed", mesh, model__attention=name, model__num_layers=LAYERS)
    program, (params, batch, plan) = traced(config)
    scans = [e.params for e in jaxprs.equations(program.jaxpr) if e.primitive.name == "scan"]
    (forward,) = (scan for scan in scans if scan["length"] == LAYERS and not scan["reverse"])
    called = [e.params.get("name") for e in jaxprs.equations(forward["jaxpr"])]
    assert called.count("zeros_of_equation_2") == 1
    assert {isinstance(backend, Ring) for backend in asked} == {mesh == {"data": 8}}
    alone = [backend.inside if isinstance(backend, Ring) else backend for backend in asked]
    assert {type(backend) for backend in alone} == {BACKENDS[name]}

    program = program.lower().compile()
    gradient, losses = program(params, batch, plan)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(projections(gradient)))
    params["layers"]["attention"]["projections"] = jax.tree.map(jnp.square, projections(params))
    again = program(params, batch, plan)[1]
    assert jax.tree.leaves(again) == jax.tree.leaves(losses)


def test_equation_2_that_trains_reads_every_projection():
    """Finds in the step as it is what the zeros of the test above take away: each layer's gradient, and the loss."""
    config = experiment("packed", {"data": 1}, model__num_layers=LAYERS)
    program, (params, batch, plan) = traced(config)
    program = program.lower().compile()
    gradient, losses = program(params, batch, plan)
    for leaf in jax.tree.leaves(projections(gradient)):
        assert np.asarray(leaf).reshape(LAYERS, -1).any(axis=1).all()
    params["layers"]["attention"]["projections"] = jax.tree.map(jnp.square, projections(params))
    assert float(program(params, batch, plan)[1].cross_entropy) != float(losses.cross_entropy)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_step_of_every_plan_on_every_mesh_is_that_of_one_device(variant, mesh, one_device):
    """Compares the gradients of all published plans."""
    check(variant, mesh, one_device)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"model__scan_layers": False}, {"model__remat": "full"}, {"train__accumulation": 2}]
)
def test_step_with_changes_is_that_of_one_device(changes):
    """Compares layers one by one, remat and accumulation with one device of the same changes."""
    config, alone = (experiment("packed", mesh, **changes) for mesh in ({"data": 2, "fsdp": 2}, {"data": 1}))
    program, got = compiled(config)
    assert not gathers(program, config)
    assert_same(got, compiled(alone)[1])


@pytest.mark.slow
def test_step_without_the_ring_gathers_the_batch(monkeypatch):
    """Finds what the check above looks for when rows are read by index."""
    monkeypatch.setattr("fot_jax.train.step.crossbatch_ring", lambda *_, **__: None)
    config = experiment("packed", EIGHT)
    assert gathers(compiled(config)[0], config)


@pytest.mark.slow
def test_step_as_a_whole_and_evaluation_on_a_mesh():
    """Finds no gathered keys in make_train_step either; make_eval_step gives one device's sums."""
    config = experiment("two pass", EIGHT)
    mesh, batch, plan = inputs(config)
    state = abstract_state(config, mesh)
    assert not gathers(make_train_step(config, mesh).lower(state, batch, plan).compile(), config)
    sums = []
    for each in (config, experiment("two pass", {"data": 1})):
        mesh, batch, plan = inputs(each)
        sums.append(make_eval_step(each, mesh)(create_state(each, mesh).params, batch, plan))
    assert_same(*sums)


def test_crossbatch_ring_is_none_on_one_device():
    """Leaves rows that are on one device to be read by index."""
    for mesh in ({"data": 1}, {"data": 1, "tensor": 2}):
        config = experiment("packed", mesh)
        assert crossbatch_ring(config, inputs(config)[0], columns=4) is None
