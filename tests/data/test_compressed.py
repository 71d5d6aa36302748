"""Plain, gzip and zstd files, and a message of its own for each way to be broken."""

import gzip
import random
import struct
import subprocess
import sys
import tracemalloc

import pytest
import zstandard

from fot_jax.config import UserError
from fot_jax.data.compressed import PIECE, decompressed

TEXT = bytes(random.Random(0).choices(b"abcdefgh \n", k=3 * PIECE))  # three pieces even where it is compressed
SMALL = b"text\n"
WRITE = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor(write_checksum=True).compress}
SKIPPABLE = struct.pack("<II", 0x184D2A53, 5) + b"12345"  # RFC 8878, section 3.1.2
DICTIONARY = zstandard.ZstdCompressionDict(struct.pack("<I", 0xEC30A437) + b"not trained")


def read(path):
    return b"".join(decompressed(path))


def frame_header(window_log: int) -> bytes:
    """A zstd frame of one raw block "a" with this window (RFC 8878, sections 3.1.1.1 and 3.1.1.2)."""
    return b"\x28\xb5\x2f\xfd" + bytes([0, (window_log - 10) << 3]) + (1 | 1 << 3).to_bytes(3, "little") + b"a"


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".GZ", ".Zst"])
def test_members_are_read_one_after_another(tmp_path, suffix):
    """Parallel compressors write several frames; cut at any byte of a piece; the suffix in either case."""
    path, compress = tmp_path / f"a{suffix}", WRITE[suffix.lower()]
    for cut in (1, 50, PIECE - 3, len(TEXT)):
        path.write_bytes(compress(TEXT[:cut]) + compress(TEXT[cut:]) + compress(b""))
        assert read(path) == TEXT


def test_plain_and_padded_and_skippable(tmp_path):
    """Zeros after gzip data and skippable frames hold no text; an empty plain file is empty text."""
    for name, data, expected in (
        ("a.jsonl", TEXT, TEXT),
        ("b.jsonl", b"", b""),
        ("c.gz", gzip.compress(SMALL, mtime=0) + b"\0" * 3 * PIECE, SMALL),
        ("d.zst", SKIPPABLE + WRITE[".zst"](SMALL) + SKIPPABLE + WRITE[".zst"](SMALL), SMALL * 2),
        ("e.zst", frame_header(31), b"a"),
    ):
        (tmp_path / name).write_bytes(data)
        assert read(tmp_path / name) == expected, name


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.gz", gzip.compress(TEXT, mtime=0)[:-9], "must be a whole gzip file, got one cut short after"),
        ("a.zst", WRITE[".zst"](TEXT)[:-9], "must be a whole zstd file, got one cut short after"),
        ("a.zst", WRITE[".zst"](SMALL) + WRITE[".zst"](SMALL)[:5], "a frame with a bad header"),
        ("a.gz", gzip.compress(SMALL, mtime=0)[:-8] + b"\0" * 8, "got a corrupt one before byte .*check"),
        ("a.zst", WRITE[".zst"](SMALL)[:-4] + b"\0" * 4, "got a corrupt one before byte .*checksum"),
        ("a.gz", gzip.compress(SMALL, mtime=0) + b"more", "gzip data alone, got b'more' after the end of it"),
        ("a.zst", WRITE[".zst"](SMALL) + b"more", "zstd data alone, got b'more' after the end of it"),
        ("a.gz", b"", "must be a gzip file, got an empty one"),
        ("a.zst", b"", "must be a zstd file, got an empty one"),
        ("a.jsonl.gz", WRITE[".zst"](SMALL), r"must be gzip, as its name says, got zstd. Name it 'a.jsonl.zst'"),
        ("a.jsonl", gzip.compress(SMALL, mtime=0), r"must be text, as its name says, got gzip. Name it 'a.jsonl.gz'"),
        ("a.jsonl.zst", SMALL, r"must be zstd, as its name says, got something else. Name it 'a.jsonl' if"),
        ("a.jsonl", b"\xfd7zXZ\0...", "got xz. Decompress it first"),
        ("a.jsonl", b"PAR1...", "got Parquet. Name the kind"),
        ("a.zst", frame_header(32), r"a window of at most 2147483648 bytes, got 4294967296. .*--long=31"),
        ("a.zst", b"\x28\xb5\x2f\xfd\x01\x58\x07\x09\x00\x00a", "made with dictionary 7. Decompress it first"),
    ],
)
def test_each_way_to_be_broken_is_named(tmp_path, name, data, message):
    """The file, what is wrong with it, and the fix that helps there; one line."""
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as raised:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_window_without_memory_is_named(tmp_path):
    """Not called corrupt: the window of a frame is what the machine lacks."""
    (tmp_path / "a.zst").write_bytes(frame_header(31))
    program = f"""
import pathlib, resource, zstandard
from fot_jax.config import UserError
from fot_jax.data.compressed import decompressed
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
try:
    list(decompressed(pathlib.Path({str(tmp_path / "a.zst")!r})))
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "must have a window that fits into memory" in done.stdout, done.stderr


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_much_text_in_few_bytes_takes_little_memory(tmp_path, suffix):
    """256 MiB of one letter are a few KiB in zstd; they are passed on in parts."""
    path = tmp_path / f"a{suffix}"
    path.write_bytes(WRITE[suffix](b"a" * (1 << 28)))
    tracemalloc.start()
    total = sum(map(len, decompressed(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 1 << 28
    assert peak < 200 << 20
