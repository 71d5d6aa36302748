"""Seconds that JAX spends on compiling, so that they do not count as work."""

import threading

import jax

_COMPILING = "/jax/core/compile/"  # JAX's events: tracing, lowering, compiling or reading the compilation cache


class CompileTime:
    """Seconds of compiling in this thread since it was entered.

    Attributes:
      seconds: the total so far; grows with each program that is compiled, or loaded from the compilation cache.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._spans: list[tuple[float, float]] = []  # (start, end) without overlap, ascending
        self._thread = threading.get_ident()

    def __enter__(self) -> "CompileTime":
        jax.monitoring.register_event_time_span_listener(self._add)
        return self

    def __exit__(self, *exc_info: object) -> None:
        jax.monitoring.unregister_event_time_span_listener(self._add)

    def _add(self, event: str, start: float, end: float, **_: object) -> None:
        if not event.startswith(_COMPILING) or threading.get_ident() != self._thread:
            return
        while self._spans and self._spans[-1][0] >= start:  # spans inside this one: traces within traces
            inner = self._spans.pop()
            self.seconds -= inner[1] - inner[0]
        self._spans.append((start, end))
        self.seconds += end - start
