"""The train step's loss and gradient on meshes equal those of one device, and gather no keys of the batch."""

import re

import jax
import numpy as np
import pytest

from fot_jax.data.streams import make_stream
from fot_jax.ops import blockwise
from fot_jax.ops.plans import make_plan
from fot_jax.sharding import batch_sharding, make_mesh, replicated
from fot_jax.train.state import abstract_state, create_state, state_shardings
from fot_jax.train.step import crossbatch_route, loss_gradient, make_eval_step, make_train_step
from tests import jaxprs, oracles
from tests.scale.ring_cases import VARIANTS, in_mesh, interpret_kernels
from tests.train.tiny import tiny

LENGTH = 24  # of tiny(): no other axis of its arrays is as long
EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}
MESHES = [{"data": 2}, {"data": 1, "fsdp": 4}, {"data": 8}, EIGHT, {"data": 2, "context": 2, "tensor": 2}]


def experiment(variant: str, mesh: dict[str, int], **changes):
    """tiny() with a plan and queries that grow as log n, 8 rows, on a mesh; grouped heads where `tensor` is 1."""
    crossbatch, d = VARIANTS[variant]
    crossbatch = crossbatch | {"schedule": {"num_contexts": [d]}, "logn_from": LENGTH}
    if crossbatch["plan"] == "two_pass":  # a stream's chunks are one dictionary and its questions
        changes["data__dictionary__definition_tokens"] = LENGTH * crossbatch.get("previous_chunks", 1)
    return tiny(crossbatch=crossbatch, memory__logn_from=LENGTH, mesh=mesh, **changes)


def inputs(config):
    mesh = make_mesh(config.mesh, jax.devices()[: np.prod([getattr(config.mesh, a) for a in EIGHT | {"context": 1}])])
    d = config.crossbatch.schedule.num_contexts[0]
    plan = make_plan(config.crossbatch, batch_rows=config.train.batch_rows // config.train.accumulation, num_contexts=d)
    return mesh, make_stream(config, "train").batch(1), plan


def compiled(config):
    """The compiled gradient of the step and what it gives: (gradient, losses)."""
    mesh, batch, plan = inputs(config)
    params = create_state(config, mesh).params
    shardings = state_shardings(config, mesh).params, batch_sharding(mesh), replicated(mesh)

    def gradient(params, batch, plan):
        return loss_gradient(params, batch, plan, config=config, mesh=mesh)

    program = jax.jit(in_mesh(gradient, mesh), in_shardings=shardings).lower(params, batch, plan).compile()
    placed = jax.device_put((params, batch, plan), shardings)
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
    route = crossbatch_route(config, devices, columns=plan.context_ids.shape[1])
    assert route is not None
    travels = route.hops > 0 or config.mesh.context > 1  # else every reader's rows lie on its own device
    assert ("collective-permute" in program.as_text()) == travels
    if config.mesh.context == 1:
        assert not gathers(program, config)
    assert_same(got, one_device(variant))


def test_gradient_on_a_mixed_mesh_is_that_of_one_device(one_device):
    """packed, d = 4 with 2 rows a device, over data × fsdp × tensor."""
    check("packed", EIGHT, one_device)


@pytest.mark.parametrize(
    ("mesh", "remat"),
    [
        (EIGHT, "full"),
        pytest.param(EIGHT, "none", marks=pytest.mark.slow),
        pytest.param({"data": 2, "context": 2, "tensor": 2}, "dots", marks=pytest.mark.slow),
    ],
)
def test_gradient_by_the_kernels_is_that_of_one_device_by_blocks(mesh, remat, one_device, monkeypatch):
    """Interpreted, in the ring and for the own chunk; nothing is left to blocks in XLA."""
    interpret_kernels(monkeypatch, query_block=8)
    monkeypatch.setattr(blockwise, "forward", None)
    config = experiment("packed", mesh, model__attention="pallas", model__remat=remat)
    program, got = compiled(config)
    if config.mesh.context == 1:
        assert not gathers(program, config)
    monkeypatch.undo()
    assert_same(got, one_device("packed"))


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_no_kernel_runs_forward_twice(remat, monkeypatch):
    """One forward kernel for the own chunk and one for each hop, in the gradient's program too; nothing is compiled."""
    interpret_kernels(monkeypatch, query_block=8)
    config = experiment("packed", EIGHT, model__attention="pallas", model__remat=remat)
    mesh, batch, plan = inputs(config)

    def gradient(params, batch, plan):
        return loss_gradient(params, batch, plan, config=config, mesh=mesh)

    program = jax.make_jaxpr(in_mesh(gradient, mesh))(abstract_state(config, mesh).params, batch, plan)
    names = [e.params["name"] for e in jaxprs.equations(program) if e.primitive.name == "pallas_call"]
    hops = 1 + crossbatch_route(config, mesh, columns=plan.context_ids.shape[1]).hops
    for kernel in ("forward", "queries_gradient", "keys_gradient"):
        assert names.count(f"visited_attention_{kernel}") == 1 + hops, (kernel, names)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_of_every_plan_on_every_mesh(variant, mesh, one_device):
    check(variant, mesh, one_device)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"model__scan_layers": False}, {"model__remat": "full"}, {"train__accumulation": 2}]
)
def test_layers_one_by_one_remat_and_accumulation(changes):
    """Each against one device with the same changes."""
    config, alone = (experiment("packed", mesh, **changes) for mesh in ({"data": 2, "fsdp": 2}, {"data": 1}))
    program, got = compiled(config)
    assert not gathers(program, config)
    assert_same(got, compiled(alone)[1])


@pytest.mark.slow
def test_without_the_ring_the_batch_is_gathered(monkeypatch):
    """What the check above looks for is there when rows are read by index."""
    monkeypatch.setattr("fot_jax.train.step.crossbatch_route", lambda *_, **__: None)
    config = experiment("packed", EIGHT)
    assert gathers(compiled(config)[0], config)


@pytest.mark.slow
def test_whole_step_and_evaluation_on_a_mesh():
    """make_train_step gathers no keys either; make_eval_step gives one device's sums."""
    config = experiment("two pass", EIGHT)
    mesh, batch, plan = inputs(config)
    state = abstract_state(config, mesh)
    assert not gathers(make_train_step(config, mesh).lower(state, batch, plan).compile(), config)
    sums = []
    for each in (config, experiment("two pass", {"data": 1})):
        mesh, batch, plan = inputs(each)
        sums.append(make_eval_step(each, mesh)(create_state(each, mesh).params, batch, plan))
    assert_same(*sums)


def test_one_device_has_no_route():
    """Nor rows that lie on one: the path by index stays."""
    for mesh in ({"data": 1}, {"data": 1, "tensor": 2}):
        config = experiment("packed", mesh)
        assert crossbatch_route(config, inputs(config)[0], columns=4) is None
