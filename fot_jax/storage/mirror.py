"""A folder of this machine for files that grow (metrics, TensorBoard events, traces), kept in a bucket too.

An object in a bucket cannot be appended to. So these files are local ones, and whole copies of them replace those in
the bucket: every 30 s, before every checkpoint and at the end. A killed process loses the rows of half a minute, all of
them after its newest checkpoint, from which the run goes on.
"""

import logging
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Iterable

from fot_jax.storage.explain import explained, missing_bucket
from fot_jax.storage.lease import Lease
from fot_jax.storage.paths import StoragePath, replace_file

logger = logging.getLogger(__name__)

SECONDS = 30.0  # between two copies; Google allows one write a second to an object


class OutputFolder:
    """The folder to which a run's growing files are written: on a disk the run's own; a context manager.

    Attributes:
      local: the folder to write to.
    """

    def __init__(
        self, folder: StoragePath, *, lease: Lease | None = None, fetch: Iterable[str] = (), seconds: float = SECONDS
    ) -> None:
        """Makes the folder.

        Args:
          folder: the run's.
          lease: of the run in a bucket, without which nothing is copied there.
          fetch: names of files that are continued; the others in the bucket stay there.
          seconds: between two copies.

        Raises:
          UserError: the bucket cannot be read.
        """
        self._temporary = None if isinstance(folder, pathlib.Path) else tempfile.mkdtemp(prefix="fot_jax-")
        self.local = pathlib.Path(self._temporary or folder)
        self._remote = folder if self._temporary and lease is not None else None
        self._lease = lease
        self._sent: dict[str, tuple[int, int]] = {}  # of each file, size and time when it was copied
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        if self._remote is None:
            return
        with explained(folder):
            for name in fetch:
                if (folder / name).exists():
                    (self.local / name).write_bytes((folder / name).read_bytes())
                    self._sent[name] = _state(self.local / name)
        self._thread = threading.Thread(target=self._run, args=(seconds,), daemon=True, name="mirror")
        self._thread.start()

    def __enter__(self) -> "OutputFolder":
        return self

    def __exit__(self, kind: object, *exc_info: object) -> None:
        """Copies what has changed and removes the local copies. Raises UserError, unless another error is raised."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self.flush()
        except Exception as error:
            if kind is None:
                raise
            logger.error("%s: the last metrics were not copied: %s", self._remote, " ".join(str(error).split()))
        finally:
            if self._temporary:
                shutil.rmtree(self._temporary, ignore_errors=True)

    def flush(self) -> None:
        """Returns when the bucket has every file as it is; call it before a checkpoint, so that none lacks its rows.

        Raises:
          UserError: the lease of the run is lost, or the bucket refuses or does not answer.
        """
        if self._remote is None or self._lease is None:
            return
        self._lease.confirm()
        with explained(self._remote, writes=True):
            self._copy(self._remote)

    def _run(self, seconds: float) -> None:
        while not self._end.wait(seconds):
            if self._remote is None or self._lease is None or not self._lease.held():
                continue
            try:
                self._copy(self._remote)
            except Exception as error:  # it may be away for minutes; `flush` raises
                logger.warning("%s: metrics were not copied yet: %s", self._remote, " ".join(str(error).split()))

    def _copy(self, remote: StoragePath) -> None:
        """Replaces what has changed since the last copy."""
        with self._lock:
            for path in sorted(path for path in self.local.rglob("*") if path.is_file()):
                name = path.relative_to(self.local).as_posix()
                try:
                    state = _state(path)
                    if state == self._sent.get(name):
                        continue
                    data = path.read_bytes()
                except FileNotFoundError:  # a temporary file that has its last name by now
                    continue
                try:
                    replace_file(remote / name, data)
                except FileNotFoundError as error:
                    raise missing_bucket(remote) from error
                self._sent[name] = state


def _state(path: pathlib.Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
