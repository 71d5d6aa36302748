"""The resolved configs of the paper's experiments, as differences from the defaults, and the defaults."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from fot_jax.config.build import template, to_dict
from launch import cli

NAMES = (
    "paper_37m",
    "paper_184m",
    "paper_600m",
    "paper_1b2",
    "longllama_3b",
    "longllama_7b",
    "smollm2_135m",
    "dictionary",
)


def flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the path and the value of every field, sections opened."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def defaults() -> dict[str, Any]:
    """Makes path -> default of all fields, null where a config must set one."""
    return dict(flat(json.loads(json.dumps(template().to_dict()))))


@pytest.mark.parametrize("name", NAMES)
def test_config_sets_what_its_golden_says(name, golden):
    """Compares the fields that differ from their defaults."""
    parser = cli.make_parser(None)
    cli.add_experiment_flags(parser)
    config = to_dict(cli.load_experiment(cli.parse_flags(parser, [f"--config=configs/{name}.py"])))
    ordinary = defaults()
    golden(f"config_{name}", {path: value for path, value in flat(config) if ordinary.get(path) != value})


def test_defaults_are_golden(golden):
    """Shows a changed default in one place."""
    golden("config_defaults", defaults())
