"""Trains an experiment; goes on by itself when the folder holds a checkpoint.

  python -m launch.train --config=configs/tiny_code.py [--config.train.steps=100 ...] [--workdir=DIR]
  python -m launch.train --gin_file=configs/NAME.gin [--gin_bindings='TrainConfig.steps = 100'] [--workdir=DIR]

The folder gets config.json, checkpoints/, metrics.jsonl and tensorboard/. SIGTERM saves and exits with 0.
Exit codes: 0 done or stopped by SIGTERM, 1 a metric became NaN or infinite, 2 something you can mend.
"""

import argparse
import sys

from launch import cli

NON_FINITE = 1  # exit code of a run that diverged


def main(flags: argparse.Namespace) -> None:
    """Trains what the flags describe."""
    config = cli.load_experiment(flags)
    from fot_jax.train.loop import train  # JAX is wanted only after the flags are understood
    from fot_jax.train.recorder import NonFiniteError

    allowed = [path for listed in flags.allow_change for path in listed.split(",") if path]
    try:
        train(
            config,
            workdir=cli.workdir_of(flags, config),
            allow_changes=allowed,
            say=lambda line: print(line, flush=True),
        )
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(NON_FINITE)


def make_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = cli.make_parser(__doc__)
    cli.add_experiment_flags(parser, workdir=True)
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="PATH,PATH",
        help="config paths that may differ from the run already in the folder, e.g. train.steps,train.log_every",
    )
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
