"""Training a part of the model: its gradient is that of the whole, the rest stays as it was, to the bit."""

import jax
import numpy as np
import pytest

from fot_jax.config import ConfigError, Trainable
from fot_jax.data.streams import make_stream
from fot_jax.models.layer_ranges import below
from fot_jax.ops.plans import make_plan
from fot_jax.sharding import make_mesh
from fot_jax.train.state import create_state
from fot_jax.train.step import loss_gradient, make_train_step
from tests.jaxprs import equations
from tests.train.tiny import tiny

ATTENTION = ("attention", "attention_norm")
PARTS = [
    (Trainable.MEMORY_LAYERS, ("attention", "attention_norm", "feed_forward", "feed_forward_norm")),
    (Trainable.MEMORY_ATTENTION, ATTENTION),
]


def by_layer(tree):
    """{(layer, …, name): array} whether layers are stacked or not; what belongs to no layer has the layer None."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = tuple(key.key for key in path)
        if names[0] == "layers":
            leaves.update({(n, *names[1:]): np.asarray(part) for n, part in enumerate(leaf)})
        elif names[0].startswith("layer_"):
            leaves[(int(names[0].removeprefix("layer_")), *names[1:])] = np.asarray(leaf)
        else:
            leaves[(None, *names)] = np.asarray(leaf)
    return leaves


def setting(**changes):
    config = tiny(**changes)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    rows = config.train.batch_rows // config.train.accumulation
    plan = make_plan(config.crossbatch, batch_rows=rows, num_contexts=2)
    return config, mesh, create_state(config, mesh), make_stream(config, "train").batch(0), plan


def gradient(**changes):
    config, _, state, batch, plan = setting(**changes)
    return by_layer(jax.jit(lambda p, b, q: loss_gradient(p, b, q, config=config)[0])(state.params, batch, plan))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ({"model__scan_layers": False}, {"train__accumulation": 2})
        ),
    ],
)
def test_gradient_of_the_part_is_the_whole_models(changes):
    whole = gradient(**changes)
    assert all(np.abs(leaf).max() > 0 for leaf in whole.values())
    for part, names in PARTS:
        chosen = gradient(**changes, train__trainable=part.value)
        for path, expected in whole.items():
            if path[0] == 1 and path[1] in names:  # layer 1 is the memory layer
                np.testing.assert_allclose(chosen[path], expected, rtol=0, atol=1e-6 * np.abs(expected).max())
            else:
                np.testing.assert_array_equal(chosen[path], 0, err_msg=str(path))


@pytest.mark.parametrize(
    "changes",
    [
        {"model__smear_keys": True, "train__z_loss": 1e-2, "model__remat": "full"},
        pytest.param(
            {
                "model__scan_layers": False,
                "model__memory_gate": True,
                "model__attention": "reference",
                "crossbatch__gradients": "stopped",
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=["scanned", "unscanned"],
)
def test_several_memory_layers_above_others(changes):
    """Layers 1 and 3 of five: the part that is run with gradients begins at layer 1."""
    layers = {"model__num_layers": 5, "model__memory_layers": [1, 3], "model__attention": "blockwise", **changes}
    whole, chosen = gradient(**layers), gradient(**layers, train__trainable="memory_attention")
    for path, expected in whole.items():
        if path[0] in (1, 3) and path[1] in ATTENTION:
            scale = np.abs(expected).max()
            assert scale > 0
            np.testing.assert_allclose(chosen[path], expected, rtol=0, atol=2e-6 * scale, err_msg=str(path))
        else:
            np.testing.assert_array_equal(chosen[path], 0, err_msg=str(path))


def test_a_memory_layer_below_the_cut_is_refused():
    config, _, state, _, _ = setting()
    with pytest.raises(ValueError, match="layers below 2 must hold no memory"):
        below(config.model, state.params, 2)


@pytest.mark.parametrize("part", [part for part, _ in PARTS])
def test_layers_below_the_first_memory_layer_have_no_backward(part):
    config, _, state, batch, plan = setting(
        model__num_layers=5, model__memory_layers=[3], train__trainable=part.value, model__remat="full"
    )
    program = jax.make_jaxpr(lambda p, b, q: loss_gradient(p, b, q, config=config)[0])(state.params, batch, plan)
    scans = [e.params for e in equations(program) if e.primitive.name == "scan"]
    forward, backward = ({s["length"] for s in scans if s["reverse"] is reverse} for reverse in (False, True))
    assert {3, 2} <= forward and 5 not in forward
    assert 2 in backward and not {3, 5} & backward


@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
def test_a_step_leaves_the_rest_as_it_was(kind):
    config, mesh, state, batch, plan = setting(
        train__trainable="memory_attention", optimizer__kind=kind, optimizer__weight_decay=0.1
    )
    before = jax.tree.map(np.array, state.params)
    state, metrics = make_train_step(config, mesh)(state, batch, plan)
    changed = {
        path
        for (path, new), old in zip(by_layer(state.params).items(), by_layer(before).values(), strict=True)
        if not np.array_equal(new, old)
    }
    assert changed == {path for path in by_layer(before) if path[0] == 1 and path[1] in ATTENTION}
    assert float(metrics.grad_norm) > 0


def test_a_part_without_layers_is_refused():
    with pytest.raises(ConfigError, match=r"model.memory_layers.*train.trainable is 'memory_attention'"):
        tiny(model__memory_layers=[], crossbatch={"plan": "off"}, train__trainable="memory_attention")
