"""gin binds the same dataclasses and owns no defaults."""

import pytest

from configs import tiny_code
from fot_jax.config import ConfigError, ExperimentConfig
from fot_jax.config.build import build, difference
from fot_jax.config.gin import build_from_gin

FILE = "configs/tiny_code.gin"


def test_gin_and_python_give_the_same_experiment():
    assert build_from_gin([FILE]) == build(ExperimentConfig, tiny_code.get_config())


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
