"""Task "context": table 4 of the paper in small. Tables and plots of `fot_jax/eval/context.py`, one per source."""

import sys

from fot_jax.data.documents import DocumentSet
from fot_jax.eval import context
from fot_jax.eval.journal import Journal, Memoize
from fot_jax.eval.perplexity import Sweep
from fot_jax.eval.plots import Curve, Panel, plot_curves
from fot_jax.eval.report import Cell, Report, Table
from fot_jax.eval.runs import Comparison, Run, scored_documents, token_bytes
from fot_jax.logging import warn_once
from fot_jax.storage.paths import StoragePath

Results = dict[str, list[tuple[Run, Sweep]]]  # by source


def context_task(comparison: Comparison, *, directory: StoragePath) -> Report:
    """Reports perplexity against context on each source's documents, of the model and any number of baselines."""
    documents = scored_documents(comparison)
    if max(comparison.evaluation.context_windows) == 1:
        warn_once("evaluation.context_windows", "nothing is read before the scored window: all contexts are 1")
    journal = Journal(directory, "context", measured=comparison.identity)
    found: Results = {
        source: [
            (
                run,
                _measure(comparison, run, source=source, documents=documents, memoize=journal.memoize(source, number)),
            )
            for number, run in enumerate(comparison.all_runs)
        ]
        for source in documents.sources
    }
    plots = {source: f"context_{source}.png" for source in found}
    for source, sweeps in found.items():
        _plot(directory / plots[source], source=source, sweeps=sweeps)
    return Report(
        task="context",
        method=_method(comparison, found),
        tables=tuple(_table(source, sweeps) for source, sweeps in found.items()),
        results={
            "window": comparison.runs[0].evaluated.model.local_context,
            "retrieval": comparison.retrieval,
            "sources": {source: [_results(run, sweep) for run, sweep in sweeps] for source, sweeps in found.items()},
        },
        examples=[
            row
            for source, sweeps in found.items()
            for run, sweep in sweeps
            for row in _examples(run, sweep, documents=documents.only_source(source))
        ],
        plots=tuple(plots.values()),
        journal=journal,
    )


def _measure(comparison: Comparison, run: Run, *, source: str, documents: DocumentSet, memoize: Memoize) -> Sweep:
    evaluation = comparison.evaluation

    def progress(windows: int, done: int) -> None:
        line = f"{source}, {run.evaluated.label}: context of {windows} windows, {done} targets scored"
        print(line, file=sys.stderr, flush=True)

    return context.measure(
        run.evaluated,
        reading=run.config.evaluation.reading,
        documents=documents.only_source(source),
        token_bytes=token_bytes(run.config),
        windows=evaluation.context_windows,
        most_documents=evaluation.documents,
        per_document=evaluation.target_chunks,
        seed=comparison.runs[0].config.seed,
        batch=evaluation.documents,
        progress=progress,
        memoize=memoize,
    )


def _method(comparison: Comparison, found: Results) -> str:
    W = comparison.runs[0].evaluated.model.local_context
    counts = ", ".join(
        f"{source} {len(sweeps[0][1].targets)} windows of {len({t.document for t in sweeps[0][1].targets})} documents"
        for source, sweeps in found.items()
    )
    return (
        f"Perplexity of the same {comparison.origin} windows of {W} tokens at every context, which counts windows of"
        f" {W} tokens, the scored one included ({counts}). 'memory' reads the past window by window into memory"
        f" ({comparison.retrieval}), 'sliding' gives each token a window of {W} tokens and no more, 'full' attends to"
        " all of the context. Brackets: change of the loss against one window, 95 % paired bootstrap over documents."
    )


def _table(source: str, sweeps: list[tuple[Run, Sweep]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for run, sweep in sweeps:
        cells: list[Cell] = []
        for index in range(len(sweep.sizes)):
            change = sweep.change(index)
            interval = f" ({change.percent(1)})" if index else ""
            cells.append(f"{sweep.score(index).perplexity:.2f}{interval}")
        rows.append((run.evaluated.label, run.config.evaluation.reading.value, *cells))
    header = ("model", "reading", *(f"{n}×" for n in sweeps[0][1].sizes))
    return Table(title=f"Perplexity against context: {source}", columns=header, rows=tuple(rows))


def _results(run: Run, sweep: Sweep) -> dict[str, object]:
    points = [{"windows": size, **sweep.figures(index)} for index, size in enumerate(sweep.sizes)]
    reading = run.config.evaluation.reading.value
    label, count = run.evaluated.label, len(sweep.targets)
    return {"model": label, "reading": reading, "step": run.step, "targets": count, "points": points}


def _examples(run: Run, sweep: Sweep, *, documents: DocumentSet) -> list[dict[str, object]]:
    names = {target.document: documents.name(target.document) for target in sweep.targets}
    return [
        {
            "model": run.evaluated.label,
            "windows": size,
            "document": names[target.document],
            "chunk": target.chunk,
            "nats": float(sweep.nats[index, place]),
        }
        for index, size in enumerate(sweep.sizes)
        for place, target in enumerate(sweep.targets)
    ]


def _plot(path: StoragePath, *, source: str, sweeps: list[tuple[Run, Sweep]]) -> None:
    W = sweeps[0][0].evaluated.model.local_context
    curves = [
        Curve(
            label=f"{run.evaluated.label} ({run.config.evaluation.reading.value})",
            x=[size * W for size in sweep.sizes],
            **sweep.curve(lambda score: score.perplexity),
        )
        for run, sweep in sweeps
    ]
    first = sweeps[0][1]
    subtitle = f"{len(first.targets)} windows of {W} tokens, 95 % intervals of the change against one window"
    panel = Panel(
        title=f"Perplexity against context: {source}",
        subtitle=subtitle,
        x_label="context (tokens)",
        y_label="perplexity",
    )
    plot_curves(path, curves=curves, panel=panel)
