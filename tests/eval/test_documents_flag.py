"""--documents takes files of JSON lines, by the same rules as the sources of a config."""

import re

import pytest

from fot_jax.config import SourceKind, UserError
from launch import cli, evaluate


def sources(*given):
    arguments = ["--workdir=x", "--task=context", *(f"--documents={text}" for text in given)]
    return evaluate.sources(cli.parse_flags(evaluate.make_parser(), arguments))


def test_sources_take_existing_paths_before_patterns(tmp_path):
    """A folder whose name is a pattern too, and every suffix of JSON lines."""
    folder = tmp_path / "[2024] notes"
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl.gz", "c.JSONL.zst", "d.ndjson"):
        (folder / name).write_bytes(b"")
    (found,) = sources(f"notes={folder}")
    assert (found.name, found.kind, found.path) == ("notes", SourceKind.JSONL, str(folder))


@pytest.mark.parametrize("name", ["book.txt", "book.parquet", "book", "book.txt.gz", "book.jsonl.bz2"])
def test_sources_refuse_other_files_by_name(tmp_path, name):
    """Before a model is loaded, and not by what the first line lacks."""
    (tmp_path / "good.jsonl").write_text("")
    (tmp_path / name).write_text("Hello")
    message = rf"--documents must name JSON lines .*, got '{re.escape(str(tmp_path / name))}'. Write each"
    with pytest.raises(UserError, match=message):
        sources(f"good={tmp_path}/*.jsonl", f"mine={tmp_path}")


def test_sources_name_a_broken_link(tmp_path):
    """Not "no file is there"."""
    (tmp_path / "a.jsonl").symlink_to("gone")
    with pytest.raises(UserError, match=r"--documents must name files, got '.*a.jsonl', a link to 'gone'"):
        sources(f"mine={tmp_path}/*.jsonl")
