"""Tables, pages and plots as files."""

import json

import matplotlib.image
import numpy as np
import pytest

from fot_jax.eval.plots import Curve, Panel, plot_curves
from fot_jax.eval.report import Report, Table, render_markdown, render_terminal, write_report

TABLE = Table(title="Loss", columns=("model", "d", "loss"), rows=(("fot", 1, 0.5), ("plain", 16, 1.25)))


def test_terminal_table():
    assert render_terminal(TABLE).splitlines() == [
        "Loss",
        "model   d   loss",
        "-----  --  -----",
        "fot     1  0.500",
        "plain  16  1.250",
    ]


def test_markdown_table():
    assert render_markdown(TABLE).splitlines()[2:] == [
        "| model | d | loss |",
        "| --- | --- | --- |",
        "| fot | 1 | 0.500 |",
        "| plain | 16 | 1.250 |",
    ]


def test_table_refuses_a_row_of_another_width():
    with pytest.raises(ValueError, match=r"table 'x' has 2 columns, got a row of 1"):
        Table(title="x", columns=("a", "b"), rows=(("only",),))


def test_written_report(tmp_path):
    report = Report(
        task="loss",
        method="Measured so.",
        tables=(TABLE,),
        results={"a": 1},
        examples=[{"x": 1}, {"x": 2}],
        plots=("loss.png",),
    )
    write_report(report, directory=tmp_path)
    page = (tmp_path / "loss.md").read_text()
    assert all(text in page for text in ("# loss", "Measured so.", "![loss](loss.png)", "- command: `", "cores", "UTC"))
    assert json.loads((tmp_path / "loss.json").read_text())["results"] == {"a": 1}
    assert [json.loads(line) for line in (tmp_path / "loss_examples.jsonl").read_text().splitlines()] == [
        {"x": 1},
        {"x": 2},
    ]


@pytest.mark.parametrize(("x", "base"), [((0, 1, 2, 16), 2), ((1, 2, 32), 2), ((10, 20, 30), 0), ((4,), 2)])
def test_plot_is_a_picture_with_ink(tmp_path, x, base):
    curves = [
        Curve(label="a", x=x, y=[1.0 / (1 + v) for v in x], low=[0.1] * len(x), high=[0.9] * len(x)),
        Curve(label="1/d", x=x, y=[0.5] * len(x), reference=True),
    ]
    path = tmp_path / "made" / "plot.png"
    plot_curves(path, curves=curves, panel=Panel(title="t", x_label="x", y_label="y", x_base=base, y_log=True))
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[:2] == (630, 1020)
    assert (pixels[..., :3].min(axis=-1) < 0.9).mean() < 0.5
    colours = np.ptp(pixels[..., :3], axis=-1) > 0.2  # the curve: axes, text and the reference are grey
    assert colours.sum() > 20


def test_plot_refuses_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"plot x.png needs at least one curve"):
        plot_curves(tmp_path / "x.png", curves=[], panel=Panel(title="", x_label="", y_label=""))
