"""Every experiment of configs/ builds, says what it costs and what to expect, and its model has shapes."""

import ast
import re

import jax
import pytest

from fot_jax.models.init import param_shapes
from launch.config_files import import_config_file
from tests.shipped import EXPERIMENTS, FILES, FOLDER, load

LEVELS = 2  # of inheritance: an experiment, its base, and the base of that


def test_the_experiments_have_distinct_names():
    """Names are those of the runs' folders: a file's, or a file's and an argument's."""
    names = [load(experiment).name for experiment in EXPERIMENTS]
    assert len(set(names)) == len(names) >= 25
    plain = {experiment for experiment in EXPERIMENTS if ":" not in experiment}
    assert plain <= set(names)
    assert {"paper_37m", "longllama_7b", "smollm2_fot", "smollm2_fot_cpu_32k"} <= set(names)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_it_builds_and_says_what_it_costs(experiment):
    config = load(experiment)
    sizes = [leaf.size for leaf in jax.tree.leaves(param_shapes(config.model))]
    assert sum(sizes) > 0 and min(sizes) > 0
    stem, _, argument = experiment.partition(":")
    page = import_config_file(str(FOLDER / f"{stem}.py")).__doc__ or ""
    missing = [word for word in ("Command:", "Hardware:", "Time:", "Expected:") if word not in page]
    assert not missing, f"{stem}.py must say {missing}"
    assert re.search(rf"\b{argument}\b", page), f"{stem}.py must say what {argument!r} is"
    assert f"configs/{stem}.py" in page


def bases(stem: str) -> list[str]:
    """The configs that a config file imports."""
    found = []
    for node in ast.walk(ast.parse((FOLDER / f"{stem}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "configs":
            found += [alias.name for alias in node.names]
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [name.removeprefix("configs.") for name in names if name.startswith("configs.")]
    return found


def levels(stem: str) -> int:
    return max((1 + levels(base) for base in bases(stem)), default=0)


def test_configs_inherit_over_few_levels():
    deep = {path.stem: levels(path.stem) for path in FILES if levels(path.stem) > LEVELS}
    assert not deep
    assert levels("tiny_code_plain") == 1  # the count sees an import
