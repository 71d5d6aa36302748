"""Corpora from tiny archives made here: checksums, hostile names, joining, determinism. Nothing is fetched."""

import errno
import gzip
import hashlib
import io
import json
import logging
import os
import pathlib
import re
import sqlite3
import struct
import tarfile
import zipfile
import zlib
from typing import Literal

import pytest

from fot_jax.config import SourceConfig, SourceKind, UserError
from fot_jax.data.corpora import CORPORA, build_corpora, join
from fot_jax.data.corpora.archives import read_members
from fot_jax.data.corpora.catalogue import Corpus, Order, Package, Registry
from fot_jax.data.corpora.download import obtain
from fot_jax.data.corpora.texts import read_texts
from fot_jax.data.readers import read_jsonl, source_files

ALL = re.compile(".*")
HOSTILE = ("../evil.py", "/etc/evil.py", "a/../../evil.py", "a\\..\\evil.py", "C:evil.py")


def tar_bytes(files: dict[str, bytes], *, mode: Literal["w:gz", "w:xz"] = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue()


def deb_bytes(files: dict[str, bytes]) -> bytes:
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": tar_bytes(files, mode="w:xz")}
    data = b"!<arch>\n"
    for name, part in parts.items():
        data += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(part):<10}`\n".encode() + part + b"\n" * (len(part) % 2)
    return data


def wheel_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


MAKERS = {"x.tar.gz": tar_bytes, "x.deb": deb_bytes, "x.whl": wheel_bytes}


def package(data: bytes, *, file: str = "x.whl", keep: str = ".*", registry: Registry = Registry.PYPI) -> Package:
    sha256 = hashlib.sha256(data).hexdigest()
    return Package(name="x", version="1", file=file, sha256=sha256, licence="MIT", keep=keep, registry=registry)


class Fetcher:
    """Replaces pip and apt-get: writes the given bytes and counts."""

    def __init__(self, data: bytes):
        self.data, self.calls = data, 0

    def __call__(self, package, folder):
        self.calls += 1
        (folder / package.file).write_bytes(self.data)


@pytest.mark.parametrize("file", MAKERS)
def test_members_of_every_archive(file, tmp_path):
    path = tmp_path / file
    path.write_bytes(MAKERS[file]({"./a/b.py": b"one", "c.txt": b"two"}))
    assert dict(read_members(path, ALL)) == {"a/b.py": b"one", "c.txt": b"two"}  # the link is left out
    assert dict(read_members(path, re.compile(r".*\.py$"))) == {"a/b.py": b"one"}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("file", MAKERS)
def test_hostile_names_are_refused(file, name, tmp_path):
    path = tmp_path / file
    path.write_bytes(MAKERS[file]({"good.py": b"one", name: b"evil"}))
    with pytest.raises(UserError, match=r"must hold relative names without '\.\.', got"):
        list(read_members(path, re.compile("nothing matches")))


@pytest.mark.parametrize("file", MAKERS)
def test_an_archive_cut_short(file, tmp_path):
    path = tmp_path / file
    path.write_bytes(MAKERS[file]({"a.py": b"0123456789" * 1000})[:-40])
    with pytest.raises(UserError, match="must be a whole"):
        list(read_members(path, ALL))


@pytest.mark.parametrize(("place", "value", "message"), [(6, 1, "password"), (8, 97, "compression method")])
def test_an_archive_that_zipfile_cannot_read(place, value, message, tmp_path):
    """Encrypted, and compressed as no zipfile knows: not called broken (bytes 6 and 8 of PKZIP's local header)."""
    data = bytearray(wheel_bytes({"a.py": b"one"}))
    for start, shift in ((data.index(b"PK\3\4"), 0), (data.index(b"PK\1\2"), 2)):
        data[start + shift + place] = value
    (tmp_path / "x.whl").write_bytes(data)
    with pytest.raises(UserError, match=f"x.whl' must be an archive that can be read here, got: .*{message}"):
        list(read_members(tmp_path / "x.whl", ALL))


@pytest.mark.parametrize("name", ["a.txt.gz", "a.rdb", "a.db"])
def test_broken_package_files_are_named(name):
    """Each with what its own library raises."""
    data = {"a.txt.gz": gzip.compress(b"text")[:-9], "a.rdb": b"\0\0\0\1junk", "a.db": b"no database" * 99}[name]
    with pytest.raises(UserError, match=f"'{name}' must be a whole file, got a broken one"):
        list(read_texts(name, data))


def test_a_package_file_loses_its_byte_order_mark():
    """It would be in the middle of a document."""
    assert list(read_texts("a.py", b"\xef\xbb\xbfx = 1\r\n")) == [("a.py", "x = 1\n")]


@pytest.mark.parametrize("name", ["mkdir", "write_bytes", "replace"])
def test_a_full_disk_leaves_the_old_corpora(name, tmp_path, monkeypatch):
    """One line with the folder and, of a corpus, its bytes; what was written before is as it was."""
    data = wheel_bytes(CODE_FILES)
    if name == "mkdir":
        before = []
    else:
        build_corpora(tmp_path / "c", corpora=tiny_corpora(data), fetch=Fetcher(data))
        before = sorted((tmp_path / "c").rglob("*"))

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, name, full)
        needs = "needs \\d+ bytes, " if before else ""
        with pytest.raises(UserError, match=rf"c.*: the disk is full \({needs}.*Make room and give the same command"):
            build_corpora(tmp_path / "c", corpora=tiny_corpora(data), fetch=Fetcher(data))
    assert sorted((tmp_path / "c").rglob("*")) == before


def test_not_a_deb(tmp_path):
    path = tmp_path / "x.deb"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match=r"must be a \.deb"):
        list(read_members(path, ALL))


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + b"?"], ids=["short", "changed"])
def test_a_wrong_checksum_leaves_nothing(damage, tmp_path):
    data = wheel_bytes({"a.py": b"one"})
    wanted = package(data)
    with pytest.raises(UserError, match=rf"x\.whl must have sha256 {wanted.sha256}, got .*put x\.whl with sha256"):
        obtain(wanted, tmp_path / "downloads", fetch=Fetcher(damage(data)))
    assert list((tmp_path / "downloads").iterdir()) == []


def test_good_archives_are_not_fetched_again_and_broken_ones_are(tmp_path):
    data = wheel_bytes({"a.py": b"one"})
    fetcher = Fetcher(data)
    path = obtain(package(data), tmp_path, fetch=fetcher)
    assert obtain(package(data), tmp_path, fetch=fetcher) == path and fetcher.calls == 1
    path.write_bytes(data[:-1])
    assert obtain(package(data), tmp_path, fetch=fetcher).read_bytes() == data and fetcher.calls == 2


def test_a_failed_fetch_says_how_to_go_on(tmp_path):
    def fails(package, folder):
        raise UserError("apt-get must succeed, got: no such version")

    wanted = package(b"", file="x.deb", registry=Registry.DEBIAN)
    with pytest.raises(UserError, match=r"got: no such version Run apt-get update as root first\. Or put x\.deb"):
        obtain(wanted, tmp_path, fetch=fails)


def test_folders_become_documents(monkeypatch):
    monkeypatch.setattr(join, "SMALL", 30)
    monkeypatch.setattr(join, "LARGE", 50)
    sizes = {
        "p/a.py": 20, "p/b.py": 20, "p/c.py": 60,
        "p/big/one/x.py": 30, "p/big/one/y.py": 19, "p/big/two/z.py": 40, "p/end/w.py": 5,
    }  # fmt: skip
    assert join.group_files(sizes) == [
        ["p/a.py", "p/b.py"],  # 20 is too few, 40 is enough
        ["p/c.py"],  # larger than LARGE, yet one file
        ["p/big/one/x.py", "p/big/one/y.py"],  # a whole folder of a split one
        ["p/big/two/z.py", "p/end/w.py"],  # the rest joins the last document
    ]
    assert join.group_files({"a": 1, "b": 1}) == [["a", "b"]]


def test_imports_come_first():
    texts = {
        "T/a.v": "Require Import T.c.\nFrom X Require Export d other.\n",
        "T/b.v": "(* alone *)\n",
        "T/c.v": "Require T.d.\nRequire Import a.\n",  # a cycle with a
        "T/d.v": "Lemma x : 0 = 0.\n",
        "e.ml": 'needs "T/f.ml";;\nlet x = 1;;\n',
        "f.ml": 'loadt "g.ml";;\n',
    }
    assert join.order_by_imports(sorted(texts), texts) == ["T/d.v", "T/c.v", "T/a.v", "T/b.v", "f.ml", "e.ml"]


CODE_FILES = {f"p/m{index}.py": f"value = {index}\n".encode() for index in range(6)}


def tiny_corpora(data: bytes) -> tuple[Corpus, ...]:
    code = package(data, keep=r".*\.py$")
    return (Corpus(name="code", order=Order.RANDOM, header="# {}\n", packages=(code,)),)


def test_the_same_bytes_whatever_the_order_in_the_archive(tmp_path):
    written = []
    for index, files in enumerate((CODE_FILES, dict(reversed(CODE_FILES.items())))):
        data = wheel_bytes({**files, "p/table.py": b"x" * 3000, "p/empty.py": b" \n", "p/data.bin": b"\xff"})
        built = build_corpora(tmp_path / str(index), corpora=tiny_corpora(data), fetch=Fetcher(data))
        written.append([path.read_bytes() for path in built])
    assert written[0] == written[1]
    (record,) = map(json.loads, written[0][0].splitlines())
    assert record["name"] == "x p/m0.py .. p/m5.py"
    blocks = re.findall(r"# p/m(\d)\.py\nvalue = (\d)\n", record["text"])
    assert "".join(f"# p/m{a}.py\nvalue = {b}\n" for a, b in blocks) == record["text"]
    assert sorted(blocks) == [(str(i), str(i)) for i in range(6)] != blocks  # all of them, shuffled


def test_the_readers_take_what_is_built(tmp_path):
    data = wheel_bytes(CODE_FILES)
    build_corpora(tmp_path, corpora=tiny_corpora(data), fetch=Fetcher(data))
    source = SourceConfig(name="code", kind=SourceKind.JSONL, path=str(tmp_path / "code.jsonl"))
    (document,) = read_jsonl(source_files(source)[0].path, source.text_field)
    assert "value = 3" in document[1]
    row = f"| code | x | 1 | MIT | 1 | {len(document[1])} | {hashlib.sha256(data).hexdigest()} |"
    assert row in (tmp_path / "SOURCES.md").read_text().splitlines()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["SOURCES.md", "code.jsonl", "downloads"]


def test_a_package_without_a_kept_file(tmp_path):
    data = wheel_bytes({"readme.txt": b"one"})
    with pytest.raises(UserError, match=r"must hold files that match '.*py\$', got none"):
        build_corpora(tmp_path, corpora=tiny_corpora(data), fetch=Fetcher(data))
    assert not (tmp_path / "code.jsonl").exists()


def r_vector(lines: list[str]) -> bytes:
    """R's XDR serialisation of a character vector, compressed as in a lazy-load database."""
    data = b"X\n" + struct.pack(">iiii", 3, 0x040201, 0x030500, 5) + b"UTF-8" + struct.pack(">ii", 16, len(lines))
    for line in lines:
        data += struct.pack(">ii", 0x40009, len(line.encode())) + line.encode()
    return struct.pack(">i", len(data)) + zlib.compress(data)


def test_novels_of_an_r_database():
    data = r_vector(["EMMA", "", "by Jane Austen"]) + r_vector(["SANDITON", "naïve"])
    assert dict(read_texts("Rdata.rdb", data)) == {
        "Emma": "EMMA\n\nby Jane Austen\n",
        "Sanditon": "SANDITON\nnaïve\n",
    }


def test_books_of_a_bible_in_sqlite():
    with sqlite3.connect(":memory:") as database:
        database.execute("CREATE TABLE Books(TestamentID INT, BookID INT, LongName TEXT)")
        database.execute("CREATE TABLE Bible(TestamentID INT, BookID INT, Passage1 TEXT, Passage2 TEXT)")
        database.executemany(
            "INSERT INTO Books VALUES (?, ?, ?)", [(2, 1, "Matthew"), (1, 2, "Exodus"), (1, 1, "Genesis")]
        )
        verses = [
            (1, 1, "1:1 In the", "beginning"),
            (1, 1, "1:2 And", ""),
            (2, 1, "1:1 The", ""),
            (1, 2, "1:1 Now", ""),
        ]
        database.executemany("INSERT INTO Bible VALUES (?, ?, ?, ?)", verses)
        data = database.serialize()
    assert list(read_texts("Bible.db", data)) == [
        ("01 Genesis", "Genesis\n\n1:1 In the beginning\n1:2 And\n"),
        ("02 Exodus", "Exodus\n\n1:1 Now\n"),
        ("03 Matthew", "Matthew\n\n1:1 The\n"),  # books are numbered anew in each testament
    ]


def test_gzipped_and_old_text(caplog):
    assert list(read_texts("a/b.md.gz", gzip.compress("é\r\nx".encode()))) == [("a/b.md", "é\nx")]
    with caplog.at_level(logging.INFO):
        assert list(read_texts("a.ml", b"caf\xe9")) == [("a.ml", "café")]
        assert list(read_texts("b.py", b"x" * 2001)) == []
    assert "Read a.ml as Latin-1" in caplog.text and "Skipped b.py: a line of 2001" in caplog.text


def test_the_catalogue_is_pinned():
    packages = [package for corpus in CORPORA for package in corpus.packages]
    assert [corpus.name for corpus in CORPORA] == ["code", "proofs", "prose"]
    assert len({package.sha256 for package in packages}) == len({package.file for package in packages}) == len(packages)
    assert all(re.fullmatch("[0-9a-f]{64}", package.sha256) and package.licence for package in packages)
