"""The strict way from mappings to dataclasses: every error names path, rule, value and a fix."""

import dataclasses
import json

import pytest
from ml_collections import config_dict

from fot_jax.config import ConfigError, DataConfig, ExperimentConfig, ModelConfig, PlanKind, SourceKind, UserError
from fot_jax.config.build import build, difference, field_types, template, to_dict


def small(**changes) -> config_dict.ConfigDict:
    config = template()
    config.name = "small"
    config.model.update(
        num_layers=2,
        embed_dim=8,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        mlp_dim=16,
        vocab_size=300,
        local_context=8,
        memory_layers=(1,),
    )
    config.data.sources = ({"name": "code", "kind": "stdlib", "rate": 2},)
    config.optimizer.learning_rate = 1e-3
    config.train.steps = 4
    config.train.batch_rows = 8
    config.crossbatch.plan = "two_pass"
    config.update_from_flattened_dict(changes)
    return config


def test_build_converts_enums_tuples_and_nested_dataclasses():
    config = build(ExperimentConfig, small())
    assert config.crossbatch.plan is PlanKind.TWO_PASS
    assert config.data.sources[0].kind is SourceKind.STDLIB
    assert config.data.sources[0].rate == 2.0
    assert isinstance(config.data.sources[0].rate, float)
    assert config.model.memory_layers == (1,)


def test_round_trip_through_json():
    config = build(ExperimentConfig, small())
    assert build(ExperimentConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crossbatch.plan": "twopass"}, r"crossbatch\.plan must be one of 'off'.*got 'twopass'.*mean 'two_pass'"),
        ({"model.memory_layers": (2,)}, r"model\.memory_layers must be in 0\.\.1 \(layers count from 0\), got \(2,\)"),
        ({"model.memory_layers": ("1",)}, r"model\.memory_layers\[0\] must be int, got '1' \(str\)"),
        ({"model.memory_layers": ()}, r"model\.memory_layers must name at least one layer"),
        ({"crossbatch.segments": ((1, 2, 3),)}, r"crossbatch\.segments\[0\] must hold 2 values, got 3"),
        (
            {"crossbatch.schedule.num_contexts": (5,)},
            r"num_contexts must be at most the 4 streams.*got 5\. Raise train",
        ),
        ({"crossbatch.schedule.num_contexts": (0,)}, r"crossbatch\.schedule\.num_contexts must be one or more .* >= 1"),
        ({"train.batch_rows": 7}, r"train\.batch_rows must be a multiple of 2.*got 7"),
        ({"train.accumulation": 3}, r"train\.accumulation must divide the 4 streams.*got 3"),
        (
            {"train.accumulation": 4, "crossbatch.schedule.num_contexts": (2,)},
            r"must be at most the 1 streams of a micro",
        ),
        ({"model.num_kv_heads": 3}, r"model\.num_heads must be a multiple of num_kv_heads=3, got 2"),
        ({"model.head_dim": 5}, r"model\.head_dim must be even"),
        (
            {"memory.last_context_length": 9},
            r"memory\.last_context_length must be at most model\.local_context=8, got 9",
        ),
        (
            {"evaluation.passkey_tokens": (1024, 1024)},
            r"evaluation\.passkey_tokens must name no number twice, got \(1024, 1024\)",
        ),
        ({"evaluation.memory_contexts": (0, 4, 0)}, r"evaluation\.memory_contexts must name no number twice"),
        ({"data.sources": ()}, r"data\.sources must name at least one source"),
        ({"data.sources": ({"name": "a", "kind": "text"},)}, r"data\.sources\[0\]\.path must name a file, .* Set it"),
        (
            {"data.sources": ({"nam": "a"},)},
            r"data\.sources\[0\]\.nam is unknown to SourceConfig\. Did you mean 'name'\?",
        ),
        ({"data.sources": ({"kind": "text"},)}, r"data\.sources\[0\]\.name is missing: it must be str"),
        ({"optimizer.decay_steps": 3}, r"optimizer\.decay_steps must be >= 1 with schedule='wsd' and 0 .* got 3"),
        ({"optimizer.schedule": "wsd"}, r"optimizer\.decay_steps must be >= 1 with schedule='wsd'.* got 0"),
        (
            {"optimizer.schedule": "wsd", "optimizer.decay_steps": 10**6},
            r"optimizer\.decay_steps must be at most train\.steps - optimizer\.warmup_steps = \d+, got 1000000",
        ),
        ({"optimizer.beta2": 1.0}, r"optimizer\.beta2 must be in \[0, 1\), got 1\.0"),
        ({"optimizer.epsilon": 0.0}, r"optimizer\.epsilon must be > 0"),
        ({"model.rope.low_freq_factor": 4.0}, r"model\.rope\.low_freq_factor must be between 0 and .*=4\.0, got 4"),
        ({"model.rope.original_context": 0}, r"model\.rope\.original_context must be >= 1"),
        ({"memory.approx_recall": 1.5}, r"memory\.approx_recall must be in \(0, 1\], got 1\.5"),
        ({"memory.overlap": -1}, r"memory\.overlap must be >= 0, got -1"),
        (
            {"memory.log_length_scaling_from": 1},
            r"memory\.log_length_scaling_from must be 0 \(never\) or >= 2, got 1",
        ),
        (
            {"crossbatch.log_length_scaling_from": 64},
            r"crossbatch\.log_length_scaling_from must be 0 \(never\) or .*"
            r" memory\.log_length_scaling_from, which is 0, got 64\. Set both",
        ),
        (
            {"crossbatch.log_length_scaling_from": 2, "memory.log_length_scaling_from": 2},
            r"memory\.log_length_scaling_from must be 0 \(never\) or at least the local context, \d+, got 2",
        ),
        ({"memory.scann_leaves_fraction": 0.0}, r"memory\.scann_leaves_fraction must be in \(0, 1\]"),
        ({"train.peak_tflops": -1.0}, r"train\.peak_tflops must be >= 0"),
        ({"name": "a/b"}, r"name must be letters, digits, .*got 'a/b'"),
        ({"seed": -1}, r"seed must be >= 0"),
        ({"data.sources": ("pg19",)}, r"data\.sources\[0\] must be a mapping of SourceConfig's fields, got 'pg19'"),
    ],
)
def test_each_error_says_what_got_allowed(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(ExperimentConfig, small(**changes))


def test_missing_and_unknown_keys_name_their_full_path():
    values = to_dict(build(ExperimentConfig, small()))
    del values["model"]["embed_dim"]
    with pytest.raises(ConfigError, match=r"model\.embed_dim is missing: it must be int.*--config\.model\.embed_dim=…"):
        build(ExperimentConfig, values)
    values["model"]["embed_dims"] = 8
    with pytest.raises(ConfigError, match=r"model\.embed_dims is unknown to ModelConfig\. Did you mean 'embed_dim'\?"):
        build(ExperimentConfig, values)


def test_one_error_names_every_field_to_set():
    """A template alone, one with more set, and one that lacks whole sections."""
    required = (
        *("name (str)", "model.num_layers (int)", "model.embed_dim (int)", "model.num_heads (int)"),
        *("model.num_kv_heads (int)", "model.head_dim (int)", "model.mlp_dim (int)", "model.vocab_size (int)"),
        *("model.local_context (int)", "data.sources (tuple[SourceConfig, ...])"),
        *("optimizer.learning_rate (float)", "train.steps (int)", "train.batch_rows (int)"),
    )
    said = f"13 fields are missing and have no default: {', '.join(required)}. Set them in the config file or with "
    for values in (template(), {}, {"model": {}, "crossbatch": {}}):
        with pytest.raises(ConfigError) as raised:
            build(ExperimentConfig, values)
        assert str(raised.value) == said + "--config.PATH=VALUE."
    with pytest.raises(ConfigError, match=r"2 fields are missing.*: optimizer\.learning_rate \(float\), train\.steps"):
        build(ExperimentConfig, small(**{"optimizer.learning_rate": None, "train.steps": None}))


def test_one_error_names_every_field_that_is_wrong():
    """Unknown and mistyped ones of several sections, and in a list; what is missing comes last."""
    values = to_dict(build(ExperimentConfig, small()))
    del values["train"]["steps"]
    values["model"] |= {"num_layer": 2, "embed_dim": "8"}
    values["data"]["sources"] = [{"name": "a", "kind": "txt"}, {"name": 3, "kind": "text", "paht": "b"}]
    with pytest.raises(ConfigError) as raised:
        build(ExperimentConfig, values)
    places = ["model.num_layer is unknown", "model.embed_dim must be int", "sources[0].kind must be one of"]
    places += ["data.sources[1].paht is unknown", "data.sources[1].name must be str", "train.steps is missing"]
    found = [str(raised.value).index(place) for place in places]
    assert found == sorted(found)


def test_one_error_has_a_line_of_every_section():
    """Each section's first error; what must hold between sections is looked at once they are right."""
    changes = {"model.head_dim": 5, "crossbatch.packing": 0, "train.steps": 0, "train.batch_rows": 7, "name": "a/b"}
    with pytest.raises(ConfigError) as raised:
        build(ExperimentConfig, small(**changes))
    said = str(raised.value)
    assert [said.count(f"{path} must") for path in changes] == [1, 1, 1, 0, 1]
    with pytest.raises(ConfigError, match=r"train\.batch_rows must .*got 7\. model\.memory_layers must name at least"):
        build(ExperimentConfig, small(**{"train.batch_rows": 7, "model.memory_layers": ()}))


def test_a_boolean_is_not_an_integer_and_an_integer_is_a_float():
    with pytest.raises(ConfigError, match=r"seed must be int, got True \(bool\)"):
        build(ExperimentConfig, {**to_dict(build(ExperimentConfig, small())), "seed": True})
    assert build(ExperimentConfig, small(**{"train.z_loss": 1})).train.z_loss == 1.0


def test_a_section_can_be_built_alone():
    data = build(DataConfig, {"sources": [{"name": "a", "kind": "stdlib"}]}, path="data")
    assert data.sources[0].name == "a"
    with pytest.raises(ConfigError, match=r"8 fields are missing.*: model\.num_layers \(int\), model\.embed_dim"):
        build(ModelConfig, {}, path="model")


def test_the_template_is_locked_and_complete():
    config = template()
    with pytest.raises(AttributeError, match="num_layer"):
        config.model.num_layer = 3

    def paths(kind, node):
        assert set(node) == set(field_types(kind))
        for name, annotation in field_types(kind).items():
            if dataclasses.is_dataclass(annotation):
                paths(annotation, node[name])

    paths(ExperimentConfig, config)


def test_difference_lists_paths_old_and_new():
    old = build(ExperimentConfig, small())
    new = build(ExperimentConfig, small(**{"train.steps": 9, "data.sources": ({"name": "code", "kind": "passkey"},)}))
    assert [str(entry) for entry in difference(old, new)] == [
        "data.sources[0].kind: 'stdlib' -> 'passkey'",
        "data.sources[0].rate: 2.0 -> 1.0",
        "train.steps: 4 -> 9",
    ]
    assert difference(old, old) == []
    saved = to_dict(old)
    del saved["seed"]
    assert [entry.path for entry in difference(saved, old)] == ["seed"]


def test_config_errors_are_user_errors():
    assert issubclass(ConfigError, UserError)
