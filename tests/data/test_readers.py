"""Documents and refusals of JSON lines, text, Parquet and TFRecord files. Needs TensorFlow."""

import gzip
import json
import logging

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from fot_jax.config import SourceConfig, SourceKind, UserError, VocabularyConfig
from fot_jax.data import load_vocabulary
from fot_jax.data.compressed import BLOCK
from fot_jax.data.readers import BY_NAME, READERS, read_source


def texts(path, kind, field="text"):
    return [text for _, text in READERS[kind](path, field)]


def jsonl(path, data):
    path.write_bytes(data)
    return texts(path, SourceKind.JSONL)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"text": "a", "id": ' + b"7" * 5000 + b"}", "a"),  # int() refuses more than 4,300 digits
        (b'{"id": [-' + b"7" * 5000 + b', {"b": 1e999999}], "text": "a"}', "a"),
        (b'{"text": "a", "score": NaN, "most": -Infinity}', "a"),
        (b'{"text": "a\\u0000b", "text2": "c", "text2": "d"}', "a\0b"),
        (b'{"text": "a", "inside": {"text": "b"}}', "a"),
        (b'{"text": "\\ufeffa\\u2028b\\r\\n"}\r', "\ufeffa\u2028b\r\n"),  # what a string states is its text
        (b'{"text": "\\ud83d\\ude00"}', "😀"),
    ],
)
def test_read_jsonl_reads_what_needs_no_number(tmp_path, line, expected):
    """Numbers are not used, so that none is too long; what a string states is text as it is."""
    assert jsonl(tmp_path / "a.jsonl", b'{"text": "first"}\n' + line + b"\n") == ["first", expected]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a", "text": "b"}', "line 2 must hold 'text' once, got it 2 times"),
        (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 2 must be a JSON object, got one nested too"),
        (b'{"text": ' + b"7" * 5000 + b"}", r"line 2 must hold a string under 'text', got fields \['text'\]"),
        (b'{"text": {"text": "a"}}', "line 2 must hold a string under 'text'"),
        (b'{"text": NaN}', "line 2 must hold a string under 'text'"),
        (b'[["text", "a"]]', "line 2 must be a JSON object"),
        (b'{"text": "\\ud800"}', "line 2 must be valid UTF-8, got a lone surrogate"),
        (b'{"text": "a\0b"}', r"line 2 must be a JSON object.*Invalid control character"),
        (b'{"text": "a"} {"text": "b"}', r"line 2 must be a JSON object.*Extra data"),
    ],
)
def test_read_jsonl_names_file_and_line(tmp_path, line, message):
    """In one line of the log, which quotes no more than the beginning of the record."""
    with pytest.raises(UserError, match=message) as raised:
        jsonl(tmp_path / "a.jsonl", b'{"text": "first"}\n' + line)
    assert "a.jsonl' line 2" in str(raised.value)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_byte_order_marks_are_no_text(tmp_path):
    """The mark of a text file, of JSON lines, and of JSON lines joined from several files."""
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.txt").write_bytes(mark + b"Hello\r\nworld\r\n")
    assert texts(tmp_path / "a.txt", SourceKind.TEXT) == ["Hello\r\nworld\r\n"]
    lines = mark + b'{"text": "a"}\r\n\r\n' + mark + b'{"text": "b"}\n' + mark
    assert jsonl(tmp_path / "a.jsonl", lines) == ["a", "b"]
    assert jsonl(tmp_path / "a.jsonl.gz", gzip.compress(lines)) == ["a", "b"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_of_files_are_named(tmp_path, encoding):
    """Windows' "Unicode" files, with and without their mark."""
    for name, kind in (("a.jsonl", SourceKind.JSONL), ("a.txt", SourceKind.TEXT)):
        (tmp_path / name).write_bytes('{"text": "a"}\n'.encode(encoding))
        with pytest.raises(UserError, match=rf"{name}' must be UTF-8, got {encoding.upper()[:6]}"):
            texts(tmp_path / name, kind)


def test_text_files_that_are_something_else_are_named(tmp_path):
    """A .txt that is gzip, and one whose bytes are unknown."""
    (tmp_path / "a.txt").write_bytes(gzip.compress(b"text", mtime=0))
    with pytest.raises(UserError, match=r"must be valid UTF-8, got byte 0x8b.*It looks like gzip data"):
        texts(tmp_path / "a.txt", SourceKind.TEXT)


def test_text_files_are_decompressed_by_name(tmp_path):
    """A file is a document in either form; a name that says what the file is not is refused."""
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfHello\r\n", mtime=0))
    (tmp_path / "b.md.ZST").write_bytes(zstandard.ZstdCompressor().compress(b"Hello"))
    assert texts(tmp_path / "a.txt.gz", SourceKind.TEXT) == ["Hello\r\n"]
    assert texts(tmp_path / "b.md.ZST", SourceKind.TEXT) == ["Hello"]
    (tmp_path / "c.txt.gz").write_bytes(b"Hello")
    with pytest.raises(UserError, match="must be gzip, as its name says, got something else"):
        texts(tmp_path / "c.txt.gz", SourceKind.TEXT)


def test_the_kind_of_a_file_is_told_by_its_name(tmp_path):
    """Source kind 'auto' reads a folder of text, JSON lines and Parquet; another file is refused before any is read."""
    (tmp_path / "a.TXT").write_text("of text")
    (tmp_path / "b.v2.jsonl.gz").write_bytes(gzip.compress(b'{"text": "line 1"}\n{"text": "line 2"}', mtime=0))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["row"]}), tmp_path / "c.parquet")
    source = SourceConfig(name="mine", kind=SourceKind.AUTO, path=str(tmp_path))
    arguments = {"vocabulary": load_vocabulary(VocabularyConfig()), "seed": 0, "max_documents": 0}
    found = list(read_source(source, **arguments))
    assert [text for _, text in found] == ["of text", "line 1", "line 2", "row"]
    assert [name.removeprefix(f"{tmp_path}/") for name, _ in found][1:3] == ["b.v2.jsonl.gz:1", "b.v2.jsonl.gz:2"]
    (tmp_path / "z.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    message = r"data\.sources\['mine'\]\.path must name files that end in .*got '.*z\.jpg'.*Or set .*'text' reads files"
    with pytest.raises(UserError, match=message):
        next(read_source(source, **arguments))
    assert {kind for kind in SourceKind if kind in READERS} == {*BY_NAME.values(), SourceKind.AUTO}


def test_lines_longer_than_a_block_stay_whole(tmp_path):
    """The line that crosses blocks, and the last one without its end."""
    long = "x" * (2 * BLOCK + 5)
    data = "\n".join(json.dumps({"text": text}) for text in ("a", long, "b", long)).encode()
    assert jsonl(tmp_path / "a.jsonl", data) == ["a", long, "b", long]


def test_documents_without_text_are_counted(tmp_path, caplog):
    """Once, by source; white space is text."""
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in ("a", "", " \n", "", "")))
    source = SourceConfig(name="mine", kind=SourceKind.JSONL, path=str(tmp_path / "a.jsonl"))
    arguments = {"vocabulary": load_vocabulary(VocabularyConfig()), "seed": 0}
    with caplog.at_level(logging.INFO):
        found = [text for _, text in read_source(source, max_documents=4, **arguments)]
    assert found == ["a", "", " \n", ""]
    assert caplog.messages == ["data.sources['mine']: 2 documents without text are left out."]


def table(path, column, **others):
    pyarrow.parquet.write_table(pyarrow.table({"text": column, **others}), path)
    return texts(path, SourceKind.PARQUET)


def test_read_parquet_takes_every_column_of_text(tmp_path):
    """Strings of every type, dictionaries of them, and a column whose name begins that of another."""
    plain = pyarrow.array(["a", "ü", "a"])
    kinds = (plain, plain.cast("large_string"), plain.cast("binary"), plain.cast("string_view"))
    for column in (*kinds, plain.dictionary_encode()):
        assert table(tmp_path / "a.parquet", column, **{"text.more": [1, 2, 3]}) == ["a", "ü", "a"]
    pyarrow.parquet.write_table(pyarrow.table({"text.more": [1], "text": ["a"]}), tmp_path / "b.parquet")
    assert texts(tmp_path / "b.parquet", SourceKind.PARQUET) == ["a"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PAR1" + b"x" * 40, "must be a whole Parquet file, got one cut short"),
        (b"PARE" + b"x" * 40, "got an encrypted Parquet file. Decrypt it first"),
        (b"PAR1" + b"x" * 40 + b"PAR1", "must be a Parquet file that can be read, got: "),
        (b"", "must be a Parquet file, got b''. Set kind of the source"),
        (gzip.compress(b"text", mtime=0), "must be a Parquet file, got gzip. Set kind"),
        (b'{"text": "a"}', r"must be a Parquet file, got b'{"),
    ],
)
def test_read_parquet_names_other_files(tmp_path, data, message):
    """Cut short, encrypted, corrupt inside, and files of another kind."""
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(UserError, match=message) as raised:
        texts(tmp_path / "a.parquet", SourceKind.PARQUET)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("column", [[1, 2], [{"a": "x"}], [["x"]], [None]])
def test_read_parquet_names_columns_of_no_text(tmp_path, column):
    """Numbers, nested columns, and a column of nothing but nulls."""
    with pytest.raises(UserError, match=r"must hold strings or bytes in column 'text', got (int64|struct|list|null)"):
        table(tmp_path / "a.parquet", pyarrow.array(column))


def test_read_parquet_refuses_a_column_twice(tmp_path):
    """Which of the two is meant is not guessed."""
    both = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], ["text", "text"])
    pyarrow.parquet.write_table(both, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"must hold one column 'text', got 2 among \['text', 'text'\]"):
        texts(tmp_path / "a.parquet", SourceKind.PARQUET)


@pytest.mark.parametrize(
    ("name", "compression", "message"),
    [
        ("a.tfrecord", "GZIP", r"must be plain records, as its name says, got gzip. Name it 'a.tfrecord.gz'"),
        ("a.tfrecord.gz", "", r"must be gzip, as its name says, got something else. Name it 'a.tfrecord', or"),
        ("a.tfrecord.zst", "", r"must be zstd, as its name says, .*decompress it first"),
        ("a.tfrecord", "ZLIB", "record 0 must be a whole record of a TFRecord file"),
        ("a.tfrecord", "bytes", "record 0 must be a tf.train.Example, got another record"),
    ],
)
def test_read_tfrecord_names_what_is_wrong(tmp_path, name, compression, message):
    """The compression that the name does not say, and records that are no Examples."""
    import tensorflow as tf

    options = tf.io.TFRecordOptions(compression_type="" if compression == "bytes" else compression)
    with tf.io.TFRecordWriter(str(tmp_path / name), options) as writer:
        value = tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"a"]))
        example = tf.train.Example(features=tf.train.Features(feature={"text": value}))
        writer.write(b"\xff\xff\xff" if compression == "bytes" else example.SerializeToString())
    with pytest.raises(UserError, match=message) as raised:
        texts(tmp_path / name, SourceKind.TFRECORD)
    assert "\n" not in str(raised.value)
