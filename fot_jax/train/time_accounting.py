"""Time accounting of a run: the seconds of steps, and of other work that keeps the devices from them."""

import contextlib
import enum
import time
from collections.abc import Callable, Iterator

from fot_jax.compile_time import CompileTime


class Part(enum.StrEnum):
    """Work of this process other than steps."""

    COMPILE = "compile"
    DATA_WAIT = "data_wait"
    CHECKPOINT = "checkpoint"
    EVALUATION = "evaluation"


class TimeAccount:
    """Seconds of each part since it was entered, measured in this process's main thread.

    Compiling counts as compiling wherever it happens, and is subtracted from the part around it. The remaining
    time belongs to steps.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.compiling = CompileTime()
        self._seconds = dict.fromkeys(Part, 0.0)
        self._clock = clock
        self._start = clock()

    def __enter__(self) -> "TimeAccount":
        self.compiling.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.compiling.__exit__(*exc_info)

    @property
    def seconds(self) -> dict[Part, float]:
        """Seconds of each part so far."""
        return self._seconds | {Part.COMPILE: self.compiling.seconds}

    @contextlib.contextmanager
    def charge(self, part: Part) -> Iterator[None]:
        """Counts the time of the block, without its compiling, as `part`."""
        begin, compiled = self._clock(), self.compiling.seconds
        try:
            yield
        finally:
            inside = self.compiling.seconds - compiled
            self._seconds[part] += max(self._clock() - begin - inside, 0.0)

    def scalars(self) -> dict[str, float]:
        """Returns compile_seconds, data_wait_seconds, checkpoint_seconds, evaluation_seconds so far."""
        return {f"{part}_seconds": round(seconds, 3) for part, seconds in self.seconds.items()}

    def summary(self) -> str:
        """Returns the shares so far: `time: 81% steps, 9% compile, 5% data wait, 3% checkpoint, 2% evaluation`."""
        total = max(self._clock() - self._start, 1e-9)
        shares = {"steps": total - sum(self.seconds.values())}
        shares |= {part.replace("_", " "): seconds for part, seconds in self.seconds.items()}
        listed = ", ".join(f"{max(seconds, 0.0) / total:.0%} {name}" for name, seconds in shares.items())
        return f"time: {listed}"
