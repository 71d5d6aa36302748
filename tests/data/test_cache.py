"""A cache is whole or absent; its fingerprint holds all that shapes tokens."""

import errno
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from fot_jax.config import DataConfig, SourceConfig, SourceKind, UserError, VocabularyConfig, VocabularyKind
from fot_jax.data import cache
from fot_jax.data.cache import fingerprint, open_or_build, vocabulary_identity
from fot_jax.data.vocabulary import load_vocabulary

DOCUMENTS = [("one", np.array([5, 6, 1], np.int32)), ("two", np.array([70_000, 1], np.int32))]


def build(folder, documents, vocab_size=80_000):
    return open_or_build(folder, documents, source="s", expected="abc", vocab_size=vocab_size)


def test_round_trip_then_no_second_build(tmp_path, capsys):
    built = build(tmp_path / "c", lambda: iter(DOCUMENTS))
    opened = build(tmp_path / "c", lambda: pytest.fail("built twice"))
    for found in (built, opened):
        np.testing.assert_array_equal(found.tokens, [5, 6, 1, 70_000, 1])
        np.testing.assert_array_equal(found.lengths, [3, 2])
        assert found.names() == ["one", "two"]
    assert "tokenising s: 2 documents" in capsys.readouterr().err
    small = build(tmp_path / "small", lambda: iter(DOCUMENTS[:1]), vocab_size=259)
    assert small.tokens.dtype == np.uint16


def test_an_error_leaves_nothing(tmp_path):
    def broken():
        yield DOCUMENTS[0]
        raise UserError("bad record")

    with pytest.raises(UserError, match="bad record"):
        build(tmp_path / "c", broken)
    assert [path.name for path in tmp_path.iterdir()] == ["c.lock"]
    with pytest.raises(UserError, match=r"data.sources\['s'\] must hold at least one document"):
        build(tmp_path / "c", lambda: iter([]))


def test_a_killed_build_is_never_used(tmp_path):
    program = f"""
import os, pathlib, signal, numpy as np
from fot_jax.data.cache import open_or_build
def documents():
    yield "half", np.arange(100_000, dtype=np.int32) % 9
    os.kill(os.getpid(), signal.SIGKILL)
open_or_build(pathlib.Path({str(tmp_path / "c")!r}), documents, source="s", expected="abc", vocab_size=259)
"""
    killed = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": os.getcwd()}, check=False)
    assert killed.returncode == -signal.SIGKILL
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".building-c-")]
    assert len(left) == 1
    assert not (tmp_path / "c").exists()
    assert build(tmp_path / "c", lambda: iter(DOCUMENTS)).names() == ["one", "two"]
    assert not (tmp_path / left[0]).exists()


def test_two_builds_at_once_build_once(tmp_path, capsys):
    started, waiting = threading.Event(), threading.Event()
    builds, found = [], []

    def documents():
        builds.append(1)
        started.set()
        assert waiting.wait(20)
        yield from DOCUMENTS

    first = threading.Thread(target=lambda: found.append(build(tmp_path / "c", documents)))
    first.start()
    assert started.wait(20)
    second = threading.Thread(target=lambda: found.append(build(tmp_path / "c", documents)))
    second.start()
    second.join(0.3)
    assert second.is_alive(), "the second build must wait for the first"
    waiting.set()
    for thread in (first, second):
        thread.join(20)
    assert len(builds) == 1
    assert [cache.names() for cache in found] == [["one", "two"]] * 2
    assert "waiting for another process" in capsys.readouterr().err


def test_contents_tell_equal_documents(tmp_path):
    """By tokens alone, whatever their names and places."""
    documents = [("a", DOCUMENTS[0][1]), *DOCUMENTS, ("b", DOCUMENTS[1][1][:1])]
    contents = build(tmp_path / "c", lambda: iter(documents)).contents
    other = build(tmp_path / "d", lambda: iter(documents[1:])).contents
    assert (contents.dtype, contents.shape) == (np.uint64, (4, 2))
    np.testing.assert_array_equal(contents[1:], other)
    np.testing.assert_array_equal((contents[:, None] == contents).all(-1).sum(1), [2, 2, 1, 1])


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def raise_full(*args, **kwargs):
    raise FULL


@pytest.mark.parametrize("place", ["tokens", "array", "text", "mkdir", "sync", "rename", "lock"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, place):
    """Wherever it is met; the same call goes on where there is room again. /dev/full is full for real."""
    write_tokens = cache._write_tokens
    with monkeypatch.context() as patch:
        if place == "tokens":
            full = pathlib.Path("/dev/full")
            patch.setattr(cache, "_write_tokens", lambda path, *args, **options: write_tokens(full, *args, **options))
        elif place in ("array", "text", "mkdir"):
            name = {"array": "write_bytes", "text": "write_text", "mkdir": "mkdir"}[place]
            patch.setattr(pathlib.Path, name, raise_full)
        else:
            patch.setattr(
                *{"sync": (os, "fsync"), "rename": (os, "rename"), "lock": (fcntl, "flock")}[place], raise_full
            )
        with pytest.raises(UserError, match=f"{tmp_path}: the disk is full .*give the same command again") as raised:
            build(tmp_path / "c", lambda: iter(DOCUMENTS))
        assert "\n" not in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"c.lock"}
    assert build(tmp_path / "c", lambda: iter(DOCUMENTS)).names() == ["one", "two"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    """A read-only disk under a lock file that is there; a whole cache in it is read all the same."""
    build(tmp_path / "c", lambda: iter(DOCUMENTS))

    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(pathlib.Path, "mkdir", read_only)
    assert build(tmp_path / "c", lambda: pytest.fail("built twice")).names() == ["one", "two"]
    with pytest.raises(UserError, match=r"must be a folder that can be written, got '.*' \(.*Read-only file system"):
        build(tmp_path / "d", lambda: iter(DOCUMENTS))


@pytest.mark.parametrize("file", ["tokens.bin", "offsets.npy", "contents.npy", "meta.json"])
def test_a_damaged_cache_is_refused(tmp_path, file):
    build(tmp_path / "c", lambda: iter(DOCUMENTS))
    path = tmp_path / "c" / file
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"c' must be a whole token cache.*Delete it"):
        build(tmp_path / "c", lambda: iter(DOCUMENTS))


def edit(path, *, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("offsets.npy", b"(3,), }            ", b"(3000000000000,), }"),  # 24 TB would be asked for
        ("offsets.npy", b"<i8", b"<f8"),
        ("offsets.npy", (3).to_bytes(8, "little"), (7).to_bytes(8, "little")),  # the second document starts there
        ("contents.npy", b"(2, 2)", b"(1, 4)"),
        ("meta.json", b"uint32", b"float3"),
        ("meta.json", b"uint32", b"uint16"),
        ("meta.json", b'"documents": 2', b'"documents": "2"'),
        ("meta.json", b"{", b"[{"),
    ],
)
def test_a_changed_cache_is_refused(tmp_path, file, old, new):
    """Bytes that are another's: sizes, types and places that do not fit one another."""
    build(tmp_path / "c", lambda: iter(DOCUMENTS))
    edit(tmp_path / "c" / file, old=old, new=new)
    with pytest.raises(UserError, match=r"c' must be a whole token cache.*Delete it") as raised:
        build(tmp_path / "c", lambda: iter(DOCUMENTS))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ['["one"', '["one"]', "7", None])
def test_damaged_names_are_refused(tmp_path, text):
    """They are read only where one is asked for."""
    built = build(tmp_path / "c", lambda: iter(DOCUMENTS))
    (tmp_path / "c/names.json").unlink()
    if text is not None:
        (tmp_path / "c/names.json").write_text(text)
    with pytest.raises(UserError, match=r"must be a whole token cache.*names.json"):
        built.names()


def test_an_unwritable_cache_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data.cache_dir must be a folder that can be written"):
        build(tmp_path / "file" / "c", lambda: iter(DOCUMENTS))


def test_a_vocabulary_is_its_file_wherever_it_lies(tmp_path):
    original = pathlib.Path("configs/tiny_code_bpe.json").read_text(encoding="utf-8")
    for name, text in (
        ("copy.json", original),
        ("other.json", original.replace('"version": "1.0"', '"version":"1.0"')),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
    files = ("configs/tiny_code_bpe.json", tmp_path / "copy.json", tmp_path / "other.json")
    kind = VocabularyKind.HF_TOKENIZER
    here, copy, other = (vocabulary_identity(VocabularyConfig(kind=kind, path=str(file))) for file in files)
    assert here == copy != other


def test_fingerprint_changes_with_all_that_shapes_tokens(tmp_path, monkeypatch, vocabulary_files):
    (tmp_path / "a.txt").write_text("text")
    model = pathlib.Path(vocabulary_files[VocabularyKind.SENTENCEPIECE]).read_bytes()
    (tmp_path / "v.model").write_bytes(model)

    def take(seed=0, kind=SourceKind.TEXT, field="text", rate=1.0, most=0, vocabulary=VocabularyConfig(), glob="*.txt"):
        source = SourceConfig(name="s", kind=kind, path=str(tmp_path / glob), text_field=field, rate=rate)
        data = DataConfig(sources=(source,), vocabulary=vocabulary, max_documents=most)
        return fingerprint(source, data=data, seed=seed)

    def spm():
        return take(vocabulary=VocabularyConfig(kind=VocabularyKind.SENTENCEPIECE, path=str(tmp_path / "v.model")))

    base, with_vocabulary = take(), spm()
    assert take() == take(seed=1) == take(rate=2.0) == base  # neither changes tokens
    assert take(kind=SourceKind.STDLIB) != take(kind=SourceKind.STDLIB, seed=1)
    changed = [take(field="body"), take(most=3), with_vocabulary, take(kind=SourceKind.JSONL), take(glob="a*")]
    (tmp_path / "v.model").write_bytes(model + b"\n")
    changed.append(spm())
    (tmp_path / "v.model").write_bytes(model)
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    load_vocabulary.cache_clear()
    changed.append(spm())
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    changed.append(take())
    (tmp_path / "b.txt").write_text("more")
    changed.append(take())
    monkeypatch.setattr(cache, "CACHE_VERSION", cache.CACHE_VERSION + 1)
    changed.append(take())
    assert changed.pop(4) == base  # another glob of the same files
    assert len({base, *changed}) == len(changed) + 1
