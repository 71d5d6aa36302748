"""An existing path before any pattern; links, hidden files and what cannot be read, by name."""

import logging
import os
import socket

import pytest

from fot_jax.config import UserError
from fot_jax.data.paths import matching_files


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Files under names that are patterns too, and files that these patterns match."""
    monkeypatch.chdir(tmp_path)
    for name in ("[2024] notes/a.txt", "[2024] notes/b.md", "2 notes/c.txt", "x[1].txt", "x1.txt", "deep/er/d.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def names(path):
    return [file.as_posix() for file in matching_files(path, what="path")]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("[2024] notes", ["[2024] notes/a.txt", "[2024] notes/b.md"]),
        ("[2024] notes/*.txt", ["[2024] notes/a.txt"]),
        ("[2024] notes/a.txt", ["[2024] notes/a.txt"]),
        ("x[1].txt", ["x[1].txt"]),
        ("x[12].txt", ["x1.txt"]),
        ("[2]*notes", ["2 notes/c.txt"]),
        ("**/d.txt", ["deep/er/d.txt"]),
        ("deep", ["deep/er/d.txt"]),
    ],
)
def test_existing_paths_come_before_patterns(tree, path, expected):
    """A folder "[2024] notes" is itself; the pattern of the same text matches "2 notes"."""
    assert names(path) == expected


def test_a_path_that_is_both_is_logged(tree, caplog):
    """The file is taken and the log says that the text would match others as a pattern."""
    with caplog.at_level(logging.INFO):
        assert names("x[1].txt") == ["x[1].txt"]
    assert "path: 'x[1].txt' exists and is taken as it is" in caplog.text
    caplog.clear()
    assert names("x1.txt") == ["x1.txt"]
    assert not caplog.text


def test_home_and_variables_are_expanded(tree, monkeypatch):
    """Only where the path does not exist as written."""
    monkeypatch.setenv("HOME", str(tree / "deep"))
    monkeypatch.setenv("WHERE", "deep")
    assert names("$WHERE/er/d.txt") == ["deep/er/d.txt"]
    assert names("~/er") == [f"{tree}/deep/er/d.txt"]
    (tree / "$WHERE").write_text("a file of this name")
    assert names("$WHERE") == ["$WHERE"]


def test_hidden_files_are_read_only_by_name(tree, caplog):
    """A folder leaves out names that begin with a dot, as patterns do, with a line in the log."""
    (tree / "deep/.git").mkdir()
    (tree / "deep/.git/config").write_text("x")
    (tree / "deep/.DS_Store").write_bytes(b"\xff")
    with caplog.at_level(logging.INFO):
        assert names("deep") == ["deep/er/d.txt"]
    assert "left out 2 hidden files and folders, such as 'deep/.DS_Store'" in caplog.text
    assert names("deep/.git") == ["deep/.git/config"]


def test_links_to_folders_are_followed_once(tree, caplog):
    """A loop of links ends, and a file that two paths lead to is read once, by the shorter one."""
    (tree / "deep/again").symlink_to(tree / "deep")
    (tree / "deep/notes").symlink_to(tree / "2 notes")
    expected = ["deep/er/d.txt", "deep/notes/c.txt"]
    assert names("deep") == expected
    with caplog.at_level(logging.INFO):
        assert names("deep/**/*.txt") == expected
    assert "paths lead to files that others name already" in caplog.text


@pytest.mark.parametrize("path", ["deep", "deep/*.txt", "deep/gone.txt"])
def test_broken_links_are_refused(tree, path):
    """A document that is not there is not left out in silence."""
    (tree / "deep/gone.txt").symlink_to("elsewhere")
    with pytest.raises(UserError, match=r"got 'deep/gone.txt', a link to 'elsewhere', which is not there"):
        names(path)


def test_what_is_neither_file_nor_folder_is_refused(tree):
    """Pipes and sockets can be read once only; the token cache asks for size and time."""
    os.mkfifo(tree / "deep/pipe")
    with pytest.raises(UserError, match=r"files or folders, got 'deep/pipe', which is neither"):
        names("deep")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("plug")
        with pytest.raises(UserError, match="which is neither"):
            names("plug")


def test_folders_that_cannot_be_listed_are_refused(tree, monkeypatch):
    """os.walk leaves them out in silence unless it is asked."""
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("er"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"folders that can be read, got 'deep/er' \(Permission denied\)"):
        names("deep")


def test_nothing_found_is_said_with_the_folder(tree):
    """An empty folder is told from a path that does not exist."""
    (tree / "empty").mkdir()
    with pytest.raises(UserError, match=r"path must match at least one file, got none for 'no/\*' \(from folder"):
        names("no/*")
    with pytest.raises(UserError, match="got a folder without files for 'empty'"):
        names("empty")
