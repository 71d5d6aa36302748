"""Documents: JSON lines plain and compressed, Parquet, TFRecord."""

import functools
import gzip
import io
import json
from pathlib import Path

import zstandard
from hypothesis import strategies as st

from tests.fuzz import layouts
from tests.fuzz.edits import VALUES, Edit, Files, byte_arguments, inside, json_arguments, of, protobuf_arguments
from tests.fuzz.edits import word_arguments as words
from tests.fuzz.kind import Kind, require

TEXTS = ("def f(x):\n    return x\n", "naïve Ωmega 你好 \U0001f600", "a" * 300, "the <s> end </s>", "x")
WORDS = (
    b'{"text": "',
    b'"}',
    b"\n",
    b"\r\n",
    b"\\ud800",
    b"\\ud83d\\ude00",
    b"\\u0000",
    b"NaN",
    b'"text": 1, ',
    b"\xff",
)


def _read(kind: str, path: Path) -> list[str]:
    """The texts that the project reads."""
    from fot_jax.config import SourceConfig, SourceKind
    from fot_jax.data.readers import read_source
    from fot_jax.data.vocabulary import ByteVocabulary

    source = SourceConfig(name="fuzzed", kind=SourceKind(kind), path=str(path))
    return [text for _, text in read_source(source, vocabulary=ByteVocabulary(), seed=0, max_documents=0)]


def _lines() -> bytes:
    return b"".join(json.dumps({"text": text, "id": i}).encode() + b"\n" for i, text in enumerate(TEXTS))


@functools.cache
def jsonl_files() -> Files:
    """JSON lines."""
    return {"a.jsonl": _lines()}


@functools.cache
def gzip_files() -> Files:
    """JSON lines, compressed by gzip."""
    return {"a.jsonl.gz": gzip.compress(_lines(), mtime=0)}


@functools.cache
def zstd_files() -> Files:
    """JSON lines in two frames of Zstandard, with checksums."""
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    half = _lines().index(b"\n", 200) + 1
    return {"a.jsonl.zst": compressor.compress(_lines()[:half]) + compressor.compress(_lines()[half:])}


def _plain(path: Path) -> bytes:
    """A file's text, decompressed by the libraries in one piece."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        reader = zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(
            io.BytesIO(data), read_across_frames=True
        )
        return reader.read()
    return data


def _attempt_lines(source: Path, target: Path, intact: Path) -> None:
    path = next(iter(sorted(source.glob("a.*"))))
    texts = _read("jsonl", path)
    data = _plain(path).decode("utf-8")
    lines = [line for line in data.removeprefix("\ufeff").split("\n") if line.strip()]
    held = [json.loads(line, parse_int=len)["text"] for line in lines]  # int() refuses long numbers
    require(texts == held, "other texts than the file's lines")


def _attempt_parquet(source: Path, target: Path, intact: Path) -> None:
    import pyarrow.parquet

    texts = _read("parquet", source / "a.parquet")
    column = pyarrow.parquet.read_table(source / "a.parquet", columns=["text"]).column(0).to_pylist()
    theirs = [value.decode() if isinstance(value, bytes) else value for value in column]
    require(texts == theirs, "other texts than the file's column")


@functools.cache
def parquet_files() -> Files:
    """Two row groups of a string column, plain and compressed."""
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    table = pyarrow.table({"text": list(TEXTS) * 2, "id": list(range(10))})
    pyarrow.parquet.write_table(table, out, row_group_size=5, compression={"text": "snappy", "id": "none"})
    return {"a.parquet": out.getvalue()}


def _example(text: str) -> bytes:
    """A tf.train.Example with one bytes feature: protobuf by hand."""

    def field(number: int, value: bytes) -> bytes:
        length, head = len(value), b""
        while length > 127:
            head, length = head + bytes([length & 127 | 128]), length >> 7
        return bytes([number << 3 | 2]) + head + bytes([length]) + value

    feature = field(1, field(1, text.encode()))
    return field(1, field(1, field(1, b"text") + field(2, feature)))


def _feature(record: bytes) -> str:
    """The text of such a record: the last value of the last feature of that name."""
    found = b""
    for number, _, features in layouts.fields(record) or ():
        for _, _, entry in (layouts.fields(features) or ()) if number == 1 else ():
            parts = {place: value for place, _, value in layouts.fields(entry) or ()}
            if parts.get(1) == b"text":
                lists = layouts.fields(parts[2]) or ()
                found = (layouts.fields(lists[-1][2]) or ())[-1][2]
    return found.decode()


@functools.cache
def tfrecord_files() -> Files:
    """Records of tf.train.Example."""
    return {"a.tfrecord": b"".join(layouts.framed(_example(text)) for text in TEXTS)}


def _attempt_tfrecord(source: Path, target: Path, intact: Path) -> None:
    texts = _read("tfrecord", source / "a.tfrecord")
    held = layouts.records((source / "a.tfrecord").read_bytes())
    require(held is not None, "a file whose checksums differ was accepted")
    theirs = [_feature(record) for record in held or ()]
    require(texts == theirs, "other texts than the file's records")


def _line_edits(file: str, layout: str = "") -> st.SearchStrategy[Edit]:
    in_line = st.tuples(st.just("line"), st.integers(0, 6), json_arguments(VALUES)).map(lambda d: (d[0], d[1], *d[2]))
    text = (in_line, in_line, byte_arguments(), words(WORDS))
    if not layout:
        return of(file, *text)
    again = st.tuples(st.just("compress"), st.integers(1, 2))
    return of(file, *(inside(layout, arguments) for arguments in text), byte_arguments(), byte_arguments(), again)


def _parquet_edits(files: Files) -> st.SearchStrategy[Edit]:
    size = len(files["a.parquet"])
    footer = int.from_bytes(files["a.parquet"][-8:-4], "little")
    place = st.integers(size - footer - 8, size)
    return of(
        "a.parquet",
        st.tuples(st.just("flip"), place, st.integers(0, 7)),
        st.tuples(st.just("put"), place, st.binary(min_size=1, max_size=9)),
        byte_arguments(),
    )


def _tfrecord_edits(files: Files) -> st.SearchStrategy[Edit]:
    lengths = (0, 1, 2**31 - 1, 2**31, 2**33, 2**40, 2**63 - 1, 2**63, 2**64 - 16, 2**64 - 1)
    length = st.tuples(st.just("length"), st.integers(0, 5), st.sampled_from(lengths) | st.integers(0, 400))
    message = inside("record", protobuf_arguments(6))
    return of("a.tfrecord", message, inside("record", byte_arguments()), length, byte_arguments())


KINDS = [
    Kind(name="jsonl", files=jsonl_files, edits=lambda files: _line_edits("a.jsonl"), attempt=_attempt_lines),
    Kind(
        name="jsonl_gz", files=gzip_files, edits=lambda files: _line_edits("a.jsonl.gz", "gzip"), attempt=_attempt_lines
    ),
    Kind(
        name="jsonl_zst",
        files=zstd_files,
        edits=lambda files: _line_edits("a.jsonl.zst", "zstd"),
        attempt=_attempt_lines,
    ),
    Kind(name="parquet", files=parquet_files, edits=_parquet_edits, attempt=_attempt_parquet),
    Kind(name="tfrecord", files=tfrecord_files, edits=_tfrecord_edits, attempt=_attempt_tfrecord),
]
