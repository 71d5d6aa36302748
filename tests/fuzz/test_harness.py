"""The harness itself: what it calls a fault, and what it does not."""

import json
import struct

import numpy as np
import pytest

from tests.fuzz import harness, layouts, toy
from tests.fuzz.edits import Edit, apply


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Word of a toy input -> what came of it."""
    with pytest.MonkeyPatch.context() as patch:
        worker = harness.Worker(toy.KINDS[0], tmp_path_factory.mktemp("toy"))

        def outcome(word: str):
            # Only what hangs has to meet the limit: a busy machine takes seconds to hand out 3 GB.
            patch.setattr(harness, "SECONDS", 4.0 if word == "hang" else 60.0)
            return worker.try_files({"word": word.encode()})

        try:
            assert worker.start()["outcome"] == "same"
            yield {word: outcome(word) for word in toy.WORDS}
        finally:
            worker.close()


@pytest.mark.parametrize(
    ("word", "outcome", "place"),
    [
        ("fine", "same", ""),
        ("refuse", "refused", ""),
        ("leave", "fault", "left behind after a refusal: target"),
        ("wrong", "fault", "wrong: other numbers"),
        ("raise", "fault", "KeyError at "),
        ("crash", "fault", "ends the process with code -6"),
        ("grow", "fault", "takes more than 2 GB"),
        ("hang", "fault", "takes more than 4 s"),
    ],
)
def test_harness_tells_every_fault_apart(found, word, outcome, place):
    """Residue, wrong numbers, tracebacks, crashes, memory and hangs are faults; an error of the user's is none."""
    assert found[word]["outcome"] == outcome
    assert found[word].get("place", "").startswith(place)


def test_faults_are_gathered_and_reduced(tmp_path, monkeypatch):
    """One entry a place, with the one edit that matters; the report names a command for each."""
    monkeypatch.setattr(harness, "SECONDS", 4.0)
    monkeypatch.setattr(harness, "FOUND", tmp_path / "found")
    monkeypatch.setattr(toy, "WORDS", ("fine", "refuse", "wrong", "raise"))
    report = harness.fuzz(toy.KINDS[0], tmp_path / "work", inputs=30)
    assert sorted(place.split(" at ")[0] for place in report.faults) == ["KeyError", "wrong: other numbers"]
    assert [len(fault.edits) for fault in report.faults.values()] == [1, 1]
    assert report.outcomes["refused"] >= 1 and len(report.messages) == 1
    lines = report.lines()
    assert sum("python -m tests.fuzz.worker toy " in line for line in lines) == 2


@pytest.mark.parametrize(
    ("edit", "result"),
    [
        (("flip", 0, 0), b"`bcd"),
        (("flip", -1, 0), b"abce"),
        (("cut", 2), b"ab"),
        (("drop", 1, 2), b"ad"),
        (("swap", 0, 2, 2), b"cdab"),
        (("repeat", 1, 2, 2), b"abcbcbcd"),
        (("integer", 1, 2, 0x4142), b"aBAd"),
        (("insert", -1, b"X"), b"abcdX"),
        (("assign", 0, b"1"), b"abcd=1"),
    ],
)
def test_byte_edit_by_hand(edit, result):
    """Every edit of bytes, on four bytes."""
    assert apply({"a": b"abcd"}, [Edit("a", edit[0], edit[1:])]) == {"a": result}


@pytest.mark.parametrize(
    ("change", "result"),
    [
        ("replace", '{"a": null, "b": 2}'),
        ("nest", '{"a": [1], "b": 2}'),
        ("twice", '{"a": null, "a": 1, "b": 2}'),
        ("text", '{"a": "1", "b": 2}'),
        ("drop", '{"b": 2}'),
        ("rename", '{"b": 2, "ax": 1}'),
    ],
)
def test_json_edit_by_hand(change, result):
    """Every edit of a JSON tree that texts can show, at the first of two keys."""
    assert apply({"a": b'{"a": 1, "b": 2}'}, [Edit("a", "json", (0, change, "null"))])["a"].decode() == result


def test_edits_inside_containers_keep_them_whole():
    """The frames of TFRecord, safetensors and gzip agree with what they hold after an edit inside."""
    record = layouts.framed(b"abcd") + layouts.framed(b"ef")
    edited = apply({"a": record}, [Edit("a", "within", ("record", "drop", 0, 2))])["a"]
    assert layouts.records(edited) == [b"cd", b"ef"]
    assert layouts.records(edited[:-1]) is None
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    data = struct.pack("<Q", len(header)) + header + np.float32(2).tobytes()
    edited = apply({"a": data}, [Edit("a", "within", ("safetensors", "json", 1, "replace", '"F16"'))])["a"]
    assert layouts.safetensors(edited)["x"] == ("F16", (1,), np.float32(2).tobytes())


def test_masked_checksum_is_that_of_tensorflow():
    """CRC-32C of "123456789" is e3069283; TFRecord rotates it by 15 and adds a constant."""
    assert layouts.masked_crc(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF
