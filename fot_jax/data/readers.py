"""Documents as (name, text) from files of every kind, with errors that name file and record.

Everything here is plain Python: `fot_jax/data/tasks.py` makes seqio sources of these readers.
"""

import glob
import gzip
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator

from fot_jax.config import ConfigError, SourceConfig, SourceKind, UserError
from fot_jax.data.seeds import generator
from fot_jax.data.stdlib_source import read_stdlib, stdlib_files, stdlib_root
from fot_jax.data.synthetic import FILLER, passkey
from fot_jax.data.vocabulary import Vocabulary

PASSKEY_DOCUMENTS = 1024
PASSKEY_TOKENS = 1024
BLOCK = 1 << 20  # bytes read at once

Reader = Iterator[tuple[str, str]]


def source_files(source: SourceConfig) -> list[pathlib.Path]:
    """The files a source reads, sorted; a folder stands for all files below it; none for PASSKEY.

    Raises UserError when nothing matches.
    """
    if source.kind is SourceKind.STDLIB:
        return stdlib_files(stdlib_root())
    if source.kind is SourceKind.PASSKEY:
        return []
    if source.kind not in READERS:
        raise ConfigError(f"data.sources['{source.name}'].kind must be one that holds text, got '{source.kind.value}'.")
    pattern = os.path.expanduser(os.path.expandvars(source.path))
    files: set[pathlib.Path] = set()
    for match in map(pathlib.Path, glob.glob(pattern, recursive=True)):
        files.update(path for path in (match.rglob("*") if match.is_dir() else [match]) if path.is_file())
    if not files:
        raise UserError(
            f"data.sources['{source.name}'].path must match at least one file, got none for '{source.path}'"
            f" (from folder '{os.getcwd()}')."
        )
    return sorted(files)


def read_source(source: SourceConfig, *, vocabulary: Vocabulary, seed: int, max_documents: int) -> Reader:
    """Yields (name, text) of every document of a source in a fixed order.

    Raises:
      UserError: nothing matches, a file is broken, a record is not UTF-8 or lacks its text; the
        message names file and record (lines count from 1, other records from 0).
    """
    if source.kind is SourceKind.STDLIB:
        yield from read_stdlib(seed=seed)
    elif source.kind is SourceKind.PASSKEY:
        yield from _passkeys(source, vocabulary=vocabulary, seed=seed, count=max_documents or PASSKEY_DOCUMENTS)
    else:
        for path in source_files(source):
            try:
                yield from READERS[source.kind](path, source.text_field)
            except OSError as error:
                raise UserError(f"'{path}' must be a file that can be read, got: {error}.") from error


def _passkeys(source: SourceConfig, *, vocabulary: Vocabulary, seed: int, count: int) -> Reader:
    """Passkey prompts with their answers, `min_tokens` (PASSKEY_TOKENS when that is 0) and up to a filler line long."""
    length = (source.min_tokens or PASSKEY_TOKENS) + len(vocabulary.encode(FILLER))
    for index in range(count):
        rng = generator(seed, "passkey", source.name, index)
        made = passkey(rng, length_tokens=length, vocabulary=vocabulary)
        yield f"passkey[{index}]", made.prompt + made.answer


def decode_utf8(data: bytes, *, where: str) -> str:
    """The text of UTF-8 bytes. Raises UserError naming `where` and the first bad byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} must be valid UTF-8, got byte 0x{data[error.start]:02x} at offset {error.start}"
            f" ({error.reason}). Re-encode it as UTF-8 or remove it."
        ) from error


def read_text(path: pathlib.Path, text_field: str) -> Reader:
    """One document: the whole file."""
    del text_field
    yield str(path), decode_utf8(path.read_bytes(), where=f"'{path}'")


def read_jsonl(path: pathlib.Path, text_field: str) -> Reader:
    """One document a line of a .jsonl, .jsonl.gz or .jsonl.zst file; empty lines are skipped."""
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            where = f"'{path}' line {number}"
            yield f"{path}:{number}", _json_text(decode_utf8(line, where=where), text_field, where=where)


def _json_text(line: str, text_field: str, *, where: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} must be a JSON object, got {line[:40]!r} ({error}).") from error
    if not isinstance(record, dict):
        raise UserError(f"{where} must be a JSON object, got {line[:40]!r}.")
    text = record.get(text_field)
    if not isinstance(text, str):
        raise UserError(
            f"{where} must hold a string under '{text_field}', got fields {sorted(record)}."
            " Set text_field of the source."
        )
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{where} must be valid UTF-8, got a lone surrogate (\\ud800..\\udfff). Remove it.")
    return text


def _lines(path: pathlib.Path) -> Iterator[bytes]:
    rest = b""
    for block in _decompressed(path):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _decompressed(path: pathlib.Path) -> Iterator[bytes]:
    """Blocks of a file, decompressed by its suffix. Raises UserError when it is broken or cut short."""
    import zstandard

    opener = {".gz": _gzip_blocks, ".zst": _zstd_blocks}.get(path.suffix, _plain_blocks)
    try:
        yield from opener(path)
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise UserError(
            f"'{path}' must be a whole {path.suffix} file, got a truncated or corrupt one ({error}). Fetch it again."
        ) from error


def _plain_blocks(path: pathlib.Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            yield block


def _gzip_blocks(path: pathlib.Path) -> Iterator[bytes]:
    with gzip.open(path) as file:
        while block := file.read(BLOCK):
            yield block


def _zstd_blocks(path: pathlib.Path) -> Iterator[bytes]:
    """zstandard's own reader ends quietly where a file is cut short; a frame's end is checked here."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor()
    frame = decompressor.decompressobj()
    inside = False
    for block in _plain_blocks(path):
        while block:
            inside = True
            yield frame.decompress(block)
            if not frame.eof:
                break
            block, inside = frame.unused_data, False
            frame = decompressor.decompressobj()
    if inside:
        raise EOFError("the last frame has no end")


def read_parquet(path: pathlib.Path, text_field: str) -> Reader:
    """One document a row, from a string or binary column."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        if text_field not in file.schema_arrow.names:
            raise UserError(
                f"'{path}' must hold a column '{text_field}', got {file.schema_arrow.names}."
                " Set text_field of the source."
            )
        row = 0
        for batch in file.iter_batches(batch_size=256, columns=[text_field]):
            for value in batch.column(0).cast(pyarrow.large_binary()):
                where = f"'{path}' row {row}"
                if not value.is_valid:
                    raise UserError(f"{where} must hold text under '{text_field}', got null. Remove the row.")
                yield f"{path}[{row}]", decode_utf8(value.as_py(), where=where)
                row += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"'{path}' must be a whole Parquet file with text in '{text_field}', got: {error}") from error


def read_tfrecord(path: pathlib.Path, text_field: str) -> Reader:
    """One document a record: a tf.train.Example with one bytes feature; .gz is decompressed."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    records = tf.data.TFRecordDataset([str(path)], compression_type="GZIP" if path.suffix == ".gz" else "")
    index = 0
    try:
        for serialised in records.as_numpy_iterator():
            where = f"'{path}' record {index}"
            features = tf.train.Example.FromString(serialised).features.feature
            values = features[text_field].bytes_list.value if text_field in features else []
            if len(values) != 1:
                raise UserError(
                    f"{where} must hold one bytes value under '{text_field}', got {len(values)};"
                    f" its features are {sorted(features)}. Set text_field of the source."
                )
            yield f"{path}[{index}]", decode_utf8(values[0], where=where)
            index += 1
    except (tf.errors.OpError, DecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"'{path}' record {index} must be a whole tf.train.Example, got: {reason}") from error


READERS: dict[SourceKind, Callable[[pathlib.Path, str], Reader]] = {
    SourceKind.TEXT: read_text,
    SourceKind.JSONL: read_jsonl,
    SourceKind.PARQUET: read_parquet,
    SourceKind.TFRECORD: read_tfrecord,
}
