"""Former names of config fields: saved runs still load, new configs are told the field's name today."""

import json
import logging

import pytest

from fot_jax import workdir
from fot_jax.config import ConfigError, ExperimentConfig, UserError, renames
from fot_jax.config.build import build, field_types, to_dict
from fot_jax.logging import warn_once
from tests.train.tiny import tiny

SECTIONS = ("memory", "crossbatch")


def saved() -> dict:
    """A run's config.json with the field set in both sections, under its name today."""
    config = tiny(memory__log_length_scaling_from=24, crossbatch__log_length_scaling_from=24)
    return json.loads(json.dumps(to_dict(config)))


def with_former_names(values: dict) -> dict:
    """A config.json as runs wrote it before the field was renamed, from one of today."""
    for section in SECTIONS:
        values[section]["logn_from"] = values[section].pop("log_length_scaling_from")
    return values


@pytest.fixture
def read(tmp_path):
    """Writes a config.json and reads it as a run's; former names are logged anew."""
    warn_once.cache_clear()

    def write_and_read(values: dict) -> ExperimentConfig:
        (tmp_path / "config.json").write_text(json.dumps(values))
        return workdir.read_config(tmp_path)

    return write_and_read


def test_saved_run_with_former_names_equals_one_with_todays(read):
    """Reads a run of before the renaming: no field is lost and none falls back to its default."""
    found = read(with_former_names(saved()))
    assert found == read(saved())
    assert [getattr(found, section).log_length_scaling_from for section in SECTIONS] == [24, 24]


def test_former_names_are_logged_once_by_name(read, caplog):
    """Names each former field and its name today once a process, however often the run is read."""
    with caplog.at_level(logging.WARNING, logger="fot_jax"):
        read(saved())
        assert not caplog.messages
        for _ in range(2):
            read(with_former_names(saved()))
    assert sorted(caplog.messages) == [
        f"{section}.logn_from: this field of the saved config is {section}.log_length_scaling_from now"
        for section in ("crossbatch", "memory")
    ]


@pytest.mark.parametrize("section", SECTIONS)
def test_both_names_in_one_section_are_refused(read, section):
    """Takes neither number where a file gives two for one field."""
    values = saved()
    values[section]["logn_from"] = 48
    message = rf"{section}\.logn_from is unknown to .* It is {section}\.log_length_scaling_from now\."
    with pytest.raises(UserError, match=message):
        read(values)


@pytest.mark.parametrize("section", SECTIONS)
def test_build_names_the_field_of_today(section):
    """Refuses the former name in a new config, and says the fix."""
    values = to_dict(tiny())
    values[section]["logn_from"] = 0
    with pytest.raises(ConfigError, match=rf"It is {section}\.log_length_scaling_from now\.$"):
        build(ExperimentConfig, values)


def test_every_field_of_today_in_the_table_exists():
    """Finds each name in its section, and no former name among the fields."""
    for path, name in renames.RENAMED.items():
        section, former = path.split(".")
        fields = field_types(field_types(ExperimentConfig)[section])
        assert name in fields, f"{section}.{name}"
        assert former not in fields, path


@pytest.mark.parametrize("values", [[], None, 3, {"memory": [1]}, {"memory": None}])
def test_values_without_sections_pass_through(values):
    """Leaves files that are no experiment to the error that building them raises."""
    assert renames.with_current_names(values) == values
