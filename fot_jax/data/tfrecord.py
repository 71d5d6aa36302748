"""Documents out of TFRecord files; TensorFlow is imported when one is read.

A record: 8 bytes of its length, 4 of their checksum, its bytes, 4 of their checksum. TensorFlow compares the checksums;
of a length beyond the file's end it crashes, and a file that ends within the first 12 bytes is whole to it.
"""

import gzip
import pathlib
import struct
import zlib
from collections.abc import Iterator
from typing import IO

from fot_jax.config import UserError
from fot_jax.data.compressed import BY_SUFFIX, format_of
from fot_jax.data.files import local_copy
from fot_jax.data.utf8 import decode_utf8
from fot_jax.extras import needs
from fot_jax.storage.paths import StoragePath

HEAD, TAIL = 12, 4  # bytes around a record
PIECE = 1 << 20


def read_tfrecord(path: StoragePath, text_field: str, content: bytes | None = None) -> Iterator[tuple[str, str]]:
    """Yields one document a record: a tf.train.Example with one bytes feature; .gz is decompressed.

    A file in a bucket is copied first: TensorFlow reads gs:// with a client and a login of its own. `content` is the
    file's bytes.
    """
    with local_copy(path, content) as copy:
        yield from _read_copy(copy, path, text_field)


def _read_copy(copy: pathlib.Path, path: StoragePath, text_field: str) -> Iterator[tuple[str, str]]:
    """Yields as `read_tfrecord` from a file of this machine; `path` is what documents and errors are named by."""
    with needs("data", f"Reading TFRecord files ('{path}')"):
        import tensorflow as tf
    from google.protobuf.message import DecodeError

    compressed = _is_gzip(copy, path)
    _check_frames(copy, path, compressed=compressed)
    records = tf.data.TFRecordDataset([str(copy)], compression_type="GZIP" if compressed else "")
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
    except DecodeError as error:
        raise UserError(f"'{path}' record {index} must be a tf.train.Example, got another record ({error}).") from error
    except tf.errors.OpError as error:
        raise _truncated_error(path, index, str(error).splitlines()[0]) from error


def _check_frames(copy: pathlib.Path, path: StoragePath, *, compressed: bool) -> None:
    """Raises UserError unless a file ends with a record; before TensorFlow reads ahead, and crashes."""
    index = at = 0
    size = copy.stat().st_size
    try:
        with gzip.open(copy) if compressed else copy.open("rb") as file:
            while head := file.read(HEAD):
                if len(head) < HEAD:
                    raise _truncated_error(path, index, f"the file ends {len(head)} bytes after the record before")
                length = struct.unpack("<Q", head[:8])[0]
                at += HEAD + length + TAIL
                if not (_skip(file, length + TAIL) if compressed else at <= size):
                    raise _truncated_error(path, index, f"the file ends before its {length} bytes do")
                if not compressed:
                    file.seek(at)
                index += 1
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise _truncated_error(path, index, str(error)) from error


def _truncated_error(path: StoragePath, index: int, reason: str) -> UserError:
    return UserError(
        f"'{path}' record {index} must be a whole record of a TFRecord file, got one that is cut short or"
        f" corrupt ({reason}). Fetch the file again."
    )


def _skip(file: IO[bytes], count: int) -> bool:
    """Goes on by a number of bytes; False if the file ends before."""
    while count:
        piece = file.read(min(count, PIECE))
        if not piece:
            return False
        count -= len(piece)
    return True


def _is_gzip(copy: pathlib.Path, path: StoragePath) -> bool:
    """True if a TFRecord file is gzip by its name. Raises UserError where its content says otherwise."""
    with open(copy, "rb") as file:
        found = format_of(file.read(16))
    stated = BY_SUFFIX.get(path.suffix.lower())
    if stated == found and stated in (None, "gzip"):
        return stated == "gzip"
    if stated in (None, "gzip") and found in (None, "gzip"):
        fix = f"Name it '{path.name}.gz'." if found else f"Name it '{path.stem}', or fetch it again."
    else:
        fix = "Records are read plain or as .gz: decompress it first."
    raise UserError(
        f"'{path}' must be {stated or 'plain records'}, as its name says, got {found or 'something else'}. {fix}"
    )
