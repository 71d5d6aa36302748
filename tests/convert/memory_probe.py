"""A process of its own: imports a checkpoint and prints the peak of its anonymous memory above where it began, bytes.

    python -m tests.convert.memory_probe SOURCE WORKDIR DTYPE

Mapped files are not counted (the system takes those pages back when it wants them).
"""

import re
import sys
import threading

from fot_jax.config import Dtype
from fot_jax.convert.importing import import_checkpoint
from fot_jax.convert.sources import open_source


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    with open("/proc/self/status", encoding="ascii") as file:
        return int(re.search(r"RssAnon:\s+(\d+) kB", file.read())[1]) * 1024


def main() -> None:
    """Samples every 2 ms while it imports."""
    source, workdir, dtype = sys.argv[1:]
    import jax

    from fot_jax import checkpoint  # all imports before the first sample

    jax.devices()
    assert checkpoint and open_source
    start, peak, done = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    import_checkpoint(source, workdir, dtype=Dtype(dtype), progress=lambda p: print(p, file=sys.stderr))
    done.set()
    thread.join()
    print("PEAK", peak - start)


if __name__ == "__main__":
    main()
