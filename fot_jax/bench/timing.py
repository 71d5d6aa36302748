"""Timing of programs in turn."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

LEAST_SECONDS = 0.25  # least length of a turn: medians of three calls of milliseconds were off by half


@dataclasses.dataclass(kw_only=True)
class Program:
    """A program to time.

    Attributes:
      name: its name in tables.
      call: runs it once, to its end.
      tokens: tokens that a call processes; 0 where there are none.
      x: its place on the plot's x axis (d, tokens of the text, entries of the memory).
      series: the curve it belongs to.
      flops: FLOPs of one call by formula; 0 without a formula.
      bytes: bytes that one call must at least read (parameters, memory); 0 if they do not bound it.
      temp_bytes: temporary memory by the compiler's own analysis; None if it was not asked.
      seconds: wall seconds of each call so far.
    """

    name: str
    call: Callable[[], Any]
    tokens: int = 0
    x: float = 0
    series: str = ""
    flops: float = 0.0
    bytes: float = 0.0
    temp_bytes: int | None = None
    seconds: list[float] = dataclasses.field(default_factory=list)

    @property
    def median(self) -> float:
        """Median seconds of a call."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float | None:
        """Interquartile range of the calls' seconds as a share of the median; None for a single call."""
        if len(self.seconds) == 1:
            return None
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median


def time_interleaved(
    programs: Sequence[Program],
    *,
    repeats: int,
    least: float = LEAST_SECONDS,
    progress: Callable[[int, int, str], None] = lambda done, of, name: None,
) -> None:
    """Runs every program once to warm up, then all of them in turn, `repeats` times.

    Turns spread other load on the machine over all programs: ratios of one run can be compared, seconds
    of two runs cannot.

    Args:
      programs: what to time; `seconds` grows.
      repeats: turns of each.
      least: seconds that a turn lasts; a short program is called again until then, and each call is timed.
      progress: called with (turns done, turns in all, name) after each turn.
    """
    total, done = len(programs) * (repeats + 1), 0
    for turn in range(repeats + 1):
        for program in programs:
            round_start = time.perf_counter()
            while True:
                start = time.perf_counter()
                program.call()
                end = time.perf_counter()
                if turn:
                    program.seconds.append(end - start)
                if not turn or end - round_start >= least:
                    break
            done += 1
            progress(done, total, program.name)
