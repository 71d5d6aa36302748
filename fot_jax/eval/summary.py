"""The demo's summary: the gains by memory and crossbatch, from the files that evaluation wrote."""

import json
import math
from collections.abc import Sequence
from typing import Any

from fot_jax.config import UserError
from fot_jax.eval.plots import Curve, Panel, plot_curves
from fot_jax.eval.report import Cell, Report, Table
from fot_jax.eval.statistics import Interval
from fot_jax.storage.paths import StoragePath
from fot_jax.train.metrics import read_rows

MEMORY_CONTEXTS = 16  # local contexts of memory that the demo is judged at
MEMORY_TARGET = 0.03  # share of the bits per byte that this memory must save
DISTRACTION_CONTEXTS = 16  # d that the demo is judged at
DISTRACTION_TARGET = 4 / 16
LOSS_PLOT = "loss.png"


def read_results(workdir: StoragePath, task: str) -> dict[str, Any]:
    """Returns the `results` of a task's JSON in WORKDIR/eval.

    Raises:
      UserError: the task was not evaluated yet.
    """
    path = workdir / "eval" / f"{task}.json"
    if not path.is_file():
        raise UserError(
            f"{path} must exist. Run python -m launch.evaluate --workdir={workdir} --task={task}"
            " --baseline-workdir=DIR first."
        )
    return json.loads(path.read_text(encoding="utf-8"))["results"]


def _point(points: Sequence[dict[str, Any]], size: int, *, path: str) -> dict[str, Any]:
    found = [point for point in points if point["size"] == size]
    if not found:
        sizes = [point["size"] for point in points]
        raise UserError(f"{path} must hold a memory of {size} contexts, got {sizes}. Set evaluation.memory_contexts.")
    return found[0]


def memory_table(results: dict[str, Any]) -> tuple[Table, float]:
    """Returns bits per byte without memory and with 16 contexts per model, and the first model's relative saving."""
    rows: list[tuple[Cell, ...]] = []
    savings = []
    for model in results["contexts"]:
        none = _point(model["points"], 0, path="perplexity.json")
        some = _point(model["points"], MEMORY_CONTEXTS, path="perplexity.json")
        savings.append(1 - some["bits_per_byte"] / none["bits_per_byte"])
        ends = [math.nan if some[name] is None else some[name] for name in ("change_low", "change_high")]
        interval = Interval(estimate=some["change"], low=ends[0], high=ends[1])
        rows.append((model["model"], none["bits_per_byte"], some["bits_per_byte"], interval.percent(2)))
    columns = ("model", "no memory", f"{MEMORY_CONTEXTS} contexts", "change [95 % interval]")
    return Table(title="Held-out bits per byte", columns=columns, rows=tuple(rows), digits=4), savings[0]


def distraction_table(results: dict[str, Any]) -> tuple[Table, float]:
    """Returns r_d at d = 16 per model, 1/d last; and the first model's r_d."""
    if DISTRACTION_CONTEXTS not in results["contexts"]:
        raise UserError(
            f"distraction.json must hold d = {DISTRACTION_CONTEXTS}, got {results['contexts']}."
            " Set evaluation.distraction_contexts."
        )
    index = results["contexts"].index(DISTRACTION_CONTEXTS)
    rows: list[tuple[Cell, ...]] = [(model["model"], model["r"][index]) for model in results["models"]]
    rows.append(("no focus (1/d)", 1 / DISTRACTION_CONTEXTS))
    columns = ("model", f"r_{DISTRACTION_CONTEXTS}")
    title = f"Attention on the own past among {DISTRACTION_CONTEXTS} contexts"
    return Table(title=title, columns=columns, rows=tuple(rows)), results["models"][0]["r"][index]


def target_table(*, saving: float, share: float) -> Table:
    """Returns the first model's figures and the demo's targets; it also says which are NOT reached."""
    rows = (
        (
            f"bits per byte saved by {MEMORY_CONTEXTS} contexts of memory",
            f"{saving:.2%}",
            f"≥ {MEMORY_TARGET:.0%}",
            "reached" if saving >= MEMORY_TARGET else "NOT reached",
        ),
        (
            f"r_{DISTRACTION_CONTEXTS}",
            f"{share:.3f}",
            f"≥ {DISTRACTION_TARGET:.3f}",
            "reached" if share >= DISTRACTION_TARGET else "NOT reached",
        ),
    )
    return Table(title="Targets", columns=("measure", "got", "target", ""), rows=rows)


def plot_losses(path: StoragePath, *, workdirs: Sequence[StoragePath]) -> None:
    """Plots training loss against step, and held-out loss where it was measured.

    Raises:
      UserError: no run has written metrics.
    """
    curves = []
    for workdir in workdirs:
        rows = read_rows(workdir / "metrics.jsonl")
        training = [row for row in rows if row.get("loss_tokens") != 0]  # older runs wrote a loss of 0 there
        for key, name, kept in (("loss", "training", training), ("heldout_loss", "held out", rows)):
            points = [(row["step"], row[key]) for row in kept if key in row]
            if points:
                steps, losses = zip(*points, strict=True)
                curves.append(Curve(label=f"{workdir.name}, {name}", x=steps, y=losses))
    if not curves:
        raise UserError(f"metrics.jsonl must exist in one of {[str(folder) for folder in workdirs]}. Train first.")
    panel = Panel(title="Loss", x_label="step", y_label="nats per token", x_base=0)
    plot_curves(path, curves=curves, panel=panel)


def summarise(workdir: StoragePath, *, baseline_workdirs: Sequence[StoragePath]) -> Report:
    """Builds the demo's summary from WORKDIR/eval and the runs' metrics; draws WORKDIR/loss.png.

    Raises:
      UserError: a figure that it gathers was not measured.
    """
    bits, saving = memory_table(read_results(workdir, "perplexity"))
    shares, share = distraction_table(read_results(workdir, "distraction"))
    plot_losses(workdir / LOSS_PLOT, workdirs=[workdir, *baseline_workdirs])
    pictures = ("perplexity.png", "perplexity_documents.png", "distraction.png", "dictionary.png")
    made = tuple(f"eval/{name}" for name in pictures if (workdir / "eval" / name).is_file())
    return Report(
        task="summary",
        method=f"Gathered from {workdir.name}/eval; the pages there say how each figure was measured.",
        tables=(bits, shares, target_table(saving=saving, share=share)),
        results={"bits_per_byte_saved": saving, f"r_{DISTRACTION_CONTEXTS}": share},
        plots=(LOSS_PLOT, *made),
    )
