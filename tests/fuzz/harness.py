"""Draws damaged inputs, has a worker try them, and gathers the faults, each with the fewest edits that show it."""

import collections
import dataclasses
import functools
import hashlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
from hypothesis import strategies as st
from hypothesis.internal.conjecture.engine import ConjectureRunner

from tests.fuzz.edits import Edit, Files, apply
from tests.fuzz.kind import Kind, write_files

ROOT = Path(__file__).parents[2]
FOUND = Path(__file__).parent / "found"
INPUTS = int(os.environ.get("FUZZ_INPUTS", "2000"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
SECONDS = 10.0  # of a processor that one input may take
WALL_SECONDS = 60.0  # however busy the machine is
BYTES = 2 * 10**9  # of memory that one input may add
STARTS = 40  # of a worker; a kind that kills it more often is given up


def _seconds_used(process: int) -> float:
    """User and system time of a process."""
    parts = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


def _resident(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Worker:
    """A process that tries inputs of one kind; started again where one ends it."""

    def __init__(self, kind: Kind, root: Path):
        self._kind, self._root, self._process = kind, root, None
        self.starts = 0
        (root / "out").mkdir(parents=True)
        write_files(root / "intact", kind.files())

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def start(self) -> dict[str, Any]:
        """Starts the process; what comes of the intact input."""
        self.starts += 1
        (self._root / "log").write_text("")
        command = [sys.executable, "-m", "tests.fuzz.worker", "--serve", self._kind.name]
        places = [str(self._root / name) for name in ("intact", "out", "log")]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "TMPDIR": str(self._root)}
        self._process = subprocess.Popen(
            [*command, *places], cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self._answer(seconds=120.0, wall=600.0)

    def try_files(self, files: Files) -> dict[str, Any]:
        """Returns the outcome of an input."""
        source = self._root / "input"
        shutil.rmtree(source, ignore_errors=True)
        write_files(source, files)
        if self._process is None:
            found = self.start()
            if found["outcome"] != "same":
                return found
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(f"{source}\n")
        self._process.stdin.flush()
        return self._answer(seconds=SECONDS, wall=WALL_SECONDS)

    def _answer(self, *, seconds: float, wall: float) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdout is not None
        used, begin, low = _seconds_used(process.pid), time.monotonic(), _resident(process.pid)
        while not select.select([process.stdout], [], [], 0.2)[0]:
            if _resident(process.pid) - low > BYTES:
                return self._ended("takes more than 2 GB")
            if _seconds_used(process.pid) - used > seconds or time.monotonic() - begin > wall:
                return self._ended(f"takes more than {seconds:g} s")
        line = process.stdout.readline()
        if not line:
            return self._ended(None)
        found = json.loads(line)
        if found["outcome"] != "fault" and found["bytes"] > BYTES:
            place = f"takes more than 2 GB, {found['outcome']}: {_without_numbers(found['message'])}"
            return {**found, "outcome": "fault", "place": place, "text": ""}
        return found

    def _ended(self, reason: str | None) -> dict[str, Any]:
        """The fault of an input that has to be stopped (`reason`), or that ended the process."""
        process = self._process
        assert process is not None
        if reason is not None:
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.5)
            process.kill()
        process.communicate()
        self._process = None
        reason = reason or f"ends the process with code {process.returncode}"
        text = (self._root / "log").read_text(errors="replace")
        places = re.findall(r'File "([^"]*)", line (\d+) in (\S+)', text)
        ours = [p for p in places if f"{ROOT}/fot_jax" in p[0] or f"{ROOT}/launch" in p[0]]
        where = "{}:{} {}".format(*(ours or places or [("?", "?", "?")])[0]).replace(f"{ROOT}/", "")
        return {
            "outcome": "fault",
            "place": f"{reason} at {where}",
            "text": text[-6000:],
            "seconds": SECONDS,
            "bytes": 0,
        }


def _without_numbers(message: str) -> str:
    """The beginning of a message, without the place of the input."""
    return re.sub(r"\d+", "N", re.sub(r"/\S*/(input|out|intact)\b", "", message))[:80]


@dataclasses.dataclass(kw_only=True)
class Fault:
    """Inputs that go wrong at one place, and the first of them with as few edits as show it."""

    place: str
    text: str
    edits: list[Edit]
    count: int = 1

    def save(self, kind: Kind) -> Path:
        """Writes the input to `found/`, to be tried again."""
        folder = FOUND / f"{kind.name}-{hashlib.sha256(self.place.encode()).hexdigest()[:8]}"
        shutil.rmtree(folder, ignore_errors=True)
        write_files(folder / "input", apply(kind.files(), self.edits))
        lines = [self.place, "", *map(repr, self.edits), "", self.text]
        (folder / "fault.txt").write_text("\n".join(lines), encoding="utf-8", errors="backslashreplace")
        return folder


@dataclasses.dataclass(kw_only=True)
class Report:
    """Outcomes of the inputs of one kind."""

    kind: Kind
    outcomes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    messages: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    faults: dict[str, Fault] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    slowest: float = 0.0
    most_bytes: int = 0

    def lines(self) -> list[str]:
        """A summary line, and two lines for each fault."""
        tried = sum(self.outcomes.values())
        said = (
            f"{self.kind.name}: {tried} inputs, {self.outcomes['same']} read, {self.outcomes['refused']} refused with"
            f" {len(self.messages)} messages, {self.outcomes['fault']} faults at {len(self.faults)} places,"
            f" {self.seconds:.0f} s, slowest {self.slowest:.1f} s, at most {self.most_bytes / 1e6:.0f} MB"
        )
        lines = [said]
        for fault in sorted(self.faults.values(), key=lambda fault: -fault.count):
            folder = os.path.relpath(fault.save(self.kind), ROOT)
            lines.append(f"  {fault.count} x {fault.place}: {'; '.join(map(str, fault.edits))}")
            lines.append(f"      python -m tests.fuzz.worker {self.kind.name} {folder}/input")
        return lines


def fuzz(kind: Kind, root: Path, *, inputs: int = INPUTS, seed: int = SEED) -> Report:
    """Tries damaged inputs of a kind.

    Args:
      kind: the kind.
      root: a folder for the inputs and what is made of them.
      inputs: how many are tried.
      seed: draws others.
    """
    files, worker, start = kind.files(), Worker(kind, root), time.monotonic()
    report = Report(kind=kind)
    try:
        intact = worker.start()
        assert intact["outcome"] == "same", f"the intact input of {kind.name} must be read: {intact}"

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=inputs,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(st.lists(kind.edits(files), min_size=1, max_size=3))
        def one(edits: list[Edit]) -> None:
            if worker.starts <= STARTS:
                _record(report, worker.try_files(apply(files, edits)), edits)

        # Hypothesis also repeats parts of examples that it drew before; half of the inputs would be alike.
        with mock.patch.object(ConjectureRunner, "generate_mutations_from"):
            one()
        for fault in report.faults.values():
            if worker.starts <= STARTS:
                fault.edits = reduced(fault, functools.partial(_place_of, worker, files))
    finally:
        worker.close()
    report.seconds = time.monotonic() - start
    return report


def _place_of(worker: Worker, files: Files, edits: list[Edit]) -> str:
    return worker.try_files(apply(files, edits)).get("place", "")


def _record(report: Report, found: dict[str, Any], edits: list[Edit]) -> None:
    report.outcomes[found["outcome"]] += 1
    report.slowest = max(report.slowest, found.get("seconds", 0.0))
    report.most_bytes = max(report.most_bytes, found.get("bytes", 0))
    if found["outcome"] == "refused":
        report.messages[_without_numbers(found["message"])] += 1
    if found["outcome"] != "fault":
        return
    known = report.faults.setdefault(
        found["place"], Fault(place=found["place"], text=found["text"], edits=edits, count=0)
    )
    known.count += 1


def reduced(fault: Fault, place_of: Callable[[list[Edit]], str]) -> list[Edit]:
    """Returns the fewest of a fault's edits that lead to the same place."""
    edits = fault.edits
    for edit in fault.edits:
        fewer = [other for other in edits if other is not edit]
        if fewer and place_of(fewer) == fault.place:
            edits = fewer
    return edits
