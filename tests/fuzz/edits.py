"""Edits of files: small values that damage bytes, JSON trees or binary fields, drawn by hypothesis.

An edit is plain data, so that a fault can be printed, replayed and reduced: `apply(files, edits)` gives the damaged
files. Positions are taken modulo the length, so that edits may follow one another.
"""

import contextlib
import dataclasses
import gzip
import json
import struct
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.fuzz import layouts

Files = dict[str, bytes]
UNFIT = (ArithmeticError, LookupError, ValueError, TypeError, RecursionError, struct.error)  # what was damaged before
MOST = 1 << 22  # bytes that an edit may make of one file

# JSON texts that replace a value. Numbers at the borders of types, words, texts and nestings.
VALUES = (
    *("null", "true", "false", "0", "-1", "1", "2", "3", "7", "1.5", "-0.0", "1e-320", "1e308", "1e400", "NaN"),
    *("Infinity", "-Infinity", str(2**31), str(2**32 + 1), str(2**63 - 1), str(2**63), str(2**64), "1" + "0" * 400),
    *("9" * 5000, '""', '"x"', '"\\u0000"', '"\\ud800"', '"../x"', '"/dev/zero"', '"<s>"', '"\\n\\n"', '"{{ x }}"'),
    *("[]", "{}", "[0]", "[[]]", '{"a": 0}', "[null]", '[""]', '["x", "x"]', "[1, 2, 3]", '{"": {}}'),
    *("[" * 500 + "]" * 500, "[" * 20000 + "]" * 20000, '{"a":' * 5000 + "0" + "}" * 5000, '"' + "a" * 70000 + '"'),
    "[" + "0," * 30000 + "0]",
)
INTEGERS = (
    *(0, 1, 2, 3, 7, 8, 255, 256, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**33, 2**40, 2**53),
    *(2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1),
)


@dataclasses.dataclass(frozen=True)
class Edit:
    """One change of one file: a function of OPERATIONS and its arguments."""

    file: str
    operation: str
    arguments: tuple

    def __str__(self) -> str:
        shown = ", ".join(text if len(text) <= 60 else text[:50] + "..." for text in map(repr, self.arguments))
        return f"{self.operation}({self.file}, {shown})"


def apply(files: Files, edits: list[Edit]) -> Files:
    """The damaged files; a file that an edit removes is missing. Edits that no longer fit a file leave it as it is."""
    found = dict(files)
    for edit in edits:
        if edit.file not in found:
            continue
        if edit.operation == "remove":
            del found[edit.file]
            continue
        with contextlib.suppress(*UNFIT):
            found[edit.file] = OPERATIONS[edit.operation](found[edit.file], *edit.arguments)[:MOST]
    return found


def flip(data: bytes, place: int, bit: int) -> bytes:
    """Flips one bit."""
    place %= len(data)
    return put(data, place, bytes([data[place] ^ (1 << bit)]))


def put(data: bytes, place: int, new: bytes) -> bytes:
    """Overwrites bytes."""
    place %= len(data) + 1
    return data[:place] + new + data[place + len(new) :]


def insert(data: bytes, place: int, new: bytes) -> bytes:
    """Inserts bytes."""
    place %= len(data) + 1
    return data[:place] + new + data[place:]


def cut(data: bytes, place: int) -> bytes:
    """Keeps the beginning."""
    return data[: place % (len(data) + 1)]


def drop(data: bytes, place: int, count: int) -> bytes:
    """Removes bytes."""
    place %= len(data) + 1
    return data[:place] + data[place + count :]


def swap(data: bytes, first: int, second: int, count: int) -> bytes:
    """Exchanges two stretches."""
    one, two = sorted((first % (len(data) + 1), second % (len(data) + 1)))
    count = min(count, two - one)
    return (
        data[:one] + data[two : two + count] + data[one + count : two] + data[one : one + count] + data[two + count :]
    )


def repeat(data: bytes, place: int, count: int, times: int) -> bytes:
    """Repeats a stretch, up to a megabyte of it."""
    place, times = place % (len(data) + 1), min(times, (1 << 20) // count)
    return data[:place] + data[place : place + count] * times + data[place:]


def integer(data: bytes, place: int, width: int, value: int) -> bytes:
    """Writes a little-endian number."""
    return put(data, place, (value % (1 << 8 * width)).to_bytes(width, "little"))


def json_edit(data: bytes, place: int, change: str, value: str) -> bytes:
    """Changes one place of a JSON tree, `value` being JSON text; data that are no JSON stay."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return data
    places = list(_places(tree))
    if not places:
        return value.encode()
    node, key = places[place % len(places)]
    mark, old = "\x00mark\x00", node[key]
    new = {
        "replace": value,
        "nest": f"[{_text(old)}]",
        "twice": f"{value}, {json.dumps(key)}: {_text(old)}" if isinstance(key, str) else f"{value}, {_text(old)}",
        "text": json.dumps(_text(old)),
        "unit": f"{{{json.dumps(str(key))}: {_text(old)}}}",
        "grow": _text(old * 50) if isinstance(old, (list, str)) else f"{_text(old)}0",
    }.get(change)
    if change == "drop":
        del node[key]
        return json.dumps(tree).encode()
    if change == "rename":
        node[key + "x" if isinstance(key, str) else 0] = old
        if isinstance(key, str):
            del node[key]
        return json.dumps(tree).encode()
    if change == "exchange":
        other_node, other_key = places[(place * 7 + 3) % len(places)]
        node[key], other_node[other_key] = other_node[other_key], old
        try:
            return json.dumps(tree).encode()
        except ValueError:  # a tree within itself
            return data
    node[key] = mark
    return json.dumps(tree).replace(json.dumps(mark), str(new)).encode("utf-8", "surrogatepass")


JSON_CHANGES = ("replace", "replace", "replace", "nest", "twice", "text", "unit", "grow", "drop", "rename", "exchange")


def _text(value: Any) -> str:
    return json.dumps(value)


def _places(tree: Any, depth: int = 0) -> Any:
    """Every (container, key) of a JSON tree; of long lists the first few members and the last."""
    if depth > 50:
        return
    if isinstance(tree, dict):
        keys = list(tree)
        keys = keys if len(keys) <= 64 else keys[:8] + keys[-4:]
    elif isinstance(tree, list):
        keys = list(range(len(tree)))
        keys = keys if len(keys) <= 8 else [*keys[:4], keys[-1]]
    else:
        return
    for key in keys:
        yield tree, key
        yield from _places(tree[key], depth + 1)


def within(data: bytes, layout: str, *arguments: Any) -> bytes:
    """An edit of what a container holds, the container around it intact; see `layouts`."""
    operation, *rest = arguments
    return layouts.LAYOUTS[layout](data, lambda inner: OPERATIONS[operation](inner, *rest))


def lines_edit(data: bytes, place: int, operation: str, *arguments: Any) -> bytes:
    """An edit of one line."""
    lines = data.split(b"\n")
    place %= len(lines)
    lines[place] = OPERATIONS[operation](lines[place], *arguments)
    return b"\n".join(lines)


def assign(data: bytes, place: int, value: bytes) -> bytes:
    """Gives one of the lines NAME=VALUE another value."""
    lines = data.split(b"\n")
    place %= len(lines)
    name, equals, _ = lines[place].partition(b"=")
    lines[place] = name + (equals or b"=") + value
    return b"\n".join(lines)


def protobuf_edit(data: bytes, path: tuple[int, ...], change: str, new: bytes) -> bytes:
    """Changes one field of a protobuf message; `path` picks fields downwards."""
    return layouts.edit_message(data, path, change, new)


def gguf_edit(data: bytes, part: str, place: int, value: int) -> bytes:
    """Overwrites one number of a GGUF file's head ("layout", "value"), or swaps a text for another of it ("text")."""
    places = [(at, size) for kind, at, size in layouts.gguf_places(data) if kind.value == part]
    if not places:
        return data
    at, size = places[place % len(places)]
    if part != "text":
        return integer(data, at, size, value)
    other, length = places[value % len(places)]
    new = data[other : other + length]
    return data[: at - 8] + struct.pack("<Q", len(new)) + new + data[at + size :]


def record_length(data: bytes, place: int, value: int) -> bytes:
    """Writes another length into a TFRecord's frame, with a checksum that agrees."""
    starts = layouts.record_starts(data)
    at = starts[place % len(starts)] if starts else 0
    length = struct.pack("<Q", value % 2**64)
    return put(data, at, length + struct.pack("<I", layouts.masked_crc(length)))


def compress(data: bytes, times: int) -> bytes:
    """Compresses once more, as gzip."""
    for _ in range(times):
        data = gzip.compress(data)
    return data


OPERATIONS: dict[str, Callable[..., bytes]] = {
    "flip": flip,
    "put": put,
    "insert": insert,
    "cut": cut,
    "drop": drop,
    "swap": swap,
    "repeat": repeat,
    "integer": integer,
    "json": json_edit,
    "within": within,
    "line": lines_edit,
    "assign": assign,
    "protobuf": protobuf_edit,
    "gguf": gguf_edit,
    "length": record_length,
    "compress": compress,
}

_positions = st.one_of(st.integers(0, 1 << 16), st.integers(0, 64), st.integers(-64, -1))
_counts = st.sampled_from((1, 2, 3, 4, 8, 16, 64, 1000))
_bytes = st.binary(min_size=1, max_size=6) | st.sampled_from(
    (b"\x00", b"\xff" * 8, b"\x80" * 9 + b"\x01", b"\xff" * 9 + b"\x01", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\n", b"\r")
)
_integers = st.sampled_from(INTEGERS) | st.integers(0, 600)


def byte_arguments() -> st.SearchStrategy[tuple]:
    """(operation, *arguments) of an edit that knows nothing of the format."""
    return st.one_of(
        st.tuples(st.just("flip"), _positions, st.integers(0, 7)),
        st.tuples(st.just("put"), _positions, _bytes),
        st.tuples(st.just("insert"), _positions, _bytes),
        st.tuples(st.just("cut"), _positions),
        st.tuples(st.just("drop"), _positions, _counts),
        st.tuples(st.just("swap"), _positions, _positions, _counts),
        st.tuples(st.just("repeat"), _positions, _counts, st.sampled_from((1, 2, 100, 20000))),
        st.tuples(st.just("integer"), _positions, st.sampled_from((1, 2, 4, 8)), _integers),
    )


def json_arguments(values: tuple[str, ...] = VALUES) -> st.SearchStrategy[tuple]:
    """(operation, *arguments) of an edit of a JSON tree."""
    return st.tuples(st.just("json"), st.integers(0, 400), st.sampled_from(JSON_CHANGES), st.sampled_from(values))


def word_arguments(words: tuple[bytes, ...]) -> st.SearchStrategy[tuple]:
    """(operation, *arguments) that write words of a language into a text."""
    word = st.sampled_from(words)
    return any_of(st.tuples(st.just("put"), _positions, word), st.tuples(st.just("insert"), _positions, word))


def value_arguments(values: tuple[bytes, ...]) -> st.SearchStrategy[tuple]:
    """(operation, *arguments) that give a line NAME=VALUE another value."""
    return st.tuples(st.just("assign"), st.integers(0, 60), st.sampled_from(values))


def protobuf_arguments(depth: int = 3) -> st.SearchStrategy[tuple]:
    """(operation, *arguments) of an edit of a protobuf message."""
    path = st.lists(st.integers(0, 1000), min_size=1, max_size=depth).map(tuple)
    changes = st.sampled_from(("drop", "twice", "bytes", "number", "fixed", "empty", "length", "last", "tag"))
    return st.tuples(st.just("protobuf"), path, changes, _bytes)


def inside(layout: str, arguments: st.SearchStrategy[tuple]) -> st.SearchStrategy[tuple]:
    """(operation, *arguments) of edits of what a container holds."""
    return arguments.map(lambda inner: ("within", layout, *inner))


def any_of(*choices: st.SearchStrategy) -> st.SearchStrategy:
    """One of the strategies, each as often as it is named: `st.one_of` joins nested choices and drops repeats."""
    return st.integers(0, len(choices) - 1).flatmap(lambda index: choices[index])


def of(file: str, *arguments: st.SearchStrategy[tuple]) -> st.SearchStrategy[Edit]:
    """Edits of one file."""
    return any_of(*arguments).map(lambda drawn: Edit(file, drawn[0], tuple(drawn[1:])))


def removal(file: str) -> st.SearchStrategy[Edit]:
    """The loss of a file."""
    return st.just(Edit(file, "remove", ()))
