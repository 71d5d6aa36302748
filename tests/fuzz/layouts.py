"""Formats taken apart just far enough to damage their insides: containers, protobuf, GGUF, TFRecord."""

import enum
import gzip
import json
import struct
import zlib
from collections.abc import Callable

import zstandard

Change = Callable[[bytes], bytes]


def in_gzip(data: bytes, change: Change) -> bytes:
    """Edits the text of a gzip file."""
    try:
        return gzip.compress(change(gzip.decompress(data)), mtime=0)
    except (OSError, EOFError, zlib.error):
        return data


def in_zstd(data: bytes, change: Change) -> bytes:
    """Edits the text of a Zstandard file."""
    try:
        text = zstandard.ZstdDecompressor().stream_reader(data).read(1 << 24)  # whatever size an edited frame declares
        return zstandard.compress(change(text))
    except zstandard.ZstdError:
        return data


def in_safetensors(data: bytes, change: Change) -> bytes:
    """Edits the header of a safetensors file; its length agrees again."""
    if len(data) < 8:
        return data
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = change(data[8:end])
    return struct.pack("<Q", len(header)) + header + data[end:]


def in_record(data: bytes, change: Change) -> bytes:
    """Edits the first record of a TFRecord file; its checksums agree again."""
    starts = record_starts(data)
    if not starts:
        return data
    end = starts[1] if len(starts) > 1 else len(data)
    return framed(change(data[12 : end - 4])[: 1 << 15]) + data[end:]  # checksums of Python take their time


LAYOUTS: dict[str, Callable[[bytes, Change], bytes]] = {
    "gzip": in_gzip,
    "zstd": in_zstd,
    "safetensors": in_safetensors,
    "record": in_record,
}


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC = _crc_table()


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted as TFRecord has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def framed(record: bytes) -> bytes:
    """A record as TFRecord writes it: length, its checksum, the bytes, their checksum."""
    length = struct.pack("<Q", len(record))
    return length + struct.pack("<I", masked_crc(length)) + record + struct.pack("<I", masked_crc(record))


def record_starts(data: bytes) -> list[int]:
    """Where the frames of a TFRecord file begin, up to the first that is not whole."""
    starts, at = [], 0
    while at + 16 <= len(data):
        length = struct.unpack_from("<Q", data, at)[0]
        if at + 16 + length > len(data):
            break
        starts.append(at)
        at += 16 + length
    return starts


def records(data: bytes) -> list[bytes] | None:
    """The records of a TFRecord file, None where a frame is not whole or a checksum differs."""
    found, at = [], 0
    while at < len(data):
        head = data[at : at + 12]
        if len(head) < 12 or struct.unpack("<I", head[8:])[0] != masked_crc(head[:8]):
            return None
        length = struct.unpack("<Q", head[:8])[0]
        body, tail = data[at + 12 : at + 12 + length], data[at + 12 + length : at + 16 + length]
        if len(body) < length or len(tail) < 4 or struct.unpack("<I", tail)[0] != masked_crc(body):
            return None
        found.append(body)
        at += 16 + length
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _as_varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def fields(data: bytes) -> list[tuple[int, int, bytes]] | None:
    """(number, wire type, bytes of the value) of a protobuf message; None where the bytes are none."""
    found, at = [], 0
    try:
        while at < len(data):
            tag, at = _varint(data, at)
            kind, start = tag & 7, at
            if kind == 0:
                _, at = _varint(data, at)
            elif kind == 1:
                at += 8
            elif kind == 2:
                length, start = _varint(data, at)
                at = start + length
            elif kind == 5:
                at += 4
            else:
                return None
            if at > len(data) or tag >> 3 == 0:
                return None
            found.append((tag >> 3, kind, data[start:at]))
    except IndexError:
        return None
    return found


def _written(number: int, kind: int, value: bytes) -> bytes:
    head = _as_varint(number << 3 | kind)
    return head + (_as_varint(len(value)) if kind == 2 else b"") + value


def edit_message(data: bytes, path: tuple[int, ...], change: str, new: bytes) -> bytes:
    """Changes the field of a protobuf message to which `path` leads; bytes that are no message are overwritten."""
    found = fields(data)
    if not found:
        return new
    place = path[0] % len(found)
    number, kind, value = found[place]
    parts = [_written(*field) for field in found]
    if len(path) > 1 and kind == 2:
        parts[place] = _written(number, kind, edit_message(value, path[1:], change, new))
    else:
        parts[place] = {
            "drop": b"",
            "twice": parts[place] * 2,
            "bytes": _written(number, 2, new),
            "number": _written(number, 0, _as_varint(int.from_bytes(new[:8], "little"))),
            "fixed": _written(number, 5, (new * 4)[:4]),
            "empty": _written(number, kind, b"") if kind == 2 else _written(number, 2, b""),
            "length": _as_varint(number << 3 | 2) + _as_varint(int.from_bytes(new[:8], "little")) + value,
            "last": b"".join(parts[-1:]) + parts[place],
            "tag": _written(max(1, new[0]), kind, value),
        }[change]
    return b"".join(parts)


_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of GGUF's value types


class Part(enum.Enum):
    """Meaning of a stretch of a GGUF file's head: layout, a value, a text."""

    LAYOUT = "layout"
    VALUE = "value"
    TEXT = "text"


Place = tuple[Part, int, int]  # what, where, how many bytes


def gguf_places(data: bytes) -> list[Place]:
    """The parts of a GGUF file's head, of long lists the first few: lengths, counts and types; numbers; texts."""
    found: list[Place] = [(Part.LAYOUT, 0, 4), (Part.LAYOUT, 4, 4), (Part.LAYOUT, 8, 8), (Part.LAYOUT, 16, 8)]
    try:
        tensors, pairs = struct.unpack_from("<QQ", data, 8)
        at = 24
        for _ in range(pairs):
            at = _text(data, at, found)
            found.append((Part.LAYOUT, at, 4))
            kind, at = struct.unpack_from("<I", data, at)[0], at + 4
            at = _value(data, at, kind, found)
        for _ in range(tensors):
            at = _text(data, at, found)
            found.append((Part.LAYOUT, at, 4))
            dimensions, at = min(8, struct.unpack_from("<I", data, at)[0]), at + 4
            found += [(Part.VALUE, at + 8 * n, 8) for n in range(dimensions)]
            found += [(Part.VALUE, at + 8 * dimensions, 4), (Part.VALUE, at + 8 * dimensions + 4, 8)]
            at += 8 * dimensions + 12
    except (struct.error, KeyError, RecursionError, OverflowError):
        pass  # a damaged file: the parts so far
    return [place for place in found[:2000] if place[1] < len(data)]


def _text(data: bytes, at: int, found: list[Place]) -> int:
    length = struct.unpack_from("<Q", data, at)[0]
    found += [(Part.LAYOUT, at, 8), (Part.TEXT, at + 8, length)]
    return at + 8 + length


def _value(data: bytes, at: int, kind: int, found: list[Place]) -> int:
    if kind == 8:
        return _text(data, at, found)
    if kind != 9:
        found.append((Part.VALUE, at, _SIZES[kind]))
        return at + _SIZES[kind]
    inner, count = struct.unpack_from("<IQ", data, at)
    found += [(Part.LAYOUT, at, 4), (Part.LAYOUT, at + 4, 8)]
    at += 12
    for index in range(min(count, len(data))):
        if at > len(data):
            break
        at = _value(data, at, inner, found if index < 3 else [])
    return at


def safetensors(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """(dtype, shape, bytes) of every tensor of a safetensors file, by name."""
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    header.pop("__metadata__", None)
    return {
        name: (
            entry["dtype"],
            tuple(entry["shape"]),
            data[end + entry["data_offsets"][0] : end + entry["data_offsets"][1]],
        )
        for name, entry in header.items()
    }
