"""The experiments of configs/, each argument of a file one of them, and how a test loads one."""

import pathlib

from fot_jax.config import ExperimentConfig
from launch import cli
from launch.config_files import addresses

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
FILES = sorted(FOLDER.glob("*.py"))
EXPERIMENTS = [
    address.removeprefix(f"{FOLDER}/").replace(".py", "") for path in FILES for address in addresses(str(path))
]


def load(experiment: str, *overrides: str) -> ExperimentConfig:
    """Builds an experiment by its file's stem and argument: `tiny_code`, `paper:37m`; own_text on the pages of docs."""
    parser = cli.make_parser(None)
    cli.add_experiment_flags(parser)
    needed = [f"--config.data.sources[0].path={FOLDER.parent / 'docs' / '*.md'}"] if experiment == "own_text" else []
    stem, colon, argument = experiment.partition(":")
    flags = [f"--config={FOLDER / stem}.py{colon}{argument}", *needed, *overrides]
    return cli.load_experiment(cli.parse_flags(parser, flags))
