"""`--config.path=value`: the field's declared type reads the text, for every field there is."""

import dataclasses
import enum
import types

import pytest

from configs import tiny_code
from fot_jax.config import ConfigError, ExperimentConfig, NeedleKind
from fot_jax.config.build import build, field_types, to_dict
from fot_jax.config.override import apply_override


def overridden(path, text):
    config = tiny_code.get_config()
    apply_override(config, path, text)
    return build(ExperimentConfig, config)


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("train.steps", "7", 7),
        ("optimizer.learning_rate", "1e-2", 1e-2),
        ("optimizer.learning_rate", "1", 1.0),
        ("model.tie_embeddings", "true", True),
        ("model.tie_embeddings", "False", False),
        ("crossbatch.plan", "off", "off"),
        ("model.memory_layers", "0,1", (0, 1)),
        ("model.memory_layers", "(1,)", (1,)),
        ("crossbatch.segments", "[]", ()),
        ("evaluation.needle_kinds", "single,multi_key", (NeedleKind.SINGLE, NeedleKind.MULTI_KEY)),
        ("evaluation.needle_kinds", "[common_words]", (NeedleKind.COMMON_WORDS,)),
        ("data.sources[0].name", "other", "other"),
        ("data.cache_dir", "a=b", "a=b"),
    ],
)
def test_each_type_is_read_from_text(path, text, value):
    node = overridden(path, text)
    for part in path.replace("[0]", ".0").split("."):
        node = node[int(part)] if part.isdigit() else getattr(node, part)
    assert (node.value if isinstance(node, enum.Enum) else node) == value
    assert type(node) is type(value) or isinstance(node, enum.Enum)


def test_nested_tuples():
    config = tiny_code.get_config()
    apply_override(config, "crossbatch.segments", "[[0,0],[1,1]]")
    assert config.crossbatch.segments == ((0, 0), (1, 1))


def test_every_leaf_of_the_config_can_be_overridden():
    """Each leaf takes its own value back as text, and the experiment stays the same."""
    before = build(ExperimentConfig, tiny_code.get_config())
    config = tiny_code.get_config()
    leaves = []

    def visit(node, path):
        for name in field_types(type(node)):
            value, where = getattr(node, name), f"{path}.{name}" if path else name
            if dataclasses.is_dataclass(value):
                visit(value, where)
            elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
                [visit(item, f"{where}[{i}]") for i, item in enumerate(value)]
            else:
                leaves.append(where)
                apply_override(config, where, str(to_dict(value)))

    visit(before, "")
    assert len(leaves) > 80
    assert build(ExperimentConfig, config) == before


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("crosbatch.plan", "off", r"crosbatch is unknown to ExperimentConfig\. Did you mean 'crossbatch'\?"),
        ("crossbatch.plann", "off", r"crossbatch\.plann is unknown to CrossbatchConfig\. Did you mean 'plan'\?"),
        ("train", "3", r"train is a section: name one of its fields \(steps, "),
        ("seed.x", "1", r"seed is int and has no fields"),
        ("train.steps", "many", r"train\.steps must be int, got 'many'"),
        ("model.tie_embeddings", "yes", r"model\.tie_embeddings must be true or false, got 'yes'"),
        ("model.memory_layers", "a", r"model\.memory_layers must be tuple\[int, \.\.\.\], got 'a'"),
        ("data.sources[3].path", "x", r"data\.sources\[3\] does not exist: there are 1 entries"),
        ("data.sources[0].pth", "x", r"data\.sources\[0\]\.pth is unknown to SourceConfig\. Did you mean 'path'\?"),
        ("train[0].steps", "1", r"train\[0\] is not a list"),
        ("data.sources[x].path", "1", r"is not a path"),
        (
            "evaluation.needle_kinds",
            "single,multikey",
            r"evaluation\.needle_kinds\[1\] must be one of 'single', .*got 'multikey'.*Did you mean 'multi_key'\?",
        ),
        ("evaluation.needle_kinds", "", r"needle_kinds must name at least one kind and none twice, got \[\]"),
        ("evaluation.needle_kinds", "single,single", r"none twice, got \['single', 'single'\]"),
        ("evaluation.needle_tokens", "0", r"evaluation\.needle_tokens must be integers >= 1"),
        ("evaluation.needle_trials", "0", r"evaluation\.needle_trials must be >= 1, got 0"),
    ],
)
def test_errors_name_the_path(path, text, message):
    with pytest.raises(ConfigError, match=message):
        overridden(path, text)


def test_only_tuples_are_generic():
    """`parse` reads every GenericAlias as a tuple: a field of another kind would need its own rule."""

    def visit(kind):
        for annotation in field_types(kind).values():
            if isinstance(annotation, types.GenericAlias):
                assert annotation.__origin__ is tuple
            elif dataclasses.is_dataclass(annotation):
                visit(annotation)

    visit(ExperimentConfig)
