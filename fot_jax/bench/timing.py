"""A timed program, and how several take turns."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


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


def take_turns(
    programs: Sequence[Program],
    *,
    repeats: int,
    progress: Callable[[int, int, str], None] = lambda done, of, name: None,
) -> None:
    """Runs every program once to warm up, then all of them in turn, `repeats` times.

    Turns make other load on the machine fall on all alike: ratios of one run compare, seconds of
    two runs do not.

    Args:
      programs: what to time; `seconds` grows.
      repeats: calls of each.
      progress: called with (calls done, calls in all, name) after each call.
    """
    total, done = len(programs) * (repeats + 1), 0
    for turn in range(repeats + 1):
        for program in programs:
            start = time.perf_counter()
            program.call()
            if turn:
                program.seconds.append(time.perf_counter() - start)
            done += 1
            progress(done, total, program.name)
