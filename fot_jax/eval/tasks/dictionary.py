"""Task "dictionary": table, plot and examples of `fot_jax/eval/lookup.py`."""

from collections.abc import Callable

import numpy as np

from fot_jax.eval import lookup
from fot_jax.eval.plots import Curve, Panel, plot_curves
from fot_jax.eval.reading import EvaluatedModel
from fot_jax.eval.report import Cell, Report, Table
from fot_jax.eval.runs import Comparison, Run
from fot_jax.eval.statistics import min_max
from fot_jax.storage.paths import StoragePath

PLOT = "dictionary.png"


def dictionary_task(comparison: Comparison, *, directory: StoragePath) -> Report:
    """Reports accuracy against dictionary size, with memory and without, and its range over seeds."""
    variants: list[tuple[str, tuple[Run, ...], Callable[[EvaluatedModel], lookup.Predictor]]] = []
    for runs in filter(None, (comparison.runs, comparison.baselines)):
        label = runs[0].evaluated.label
        variants.append((f"{label}, memory", runs, lookup.with_memory))
        variants.append((f"{label}, no memory", runs, lookup.without_memory))
    evaluation, first = comparison.evaluation, comparison.runs[0].config
    found = {
        label: [
            lookup.measure(
                make(run.evaluated),
                config=first.data.dictionary,
                sizes=evaluation.dictionary_tokens,
                episodes=evaluation.dictionary_episodes,
                seed=first.seed,
            )
            for run in runs
        ]
        for label, runs, make in variants
    }
    _plot(directory / PLOT, found=found, comparison=comparison)
    return _report(found, comparison=comparison)


def _accuracies(seeds: list[lookup.Lookup]) -> dict[str, list[float]]:
    """Returns, per dictionary size, accuracy on value tokens (mean, lowest, highest seed) and answers (mean)."""
    spreads = [min_max([float(mean) for mean in by_seed]) for by_seed in _means(seeds, "token_accuracy").T]
    return {
        "token_accuracy": [spread.estimate for spread in spreads],
        "lowest": [spread.low for spread in spreads],
        "highest": [spread.high for spread in spreads],
        "answer_accuracy": _means(seeds, "answer_accuracy").mean(axis=0).tolist(),
    }


def _means(seeds: list[lookup.Lookup], name: str) -> np.ndarray:
    """Returns float [seeds, X], the means over episodes."""
    return np.stack([getattr(one, name).mean(axis=1) for one in seeds])


def _plot(path: StoragePath, *, found: dict[str, list[lookup.Lookup]], comparison: Comparison) -> None:
    evaluation, trained = comparison.evaluation, comparison.runs[0].config.data.dictionary.definition_tokens
    curves = []
    for label, seeds in found.items():
        measured = _accuracies(seeds)
        spread = {"low": measured["lowest"], "high": measured["highest"]} if len(seeds) > 1 else {}
        curves.append(Curve(label=label, x=evaluation.dictionary_tokens, y=measured["token_accuracy"], **spread))
    panel = Panel(
        title="Dictionary lookup",
        subtitle=f"{evaluation.dictionary_episodes} dictionaries a size, trained on {trained} tokens of definitions",
        x_label="dictionary size (tokens)",
        y_label="accuracy on value tokens",
        y_range=(-0.03, 1.03),
    )
    plot_curves(path, curves=curves, panel=panel)


def _report(found: dict[str, list[lookup.Lookup]], *, comparison: Comparison) -> Report:
    evaluation, config = comparison.evaluation, comparison.runs[0].config.data.dictionary
    rows: list[tuple[Cell, ...]] = []
    for label, seeds in found.items():
        measured = _accuracies(seeds)
        for size, mean, low, high, answers in zip(evaluation.dictionary_tokens, *measured.values(), strict=True):
            spread = f"{low:.3f}–{high:.3f}" if len(seeds) > 1 else "one"
            rows.append((label, size, mean, spread, answers))
    method = (
        f"{evaluation.dictionary_episodes} dictionaries a size, the same for every model; definitions are read window"
        f" by window into memory ({comparison.retrieval}), then {config.question_tokens} question tokens are answered,"
        " teacher-forced. 'No memory' sees only the last local context of the episode. Accuracy counts value tokens,"
        " 'answers' whole values; seeds: the smallest and the largest of the workdirs given."
    )
    columns = ("model", "dictionary tokens", "accuracy", "seeds", "answers")
    return Report(
        task="dictionary",
        method=method,
        tables=(Table(title="Dictionary lookup", columns=columns, rows=tuple(rows)),),
        results={
            "sizes": list(evaluation.dictionary_tokens),
            "trained_on": config.definition_tokens,
            "models": [{"model": label, "seeds": len(s), **_accuracies(s)} for label, s in found.items()],
        },
        examples=[
            {"model": label, "seed": number, **row}
            for label, seeds in found.items()
            for number, one in enumerate(seeds)
            for row in one.examples
        ],
        plots=(PLOT,),
    )
