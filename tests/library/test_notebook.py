"""The notebook in examples/ runs from its first cell to its last, on a tiny run."""

import json
import pathlib

import numpy as np
import pytest

from tests.eval.workdirs import experiment, write_run

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = json.loads((ROOT / "examples/reading.ipynb").read_text(encoding="utf-8"))
TEXT = "The whale was drawn by one Ishmael, in 1851. import nothing; nobody has seen it since then, or so he says."


def code_cells() -> list[str]:
    return ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_committed_without_outputs():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    for cell in NOTEBOOK["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    """Reads, asks, scores, changes the retrieval, and loads what it saved."""
    write_run(tmp_path / "run", experiment(tmp_path, memory_layers=[0, 1]))
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    monkeypatch.setenv("FOT_JAX_RUN", str(tmp_path / "run"))
    monkeypatch.setenv("FOT_JAX_TEXT", str(tmp_path / "text.txt"))
    monkeypatch.chdir(ROOT / "examples")
    names: dict[str, object] = {}
    for index, cell in enumerate(code_cells()):
        exec(compile(cell, f"cell {index}", "exec"), names)  # noqa: S102
    assert names["book"].num_tokens == names["loaded"].num_tokens == len(TEXT)
    assert names["both"].num_tokens > len(TEXT)
    assert np.isfinite([names["alone"], names["remembered"]]).all()
    assert names["alone"] != names["remembered"]
    assert names["loaded"].ask("import ", max_new_tokens=16) in capsys.readouterr().out
