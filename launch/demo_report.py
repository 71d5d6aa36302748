"""Gathers a run's evaluations and loss curves into WORKDIR/summary.md, and prints the tables.

  python -m launch.demo_report --workdir=runs/tiny_code --baseline-workdir=runs/tiny_code_plain

Needs the tasks perplexity and distraction of launch.evaluate. A target that was not reached is shown, not hidden.
"""

import argparse

from fot_jax.storage.paths import storage_path
from launch import cli


def main(flags: argparse.Namespace) -> None:
    """Writes and prints the summary."""
    from fot_jax.eval.report import render_terminal, write_report
    from fot_jax.eval.summary import summarise

    workdir = storage_path(flags.workdir)
    report = summarise(workdir, baseline_workdirs=[storage_path(folder) for folder in flags.baseline_workdir])
    write_report(report, directory=workdir)
    print("\n\n".join(render_terminal(table) for table in report.tables))
    print(f"\nwritten to {workdir / 'summary.md'}")


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command's flags."""
    parser = cli.make_parser(__doc__)
    cli.add_workdir_flag(parser, required=True)
    parser.add_argument(
        "--baseline-workdir",
        type=cli.in_storage,
        action="append",
        default=[],
        metavar="DIR",
        help="a run to compare with; its loss curve is drawn too",
    )
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
