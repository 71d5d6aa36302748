"""The config file on docs/configs.md works from the first start."""

import re
import textwrap
from pathlib import Path

from launch import cli, explain

PAGE = Path(__file__).parents[2] / "docs" / "configs.md"


def test_the_example_of_the_page_is_a_whole_config(tmp_path, monkeypatch, capsys):
    """Explained with a folder of three notes; its plan lacks nothing and its documents suffice."""
    code = r"^    from fot_jax.*?^        return config$"
    example = re.search(code, PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert example is not None
    (tmp_path / "mine.py").write_text(textwrap.dedent(example[0]))
    (tmp_path / "notes").mkdir()
    for name in "abc":
        (tmp_path / "notes" / f"{name}.md").write_text(f"# Note {name}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    flags = [f"--config={tmp_path / 'mine.py'}", f"--config.data.cache_dir={tmp_path / 'cache'}"]
    cli.run(explain.main, explain.make_parser(), flags)
    shown = capsys.readouterr().out
    assert shown.startswith("mine: llama family, 4 layers, memory layers 2")
    assert "  notes: 3 files, 0.0 kB; 3 documents: 2 to train on, 1 held out" in shown
    assert "note: " not in shown
