"""Checks that all processes of a run are there and equal, and reports lost ones: JSON lines over TCP via process 0.

    others -> 0   hello        host, and digests of what must be equal
    0 -> others   go | stop    all are there and equal | one line that says what is not
    both ways     beat         every HEARTBEAT_SECONDS; a process silent for SILENT_SECONDS is lost
                  failed       one line; process 0 tells all
                  done         the process ended well

When a process is killed, its system closes the connection at once; a lost machine is noticed by its silence.
"""

import contextlib
import dataclasses
import json
import queue
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from fot_jax.config import UserError
from launch.multihost.process_ids import ProcessId

HEARTBEAT_SECONDS = 5.0
SILENT_SECONDS = 30.0
DEAD = 3  # exit code of a process that stops because another died
_LONGEST_LINE = 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hello:
    """A process' description of itself.

    Attributes:
      process: its number.
      processes: how many it expects.
      host: its host's name.
      same: digests that must be equal in all processes, by name.
    """

    process: int
    processes: int
    host: str
    same: dict[str, str]

    def __str__(self) -> str:
        return f"process {self.process} ({self.host})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stop:
    """Order to end this process: the reason in one line, and the exit code."""

    message: str
    code: int


class Peer:
    """Connection to another process, which carries JSON objects, one a line."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._file = connection.makefile("rb")
        self._lock = threading.Lock()

    def send(self, **message: Any) -> None:
        """Sends one object; the reading side notices a lost connection."""
        try:
            with self._lock:
                self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass

    def receive(self, *, seconds: float) -> dict[str, Any] | None:
        """Returns the next object; None when the other side is gone, silent for `seconds`, or sends no object."""
        try:
            self._socket.settimeout(max(seconds, 0.01))
            line = self._file.readline(_LONGEST_LINE)
            message = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        """Ends the connection."""
        self.shut_down()
        self._file.close()
        self._socket.close()

    def shut_down(self) -> None:
        """Ends the connection and leaves closing to the thread that reads."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yields objects until the other side is gone or silent."""
        while (message := self.receive(seconds=SILENT_SECONDS)) is not None:
            yield message


class Watch:
    """The connections of an assembled run.

    Attributes:
      stops: gets a Stop when another process failed or died.
      hosts: names of the hosts, by process number.
      token: process 0's, which all processes have.
    """

    def __init__(self, me: Hello, peers: dict[int, Peer], *, hosts: list[str], token: str) -> None:
        self.stops: queue.Queue[Any] = queue.Queue()
        self.hosts = hosts
        self.token = token
        self._me = me
        self._peers = peers
        self._done = {process: threading.Event() for process in peers}
        self._closing = threading.Event()
        self.threads = [threading.Thread(target=self._read, args=(process,), daemon=True) for process in peers]
        self.threads.append(threading.Thread(target=self._send_heartbeats, daemon=True))
        for thread in self.threads:
            thread.start()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closing.set()
        for peer in self._peers.values():
            peer.shut_down()

    def failed(self, message: str, code: int) -> None:
        """Tells the others that this process failed."""
        self._tell(f"{self._me} failed: {message}", code)

    def done(self, *, seconds: float) -> None:
        """Tells the others that this process ended well; process 0 then waits for the others."""
        for peer in self._peers.values():
            peer.send(kind="done")
        deadline = time.monotonic() + seconds
        for event in self._done.values() if self._me.process == 0 else ():
            event.wait(max(deadline - time.monotonic(), 0.0))

    def _tell(self, message: str, code: int, *, but: int | None = None) -> None:
        for process, peer in self._peers.items():
            if process != but:
                peer.send(kind="failed", message=message, code=code)

    def _read(self, process: int) -> None:
        stop = self._until_stop(process)
        if stop and not self._closing.is_set():
            self._tell(stop.message, stop.code, but=process)
            self.stops.put(stop)
        self._done[process].set()
        self._closing.wait()
        self._peers[process].close()

    def _until_stop(self, process: int) -> Stop | None:
        """Reads a process' messages until it ends; None when it ended well."""
        for message in self._peers[process].messages():
            if message.get("kind") == "failed":
                return Stop(message=str(message.get("message")), code=int(message.get("code", DEAD)))
            if message.get("kind") == "done":
                return None
        return Stop(message=f"process {process} ({self.hosts[process]}) died", code=DEAD)

    def _send_heartbeats(self) -> None:
        while not self._closing.wait(HEARTBEAT_SECONDS):
            for peer in self._peers.values():
                peer.send(kind="beat")


def assemble(process_id: ProcessId, me: Hello, *, seconds: float, token: str) -> Watch:
    """Waits for every process and checks that all run the same.

    Args:
      process_id: this process' number, and where process 0 listens.
      me: its description of itself.
      seconds: how long to wait.
      token: process 0 sends its own to all; the others' are not used.

    Raises:
      UserError: processes are missing after `seconds`, or run something else; the message names them.
    """
    deadline = time.monotonic() + seconds
    return (
        _serve(process_id, me, deadline, seconds, token)
        if process_id.index == 0
        else _join(process_id, me, deadline, seconds)
    )


def _serve(process_id: ProcessId, me: Hello, deadline: float, seconds: float, token: str) -> Watch:
    """Runs the preflight in process 0: waits for the others' hellos, checks them and answers."""
    try:
        v6 = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if v6 else socket.AF_INET
        server = socket.create_server(("", process_id.port), family=family, dualstack_ipv6=v6, backlog=process_id.count)
    except OSError as error:
        raise UserError(
            f"port {process_id.port} of --coordinator must be free on process 0's host, got: {error.strerror}."
            " Wait for the run that holds it, or name another port."
        ) from error
    peers: dict[int, Peer] = {}
    hellos = {0: me}
    problem = None
    with server:
        while len(hellos) < process_id.count and problem is None and time.monotonic() < deadline:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                break
            peer = Peer(connection)
            hello = _parsed(peer.receive(seconds=min(HEARTBEAT_SECONDS, deadline - time.monotonic())))
            problem = _mismatch(hello, hellos, process_id) if hello else None
            if hello is None or problem:  # not a process of this run
                peer.send(kind="stop", message=problem or "not one of this run")
                peer.close()
            else:
                peers[hello.process], hellos[hello.process] = peer, hello
    problem = problem or _missing(hellos, process_id, seconds) or _difference(hellos)
    if problem:
        for peer in peers.values():
            peer.send(kind="stop", message=problem)
            peer.close()
        raise UserError(problem)
    hosts = [hellos[process].host for process in range(process_id.count)]
    for peer in peers.values():
        peer.send(kind="go", hosts=hosts, token=token)
    return Watch(me, peers, hosts=hosts, token=token)


def _join(process_id: ProcessId, me: Hello, deadline: float, seconds: float) -> Watch:
    """Runs the preflight in another process: says hello to process 0 and waits for its answer."""
    reason = "no answer"
    while time.monotonic() < deadline:
        try:
            connection = socket.create_connection((process_id.host, process_id.port), timeout=HEARTBEAT_SECONDS)
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(0.2)
            continue
        peer = Peer(connection)
        peer.send(kind="hello", **dataclasses.asdict(me))
        word = peer.receive(seconds=deadline - time.monotonic() + HEARTBEAT_SECONDS)
        if word is not None and word.get("kind") == "go":
            return Watch(me, {0: peer}, hosts=word["hosts"], token=word["token"])
        peer.close()
        if word is not None:
            raise UserError(str(word.get("message")))
        reason = "it closed the connection"
        time.sleep(0.2)
    raise UserError(
        f"preflight: process 0 must answer at {process_id.host}:{process_id.port} within {seconds:.0f} s, got:"
        f" {reason}. It has not started, or the network keeps ports {process_id.port} and {process_id.port + 1} closed."
    )


def _parsed(message: dict[str, Any] | None) -> Hello | None:
    if message is None or message.pop("kind", None) != "hello":
        return None
    try:
        hello = Hello(**message)
    except TypeError:
        return None
    return hello if isinstance(hello.process, int) and isinstance(hello.same, dict) else None


def _mismatch(hello: Hello, hellos: dict[int, Hello], process_id: ProcessId) -> str | None:
    """Says why a hello cannot be of this run; None where it can."""
    if hello.processes != process_id.count:
        return (
            f"preflight: --num-processes must be the same everywhere, got {hello.processes} in {hello} and"
            f" {process_id.count} in {hellos[0]}."
        )
    if hello.process in hellos:
        return f"preflight: {hello} and {hellos[hello.process]} have the same number. Give each its own --process-id."
    return None


def _missing(hellos: dict[int, Hello], process_id: ProcessId, seconds: float) -> str | None:
    """Names the processes that have not come; None where all have."""
    missing = [process for process in range(process_id.count) if process not in hellos]
    if not missing:
        return None
    known = dict(enumerate(process_id.names))
    listed = ", ".join(f"{process} ({known[process]})" if process in known else str(process) for process in missing)
    return (
        f"preflight: all {process_id.count} processes must come within {seconds:.0f} s; {len(hellos)} came, missing:"
        f" {listed}. Look at the output of these hosts, or give --preflight-seconds more."
    )


def _difference(hellos: dict[int, Hello]) -> str | None:
    """Names the processes that run something else than process 0; None where none does."""
    first = hellos[0]
    for name in first.same:
        others = [hello for _, hello in sorted(hellos.items()) if hello.same.get(name) != first.same[name]]
        if others:
            listed = ", ".join(f"{hello} {hello.same.get(name)}" for hello in others[:8])
            more = f" and {len(others) - 8} more" if len(others) > 8 else ""
            return (
                f"preflight: every process must have the same {name}; {first} has {first.same[name]}, but"
                f" {listed}{more}. Bring the same files and flags to every host."
            )
    return None
