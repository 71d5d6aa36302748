"""Results as a terminal table, a Markdown page, JSON and per-example JSONL."""

import dataclasses
import datetime
import json
import math
import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence

from fot_jax.eval.journal import Journal
from fot_jax.storage.paths import StoragePath
from fot_jax.workdir import write_whole

Cell = str | int | float
NO_NUMBER = "–"  # shown in tables for NaN and infinity, which are null in JSON


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A titled table; floats are shown with `digits` decimals."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    digits: int = 3

    def __post_init__(self) -> None:
        """Raises ValueError if a row is not as wide as the header."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r} has {len(self.columns)} columns, got a row of {len(row)}")

    def text(self) -> list[list[str]]:
        """Returns all cells as text, header first."""
        return [list(self.columns), *([self._shown(cell) for cell in row] for row in self.rows)]

    def _shown(self, cell: Cell) -> str:
        if isinstance(cell, float):
            return f"{cell:.{self.digits}f}" if math.isfinite(cell) else NO_NUMBER
        return str(cell)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The findings of one evaluation task.

    Attributes:
      task: the task's name, and the stem of the files written.
      method: how it was measured, in a paragraph a reader can check.
      tables: shown on the terminal and in Markdown.
      results: numbers for machines (JSON).
      examples: one mapping per scored example (JSONL).
      plots: PNG file names, relative to the report.
      journal: the pieces kept while measuring; removed when the report is written.
    """

    task: str
    method: str
    tables: tuple[Table, ...]
    results: Mapping[str, object]
    examples: Sequence[Mapping[str, object]] = ()
    plots: tuple[str, ...] = ()
    journal: Journal | None = None


def render_terminal(table: Table) -> str:
    """Renders a table in aligned columns: text to the left, numbers to the right."""
    cells = table.text()
    widths = [max(len(row[column]) for row in cells) for column in range(len(table.columns))]
    numeric = [
        bool(table.rows) and all(not isinstance(row[c], str) or row[c] in ("", NO_NUMBER) for row in table.rows)
        for c in range(len(table.columns))
    ]

    def line(row: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([table.title, line(cells[0]), rule, *(line(row) for row in cells[1:])])


def render_markdown(table: Table) -> str:
    """Renders a table in GitHub's Markdown."""
    header, *body = table.text()
    lines = [f"**{table.title}**", "", "| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in body]
    return "\n".join(lines)


def provenance() -> dict[str, str]:
    """Returns command, machine and date, with which a reader can check and repeat a figure."""
    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = f"python -m {module.name}" if module is not None else f"python {pathlib.Path(sys.argv[0]).name}"
    return {
        "command": " ".join([program, *map(shlex.quote, sys.argv[1:])]),
        "machine": f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def render_page(report: Report, *, origin: Mapping[str, str]) -> str:
    """Renders the whole Markdown page of a report."""
    parts = [f"# {report.task}", report.method]
    parts += [render_markdown(table) for table in report.tables]
    parts += [f"![{pathlib.Path(plot).stem}]({plot})" for plot in report.plots]
    parts.append(
        "\n".join(f"- {key}: `{text}`" if key == "command" else f"- {key}: {text}" for key, text in origin.items())
    )
    return "\n\n".join(parts) + "\n"


def write_report(report: Report, *, directory: StoragePath) -> None:
    """Writes `<task>.json`, `<task>.md` and, where there are examples, `<task>_examples.jsonl`; removes its journal.

    Raises:
      UserError: the disk is full; the files already written are whole, and the journal is kept.
    """
    origin = provenance()
    if report.journal is not None and report.journal.num_resumed:
        origin["taken up"] = f"{report.journal.num_resumed} pieces of an earlier, interrupted run of this command"
    document = {"task": report.task, **origin, "method": report.method, "results": report.results}
    if report.examples:
        write_jsonl(directory / f"{report.task}_examples.jsonl", rows=report.examples)
    write_whole(directory / f"{report.task}.json", to_json(document, indent=2) + "\n")
    write_whole(directory / f"{report.task}.md", render_page(report, origin=origin))
    if report.journal is not None:
        report.journal.remove()


def write_jsonl(path: StoragePath, *, rows: Iterable[Mapping[str, object]]) -> None:
    """Writes one JSON object per line."""
    write_whole(path, "".join(to_json(row) + "\n" for row in rows))


def to_json(value: object, *, indent: int | None = None) -> str:
    """Returns JSON text; NaN and infinity become null, as JSON has no other word for them."""
    return json.dumps(_numbers(value), indent=indent, allow_nan=False)


def _numbers(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    return [_numbers(item) for item in value] if isinstance(value, (list, tuple)) else value
