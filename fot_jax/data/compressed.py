"""Reads plain, gzip and zstd files; each way in which a file contradicts its name has its own message."""

import zlib
from collections.abc import Callable, Iterator
from typing import IO, Protocol

from fot_jax.config import UserError
from fot_jax.data.files import open_binary
from fot_jax.extras import needs
from fot_jax.storage.paths import StoragePath

BLOCK = 1 << 20  # bytes of a plain file read at once
PIECE = 1 << 10  # compressed bytes at once: zstd packs up to 128 KiB into 4 bytes
HEADER = 18  # bytes, the longest header of a gzip member (10) or zstd frame
LARGEST_WINDOW = 1 << 31  # bytes: zstd --long=31, the most that a 64-bit libzstd reads

FORMATS = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    *((bytes([low]) + b"\x2a\x4d\x18", "zstd") for low in range(0x50, 0x60)),  # a skippable frame, as pzstd writes
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"PK\x03\x04", "zip"),
    (b"PAR1", "Parquet"),
    (b"PARE", "encrypted Parquet"),
    (b"ARROW1", "Arrow"),
)
BY_SUFFIX = {".gz": "gzip", ".zst": "zstd"}
SUFFIXES = {name: suffix for suffix, name in BY_SUFFIX.items()}


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def format_of(head: bytes) -> str | None:
    """Names a file's format by its first bytes; None for text and unknown formats."""
    return next((name for magic, name in FORMATS if head.startswith(magic)), None)


def decompressed(path: StoragePath, content: bytes | None = None) -> Iterator[bytes]:
    """Yields blocks of a text file, decompressed by its suffix (.gz, .zst, in either case); `content` is its bytes.

    Raises UserError where the content is of another format than the name says, is cut short, corrupt, followed
    by something else, or needs a dictionary or a larger window than LARGEST_WINDOW.
    """
    with open_binary(path, content) as file:
        head = file.read(HEADER)
        file.seek(0)
        stated, found = BY_SUFFIX.get(path.suffix.lower()), format_of(head)
        if stated != found:
            raise _wrong_suffix_error(path, stated=stated, found=found, empty=not head)
        if stated == "gzip":
            yield from _members(file, path, _open_gzip_member, "gzip", damage=zlib.error)
        elif stated == "zstd":
            with needs("data", f"Reading zstd files ('{path}')"):
                import zstandard
            yield from _members(file, path, _open_zstd_frame, "zstd", damage=zstandard.ZstdError)
        else:
            while block := file.read(BLOCK):
                yield block


def _wrong_suffix_error(path: StoragePath, *, stated: str | None, found: str | None, empty: bool) -> UserError:
    if empty:
        return UserError(f"'{path}' must be a {stated} file, got an empty one. Fetch it again.")
    if found in SUFFIXES:
        plain = path.with_suffix("") if stated else path
        fix = f"Name it '{plain.name}{SUFFIXES[found]}'."
    elif found:
        fix = "Decompress it first." if found in ("bzip2", "xz", "zip") else "Name the kind of file that it is."
    else:
        fix = f"Name it '{path.stem}' if it is text, else fetch it again."
    return UserError(f"'{path}' must be {stated or 'text'}, as its name says, got {found or 'something else'}. {fix}")


def _members(
    file: IO[bytes],
    path: StoragePath,
    begin: Callable[[bytes, StoragePath], _Decompressor],
    name: str,
    *,
    damage: type[Exception],
) -> Iterator[bytes]:
    """Yields the content of a file's gzip members or zstd frames, in order, to the end of the file.

    Raises UserError where the library raises `damage`, and for what is cut short or not of the format.
    """
    member = None
    while block := file.read(PIECE):
        while block:
            if member is None:
                block += file.read(HEADER)
                if name == "gzip" and not block.strip(b"\0"):
                    break  # zeros fill the last block of a tape or device
                if format_of(block) != name:
                    raise UserError(
                        f"'{path}' must hold {name} data alone, got {block[:8]!r} after the end of it. Cut off"
                        " what follows, or fetch it again."
                    )
                member = begin(block, path)
            try:
                content = member.decompress(block)
            except damage as error:
                raise _damaged_error(path, name, error, at=file.tell()) from error
            yield content
            if not member.eof:
                break
            block, member = member.unused_data, None
    if member is not None:
        raise UserError(
            f"'{path}' must be a whole {name} file, got one cut short after {file.tell()} bytes. Fetch it again."
        )


def _damaged_error(path: StoragePath, name: str, error: Exception, *, at: int) -> UserError:
    if "not enough memory" in str(error):  # libzstd's text for a window that cannot be allocated
        return UserError(
            f"'{path}' must have a window that fits into memory, got one of up to {LARGEST_WINDOW} bytes."
            " Compress it anew with a smaller --long, or free memory."
        )
    return UserError(
        f"'{path}' must be a whole {name} file, got a corrupt one before byte {at} ({error}). Fetch it again."
    )


def _open_gzip_member(head: bytes, path: StoragePath) -> _Decompressor:
    del head, path
    return zlib.decompressobj(16 + zlib.MAX_WBITS)


def _open_zstd_frame(head: bytes, path: StoragePath) -> _Decompressor:
    """Raises UserError where the frame that `head` begins needs a dictionary or too large a window."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj()
    if head[1:4] == b"\x2a\x4d\x18":  # a skippable frame
        return decompressor
    _check_window(_stated_window(head), path)
    try:
        frame = zstandard.get_frame_parameters(head)
    except zstandard.ZstdError as error:
        raise UserError(
            f"'{path}' must be a whole zstd file, got a frame with a bad header ({error}). Fetch it again."
        ) from error
    if frame.dict_id:
        raise UserError(
            f"'{path}' must be readable alone, got zstd data made with dictionary {frame.dict_id}."
            " Decompress it first: zstd -d -D DICTIONARY."
        )
    _check_window(frame.window_size, path)
    return decompressor


def _stated_window(head: bytes) -> int:
    """Reads the window in bytes from a frame header (RFC 8878, section 3.1.1.1.2); 0 where the content is the window.

    zstandard gives no number for a window above LARGEST_WINDOW.
    """
    if len(head) < 6 or head[4] & 0x20:  # Single_Segment_flag
        return 0
    base = 1 << 10 + (head[5] >> 3)
    return base + base // 8 * (head[5] & 7)


def _check_window(window: int, path: StoragePath) -> None:
    if window > LARGEST_WINDOW:
        raise UserError(
            f"'{path}' must have a window of at most {LARGEST_WINDOW} bytes, got {window}."
            " Compress it anew with zstd --long=31 or less."
        )
