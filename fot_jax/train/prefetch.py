"""Makes the next batch while the device works on the current one."""

import concurrent.futures
from collections.abc import Callable
from typing import Any


class Prefetcher:
    """A thread that calls `load(step + 1)` while the caller works on `load(step)`.

    `load` is a pure function of the step, so prefetching changes only the time. An error of `load` is raised
    where its step is taken.
    """

    def __init__(self, load: Callable[[int], Any], *, stop: int) -> None:
        """Prefetches steps below `stop`."""
        self._load = load
        self._stop = stop
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._next: tuple[int, concurrent.futures.Future] | None = None

    def take(self, step: int) -> Any:
        """Returns `load(step)` and starts loading the next step."""
        if self._next is None or self._next[0] != step:
            self._next = (step, self._thread.submit(self._load, step))
        loaded = self._next[1].result()
        self._next = (step + 1, self._thread.submit(self._load, step + 1)) if step + 1 < self._stop else None
        return loaded

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
