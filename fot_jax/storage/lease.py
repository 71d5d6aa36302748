"""The lock of a run in a bucket: a lease, which its holder renews and which others may take once it has run out.

WORKDIR/.lock holds {"id", "host", "pid", "seconds", "beat"}, and {} when it is free. Every write names the generation
that it replaces, and Cloud Storage refuses it where another write came first. So of several processes one gets the
lease, and a holder notices at its next renewal that it lost it.

It is no fence. A holder that was frozen for longer than its lease may have a save on its way when another process takes
over; it ends at its first renewal, and starts no save before one. After `kill -9` the next process waits for a lease.
"""

import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from fot_jax.config import UserError, check
from fot_jax.storage.explain import explained, missing_bucket
from fot_jax.storage.paths import google_client, in_bucket

logger = logging.getLogger(__name__)

LEASE_SECONDS = 30.0
LEAST_SECONDS, MOST_SECONDS = 4.0, 600.0
OUT_OF_REACH_SECONDS = 600.0  # a save waits that long for a bucket that does not answer
LOST = 2  # exit code of a process that lost its lease
_RENEWALS = 6  # in the time of a lease; Google allows one write a second to an object
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while the machine is suspended


def _now() -> float:
    return time.clock_gettime(_CLOCK)


def end_process(message: str) -> None:
    """Prints one line and ends this process at once, so that it writes nothing more."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(LOST)


def check_seconds(seconds: float) -> None:
    """Raises ConfigError unless a lease may be of this length."""
    rule = f"be between {LEAST_SECONDS:g} and {MOST_SECONDS:g}"
    check(LEAST_SECONDS <= seconds <= MOST_SECONDS, "--lease-seconds", rule, seconds)


class Lease:
    """The lock of a folder in a bucket, held from its making until `release`.

    Times are intervals on this machine's clock: clocks of two machines are never compared.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        seconds: float = LEASE_SECONDS,
        lost: Callable[[str], object] = end_process,
    ) -> None:
        """Takes the lock; waits for as long as a lease of its last holder, if that did not release it.

        Args:
          path: gs://BUCKET/FOLDER/.lock.
          seconds: the length of the lease, 4 to 600.
          lost: called in another thread with one line if another process took the lock; by default ends the process.

        Raises:
          UserError: another process holds it, or the bucket cannot be used.
        """
        check_seconds(seconds)
        self._name = os.fspath(path)
        assert in_bucket(path)
        bucket, _, name = self._name.partition("://")[2].partition("/")
        self._seconds, self._renew, self._lost = seconds, max(1.0, seconds / _RENEWALS), lost
        self._me = {"id": secrets.token_hex(8), "host": socket.gethostname(), "pid": os.getpid(), "seconds": seconds}
        self._end = threading.Event()
        self._renewed = threading.Condition()
        self._taken: str | None = None  # the line about another process that has it
        with explained(path, writes=True):
            self._bucket, self._object = google_client().bucket(bucket), name
            self._good = _now()
            self._generation = self._take(self._unchanging())
        self._thread = threading.Thread(target=self._keep, daemon=True, name="lease")
        self._thread.start()

    def _unchanging(self) -> int:
        """Returns the generation of a lock that is free, or whose holder has not renewed it for its lease."""
        generation, holder = self._read()
        if holder:
            wait = _seconds_of(holder)
            logger.info("%s names %s: waiting up to %.0f s to see whether it is alive.", self._name, _who(holder), wait)
            until = _now() + wait
            while _now() < until:
                time.sleep(0.5)
                found, holder = self._read()
                if not holder:
                    return found
                if found != generation:
                    raise self._held_by(holder)
            logger.info("%s was not renewed for %.0f s: it is taken over from %s.", self._name, wait, _who(holder))
        return generation

    def _take(self, generation: int) -> int:
        from google.api_core import exceptions

        try:
            return self._write(self._me | {"beat": 0}, generation)
        except exceptions.NotFound as error:
            raise missing_bucket(self._name) from error
        except exceptions.PreconditionFailed as error:
            found, holder = self._read()
            if holder.get("id") == self._me["id"]:  # the answer to the write was lost
                return found
            raise self._held_by(holder) from error

    def _held_by(self, holder: dict[str, Any]) -> UserError:
        folder = self._name.rpartition("/")[0]
        return UserError(
            f"{folder} is being trained by another process ({_who(holder)}). Wait for it, or use another --workdir."
        )

    def _read(self, **how: Any) -> tuple[int, dict[str, Any]]:
        """Returns the lock's generation and holder; 0 and {} where it is missing, {} where it is free."""
        from google.api_core import exceptions

        for _ in range(5):
            blob = self._bucket.get_blob(self._object, **how)
            if blob is None:
                return 0, {}
            try:
                data = blob.download_as_bytes(if_generation_match=blob.generation, **how)
            except (exceptions.PreconditionFailed, exceptions.NotFound):
                continue  # written again between the two requests
            return blob.generation, _holder_of(data)
        return blob.generation, {"host": "unknown"}  # renewed all the time

    def _write(self, content: dict[str, Any], generation: int) -> int:
        """Replaces this generation of the lock; returns the new one. Raises google's PreconditionFailed."""
        blob = self._bucket.blob(self._object)
        blob.upload_from_string(json.dumps(content), if_generation_match=generation, timeout=self._renew, retry=None)
        return blob.generation

    def held(self) -> bool:
        """True while no other process can have taken the lock."""
        return self._taken is None and _now() - self._good < self._seconds - self._renew

    def confirm(self) -> None:
        """Returns while the lock is held; to be called before a write of the run's files.

        While the bucket does not answer, or after a freeze of this process, it waits for the next renewal.

        Raises:
          UserError: another process took the lock, or the bucket did not answer for ten minutes.
        """
        with self._renewed:
            self._renewed.wait_for(lambda: self._taken or self.held(), timeout=OUT_OF_REACH_SECONDS)
            if self._taken:
                raise UserError(self._taken)
            if not self.held():
                raise UserError(
                    f"{self._name} must be renewed, but the bucket did not answer for {OUT_OF_REACH_SECONDS:.0f} s."
                    " Look at the network; the same command goes on from the last checkpoint."
                )

    def _keep(self) -> None:
        """Renews the lock until `release`; calls `lost` if another process has it."""
        beat = 0
        while not self._end.wait(self._renew):
            beat, start = beat + 1, _now()
            try:
                generation = self._write(self._me | {"beat": beat}, self._generation)
            except Exception as error:  # refused, or no answer: the write may be done all the same
                try:
                    generation, holder = self._read(timeout=self._renew, retry=None)
                except Exception as unread:
                    logger.warning("%s could not be renewed: %s", self._name, " ".join(str(unread or error).split()))
                    continue
                if holder.get("id") != self._me["id"]:
                    self._give_up(holder)
                    return
                if generation == self._generation:
                    continue  # still ours, not renewed
            with self._renewed:
                self._generation, self._good = generation, start
                self._renewed.notify_all()

    def _give_up(self, holder: dict[str, Any]) -> None:
        who = f"by {_who(holder)}" if holder else "and released by another process"
        with self._renewed:
            self._taken = (
                f"{self._name}: the lock of this run was taken {who}. This process ends, it saves nothing more."
            )
            self._renewed.notify_all()
        self._lost(self._taken)

    def release(self) -> None:
        """Ends the lease, so that the next process need not wait."""
        self._end.set()
        self._thread.join()
        if not self.held():
            return
        try:
            self._write({}, self._generation)
        except Exception as error:
            line = " ".join(str(error).split())
            logger.warning("%s could not be released, the next run waits %.0f s: %s", self._name, self._seconds, line)


def _holder_of(data: bytes) -> dict[str, Any]:
    """Parses a lock; an empty one, which a copied local run has, is free."""
    if not data.strip():
        return {}
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"host": "unknown"}


def _seconds_of(holder: dict[str, Any]) -> float:
    seconds = holder.get("seconds")
    known = isinstance(seconds, int | float) and LEAST_SECONDS <= seconds <= MOST_SECONDS
    return float(seconds) if known else LEASE_SECONDS


def _who(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown host')}"
