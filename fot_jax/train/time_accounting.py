"""Time accounting of a run: the seconds of steps, and of other work that keeps the devices from them."""

import contextlib
import enum
import threading
import time
from collections.abc import Callable, Iterator

import jax


class Part(enum.StrEnum):
    """Work of this process other than steps."""

    COMPILE = "compile"
    DATA_WAIT = "data_wait"
    CHECKPOINT = "checkpoint"
    EVALUATION = "evaluation"


_COMPILING = "/jax/core/compile/"  # JAX's events: tracing, lowering, compiling or reading the compilation cache


class TimeAccount:
    """Seconds of each part since it was entered, measured in this process's main thread.

    Compiling counts as compiling wherever it happens, and is subtracted from the part around it. The remaining
    time belongs to steps.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = dict.fromkeys(Part, 0.0)
        self._clock = clock
        self._start = clock()
        self._compiled: list[tuple[float, float]] = []  # (start, end) without overlap, ascending
        self._thread = threading.get_ident()

    def __enter__(self) -> "TimeAccount":
        jax.monitoring.register_event_time_span_listener(self._event)
        return self

    def __exit__(self, *exc_info: object) -> None:
        jax.monitoring.unregister_event_time_span_listener(self._event)

    def _event(self, event: str, start: float, end: float, **_: object) -> None:
        if not event.startswith(_COMPILING) or threading.get_ident() != self._thread:
            return
        while self._compiled and self._compiled[-1][0] >= start:  # spans inside this one: traces within traces
            inner = self._compiled.pop()
            self.seconds[Part.COMPILE] -= inner[1] - inner[0]
        self._compiled.append((start, end))
        self.seconds[Part.COMPILE] += end - start

    @contextlib.contextmanager
    def charge(self, part: Part) -> Iterator[None]:
        """Counts the time of the block, without its compiling, as `part`."""
        begin, compiled = self._clock(), self.seconds[Part.COMPILE]
        try:
            yield
        finally:
            inside = self.seconds[Part.COMPILE] - compiled
            self.seconds[part] += max(self._clock() - begin - inside, 0.0)

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
