"""Task "distraction": tables, plot and examples of `fot_jax/eval/attention_mass.py`."""

from fot_jax.eval.attention_mass import Distraction, measure
from fot_jax.eval.plots import Curve, Panel, plot_curves
from fot_jax.eval.report import Cell, Report, Table
from fot_jax.eval.runs import Comparison, Run, scored_documents
from fot_jax.eval.targets import Documents
from fot_jax.storage.paths import StoragePath

PLOT = "distraction.png"

Measured = list[tuple[Run, Distraction]]


def distraction_task(comparison: Comparison, *, directory: StoragePath) -> Report:
    """Reports r_d against d, and per memory layer and head at the largest d."""
    evaluation, documents = comparison.evaluation, scored_documents(comparison)
    measured = [
        (
            run,
            measure(
                run.evaluated,
                documents=documents,
                contexts=evaluation.distraction_contexts,
                rows=evaluation.documents * evaluation.target_chunks,
                seed=comparison.runs[0].config.seed,
            ),
        )
        for run in comparison.all_runs
    ]
    _plot(directory / PLOT, measured)
    contexts, chunks = evaluation.distraction_contexts, len(measured[0][1].targets)
    method = (
        "r_d: of the attention that a chunk's queries give to d contexts, the share that its own document's previous"
        f" chunk gets. Plain mean over the queries of {chunks} {comparison.origin} chunks, heads and memory layers; the"
        " model attends to local ∪ d contexts while it is measured, and local keys drop out of the share."
    )
    return Report(
        task="distraction",
        method=method,
        tables=(_table(measured, contexts=contexts), _head_table(measured, num_contexts=contexts[-1])),
        results={"contexts": list(contexts), "models": [_results(run, found) for run, found in measured]},
        examples=[row for run, found in measured for row in _examples(run, found, documents=documents)],
        plots=(PLOT,),
    )


def _plot(path: StoragePath, measured: Measured) -> None:
    contexts = measured[0][1].contexts
    curves = [Curve(label=run.evaluated.label, x=contexts, y=found.curve) for run, found in measured]
    curves.append(Curve(label="1/d (no focus)", x=contexts, y=[1 / d for d in contexts], reference=True))
    panel = Panel(
        title="Attention on the document's own past",
        subtitle=f"mean over {len(measured[0][1].targets)} chunks, heads and memory layers",
        x_label="contexts d (1 own, d - 1 of other documents)",
        y_label="$r_d$",
        y_log=True,
    )
    plot_curves(path, curves=curves, panel=panel)


def _table(measured: Measured, *, contexts: tuple[int, ...]) -> Table:
    rows = tuple((d, *(found.curve[index] for _, found in measured), 1 / d) for index, d in enumerate(contexts))
    labels = tuple(run.evaluated.label for run, _ in measured)
    return Table(title="Distraction: r_d", columns=("d", *labels, "1/d"), rows=rows)


def _head_table(measured: Measured, *, num_contexts: int) -> Table:
    heads = tuple(f"head {h}" for h in range(max(found.shares.shape[3] for _, found in measured)))
    width = 3 + len(heads)
    rows = [row + ("",) * (width - len(row)) for run, found in measured for row in _head_rows(run, found)]
    title = f"r_d per memory layer and head at d = {num_contexts}"
    return Table(title=title, columns=("model", "layer", "mean", *heads), rows=tuple(rows))


def _head_rows(run: Run, found: Distraction) -> list[tuple[Cell, ...]]:
    layers = run.evaluated.model.memory_layers
    return [
        (run.evaluated.label, layer, float(heads.mean()), *map(float, heads))
        for layer, heads in zip(layers, found.by_head[-1], strict=True)
    ]


def _results(run: Run, found: Distraction) -> dict[str, object]:
    return {
        "model": run.evaluated.label,
        "step": run.step,
        "memory_layers": list(run.evaluated.model.memory_layers),
        "chunks": len(found.targets),
        "r": found.curve,
        "r_by_layer_and_head": found.by_head.tolist(),
    }


def _examples(run: Run, found: Distraction, *, documents: Documents) -> list[dict[str, object]]:
    names = {target.document: documents.name(target.document) for target in found.targets}
    return [
        {
            "model": run.evaluated.label,
            "d": d,
            "document": names[target.document],
            "chunk": target.chunk,
            "r": float(found.shares[index, :, row].mean()),
        }
        for index, d in enumerate(found.contexts)
        for row, target in enumerate(found.targets)
    ]
