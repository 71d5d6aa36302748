"""Supervises a training process: preflight, then the training as its child, then one line on how it ended.

The supervisor touches no device and imports no JAX, so it survives where JAX aborts. It forwards SIGTERM to the child,
which stops at the same step as all others, and Ctrl-C as SIGTERM; a second Ctrl-C kills the child. When the supervisor
itself is killed, its child ends with it.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import queue
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fot_jax.config import ExperimentConfig, UserError
from fot_jax.config.build import to_dict
from fot_jax.storage.access import check_access
from fot_jax.storage.paths import StoragePath
from launch.multihost.preflight import DEAD, Hello, Stop, Watch, assemble
from launch.multihost.process_ids import ProcessId

MEMBER = "FOT_JAX_MEMBER"  # environment variable of the child: JSON of coordinator, process, processes, descriptor
PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy")
SHARED_SECONDS = 60.0  # network file systems may show a new file late
_GRACE_SECONDS = 10.0  # for a child to end by itself when another process failed
_DONE_SECONDS = 60.0
INTERRUPTED = 130  # exit code after SIGINT, as the child's


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChildExit:
    """End of the child: its exit code, and its own error line, if it gave one."""

    code: int
    message: str | None


def digests(config: ExperimentConfig) -> dict[str, str]:
    """Returns what must be equal in all processes: config, source files, package versions; 8 hex digits or text."""
    root = Path(__file__).parents[2]
    code = hashlib.sha256()
    for path in sorted(path for package in ("fot_jax", "launch") for path in (root / package).rglob("*.py")):
        code.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    resolved = json.dumps(to_dict(config), sort_keys=True).encode()
    versions = " ".join(f"{name}={_version(name)}" for name in PACKAGES)
    python = ".".join(map(str, sys.version_info[:2]))
    return {
        "config": hashlib.sha256(resolved).hexdigest()[:8],
        "code": code.hexdigest()[:8],
        "packages": f"python={python} {versions}",
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def run(
    command: Sequence[str],
    *,
    process_id: ProcessId,
    config: ExperimentConfig,
    workdir: StoragePath,
    seconds: float,
    log: Callable[[str], None],
) -> int:
    """Runs the preflight and this process' part of the training; returns the exit code.

    Args:
      command: the child's, as an argument list.
      process_id: which process this is.
      config: the resolved experiment.
      workdir: the run's folder, shared by all hosts.
      seconds: time limit of the preflight.
      log: prints a line; used by process 0.

    Raises:
      UserError: the preflight failed, or another process did; the message says which.
    """
    start = time.monotonic()
    me = Hello(process=process_id.index, processes=process_id.count, host=socket.gethostname(), same=digests(config))
    with assemble(process_id, me, seconds=seconds, token=secrets.token_hex(8)) as watch:
        try:
            _check_shared(workdir, process_id, watch)
        except UserError as error:
            _fail(watch, str(error), code=2)
            raise
        if not watch.stops.empty():
            return _print_stop(watch.stops.get())
        if process_id.index == 0:
            hosts = ", ".join(watch.hosts[:4]) + (f", ... {len(watch.hosts)}" if len(watch.hosts) > 4 else "")
            log(
                f"preflight: {process_id.count} processes ({hosts}), config {me.same['config']},"
                f" code {me.same['code']}, the same everywhere; {workdir} is shared; {time.monotonic() - start:.1f} s"
            )
        return _supervise(command, process_id, watch)


def _check_shared(workdir: StoragePath, process_id: ProcessId, watch: Watch) -> None:
    """Raises UserError unless all processes see one folder: process 0 writes a token, the others read it.

    In a bucket every process also writes as a checkpoint does. It ends early when another process does.
    """
    check_access(workdir)
    path = workdir / ".preflight"
    if process_id.index == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        path.write_text(watch.token)
        return
    deadline = time.monotonic() + SHARED_SECONDS
    while not (path.is_file() and path.read_text() == watch.token) and watch.stops.empty():
        if time.monotonic() > deadline:
            raise UserError(
                f"preflight: --workdir must be one folder that all hosts share, but on {socket.gethostname()}"
                f" {workdir} does not show the file that process 0 wrote {SHARED_SECONDS:.0f} s ago."
                " Mount the same file system everywhere."
            )
        time.sleep(0.1)


def _supervise(command: Sequence[str], process_id: ProcessId, watch: Watch) -> int:
    """Runs the child until it or another process ends."""
    ours, theirs = socket.socketpair()
    member = {
        "coordinator": f"{process_id.host}:{process_id.port + 1}",
        "process": process_id.index,
        "processes": process_id.count,
        "descriptor": theirs.fileno(),
    }
    environment = os.environ | {MEMBER: json.dumps(member)}
    child = subprocess.Popen(_killed_with_parent(command), env=environment, pass_fds=[theirs.fileno()])
    theirs.close()
    interrupts = _Interrupts(child)
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, lambda n, _: _send(child, n))}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupts)
    try:
        threading.Thread(target=_wait, args=(child, ours, watch.stops), daemon=True).start()
        event = watch.stops.get()
        if isinstance(event, Stop):
            return _end_child(event, child, watch)
        if event.message is None and event.code in (0, INTERRUPTED):  # done, or saved by all at the same step
            watch.done(seconds=_DONE_SECONDS)
            return INTERRUPTED if interrupts.count else event.code
        if interrupts.count or event.code == INTERRUPTED:
            print("interrupted", file=sys.stderr, flush=True)
            _fail(watch, "was interrupted", code=DEAD)
            return INTERRUPTED
        return _report_failure(event, watch)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


_KILLED_WITH_PARENT = """
import os, signal, sys
try:
    import ctypes
    tied = ctypes.CDLL(None).prctl(1, signal.SIGKILL) == 0  # 1: PR_SET_PDEATHSIG
except (ImportError, OSError, AttributeError):
    tied = False
if not tied:
    print("warning: a killed supervisor would leave this training running: prctl is not to be had", file=sys.stderr)
if os.getppid() != int(sys.argv[1]):  # it died before
    os.kill(os.getpid(), signal.SIGKILL)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def _killed_with_parent(command: Sequence[str]) -> list[str]:
    """Wraps the command so that Linux kills it when this process dies, even by SIGKILL; else it keeps the devices."""
    tied = sys.platform == "linux"
    return (
        [sys.executable, "-I", "-S", "-c", _KILLED_WITH_PARENT, str(os.getpid()), *command] if tied else list(command)
    )


def _wait(child: subprocess.Popen, link: socket.socket, events: queue.Queue) -> None:
    """Waits for the child and puts its ChildExit into the queue."""
    said = b""
    while part := link.recv(4096):
        said += part
    events.put(ChildExit(code=child.wait(), message=said.decode(errors="replace") or None))


def _report_failure(event: ChildExit, watch: Watch) -> int:
    """Tells the others that this process' training failed, unless they were the reason. Returns the exit code."""
    if event.message is None or event.code not in (1, 2):
        try:  # a lost peer ends the child too (JAX aborts, a collective fails): its name is the better message
            return _print_stop(watch.stops.get(timeout=2.0))
        except queue.Empty:
            pass
    signalled = f"was killed by signal {-event.code}" if event.code < 0 else f"ended with exit code {event.code}"
    code = event.code if event.code in (1, 2) else DEAD
    if event.message is None:
        print(f"error: the training of this process {signalled}", file=sys.stderr, flush=True)
    _fail(watch, event.message or signalled, code=code)
    return code


def _fail(watch: Watch, message: str, *, code: int) -> None:
    watch.failed(message, code)
    time.sleep(0.5)  # let it arrive before the connections close


def _end_child(stop: Stop, child: subprocess.Popen, watch: Watch) -> int:
    """Ends the child because another process failed or died. Returns the exit code."""
    if stop.code != DEAD:
        try:  # all may be failing for the same reason (a metric became NaN): the child's own line is enough
            event = watch.stops.get(timeout=_GRACE_SECONDS)
            while isinstance(event, Stop):
                event = watch.stops.get(timeout=_GRACE_SECONDS)
            if event.message is not None and event.code in (1, 2):
                return event.code
        except queue.Empty:
            pass
    if child.poll() is None:
        child.kill()
        child.wait()
    return _print_stop(stop)


def _print_stop(stop: Stop) -> int:
    then = " The same command on every host goes on from the last checkpoint." if stop.code == DEAD else ""
    print(f"error: stopped, as {stop.message.rstrip('.')}.{then}", file=sys.stderr, flush=True)
    return stop.code


def _send(child: subprocess.Popen, number: int) -> None:
    if child.poll() is None:
        child.send_signal(number)


class _Interrupts:
    """Handler of SIGINT: sends the child SIGTERM the first time, SIGKILL the second time.

    A terminal sends SIGINT to the child too. The SIGTERM asks for the same and does no harm; a second SIGINT would end
    the child at once.
    """

    def __init__(self, child: subprocess.Popen) -> None:
        self.count = 0
        self._child = child

    def __call__(self, signum: int, frame: object) -> None:
        self.count += 1
        _send(self._child, signal.SIGTERM if self.count == 1 else signal.SIGKILL)


class Link:
    """The child's link to the supervisor: reports an error, and ends this process when the supervisor ends."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        try:
            self._socket.recv(1)  # nothing is ever sent: it returns when the supervisor is gone
        finally:
            os._exit(DEAD)

    def fail(self, message: str, code: int) -> None:
        """Reports the line and ends this process at once: JAX's own shutdown would wait for the others."""
        self._socket.sendall(message.encode())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def membership() -> tuple[dict, Link] | None:
    """Returns the supervisor's coordinator, process, processes, and the link to it; None without a supervisor."""
    given = os.environ.pop(MEMBER, None)
    if given is None:
        return None
    member = json.loads(given)
    return member, Link(member.pop("descriptor"))
