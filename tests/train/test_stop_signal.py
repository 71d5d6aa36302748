"""SIGTERM and Ctrl-C, also while the interpreter is busy in native code."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from fot_jax.train.stop_signal import StopSignal

BUSY = """
import hashlib
from fot_jax.train.stop_signal import StopSignal
with StopSignal() as stop:
    stop.begun = {begun}
    print("up", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in native code: no Python handler runs
"""


def busy(*, begun):
    """A process whose main thread is in a step that does not end."""
    pipe = subprocess.PIPE
    program = [sys.executable, "-c", BUSY.format(begun=begun)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": "."}
    process = subprocess.Popen(program, stdout=pipe, stderr=pipe, text=True, env=environment)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    time.sleep(1)  # from the line to native code: a signal in between would be handled in Python
    return process


@pytest.mark.parametrize(
    ("begun", "said"), [(True, "stopping after this step, saving; "), (False, "stopping as soon as ")]
)
def test_ctrl_c_is_answered_at_once_and_again_ends(begun, said):
    """Neither the line nor the end waits for the step or the compilation under way."""
    process = busy(begun=begun)
    try:
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline().startswith(said)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (130, "", "interrupted\n")
    finally:
        process.kill()
        process.communicate()  # closes its pipes, whatever failed


def test_signals_are_requests_and_handlers_are_put_back(capfd):
    """A step was done: SIGINT raises nothing, and its name is the one that is said."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignal() as stop:
        stop.begun = True
        assert not stop.reached(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reached(1) and (stop.name, stop.interrupted) == ("SIGTERM", False)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reached(2) and (stop.name, stop.interrupted) == ("SIGINT", True)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_ctrl_c_before_the_first_step_is_raised():
    """Data, parameters and compilation: nothing would be saved."""
    with pytest.raises(KeyboardInterrupt), StopSignal():
        os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_nothing_is_caught():
    """Python allows handlers in the main thread alone."""
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def enter():
        with StopSignal():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]
