"""The resolved configs of the paper's experiments: a changed default shows up as a changed golden."""

import pytest

from fot_jax.config.build import to_dict
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


@pytest.mark.parametrize("name", NAMES)
def test_resolved_config(name, golden):
    parser = cli.make_parser(None)
    cli.add_experiment_flags(parser)
    golden(f"config_{name}", to_dict(cli.load_experiment(cli.parse_flags(parser, [f"--config=configs/{name}.py"]))))
