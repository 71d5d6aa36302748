"""A timed program, and how several take turns."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

LEAST_SECONDS = 0.25  # of a turn: medians of three calls of milliseconds were off by half


@dataclasses.dataclass(kw_only=True)
class Program:
    """One thing to time.

    Attributes:
      name: as tables say it.
      call: runs it once, to its end.
      tokens: tokens that a call processes; 0 where there are none.
      x: where it stands on its plot's axis (d, tokens of the text, entries of the memory).
      series: the curve it belongs to.
      flops: of one call by formula; 0 where none is given.
      bytes: that one call must read at least (parameters, memory); 0 where that does not bound it.
      temp_bytes: temporary memory by the compiler's own analysis; None where it was not asked.
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
        """The middle half of the calls' seconds, from end to end, as a share of the median; None of a single call."""
        if len(self.seconds) == 1:
            return None
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median


def take_turns(
    programs: Sequence[Program],
    *,
    repeats: int,
    least: float = LEAST_SECONDS,
    progress: Callable[[int, int, str], None] = lambda done, of, name: None,
) -> None:
    """Runs every program once to warm up, then all of them in turn, `repeats` times.

    Turns make other load on the machine fall on all alike: ratios of one run compare, seconds of
    two runs do not.

    Args:
      programs: what to time; `seconds` grows.
      repeats: turns of each.
      least: seconds that a turn lasts: a short program is called again and again until then, each call timed.
      progress: called with (turns done, turns in all, name) after each turn.
    """
    total, done = len(programs) * (repeats + 1), 0
    for turn in range(repeats + 1):
        for program in programs:
            begun = time.perf_counter()
            while True:
                start = time.perf_counter()
                program.call()
                end = time.perf_counter()
                if turn:
                    program.seconds.append(end - start)
                if not turn or end - begun >= least:
                    break
            done += 1
            progress(done, total, program.name)
