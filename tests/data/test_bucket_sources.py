"""Sources in a bucket: every kind of file, patterns, and what is broken there, as on a disk."""

import gzip
import logging
import threading

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from fot_jax.config import ConfigError, SourceConfig, SourceKind, UserError
from fot_jax.config.errors import NotHereError
from fot_jax.data import files, readers
from fot_jax.data.bucket_listing import match
from fot_jax.data.paths import matching_files
from fot_jax.data.plain_vocabularies import ByteVocabulary
from fot_jax.data.readers import read_source, source_files
from fot_jax.storage.paths import bucket_files, storage_path

NAMES = ("[2024] notes/a.txt", "[2024] notes/b.md", "2 notes/c.txt", "x[1].txt", "x1.txt", "deep/er/d.txt",
         "deep-2/h.txt", "deep/.git/e.txt", "deep/er/.f.txt", "deep/g.txt")  # fmt: skip
LINES = b'{"text": "one"}\n{"text": "two"}\n'


def put(folder: str, objects: dict[str, bytes]) -> None:
    for name, data in objects.items():
        bucket_files().pipe_file(f"{folder}/{name}", data)


@pytest.fixture
def tree(bucket):
    put(bucket, {name: name.encode() for name in NAMES})
    return bucket


def names(folder, path):
    return [str(file).removeprefix(f"{folder}/") for file in matching_files(f"{folder}/{path}", what="path")]


@pytest.mark.parametrize(
    "path",
    [*("[2024] notes", "[2024] notes/*.txt", "[2024] notes/a.txt", "x[1].txt", "x[12].txt", "[2]*notes", "**/d.txt"),
     *("deep", "deep/", "deep/**", "deep/**/*.txt", "deep/*", "d*", "**/*.txt", "deep/.git", "deep/.g*", "**")],
)  # fmt: skip
def test_a_bucket_is_listed_as_a_disk_is(tree, path, tmp_path):
    """Gives equal files in equal order, so that a copied corpus has equal tokens."""
    for name in NAMES:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    on_disk = [str(file.relative_to(tmp_path)) for file in matching_files(f"{tmp_path}/{path}", what="path")]
    assert on_disk and names(tree, path) == on_disk


def test_hidden_objects_are_left_out_by_name(tree, caplog):
    with caplog.at_level(logging.INFO):
        names(tree, "deep")
    assert f"path: left out 2 hidden files, such as '{tree.removeprefix('gs://')}/deep/.git/e.txt'." in caplog.text


def test_placeholders_of_folders_are_no_files(tree):
    put(tree, {"deep/er/": b"", "empty/": b""})
    assert names(tree, "deep") == ["deep/er/d.txt", "deep/g.txt"]
    with pytest.raises(NotHereError, match="got a folder or pattern without files"):
        names(tree, "empty")


def test_variables_may_name_the_bucket(tree, monkeypatch):
    monkeypatch.setenv("WHERE", tree)
    assert [str(file) for file in matching_files("$WHERE/x1.txt", what="path")] == [f"{tree}/x1.txt"]


def test_what_is_not_there_is_one_line(tree):
    for path in (f"{tree}/none.txt", f"{tree}/*.csv", "gs://no-such-bucket/a.txt"):
        with pytest.raises(NotHereError, match=r"^path must match at least one file, got .* for 'gs://"):
            matching_files(path, what="path")


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("**/*.txt", "a.txt", True),
        ("**/*.txt", "b/c/a.txt", True),
        ("**/*.txt", ".b/a.txt", False),
        ("b*", "bc/d.txt", True),
        ("b*", "bc/.d.txt", False),
        ("a/*/b", "a/x/y/b", False),
        ("a/**/b", "a/x/y/b", True),
    ],
)
def test_patterns_are_those_of_the_docstring(pattern, path, matches):
    assert match(tuple(pattern.split("/")), tuple(path.split("/"))) is matches


def parquet_bytes(tmp_path) -> bytes:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two"]}), tmp_path / "a")
    return (tmp_path / "a").read_bytes()


def tfrecord_bytes(tmp_path) -> bytes:
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(tmp_path / "r")) as writer:
        for text in (b"one", b"two"):
            feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[text]))
            writer.write(tf.train.Example(features=tf.train.Features(feature={"text": feature})).SerializeToString())
    return (tmp_path / "r").read_bytes()


def documents(path: str, kind=SourceKind.AUTO) -> list[str]:
    source = SourceConfig(name="a", kind=kind, path=path)
    read = read_source(source, vocabulary=ByteVocabulary(), seed=0, max_documents=0)
    return [text for _, text in read]


@pytest.fixture(params=["fetched", "opened"])
def fetching(request, monkeypatch):
    """Small files are fetched ahead, large ones are opened."""
    if request.param == "opened":
        monkeypatch.setattr(files, "SMALL", -1)


def test_every_kind_of_file_is_read(bucket, tmp_path, fetching, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kinds = {
        "a.jsonl": LINES,
        "b.jsonl.gz": gzip.compress(LINES),
        "c.jsonl.zst": zstandard.compress(LINES),
        "d.parquet": parquet_bytes(tmp_path),
        "e.tfrecord": tfrecord_bytes(tmp_path),
        "f.tfrecord.gz": gzip.compress(tfrecord_bytes(tmp_path)),
    }
    put(f"{bucket}/data", kinds)
    assert documents(f"{bucket}/data") == ["one", "two"] * len(kinds)
    put(f"{bucket}/text", {"a.txt": b"one", "b.md.gz": gzip.compress(b"two")})
    assert documents(f"{bucket}/text/**") == ["one", "two"]
    assert not list(tmp_path.glob("fot_jax_*"))


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.jsonl.gz", "a.parquet", "a.tfrecord", "a.tfrecord.gz"])
def test_a_cut_file_is_noticed(bucket, tmp_path, name, fetching):
    whole = {
        "a.jsonl.zst": lambda: zstandard.compress(LINES),
        "a.jsonl.gz": lambda: gzip.compress(LINES),
        "a.parquet": lambda: parquet_bytes(tmp_path),
        "a.tfrecord": lambda: tfrecord_bytes(tmp_path),
        "a.tfrecord.gz": lambda: gzip.compress(tfrecord_bytes(tmp_path)),
    }[name]()
    put(bucket, {name: whole[:-3]})
    with pytest.raises(UserError, match=rf"^'{bucket}/{name}' .*cut short"):
        documents(f"{bucket}/{name}")


def test_a_misnamed_file_is_noticed(bucket):
    put(bucket, {"a.jsonl": gzip.compress(LINES), "b.parquet": LINES})
    with pytest.raises(UserError, match=r"must be text, as its name says, got gzip\. Name it 'a\.jsonl\.gz'"):
        documents(f"{bucket}/a.jsonl")
    with pytest.raises(UserError, match=r"b\.parquet' must be a Parquet file"):
        documents(f"{bucket}/b.parquet")


def test_small_files_are_fetched_at_once_and_in_order(bucket, monkeypatch):
    """Waits until four files are being fetched; one after another would end at the barrier's timeout."""
    put(bucket, {f"{n:02}.txt": str(n).encode() for n in range(24)})
    together, read = threading.Barrier(4), files.read_bytes

    def slow(path):
        together.wait(timeout=30)
        return read(path)

    monkeypatch.setattr(files, "read_bytes", slow)
    assert documents(f"{bucket}/*.txt") == [str(n) for n in range(24)]


def test_a_file_that_goes_away_is_named(bucket, monkeypatch):
    put(bucket, {"a.txt": b"1"})
    found = source_files(SourceConfig(name="a", kind=SourceKind.TEXT, path=f"{bucket}/*.txt"))
    monkeypatch.setattr(readers, "source_files", lambda _: found)
    bucket_files().rm(f"{bucket}/a.txt")
    with pytest.raises(UserError, match=rf"^'{bucket}/a\.txt' must be a file that can be read, got: "):
        documents(f"{bucket}/*.txt")


def test_readers_that_are_left_early_close_their_files(bucket, tmp_path, monkeypatch):
    put(bucket, {"a.jsonl": LINES * 100, "b.parquet": parquet_bytes(tmp_path), "c.jsonl.gz": gzip.compress(LINES)})
    opened, real = [], bucket_files().open
    monkeypatch.setattr(bucket_files(), "open", lambda *args: opened.append(real(*args)) or opened[-1], raising=False)
    monkeypatch.setattr(files, "SMALL", -1)
    for name in ("a.jsonl", "b.parquet", "c.jsonl.gz"):
        source = SourceConfig(name="a", kind=SourceKind.AUTO, path=f"{bucket}/{name}")
        read = read_source(source, vocabulary=ByteVocabulary(), seed=0, max_documents=0)
        assert next(read)[1] == "one"
        read.close()
    assert len(opened) == 3 and all(file.closed for file in opened)


def test_what_identifies_a_file_is_its_content_and_not_its_time(bucket):
    def identities():
        source = SourceConfig(name="a", kind=SourceKind.TEXT, path=f"{bucket}/a*")
        return [file.identity() for file in source_files(source)]

    put(bucket, {"a.txt": b"one"})
    first = identities()
    put(bucket, {"a.txt": b"one"})
    assert identities() == first == [[f"{bucket}/a.txt", 3, first[0][2]]]
    put(bucket, {"a.txt": b"two"})
    assert identities() != first


def test_objects_without_a_checksum_are_known_by_generation(bucket, caplog):
    put(bucket, {"a.txt": b"one"})
    info = bucket_files().info(f"{bucket}/a.txt")
    from fot_jax.data import bucket_listing

    with caplog.at_level(logging.INFO):
        file = bucket_listing._source_file({**info, "crc32c": None})
    assert file.mark == info["generation"]
    assert "objects without a checksum are known by their generation" in caplog.text


def test_other_schemes_are_refused_by_the_config():
    with pytest.raises(ConfigError, match=r"^data\.sources\[0\]\.path must be a path of this machine or gs://BUCKET"):
        SourceConfig(name="a", kind=SourceKind.TEXT, path="s3://b/a").validate("data.sources[0]")
    SourceConfig(name="a", kind=SourceKind.TEXT, path="gs://bucket/a").validate("data.sources[0]")
    assert str(storage_path("gs://bucket/a")) == "gs://bucket/a"
