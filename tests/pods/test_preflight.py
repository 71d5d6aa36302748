"""The preflight and the watch, without JAX: processes that only say hello, and supervisors of a trivial child."""

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from fot_jax.config import UserError
from launch.multihost import preflight, supervisor
from launch.multihost.preflight import DEAD, Hello, assemble
from launch.multihost.process_ids import ProcessId
from launch.multihost.supervisor import digests
from tests.e2e.test_multihost import free_port
from tests.train.tiny import tiny

SAME = {"config": "aaaa", "code": "bbbb"}


def call(process, port, *, processes=3, seconds=120.0, same=None, names=()):
    """One process' part of a preflight, on a host named after its number."""
    me = Hello(process=process, processes=processes, host=f"host{process}", same=SAME | (same or {}))
    process_id = ProcessId(host="localhost", port=port, index=process, count=processes, names=names)
    return assemble(process_id, me, seconds=seconds, token=f"token{process}")


def together(*arguments):
    """Calls side by side; their results, or the UserErrors they raised."""
    with concurrent.futures.ThreadPoolExecutor(len(arguments)) as pool:
        futures = [pool.submit(call, process, **given) for process, given in arguments]
    return [future.exception() or future.result() for future in futures]


def close(watches):
    for watch in watches:
        watch.__exit__(None, None, None)
        for thread in watch.threads:
            thread.join(timeout=60)


def test_all_come_and_hear_of_one_another():
    port = free_port()
    watches = together(*((process, {"port": port}) for process in (2, 0, 1)))
    assert [watch.hosts for watch in watches] == [["host0", "host1", "host2"]] * 3
    assert [watch.token for watch in watches] == ["token0"] * 3
    close(watches)


def test_the_missing_are_named():
    port = free_port()
    first, second = together((0, {"port": port, "seconds": 2.0}), (1, {"port": port, "seconds": 120.0}))
    expected = "preflight: all 3 processes must come within 2 s; 2 came, missing: 2. Look at the output of these hosts"
    assert isinstance(first, UserError) and str(first).startswith(expected)
    assert str(second) == str(first)
    with pytest.raises(UserError, match=r"1 came, missing: 1 \(b\), 2 \(c\)\."):
        call(0, free_port(), seconds=0.3, names=("a", "b", "c"))


def test_process_0_that_does_not_answer_is_named():
    port = free_port()
    with pytest.raises(UserError, match=rf"process 0 must answer at localhost:{port} within 1 s, got: .*refused"):
        call(1, port, seconds=1.0)


@pytest.mark.parametrize(("name", "digest"), [("config", "cccc"), ("code", "dddd")])
def test_who_runs_something_else_is_named(name, digest):
    port = free_port()
    given = [(0, {"port": port}), (1, {"port": port}), (2, {"port": port, "same": {name: digest}})]
    for error in together(*given):
        assert isinstance(error, UserError)
        assert f"the same {name}; process 0 (host0) has {SAME[name]}, but process 2 (host2) {digest}." in str(error)


def test_two_with_one_number_and_another_count_are_refused():
    port = free_port()
    errors = together((0, {"port": port}), (1, {"port": port}), (1, {"port": port}))
    assert all("have the same number" in str(error) for error in errors)
    port = free_port()
    errors = together((0, {"port": port, "processes": 2}), (1, {"port": port, "processes": 4}))
    assert all(
        "--num-processes must be the same everywhere, got 4 in process 1 (host1) and 2" in str(e) for e in errors
    )


def test_stranger_is_ignored_and_taken_port_is_said():
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(call, 0, port, processes=2)
        time.sleep(0.3)
        for greeting in (b"GET / HTTP/1.1\r\n", b'{"kind": "hello"}\n', b"[]\n"):
            with socket.create_connection(("localhost", port)) as stranger:
                stranger.sendall(greeting)
        second = pool.submit(call, 1, port, processes=2)
    assert first.result().hosts == second.result().hosts == ["host0", "host1"]
    close([first.result(), second.result()])
    with socket.create_server(("", port + 1)), pytest.raises(UserError, match=f"port {port + 1} of --coordinator must"):
        call(0, port + 1, seconds=1.0)


def test_a_failure_reaches_all_with_its_line():
    port = free_port()
    watches = together(*((process, {"port": port}) for process in range(3)))
    watches[1].failed("the corpus is empty", 2)
    for watch in (watches[0], watches[2]):
        stop = watch.stops.get(timeout=60)
        assert (stop.message, stop.code) == ("process 1 (host1) failed: the corpus is empty", 2)
    close(watches)


def test_a_silent_process_is_dead(monkeypatch):
    monkeypatch.setattr(preflight, "SILENT_SECONDS", 0.5)
    port = free_port()
    watches = together(*((process, {"port": port, "processes": 2}) for process in range(2)))
    stop = watches[0].stops.get(timeout=60)
    assert (stop.message, stop.code) == ("process 1 (host1) died", DEAD)
    close(watches)


def test_the_digests_tell_configs_apart():
    one, same, other = digests(tiny()), digests(tiny()), digests(tiny(train__steps=7))
    assert one == same and one["config"] != other["config"] and one["code"] == other["code"]
    assert "jax=" in one["packages"]


def test_every_process_checks_its_rights_on_the_folder(tmp_path, monkeypatch):
    """A bucket refuses one of them: it fails before it writes, or waits for, the file of process 0."""

    def refuse(folder):
        raise UserError(f"{folder} cannot be written by this account")

    monkeypatch.setattr(supervisor, "check_access", refuse)
    for process in range(2):
        process_id = ProcessId(host="localhost", port=1, index=process, count=2)
        with pytest.raises(UserError, match=r"cannot be written by this account$"):
            supervisor._check_shared(tmp_path, process_id, watch=None)
    assert list(tmp_path.iterdir()) == []


SUPERVISE = """
import json, sys
from pathlib import Path
from launch.multihost import supervisor
from launch.multihost.process_ids import ProcessId
from fot_jax.config import UserError
from tests.train.tiny import tiny
given = json.loads(sys.argv[1])
process_id = ProcessId(host="localhost", port=given["port"], index=given["process"], count=2)
child = [sys.executable, "-c", given["child"]]
supervisor.SHARED_SECONDS = supervisor._GRACE_SECONDS = 1.0  # an idle child never ends by itself
try:
    workdir = Path(given["workdir"])
    code = supervisor.run(child, process_id=process_id, config=tiny(), workdir=workdir, seconds=60.0, log=print)
except UserError as error:
    print("error:", error, file=sys.stderr)
    code = 2
sys.exit(code)
"""
IDLE = "import time; time.sleep(600)"
FAILS = """
from launch.multihost.supervisor import membership
membership()[1].fail("the corpus is empty.", 2)
"""
KILLED = "import os; os.kill(os.getpid(), 9)"
ENDS_ON_SIGTERM = (
    "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(0)); print('up', flush=True); time.sleep(600)"
)


def supervised(tmp_path, *scripts, workdirs=None):
    """Two supervisors, each with a child that runs a script."""
    port = free_port()
    processes = []
    for process, script in enumerate(scripts):
        workdir = str((workdirs or [tmp_path, tmp_path])[process])
        given = json.dumps({"port": port, "process": process, "child": script, "workdir": workdir})
        command = [sys.executable, "-c", SUPERVISE, given]
        pipe = subprocess.PIPE
        processes.append(
            subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=os.environ | {"PYTHONPATH": "."})
        )
    return processes


def ends(processes):
    """(exit code, stdout, last line of stderr) of each; a child left behind would hold the pipes for 600 s."""
    results = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        results.append((process.returncode, out, (err.splitlines() or [""])[-1]))
    return results


def test_a_child_that_fails_ends_the_other_process_with_its_line(tmp_path):
    (code, out, _), (other, _, line) = ends(supervised(tmp_path, FAILS, IDLE))
    host = socket.gethostname()
    assert out.startswith(f"preflight: 2 processes ({host}, {host}), config ") and f"{tmp_path} is shared" in out
    assert (code, other) == (2, 2)
    assert line == f"error: stopped, as process 0 ({host}) failed: the corpus is empty."


def test_killed_child_or_supervisor_ends_the_other(tmp_path):
    host = socket.gethostname()
    (other, _, line), (code, _, said) = ends(supervised(tmp_path, IDLE, KILLED))
    assert (other, code) == (3, 3) and said == "error: the training of this process was killed by signal 9"
    assert line.startswith(f"error: stopped, as process 1 ({host}) failed: was killed by signal 9. The same command")
    up = "print('up', flush=True); " + IDLE
    processes = supervised(tmp_path, up, IDLE)
    assert [processes[0].stdout.readline()[:9], processes[0].stdout.readline()] == ["preflight", "up\n"]
    processes[1].kill()
    (code, _, line), _ = ends(processes)
    assert code == 3 and line.startswith(f"error: stopped, as process 1 ({host}) died. The same command on every host")


def test_sigterm_goes_to_the_child_and_all_ended_well_is_0(tmp_path):
    processes = supervised(tmp_path, ENDS_ON_SIGTERM, "print('up', flush=True)")
    assert [processes[0].stdout.readline()[:9], processes[0].stdout.readline()] == ["preflight", "up\n"]
    processes[0].send_signal(signal.SIGTERM)
    assert [code for code, _, _ in ends(processes)] == [0, 0]


def test_a_folder_that_is_not_shared_is_refused(tmp_path):
    (code, _, first), (other, _, second) = ends(
        supervised(tmp_path, IDLE, IDLE, workdirs=[tmp_path / "one", tmp_path / "two"])
    )
    assert (code, other) == (2, 2)
    assert "preflight: --workdir must be one folder that all hosts share" in second and "two does not show" in second
    assert f"stopped, as process 1 ({socket.gethostname()}) failed: preflight: --workdir" in first


def test_process_that_dies_before_the_folder_check_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    workdirs = [tmp_path / "file" / "run", tmp_path / "two"]
    _, (code, _, line) = ends(supervised(tmp_path, IDLE, IDLE, workdirs=workdirs))
    assert code == 3 and line.startswith(f"error: stopped, as process 0 ({socket.gethostname()}) died.")
