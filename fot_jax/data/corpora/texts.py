"""Reads text from package files: plain, gzipped, R's novels, a Bible in SQLite."""

import gzip
import logging
import pathlib
import sqlite3
import struct
import zlib
from collections.abc import Iterator

from fot_jax.config import UserError
from fot_jax.data.utf8 import decode_utf8

LONGEST_LINE = 2000  # characters; files with a longer one are generated tables

R_HEADER = b"X\n"
R_STRINGS, R_STRING = 16, 9  # STRSXP, CHARSXP (R Internals, "Serialization Formats")

Texts = Iterator[tuple[str, str]]

logger = logging.getLogger(__name__)


def read_texts(name: str, data: bytes) -> Texts:
    """Yields (path, text) of one package file. Raises UserError where it is broken."""
    reader = {".gz": _gzipped, ".rdb": _novels, ".db": _bible}.get(pathlib.PurePosixPath(name).suffix, _plain)
    try:
        yield from reader(name, data)
    except (gzip.BadGzipFile, EOFError, zlib.error, struct.error, sqlite3.Error) as error:
        raise UserError(
            f"'{name}' must be a whole file, got a broken one ({error}). Fetch its package again."
        ) from error


def _plain(name: str, data: bytes) -> Texts:
    """Yields the file without its byte order mark, unless it is empty or a table that a program wrote.

    Files that are not UTF-8 count as Latin-1.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        logger.info("Read %s as Latin-1: not UTF-8 (%s).", name, error.reason)
        text = data.decode("latin-1")
    text = text.replace("\r\n", "\n")
    longest = max(map(len, text.split("\n")))
    if longest > LONGEST_LINE:
        logger.info("Skipped %s: a line of %d characters.", name, longest)
    elif text.strip():
        yield name, text


def _gzipped(name: str, data: bytes) -> Texts:
    yield from _plain(name.removesuffix(".gz"), gzip.decompress(data))


def _novels(name: str, data: bytes) -> Texts:
    """Yields each entry of an R lazy-load database: 4 bytes of length, then a zlib stream with a vector of lines."""
    start = 0
    while start < len(data):
        stream = zlib.decompressobj()
        serialised = stream.decompress(data[start + 4 :])
        lines = _r_strings(serialised, where=f"'{name}' at byte {start}")
        start = len(data) - len(stream.unused_data)
        if len(lines) > 1:
            yield lines[0].title(), "\n".join(lines) + "\n"


def _r_strings(data: bytes, *, where: str) -> list[str]:
    """Reads the strings of a serialised character vector (XDR, version 3); other values give []."""
    if data[:2] != R_HEADER or struct.unpack_from(">i", data, 2)[0] != 3:
        raise UserError(f"{where} must be R's XDR serialisation of version 3, got {data[:6]!r}.")
    place = 18 + struct.unpack_from(">i", data, 14)[0]  # past the three versions and the name of the encoding
    flags, count = struct.unpack_from(">ii", data, place)
    if flags & 0xFF != R_STRINGS:
        return []
    place += 8
    strings = []
    for _ in range(count):
        flags, length = struct.unpack_from(">ii", data, place)
        if flags & 0xFF != R_STRING:
            raise UserError(f"{where} must hold strings, got the R type {flags & 0xFF} at byte {place}.")
        place += 8
        strings.append(decode_utf8(data[place : place + max(length, 0)], where=where))
        place += max(length, 0)
    return strings


def _bible(name: str, data: bytes) -> Texts:
    """Yields one text a book, with one verse a line."""
    del name
    with sqlite3.connect(":memory:") as database:
        database.deserialize(data)
        books = database.execute("SELECT TestamentID, BookID, LongName FROM Books ORDER BY TestamentID, BookID")
        for number, (testament, book, title) in enumerate(books.fetchall(), 1):
            query = "SELECT Passage1, Passage2 FROM Bible WHERE TestamentID = ? AND BookID = ? ORDER BY rowid"
            verses = [" ".join(filter(None, row)) for row in database.execute(query, (testament, book))]
            yield f"{number:02d} {title}", title + "\n\n" + "\n".join(verses) + "\n"
    database.close()
