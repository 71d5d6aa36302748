"""Task "perplexity": tables, plots and examples of `fot_jax/eval/perplexity.py`."""

from fot_jax.eval import perplexity
from fot_jax.eval.perplexity import Sweep
from fot_jax.eval.plots import Curve, Panel, plot_curves
from fot_jax.eval.report import Cell, Report, Table
from fot_jax.eval.runs import Comparison, Run, scored_documents, token_bytes
from fot_jax.eval.targets import Documents
from fot_jax.logging import warn_once
from fot_jax.storage.paths import StoragePath

DOCUMENT_CONTEXTS = 4  # local contexts that each document puts into a memory of several documents

Sweeps = list[tuple[Run, Sweep]]


def perplexity_task(comparison: Comparison, *, directory: StoragePath) -> Report:
    """Reports perplexity and bits per byte against memory size, of one document and of several."""
    documents = scored_documents(comparison)
    if not any(comparison.evaluation.memory_contexts):
        warn_once("evaluation.memory_contexts", "no memory is read in the first table: all sizes are 0")
    contexts = _measure_contexts(comparison, documents=documents)
    shared = _measure_documents(comparison, documents=documents)
    length = comparison.runs[0].config.model.local_context
    plots = ("perplexity.png", "perplexity_documents.png")
    title = "Held-out loss against memory, one document"
    _plot(directory / plots[0], contexts, title=title, x_label=f"memory (local contexts of {length} tokens)")
    title = "Held-out loss against documents in memory"
    x_label = f"documents in memory ({DOCUMENT_CONTEXTS} local contexts each, 0: no memory)"
    _plot(directory / plots[1], shared, title=title, x_label=x_label)
    return Report(
        task="perplexity",
        method=_method(comparison, contexts[0][1]),
        tables=(
            _table(contexts, title="Perplexity against memory (local contexts)", column="contexts"),
            _table(shared, title="Perplexity against documents in memory", column="documents"),
        ),
        results={
            "local_context": length,
            "retrieval": comparison.retrieval,
            "contexts": [_results(run, sweep) for run, sweep in contexts],
            "documents": [_results(run, sweep) for run, sweep in shared],
        },
        examples=[
            row
            for kind, sweeps in (("contexts", contexts), ("documents", shared))
            for run, sweep in sweeps
            for row in _examples(run, sweep, kind=kind, documents=documents)
        ],
        plots=plots,
    )


def _measure_contexts(comparison: Comparison, *, documents: Documents) -> Sweeps:
    evaluation, first = comparison.evaluation, comparison.runs[0].config
    return [
        (
            run,
            perplexity.measure_contexts(
                run.evaluated,
                documents=documents,
                token_bytes=token_bytes(run.config),
                sizes=evaluation.memory_contexts,
                most_documents=evaluation.documents,
                per_document=evaluation.target_chunks,
                seed=first.seed,
                batch=evaluation.documents,  # rows as in `measure_documents`: most programs are compiled once
            ),
        )
        for run in comparison.all_runs
    ]


def _measure_documents(comparison: Comparison, *, documents: Documents) -> Sweeps:
    return [
        (
            run,
            perplexity.measure_documents(
                run.evaluated,
                documents=documents,
                token_bytes=token_bytes(run.config),
                contexts_per_document=DOCUMENT_CONTEXTS,
                most_documents=comparison.evaluation.documents,
                seed=comparison.runs[0].config.seed,
            ),
        )
        for run in comparison.all_runs
    ]


def _method(comparison: Comparison, sweep: Sweep) -> str:
    count = len({target.document for target in sweep.targets})
    return (
        f"Retrieval: {comparison.retrieval}. {len(sweep.targets)} {comparison.origin} chunks of {sweep.tokens} tokens"
        f" from {count} documents, the same at every size; each is scored with its own local context and a memory"
        " of the chunks before it, read window by window. The change is that of the summed loss against the first size,"
        " with a 95 % paired bootstrap interval over documents. In the second table the memory holds"
        f" {DOCUMENT_CONTEXTS} contexts of each of several documents, one of them the target's own."
    )


def _table(sweeps: Sweeps, *, title: str, column: str) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for run, sweep in sweeps:
        for index, size in enumerate(sweep.sizes):
            score, change = sweep.score(index), sweep.change(index)
            interval = change.percent(2) if index else "–"
            figures = (score.nats_per_token, score.perplexity, score.bits_per_byte)
            rows.append((run.evaluated.label, size, *figures, interval))
    header = ("model", column, "nats/token", "perplexity", "bits/byte", "change [95 % interval]")
    return Table(title=title, columns=header, rows=tuple(rows), digits=4)


def _results(run: Run, sweep: Sweep) -> dict[str, object]:
    points = [
        {"size": size, "nats_per_token": sweep.score(index).nats_per_token, **sweep.figures(index)}
        for index, size in enumerate(sweep.sizes)
    ]
    return {"model": run.evaluated.label, "step": run.step, "targets": len(sweep.targets), "points": points}


def _examples(run: Run, sweep: Sweep, *, kind: str, documents: Documents) -> list[dict[str, object]]:
    names = {target.document: documents.name(target.document) for target in sweep.targets}
    return [
        {
            "model": run.evaluated.label,
            "memory": kind,
            "size": size,
            "document": names[target.document],
            "chunk": target.chunk,
            "nats": float(sweep.nats[index, place]),
            "bytes": int(sweep.num_bytes[place]),
        }
        for index, size in enumerate(sweep.sizes)
        for place, target in enumerate(sweep.targets)
    ]


def _plot(path: StoragePath, sweeps: Sweeps, *, title: str, x_label: str) -> None:
    curves = [
        Curve(
            label=run.evaluated.label,
            x=sweep.sizes,
            **sweep.curve(lambda score: score.bits_per_byte),
        )
        for run, sweep in sweeps
    ]
    first = sweeps[0][1]
    count = len({target.document for target in first.targets})
    subtitle = f"{len(first.targets)} chunks of {count} documents, 95 % intervals of the change against the first"
    panel = Panel(title=title, subtitle=subtitle, x_label=x_label, y_label="bits per byte")
    plot_curves(path, curves=curves, panel=panel)
