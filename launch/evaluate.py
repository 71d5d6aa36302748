"""Measures a trained model: tables on the terminal; JSON, Markdown, plots and examples in the run's folder.

  python -m launch.evaluate --workdir=DIR --task=perplexity [--baseline-workdir=DIR] [--memory.retrieval=dense]

Tasks: perplexity   loss of held-out documents against memory size, of one document and of several
       context      loss of held-out documents against context, next to any number of baselines (table 4)
       distraction  r_d, the share of attention on a document's own past among d contexts
       dictionary   accuracy of answers against dictionary size
       passkey      keys repeated exactly against prompt length (figure 1)
       needle       needles, variables and common words found against prompt length (RULER)
The run's config says what is measured; --evaluation.FIELD=VALUE and --memory.FIELD=VALUE change it.
Documents are those that the run held out, or --documents=NAME=FILES, which may be repeated: a file, a folder or a
pattern of text, JSON lines, Parquet or TFRecord files, plain or compressed, each told by its name.
Files: DIR/eval/TASK.json, TASK.md, TASK.png, TASK_examples.jsonl; with --documents in DIR/eval/NAME-NAME.
After an interrupt (Ctrl-C, exit code 130; SIGTERM, 143) the same command resumes passkey, needle and context where they
stopped.
"""

import argparse
import signal
import sys

from fot_jax.config import ConfigError, SourceConfig, SourceKind
from fot_jax.storage.paths import StoragePath, storage_path
from launch import cli, compilation_cache, interrupts

DOCUMENT_TASKS = ("perplexity", "context", "distraction")
GOES_ON = "The same command goes on from there."


def sources(flags: argparse.Namespace) -> tuple[SourceConfig, ...]:
    """Returns the documents of --documents.

    Raises:
      ConfigError: a text is not NAME=FILES, a name is given twice, or the task takes no documents.
      UserError: no file is there, or the name of one does not tell its kind.
    """
    if not flags.documents:
        return ()
    if flags.task not in DOCUMENT_TASKS:
        raise ConfigError(f"--documents must go with a task of {', '.join(DOCUMENT_TASKS)}, got --task={flags.task}.")
    from fot_jax.data.paths import matching_files
    from fot_jax.data.readers import kind_by_name

    found = []
    for text in flags.documents:
        name, _, path = text.partition("=")
        if not path or not name.isidentifier():
            raise ConfigError(f"--documents must be NAME=FILES, as letters=~/letters/*.txt, got {text!r}.")
        if name in [source.name for source in found]:
            raise ConfigError(f"--documents must have distinct names, got {name!r} twice.")
        found.append(SourceConfig(name=name, kind=SourceKind.AUTO, path=path))
    for source in found:
        for path in matching_files(source.path, what="--documents"):
            kind_by_name(path, what="--documents")
    return tuple(found)


def resume_note(task: str, directory: StoragePath) -> str:
    """Says what is left of a task after an interrupt between two pieces, and what the same command does then."""
    journals = sorted(str(path) for path in directory.glob(f"{task}.*.partial.jsonl"))
    if not journals:
        return f"nothing is kept of {task} so far. The same command begins again."
    return f"finished pieces are kept in {', '.join(journals)}. {GOES_ON}"


def main(flags: argparse.Namespace) -> None:
    """Runs the task that the flags name and writes its report."""
    if len(flags.workdir) > 1 and flags.task != "dictionary":
        raise ConfigError(f"--workdir may be repeated (seeds) for --task=dictionary only, got {len(flags.workdir)}.")
    changes = {section: cli.section_changes(flags, section) for section in ("memory", "evaluation")}
    documents = sources(flags)
    from fot_jax.eval.report import render_terminal, write_report  # imports JAX only once the flags are valid
    from fot_jax.eval.runs import load_comparison
    from fot_jax.eval.tasks import TASKS

    comparison = load_comparison(
        [storage_path(folder) for folder in flags.workdir],
        baseline_workdirs=[storage_path(folder) for folder in flags.baseline_workdir],
        step=flags.step,
        memory_changes=changes["memory"],
        evaluation_changes=changes["evaluation"],
        sources=documents,
    )
    compilation_cache.use(flags.compilation_cache, log=lambda line: print(line, file=sys.stderr, flush=True))
    default = storage_path(flags.workdir[0]) / "eval" / "-".join(source.name for source in documents)
    directory = storage_path(flags.out) if flags.out else default
    try:
        with interrupts.raise_on_signal():
            report = TASKS[flags.task](comparison, directory=directory)
            write_report(report, directory=directory)
    except KeyboardInterrupt as interrupt:
        noted = " ".join(getattr(interrupt, "__notes__", []))
        kept = f"{noted}. {GOES_ON}" if noted else resume_note(flags.task, directory)
        interrupts.exit_interrupted(getattr(interrupt, "number", signal.SIGINT), kept)
    print("\n\n".join(render_terminal(table) for table in report.tables))
    print(f"\nwritten to {directory}: {report.task}.md, .json, .png and examples")


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command's flags."""
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--workdir",
        type=cli.in_storage,
        action="append",
        required=True,
        metavar="DIR",
        help="the run's folder; repeated: seeds (dictionary)",
    )
    tasks = ["perplexity", "context", "distraction", "dictionary", "passkey", "needle"]
    parser.add_argument("--task", required=True, choices=tasks, help="what is measured")
    parser.add_argument(
        "--baseline-workdir",
        type=cli.in_storage,
        action="append",
        default=[],
        metavar="DIR",
        help="a run to compare with; such as one without crossbatch, repeatable",
    )
    parser.add_argument(
        "--documents",
        action="append",
        default=[],
        metavar="NAME=FILES",
        help="text, JSON lines, Parquet or TFRecord to measure on, all of it, not what the run held out; repeatable",
    )
    cli.add_step_flag(parser)
    parser.add_argument("--out", type=cli.in_storage, metavar="DIR", help="where the results go; default: WORKDIR/eval")
    compilation_cache.add_flag(parser)
    cli.add_section_flags(parser, "memory", "evaluation")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
