"""Draws the README's plot, docs/images/main_result.png, from the tables of tiny_code.md and smollm2.md.

.venv/bin/python experiments/main_result.py
"""

import re
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

HERE = Path(__file__).parent
WITH, WITHOUT, GREY = "#3949ab", "#e07b39", "#9e9e9e"


def table(page: str, first_cell: str) -> dict[str, list[str]]:
    """Returns the rows of the table whose heading begins with a cell: first cell -> the others."""
    text = (HERE / page).read_text(encoding="utf-8")
    start = text.index(f"| {first_cell} |")
    lines = text[start:].split("\n\n")[0].splitlines()
    rows = [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows if not set(row[0]) <= {"-"}}


def bits(axes: Axes, *, first_cell: str, title: str, x_label: str) -> None:
    """Plots bits per byte against what is in memory, at places of equal distance."""
    rows = {label: cells for label, cells in table("tiny_code.md", first_cell).items() if label.isdigit()}
    for column, label, color in ((0, "trained with crossbatch", WITH), (2, "trained without", WITHOUT)):
        axes.plot(range(len(rows)), [float(cells[column]) for cells in rows.values()], "o-", color=color, label=label)
    axes.set(title=title, xlabel=x_label, ylabel="bits per byte, held out", ylim=(1.0, 2.3))
    axes.set_xticks(range(len(rows)), list(rows))


def keys(axes: Axes) -> None:
    """Plots the share of passkeys that SmolLM2 repeats against the length of the prompt."""
    rows = table("smollm2.md", "prompt, tokens")
    drawn = {
        "the recipe": ("fine-tuned with crossbatch", WITH, "o-"),
        "imported, memory in the same 8 layers, not fine-tuned, no overlap": (
            "the same memory, as imported",
            WITHOUT,
            "o-",
        ),
        "the last window alone": ("fine-tuned, no memory", GREY, "o--"),
    }
    for row, (label, color, style) in drawn.items():
        found = [re.fullmatch(r"(\d+) of (\d+)", cell) for cell in rows[row]]
        shares = [int(match[1]) / int(match[2]) for match in found if match]
        axes.plot(range(len(shares)), shares, style, color=color, label=label)
    lengths = rows["prompt, tokens"]
    axes.set(
        title="SmolLM2-135M: keys repeated",
        xlabel="length of the prompt, tokens",
        ylabel="share of keys",
        ylim=(-0.04, 1.04),
    )
    axes.set_xticks(range(len(lengths)), [f"{int(length.replace(',', '')) // 1024}k" for length in lengths])


def main() -> None:
    """Draws the three panels."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True})
    plt.rcParams.update({"grid.alpha": 0.3, "legend.frameon": False, "axes.titlesize": 10})
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    windows, documents = "windows of its document in memory", "documents in memory, four windows of each"
    bits(panels[0], first_cell=windows, title="A small model reads its own document", x_label="windows in memory")
    bits(panels[1], first_cell=documents, title="… among other documents", x_label="documents in memory (0: no memory)")
    keys(panels[2])
    panels[0].legend()
    panels[2].legend(loc=(0.27, 0.55))
    figure.savefig(HERE.parent / "docs/images/main_result.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
