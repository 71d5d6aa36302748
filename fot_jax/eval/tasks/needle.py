"""Task "needle": table, plot and examples of `fot_jax/eval/needle.py`."""

import dataclasses
import sys

from fot_jax.config import NeedleKind
from fot_jax.data.needles import TEMPLATES_VERSION
from fot_jax.data.vocabulary import load_vocabulary
from fot_jax.eval import needle
from fot_jax.eval.journal import Journal
from fot_jax.eval.plots import Curve, Panel, plot_panels
from fot_jax.eval.report import Cell, Report, Table
from fot_jax.eval.runs import Comparison, warn_if_memory_unread
from fot_jax.eval.statistics import bounded_mean, wilson
from fot_jax.storage.paths import StoragePath

PLOT = "needle.png"
Results = dict[str, list[needle.NeedleResult]]


def needle_task(comparison: Comparison, *, directory: StoragePath) -> Report:
    """Reports recall against prompt length for each kind of prompt, with memory and without."""
    evaluation, first = comparison.evaluation, comparison.runs[0].config
    vocabulary = load_vocabulary(first.data.vocabulary, first.data.dictionary)
    prompts = needle.make_prompts(
        vocabulary,
        kinds=evaluation.needle_kinds,
        lengths=evaluation.needle_tokens,
        trials=evaluation.needle_trials,
        seed=first.seed,
    )
    warn_if_memory_unread(comparison, evaluation.needle_tokens)
    found: Results = {}
    journal = Journal(directory, "needle", measured=comparison.identity)
    for label, evaluated in comparison.variants.items():

        def progress(so_far: needle.NeedleResult, label: str = label) -> None:
            done = len(so_far.trials)
            line = f"{label}: {so_far.kind.value}, {so_far.length:,} tokens, recall {sum(so_far.recalls) / done:.3f}"
            print(f"{line} of {done} prompts (of {evaluation.needle_trials})", file=sys.stderr, flush=True)

        found[label] = needle.measure(
            evaluated,
            vocabulary=vocabulary,
            prompts=prompts,
            batch=evaluation.needle_batch,
            progress=progress,
            memoize=journal.memoize(label),
        )
    _plot(directory / PLOT, found=found, comparison=comparison)
    return dataclasses.replace(_report(found, comparison=comparison), journal=journal)


def _plot(path: StoragePath, *, found: Results, comparison: Comparison) -> None:
    evaluation, window = comparison.evaluation, comparison.runs[0].evaluated.model.local_context
    panels = []
    for label, results in found.items():
        curves = [_curve(kind, [one for one in results if one.kind is kind]) for kind in evaluation.needle_kinds]
        panel = Panel(
            title=f"Needles: {label}",
            subtitle=f"window {window} tokens, {evaluation.needle_trials} prompts a kind and length, 95 % intervals",
            x_label="prompt length (tokens)",
            y_label="mean recall",
            y_range=(-0.03, 1.03),
        )
        panels.append((panel, curves))
    plot_panels(path, panels=panels)


def _curve(kind: NeedleKind, results: list[needle.NeedleResult]) -> Curve:
    means = [bounded_mean(one.recalls) for one in results]
    return Curve(
        label=kind.value,
        x=[one.length for one in results],
        y=[mean.estimate for mean in means],
        low=[mean.low for mean in means],
        high=[mean.high for mean in means],
    )


def _report(found: Results, *, comparison: Comparison) -> Report:
    evaluation = comparison.evaluation
    rows: list[tuple[Cell, ...]] = []
    models = []
    for label, results in found.items():
        points = []
        for one in results:
            recall, share = bounded_mean(one.recalls), wilson(one.num_right, trials=len(one.trials))
            spread, right_spread = (f"{interval.low:.3f}–{interval.high:.3f}" for interval in (recall, share))
            right = f"{one.num_right}/{len(one.trials)}"
            rows.append((label, one.kind.value, one.length, recall.estimate, spread, right, right_spread))
            points.append(
                {
                    "kind": one.kind.value,
                    "length": one.length,
                    "recall": dataclasses.asdict(recall),
                    "all_right": dataclasses.asdict(share),
                }
            )
        models.append({"model": label, "points": points})
    return Report(
        task="needle",
        method=_method(comparison),
        tables=(
            Table(
                title="Needles",
                columns=("model", "kind", "tokens", "recall", "95 %", "all right", "95 % Wilson"),
                rows=tuple(rows),
            ),
        ),
        results={"templates_version": TEMPLATES_VERSION, "trials": evaluation.needle_trials, "models": models},
        examples=[
            {
                "model": label,
                **dataclasses.asdict(trial),
                "kind": trial.kind.value,
                "recall": trial.recall,
            }
            for label, results in found.items()
            for one in results
            for trial in one.trials
        ],
        plots=(PLOT,),
    )


def _method(comparison: Comparison) -> str:
    return (
        f"{comparison.evaluation.needle_trials} prompts a kind and length, the same for every model: RULER's (arXiv"
        f" 2404.06654) wording over repeated filler sentences, templates version {TEMPLATES_VERSION}. The prompt is"
        f" read into memory ({comparison.retrieval}) {comparison.windows}; the answer is generated greedily. Recall is"
        " the share of the expected strings in the generated text, case ignored, its mean over prompts with a score"
        " interval; 'all right' counts prompts of which every string was found. 'Last window' is the same model"
        " without memory layers."
    )
