"""Task "passkey": table, plot (figure 1) and examples of `fot_jax/eval/passkey.py`."""

import dataclasses
import sys

from fot_jax.config import EvaluationConfig
from fot_jax.data.vocabulary import load_vocabulary
from fot_jax.eval import passkey
from fot_jax.eval.journal import Journal
from fot_jax.eval.plots import Curve, Panel, plot_curves
from fot_jax.eval.report import Cell, Report, Table
from fot_jax.eval.runs import Comparison, warn_if_memory_unread
from fot_jax.eval.statistics import Interval, wilson
from fot_jax.storage.paths import StoragePath

PLOT = "passkey.png"
Results = dict[str, list[list[passkey.Trial]]]


def passkey_task(comparison: Comparison, *, directory: StoragePath) -> Report:
    """Reports the share of keys repeated exactly against prompt length, with memory and without."""
    evaluation, first = comparison.evaluation, comparison.runs[0].config
    vocabulary = load_vocabulary(first.data.vocabulary, first.data.dictionary)
    warn_if_memory_unread(comparison, evaluation.passkey_tokens)
    found: Results = {}
    journal = Journal(directory, "passkey", measured=comparison.identity)
    for label, evaluated in comparison.variants.items():

        def progress(length: int, done: int, right: int, label: str = label) -> None:
            line = f"{label}: {length:,} tokens, {right} of {done} keys right (of {evaluation.passkey_lengths[length]})"
            print(line, file=sys.stderr, flush=True)

        found[label] = passkey.measure(
            evaluated,
            vocabulary=vocabulary,
            lengths=evaluation.passkey_lengths,
            batch=evaluation.passkey_batch,
            seed=first.seed,
            progress=progress,
            memoize=journal.memoize(label),
        )
    _plot(directory / PLOT, found=found, comparison=comparison)
    return dataclasses.replace(_report(found, comparison=comparison), journal=journal)


def _trials(evaluation: EvaluationConfig) -> str:
    """Returns '20', or '10-20' if lengths have different numbers of trials."""
    counts = sorted(set(evaluation.passkey_trials))
    return "-".join(str(count) for count in {counts[0]: None, counts[-1]: None})


def _share(trials: list[passkey.Trial]) -> Interval:
    return wilson(sum(trial.right for trial in trials), trials=len(trials))


def _plot(path: StoragePath, *, found: Results, comparison: Comparison) -> None:
    evaluation, window = comparison.evaluation, comparison.runs[0].evaluated.model.local_context
    curves = []
    for label, lengths in found.items():
        shares = [_share(trials) for trials in lengths]
        low, high = [share.low for share in shares], [share.high for share in shares]
        y = [share.estimate for share in shares]
        curves.append(Curve(label=label, x=evaluation.passkey_tokens, y=y, low=low, high=high))
    panel = Panel(
        title="Passkey retrieval",
        subtitle=f"window {window} tokens, {_trials(evaluation)} trials a length, 95 % Wilson intervals",
        x_label="prompt length (tokens)",
        y_label="keys repeated exactly",
        y_range=(-0.03, 1.03),
    )
    plot_curves(path, curves=curves, panel=panel)


def _report(found: Results, *, comparison: Comparison) -> Report:
    evaluation = comparison.evaluation
    rows: list[tuple[Cell, ...]] = []
    models = []
    for label, lengths in found.items():
        shares = [_share(trials) for trials in lengths]
        models.append({"model": label, "shares": [dataclasses.asdict(share) for share in shares]})
        for length, trials, share in zip(evaluation.passkey_tokens, lengths, shares, strict=True):
            right = f"{sum(trial.right for trial in trials)}/{len(trials)}"
            rows.append((label, length, right, share.estimate, f"{share.low:.3f}–{share.high:.3f}"))
    method = (
        f"{_trials(evaluation)} prompts a length, the same for every model: the paper's instruction, filler, a"
        " key of up to five digits at a random place, more filler, the question. The prompt is read into"
        f" memory ({comparison.retrieval}) {comparison.windows}; the answer is generated greedily; right means that"
        " the first digits generated are the key. 'Last window' is the same model without memory layers."
    )
    return Report(
        task="passkey",
        method=method,
        tables=(
            Table(
                title="Passkey retrieval",
                columns=("model", "tokens", "right", "share", "95 % Wilson"),
                rows=tuple(rows),
            ),
        ),
        results={"lengths": list(evaluation.passkey_tokens), "models": models},
        examples=[
            {"model": label, **dataclasses.asdict(trial), "right": trial.right}
            for label, lengths in found.items()
            for trials in lengths
            for trial in trials
        ],
        plots=(PLOT,),
    )
