"""Every plot of the project, as PNG files; the only importer of matplotlib."""

import dataclasses
import io
import math
from collections.abc import Sequence

import numpy as np

from fot_jax.extras import needs
from fot_jax.storage.paths import StoragePath
from fot_jax.workdir import write_whole

with needs("plots", "A report of an evaluation"):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

# Okabe and Ito's palette: told apart by colour-blind readers and in print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
LEAST_SPAN = 0.1  # a y axis spans at least this share of its middle, so that noise does not fill the picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a plot; `low` and `high` (same length as `y`) are its intervals, one whisker per point (NaN: none).

    More than 30 points have a band instead. `reference` curves (1/d, chance) are drawn thin, grey and dashed,
    without markers.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    reference: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """Titles and axes of the curves. `x_base` 0: linear, 2 or 10: logarithmic (0 is drawn left of 1)."""

    title: str
    x_label: str
    y_label: str
    x_base: int = 2
    y_log: bool = False
    y_range: tuple[float, float] | None = None
    subtitle: str = ""


def plot_curves(path: StoragePath, *, curves: Sequence[Curve], panel: Panel) -> None:
    """Draws the curves into one panel and writes it to `path` (PNG, 150 dots per inch).

    Raises:
      ValueError: there is no curve, or one has no points.
    """
    plot_panels(path, panels=[(panel, curves)])


def plot_panels(path: StoragePath, *, panels: Sequence[tuple[Panel, Sequence[Curve]]]) -> None:
    """Draws panels with their curves, two per row, and writes them to `path` (PNG, 150 dots per inch).

    Raises:
      ValueError: a panel has no curve, or a curve has no points.
    """
    if any(not curves or any(len(curve.x) == 0 for curve in curves) for _, curves in panels):
        raise ValueError(f"plot {path.name} needs at least one curve a panel, each with points")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(6.8 * columns, 4.2 * rows), layout="constrained", squeeze=False)
    for axes, (panel, curves) in zip(grid.flat, panels, strict=False):
        measured = 0
        for curve in curves:
            if curve.reference:
                axes.plot(curve.x, curve.y, "--", color="0.45", linewidth=1.2, label=curve.label, zorder=1)
                continue
            _draw(axes, curve=curve, index=measured)
            measured += 1
        _format_axes(axes, curves=curves, panel=panel)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    _save(figure, path)


def plot_map(path: StoragePath, *, values: np.ndarray, panel: Panel) -> None:
    """Draws values [rows, columns] in 0..1 as a heat map, row 0 at the top (PNG, 150 dots per inch)."""
    rows, columns = values.shape
    figure, axes = plt.subplots(
        figsize=(max(4.0, 0.3 * columns + 2.0), max(3.0, 0.22 * rows + 1.2)), layout="constrained"
    )
    image = axes.imshow(values, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
    figure.colorbar(image, ax=axes)
    axes.set_title(panel.title + (f"\n{panel.subtitle}" if panel.subtitle else ""), fontsize=11, loc="left")
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.set_xticks(range(0, columns, max(1, columns // 16)))
    axes.set_yticks(range(0, rows, max(1, rows // 32)))
    _save(figure, path)


def _save(figure: Figure, path: StoragePath) -> None:
    """Writes a figure as PNG, whole or not at all, and closes it."""
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format="png")
    plt.close(figure)
    write_whole(path, picture.getvalue())


def _draw(axes: Axes, *, curve: Curve, index: int) -> None:
    """Draws one measured line, with its intervals if it has any."""
    colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
    few = len(curve.x) <= 30
    axes.plot(
        curve.x,
        curve.y,
        color=colour,
        marker=marker if few else None,
        markersize=5,
        linewidth=1.8 if few else 1.2,
        label=curve.label,
        zorder=3,
    )
    if curve.low is None or curve.high is None:
        return
    if few:
        y, low, high = (np.asarray(values, float) for values in (curve.y, curve.low, curve.high))
        whiskers = np.maximum(np.stack([y - low, high - y]), 0)  # rounding may put an end beyond its point
        axes.errorbar(
            curve.x, y, yerr=whiskers, fmt="none", ecolor=colour, elinewidth=1.0, capsize=3, alpha=0.6, zorder=2
        )
    else:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0, zorder=2)


def _format_axes(axes: Axes, *, curves: Sequence[Curve], panel: Panel) -> None:
    """Sets titles, scales, ticks at the measured points, grid and legend."""
    title = panel.title + (f"\n{panel.subtitle}" if panel.subtitle else "")
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    points = sorted({value for curve in curves if not curve.reference for value in curve.x})
    if panel.x_base:
        if points[0] <= 0:
            axes.set_xscale("symlog", base=panel.x_base, linthresh=1, linscale=1)
            axes.set_xlim(points[0] - 0.25, points[-1] * 1.2)
        else:
            axes.set_xscale("log", base=panel.x_base)
        axes.xaxis.set_major_locator(FixedLocator(points[:: max(1, len(points) // 10)]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.y_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(*(panel.y_range or widen_range(*axes.get_ylim(), log=panel.y_log)))
    axes.grid(True, which="major", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def widen_range(low: float, high: float, *, log: bool) -> tuple[float, float]:
    """Returns the ends of a y axis, moved apart evenly where it spans less than LEAST_SPAN of its middle."""
    if log:
        short = math.sqrt((1 + LEAST_SPAN) * low / high)
        return (low / short, high * short) if short > 1 else (low, high)
    short = (LEAST_SPAN * abs(low + high) / 2 - (high - low)) / 2
    return (low - short, high + short) if short > 0 else (low, high)


def _short(value: float) -> str:
    """Returns 4096 as '4k', 256 as '256', 0.5 as '0.5'."""
    for unit, size in (("M", 2**20), ("k", 2**10)):
        if value >= size and value % size == 0:
            return f"{int(value // size)}{unit}"
    return f"{value:g}"
