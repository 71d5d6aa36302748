"""Tables, pages and plots as files."""

import errno
import json

import matplotlib.image
import numpy as np
import pytest

from fot_jax.config import UserError
from fot_jax.eval.plots import Curve, Panel, plot_curves, widen_range
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


def coloured(path) -> np.ndarray:
    """bool [height, width]: the pixels of curves; axes, text and the reference are grey."""
    return np.ptp(matplotlib.image.imread(path)[..., :3], axis=-1) > 0.2


def test_a_single_point_shows_its_interval(tmp_path):
    """A band between one point and itself is nothing: 18 of 20 with Wilson's interval is a whisker 0.27 high."""
    panel = Panel(title="t", x_label="x", y_label="y", y_range=(0, 1))
    for name, ends in (("with", {"low": [0.699], "high": [0.972]}), ("without", {})):
        plot_curves(tmp_path / f"{name}.png", curves=[Curve(label="a", x=[4096], y=[0.9], **ends)], panel=panel)
    heights = [coloured(tmp_path / f"{name}.png")[:, :600].any(axis=1).sum() for name in ("with", "without")]
    assert heights[0] > 110, "of about 500 pixels from 0 to 1"
    assert heights[1] < 20


@pytest.mark.parametrize(
    ("ends", "log", "expected"),
    [
        ((1.995, 2.005), False, (1.9, 2.1)),  # a tenth of the middle, 2
        ((-2.005, -1.995), False, (-2.1, -1.9)),
        ((1.0, 3.0), False, (1.0, 3.0)),
        ((10.0, 10.0), True, (10 / 1.1**0.5, 10 * 1.1**0.5)),
        ((0.1, 1.0), True, (0.1, 1.0)),
    ],
)
def test_a_y_axis_spans_a_tenth_of_its_middle_at_least(ends, log, expected):
    assert widen_range(*ends, log=log) == pytest.approx(expected)


def test_noise_does_not_fill_a_picture(tmp_path):
    """Losses of 2.000 and 2.002: the line stays within a tenth of the picture's height."""
    curve = Curve(label="a", x=[1, 2, 4], y=[2.0, 2.002, 2.001])
    plot_curves(tmp_path / "x.png", curves=[curve], panel=Panel(title="t", x_label="x", y_label="y"))
    rows = np.flatnonzero(coloured(tmp_path / "x.png")[:, 100:700].any(axis=1))
    assert np.ptp(rows) < 63


def test_numbers_that_are_none_are_null_and_a_dash(tmp_path):
    """NaN and Infinity are no JSON; other readers refuse the whole file."""
    table = Table(title="t", columns=("model", "loss"), rows=(("a", float("nan")), ("b", float("inf")), ("c", 1.0)))
    results = {"a": [1.5, float("nan")], "b": {"c": float("-inf")}, "n": None}
    report = Report(task="x", method="m", tables=(table,), results=results, examples=[{"y": float("nan")}])
    write_report(report, directory=tmp_path)

    def refuse(word):
        raise AssertionError(word)

    found = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert found["results"] == {"a": [1.5, None], "b": {"c": None}, "n": None}
    assert json.loads((tmp_path / "x_examples.jsonl").read_text(), parse_constant=refuse) == {"y": None}
    assert [line.split()[1] for line in render_terminal(table).splitlines()[3:]] == ["–", "–", "1.000"]


def test_a_full_disk_is_one_line_and_keeps_the_old_files(tmp_path, monkeypatch):
    write_report(Report(task="x", method="m", tables=(TABLE,), results={"a": 1}), directory=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path, data):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(
        UserError, match=r"^.*: the disk is full \(needs .* free\)\. Make room and give the same command"
    ):
        write_report(Report(task="x", method="n", tables=(TABLE,), results={"a": 2}), directory=tmp_path)
    with pytest.raises(UserError, match="the disk is full"):
        plot_curves(
            tmp_path / "x.png", curves=[Curve(label="a", x=[1], y=[1])], panel=Panel(title="", x_label="", y_label="")
        )
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_plot_refuses_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"plot x.png needs at least one curve"):
        plot_curves(tmp_path / "x.png", curves=[], panel=Panel(title="", x_label="", y_label=""))
