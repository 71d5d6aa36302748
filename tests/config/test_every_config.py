"""Every file of configs/ is an experiment, says what it costs and what to expect, and its model has shapes."""

import pathlib
import runpy

import jax
import pytest

from fot_jax.models.init import param_shapes
from launch import cli

FOLDER = pathlib.Path(__file__).parents[2] / "configs"
FILES = sorted(path for path in FOLDER.glob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_builds_and_says_what_it_costs(path):
    parser = cli.make_parser(None)
    cli.add_experiment_flags(parser)
    config = cli.load_experiment(cli.parse_flags(parser, [f"--config={path}"]))
    assert config.name == path.stem
    sizes = [leaf.size for leaf in jax.tree.leaves(param_shapes(config.model))]
    assert sum(sizes) > 0 and min(sizes) > 0
    page = runpy.run_path(str(path))["__doc__"]
    missing = [word for word in ("Command:", "Hardware:", "Time:", "Expected:") if word not in page]
    assert not missing, f"{path.name} must say {missing}"
