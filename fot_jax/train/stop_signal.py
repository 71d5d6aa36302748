"""Turns SIGTERM and Ctrl-C into requests: the loop ends after its step, saved; all processes at the same step."""

import os
import signal
import socket
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

INTERRUPTED = 130  # exit code after SIGINT, 128 + 2, as in shells
_AT_ONCE = "stopping after this step, saving; Ctrl-C again ends at once"
_COMPILING = "stopping as soon as the program is compiled, no step is done; Ctrl-C again ends at once"


class StopSignal:
    """A context that catches SIGTERM and SIGINT; the loop asks `reached` before every step.

    The handlers only set a flag: the loop saves, between two steps. The previous handlers are restored at the
    end. Outside the main thread Python allows no handlers, and nothing is caught.

        SIGTERM               saves after this step
        SIGINT (Ctrl-C)       saves after this step, and says so at once; before the first step: KeyboardInterrupt
        a second SIGINT       ends the process at once with exit code 130

    Python runs handlers between two of its own instructions, so a long step or compilation would delay the printed
    line and the second Ctrl-C. A thread that reads `signal.set_wakeup_fd` handles both.

    With several processes JAX catches SIGTERM from the time they join: the process that gets it tells the others,
    and all stop at the first step that none of them has begun. SIGINT is passed on as SIGTERM.

    Attributes:
      requested: True if the run is to stop.
      interrupted: True if SIGINT asked for it.
      begun: set by the loop once a step is done; from then on there is something to save.
    """

    def __init__(self) -> None:
        self.requested = False
        self.interrupted = False
        self.begun = False
        self._handled = threading.Event()

    @property
    def name(self) -> str:
        """The signal that asked to stop."""
        return "SIGINT" if self.interrupted else "SIGTERM"

    def reached(self, step: int) -> bool:
        """True if the run is to stop before `step`; every process asks once for every step, in order."""
        if jax.process_count() > 1:
            self.requested = multihost_utils.reached_preemption_sync_point(step)
        return self.requested

    def _terminated(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        self.requested = True

    def _interrupted(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        self._handled.set()
        if not self.begun:
            raise KeyboardInterrupt
        self.interrupted = True
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        self.requested = True

    def _listen(self, wakeups: socket.socket) -> None:
        """Reads the number of every signal as it arrives, until the other end is closed."""
        count = 0
        while number := wakeups.recv(1):
            if number[0] != signal.SIGINT:
                continue
            count += 1
            if count > 1:
                os.write(2, b"interrupted\n")
                os._exit(INTERRUPTED)
            if self.begun:
                os.write(1, f"{_AT_ONCE}\n".encode())
            elif not self._handled.wait(1.0):
                os.write(1, f"{_COMPILING}\n".encode())
        wakeups.close()

    def __enter__(self) -> "StopSignal":
        self._previous = {}
        if threading.current_thread() is not threading.main_thread():
            return self
        wakeups, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        threading.Thread(target=self._listen, args=(wakeups,), daemon=True, name="stop-signal").start()
        self._previous_wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupted)
        if jax.process_count() == 1:
            self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._terminated)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._previous:
            signal.set_wakeup_fd(self._previous_wakeup)
            self._writer.close()
