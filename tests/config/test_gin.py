"""gin binds the same dataclasses and owns no defaults."""

import pytest

from configs import tiny_code
from fot_jax.config import ConfigError, ExperimentConfig
from fot_jax.config.build import build, difference, to_dict
from fot_jax.config.gin import build_from_gin, to_gin
from tests.shipped import EXPERIMENTS, load

FILE = "configs/tiny_code.gin"


def test_gin_and_python_give_the_same_experiment():
    assert build_from_gin([FILE]) == build(ExperimentConfig, tiny_code.get_config())


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs_from_gin(experiment, tmp_path):
    """Turns each into gin text and back to an equal dataclass; a later binding still changes a field."""
    config = load(experiment)
    path = tmp_path / "experiment.gin"
    path.write_text(to_gin(config))
    assert build_from_gin([str(path)]) == config
    assert build_from_gin([str(path)], ["TrainConfig.log_every = 12345"]).train.log_every == 12345


def test_gin_text_keeps_unusual_values(tmp_path):
    """Quotes, line ends and names that gin itself uses; several sources; nested and empty tuples; enums in a tuple."""
    sources = [
        {"name": "include", "kind": "text", "path": "a 'b' \"c\" %d @e()\n# é\\"},
        {"name": "import_", "kind": "stdlib", "rate": 1e-7},
        {"name": "é", "kind": "stdlib"},
    ]
    config = build(
        ExperimentConfig,
        {
            **to_dict(load("longllama:3b")),
            "data": {"sources": sources},
            "evaluation": {"needle_kinds": ["multi_key", "single"], "passkey_trials": [3]},
        },
    )
    assert to_gin(config).count("SourceConfig.name") == 3
    path = tmp_path / "experiment.gin"
    path.write_text(to_gin(config), encoding="utf-8")
    assert build_from_gin([str(path)]) == config
    assert build_from_gin([], to_gin(load("tiny_code")).splitlines()) == build_from_gin([FILE])


def test_bindings_override_files_and_leave_nothing_behind():
    changed = build_from_gin([FILE], ["TrainConfig.steps = 7", "RopeConfig.theta = 5e5"])
    assert [entry.path for entry in difference(build_from_gin([FILE]), changed)] == ["model.rope.theta", "train.steps"]


def test_a_section_may_be_wired_by_hand():
    by_hand = build_from_gin([FILE], ["ExperimentConfig.train = @TrainConfig()"])
    assert by_hand == build_from_gin([FILE])


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("TrainConfig.stepz = 1", r"TrainConfig\.stepz is unknown to gin\. Did you mean 'steps'\?"),
        ("TrainCfg.steps = 1", r"gin knows no dataclass 'TrainCfg'\. Did you mean 'TrainConfig'\?"),
        ("TrainConfig.steps = 'x'", r"train\.steps must be int, got 'x'"),
        ("TrainConfig.steps = 0", r"train\.steps must be >= 1, got 0"),
        ("TrainConfig.steps =", r"gin cannot read the bindings: Unable to parse value"),
        ("ModelConfig.family = 'lama'", r"model\.family must be one of 'llama', 'paper', got 'lama'"),
        ("ModelConfig.vocab_size = %NOPE", r"gin macro %NOPE is used but not defined"),
    ],
)
def test_errors_are_one_clear_line(binding, message):
    with pytest.raises(ConfigError, match=message) as error:
        build_from_gin([FILE], [binding])
    assert "\n" not in str(error.value)


def test_files_that_are_missing_or_broken(tmp_path):
    with pytest.raises(ConfigError, match=r"--gin_file must name an existing file, got 'nope\.gin'"):
        build_from_gin(["nope.gin"])
    broken = tmp_path / "broken.gin"
    broken.write_text("TrainConfig.steps = (\n")
    with pytest.raises(ConfigError, match="gin cannot read the bindings"):
        build_from_gin([str(broken)])


def test_what_is_not_bound_is_missing():
    with pytest.raises(ConfigError, match=r"12 fields are missing .*: name \(str\), model\.num_layers"):
        build_from_gin([], ["TrainConfig.steps = 1"])
