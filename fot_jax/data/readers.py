"""Reads documents as (name, text) from files of every kind; errors name file and record.

Source kind 'auto' tells the kind of a file by its name; what else may end a name, .gz and .zst, is decompressed:

    .txt .text .md .rst       text       the file is a document
    .jsonl .ndjson .json      JSON lines  a line is a document
    .parquet                  Parquet     a row is a document
    .tfrecord                 TFRecord    a record is a document

All readers are plain Python: `fot_jax/data/tasks.py` makes seqio sources of them. Their `content` is the bytes of a
file that was fetched ahead from a bucket; None: the file is opened.
"""

import codecs
import itertools
import json
import logging
import re
from collections.abc import Callable, Iterator

from fot_jax.config import ConfigError, SourceConfig, SourceKind, UserError
from fot_jax.data.compressed import BY_SUFFIX, decompressed, format_of
from fot_jax.data.files import SourceFile, on_disk, read_ahead, read_bytes
from fot_jax.data.parquet import read_parquet
from fot_jax.data.paths import listed_files
from fot_jax.data.seeds import generator
from fot_jax.data.stdlib_source import read_stdlib, stdlib_files, stdlib_root
from fot_jax.data.synthetic import FILLER, passkey
from fot_jax.data.tfrecord import read_tfrecord
from fot_jax.data.utf8 import decode_file, decode_utf8, without_byte_order_mark
from fot_jax.data.vocabulary import Vocabulary
from fot_jax.storage.paths import StoragePath

PASSKEY_DOCUMENTS = 1024
PASSKEY_TOKENS = 1024
SURROGATE = re.compile("[\ud800-\udfff]")

logger = logging.getLogger(__name__)

Reader = Iterator[tuple[str, str]]


def source_files(source: SourceConfig) -> list[SourceFile]:
    """Lists the files a source reads, sorted (see `listed_files`); none for PASSKEY.

    Raises UserError when nothing matches, or the name of a file of an AUTO source does not tell its kind.
    """
    if source.kind is SourceKind.STDLIB:
        return [on_disk(path) for path in stdlib_files(stdlib_root())]
    if source.kind is SourceKind.PASSKEY:
        return []
    if source.kind not in READERS:
        raise ConfigError(f"data.sources['{source.name}'].kind must be one that holds text, got '{source.kind.value}'.")
    what = f"data.sources['{source.name}'].path"
    files = listed_files(source.path, what=what)
    if source.kind is SourceKind.AUTO:
        for file in files:
            kind_by_name(file.path, what=what, fix=" Or set the source's kind: 'text' reads files of any name as text.")
    return files


def kind_by_name(path: StoragePath, *, what: str, fix: str = "") -> SourceKind:
    """Tells a file's kind by its name, by the table above, in either case.

    Args:
      path: the file, which is not opened.
      what: the config field or flag that names it, for errors.
      fix: another fix, for errors.

    Raises UserError for other names.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] and suffixes[-1] in BY_SUFFIX:
        suffixes.pop()
    kind = BY_NAME.get(suffixes[-1]) if suffixes else None
    if kind is None:
        raise UserError(
            f"{what} must name files that end in {', '.join(BY_NAME)} (or .gz, .zst after it), got '{path}'."
            f" Rename it, move it away, or name a pattern without it, as '{path.parent}/*.txt'.{fix}"
        )
    return kind


def read_source(source: SourceConfig, *, vocabulary: Vocabulary, seed: int, max_documents: int) -> Reader:
    """Yields (name, text) of every document of a source in a fixed order, the first `max_documents` unless that is 0.

    Documents without text are counted in the log; `fot_jax/data/tasks.py` drops them.

    Raises:
      UserError: nothing matches, a file is broken, a record is not UTF-8 or lacks its text; the
        message names file and record (lines count from 1, other records from 0).
    """
    empty = 0
    for name, text in read_unlogged(source, vocabulary=vocabulary, seed=seed, max_documents=max_documents):
        empty += not text
        yield name, text
    if empty:
        logger.info("data.sources['%s']: %d documents without text are left out.", source.name, empty)


def read_unlogged(source: SourceConfig, *, vocabulary: Vocabulary, seed: int, max_documents: int) -> Reader:
    """Yields as `read_source`, and logs nothing: for documents that are read once more to be counted."""
    return itertools.islice(_all_documents(source, vocabulary, seed, max_documents), max_documents or None)


def _all_documents(source: SourceConfig, vocabulary: Vocabulary, seed: int, max_documents: int) -> Reader:
    if source.kind is SourceKind.STDLIB:
        yield from read_stdlib(seed=seed)
    elif source.kind is SourceKind.PASSKEY:
        yield from _passkeys(source, vocabulary=vocabulary, seed=seed, count=max_documents or PASSKEY_DOCUMENTS)
    else:
        for file, content in read_ahead(source_files(source)):
            try:
                yield from READERS[source.kind](file.path, source.text_field, content())
            except OSError as error:
                raise UserError(f"'{file.path}' must be a file that can be read, got: {error}.") from error


def _passkeys(source: SourceConfig, *, vocabulary: Vocabulary, seed: int, count: int) -> Reader:
    """Yields passkey prompts with answers, of `min_tokens` (PASSKEY_TOKENS if 0) and up to one more filler line."""
    length = (source.min_tokens or PASSKEY_TOKENS) + len(vocabulary.encode(FILLER))
    for index in range(count):
        rng = generator(seed, "passkey", source.name, index)
        made = passkey(rng, length_tokens=length, vocabulary=vocabulary)
        yield f"passkey[{index}]", made.prompt + made.answer


def read_text(path: StoragePath, text_field: str, content: bytes | None = None) -> Reader:
    """Yields one document: the whole file, without its byte order mark; .gz and .zst are decompressed."""
    del text_field
    if path.suffix.lower() in BY_SUFFIX:
        data = b"".join(decompressed(path, content))
    else:
        data = read_bytes(path) if content is None else content
    try:
        text = decode_file(data, where=f"'{path}'")
    except UserError as error:
        found = format_of(data)
        raise UserError(f"{error} It looks like {found} data." if found else str(error)) from error
    yield str(path), text


def read_jsonl(path: StoragePath, text_field: str, content: bytes | None = None) -> Reader:
    """Yields one document a line of a .jsonl, .jsonl.gz or .jsonl.zst file; skips empty lines, byte order marks."""
    for number, line in enumerate(_lines(path, content), 1):
        where = f"'{path}' line {number}"
        if number == 1:
            line = without_byte_order_mark(line, where=f"'{path}'")
        line = line.removeprefix(codecs.BOM_UTF8)  # of files that were joined
        if line.strip():
            yield f"{path}:{number}", _json_text(decode_utf8(line, where=where), text_field, where=where)


def _json_text(line: str, text_field: str, *, where: str) -> str:
    """Returns the string under `text_field`. Numbers are not converted: nobody uses them, and long ones fail."""
    try:
        record = json.loads(line, object_pairs_hook=tuple, parse_int=lambda digits: 0, parse_float=lambda digits: 0.0)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} must be a JSON object, got {line[:40]!r} ({error}).") from error
    except RecursionError as error:
        raise UserError(f"{where} must be a JSON object, got one nested too deeply to be read. Remove it.") from error
    if not isinstance(record, tuple):
        raise UserError(
            f"{where} must be a JSON object, got {line[:40]!r}. Write each document as one line"
            f' {{"{text_field}": "..."}}.'
        )
    texts = [value for name, value in record if name == text_field]
    if len(texts) > 1:
        raise UserError(f"{where} must hold '{text_field}' once, got it {len(texts)} times. Remove all but one.")
    if not texts or not isinstance(texts[0], str):
        raise UserError(
            f"{where} must hold a string under '{text_field}', got fields {sorted({name for name, _ in record})}."
            " Set text_field of the source."
        )
    if SURROGATE.search(texts[0]):
        raise UserError(f"{where} must be valid UTF-8, got a lone surrogate (\\ud800..\\udfff). Remove it.")
    return texts[0]


def _lines(path: StoragePath, content: bytes | None) -> Iterator[bytes]:
    begun: list[bytes] = []  # the pieces of a line that may go on in the next block
    for block in decompressed(path, content):
        first, *others = block.split(b"\n")
        begun.append(first)
        if others:
            yield b"".join(begun)
            yield from others[:-1]
            begun = others[-1:]
    if any(begun):
        yield b"".join(begun)


def read_by_name(path: StoragePath, text_field: str, content: bytes | None = None) -> Reader:
    """Yields the documents of a file of the kind that its name tells. Raises UserError for other names."""
    return READERS[kind_by_name(path, what="a source of kind 'auto'")](path, text_field, content)


BY_NAME = {
    **dict.fromkeys((".txt", ".text", ".md", ".rst"), SourceKind.TEXT),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), SourceKind.JSONL),
    ".parquet": SourceKind.PARQUET,
    ".tfrecord": SourceKind.TFRECORD,
}
READERS: dict[SourceKind, Callable[[StoragePath, str, bytes | None], Reader]] = {
    SourceKind.AUTO: read_by_name,
    SourceKind.TEXT: read_text,
    SourceKind.JSONL: read_jsonl,
    SourceKind.PARQUET: read_parquet,
    SourceKind.TFRECORD: read_tfrecord,
}
