"""--documents takes whatever training reads, by the same rules as the sources of a config."""

import re

import pytest

from fot_jax.config import SourceKind, UserError
from launch import cli, evaluate


def sources(*given):
    arguments = ["--workdir=x", "--task=context", *(f"--documents={text}" for text in given)]
    return evaluate.sources(cli.parse_flags(evaluate.make_parser(), arguments))


def test_sources_take_existing_paths_before_patterns(tmp_path):
    """A folder whose name is a pattern too, with files of every kind."""
    folder = tmp_path / "[2024] notes"
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl.gz", "c.JSONL.zst", "d.ndjson", "e.txt", "f.TXT.gz", "g.md", "h.parquet"):
        (folder / name).write_bytes(b"")
    (found,) = sources(f"notes={folder}")
    assert (found.name, found.kind, found.path) == ("notes", SourceKind.AUTO, str(folder))


@pytest.mark.parametrize("name", ["book.pdf", "book", "book.gz", "book.jsonl.bz2"])
def test_sources_refuse_other_files_by_name(tmp_path, name):
    """Before a model is loaded, and with the fix."""
    (tmp_path / "good.jsonl").write_text("")
    (tmp_path / name).write_text("Hello")
    place = re.escape(str(tmp_path / name))
    message = rf"--documents must name files that end in \.txt, .*\.jsonl.*, got '{place}'\. Rename it.*/\*\.txt'\.$"
    with pytest.raises(UserError, match=message):
        sources(f"good={tmp_path}/*.jsonl", f"mine={tmp_path}")


def test_sources_name_a_broken_link(tmp_path):
    """Not "no file is there"."""
    (tmp_path / "a.jsonl").symlink_to("gone")
    with pytest.raises(UserError, match=r"--documents must name files, got '.*a.jsonl', a link to 'gone'"):
        sources(f"mine={tmp_path}/*.jsonl")
