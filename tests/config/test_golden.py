"""The resolved configs of the paper's experiments, as differences from the defaults, and the defaults."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from fot_jax.config.build import template, to_dict
from tests.shipped import load

EXPERIMENTS = (
    "paper:37m",
    "paper:184m",
    "paper:600m",
    "paper:1b2",
    "longllama:3b",
    "longllama:7b",
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


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_config_sets_what_its_golden_says(experiment, golden):
    """Compares the fields that differ from their defaults."""
    config = to_dict(load(experiment))
    ordinary = defaults()
    golden(f"config_{config['name']}", {path: value for path, value in flat(config) if ordinary.get(path) != value})


def test_defaults_are_golden(golden):
    """Shows a changed default in one place."""
    golden("config_defaults", defaults())
