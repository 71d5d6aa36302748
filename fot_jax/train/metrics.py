"""Metrics of a run: one JSON row a step, TensorBoard events, and the progress line."""

import contextlib
import json
import math
import time
from pathlib import Path

from fot_jax.storage.paths import StoragePath, replace_file
from fot_jax.train.tensorboard import ScalarEvents

METRICS = "metrics.jsonl"


class MetricsWriter:
    """A writer of rows to WORKDIR/metrics.jsonl and scalars to WORKDIR/tensorboard.

    Where there is no number, a row has no key and TensorBoard no point: a step whose tokens bore no loss has
    `loss_tokens` 0 and neither `loss` nor `accuracy`.

    On resume the rows after the restored step are dropped, so that the file has each step once; a row that a
    kill cut off is dropped too. Every row is handed to the operating system before `write` returns.
    """

    def __init__(self, workdir: Path, *, step: int) -> None:
        """Opens the files of a run that continues after `step` optimizer steps; `workdir` is a local folder."""
        path = workdir / METRICS
        replace_file(path, "".join(json.dumps(row) + "\n" for row in read_rows(path) if row["step"] <= step))
        self._rows = path.open("a", encoding="utf-8")
        self._events = ScalarEvents(workdir / "tensorboard", purge_step=step + 1)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes one row {"step": step, **scalars}. Raises OSError."""
        self._rows.write(json.dumps({"step": step, **scalars}) + "\n")
        self._rows.flush()
        self._events.add(step, scalars)

    def close(self) -> None:
        """Closes both files. Raises OSError."""
        with contextlib.closing(self._rows):
            self._events.close()


def read_rows(path: StoragePath) -> list[dict[str, float]]:
    """Reads the rows of a metrics file, in order; leaves out a last row that was cut off in the middle."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Speed:
    """Tokens per second since the last report, and the time left at that speed."""

    def __init__(self, *, tokens_per_step: int, steps: int) -> None:
        """Takes the tokens of a batch, padding too, and `steps`, the length of the run."""
        self._tokens_per_step = tokens_per_step
        self._steps = steps
        self._since: tuple[int, float] | None = None

    def start(self, step: int) -> None:
        """Starts the clock when `step` steps are done; called after the first step, which compiles."""
        if self._since is None:
            self._since = (step, time.monotonic())

    def report(self, step: int) -> tuple[float, float]:
        """Returns (tokens per second, seconds left) at `step`, NaN while unknown. Restarts the clock."""
        now = time.monotonic()
        since, self._since = self._since, (step, now)
        if since is None or step <= since[0] or now <= since[1]:
            return math.nan, math.nan
        steps_per_second = (step - since[0]) / (now - since[1])
        return self._tokens_per_step * steps_per_second, (self._steps - step) / steps_per_second


def progress_line(step: int, scalars: dict[str, float], *, steps: int, seconds_left: float) -> str:
    """Returns `step 120/500  loss 2.345  acc 0.412  d 4  12.3k tokens/s  ETA 3m20s  MFU 41.2%`, without unknown parts.

    Without loss and accuracy it says `no token bore loss`.
    """
    parts = [f"step {step}/{steps}"]
    if "loss" in scalars:
        parts += [f"loss {scalars['loss']:.4f}", f"acc {scalars['accuracy']:.3f}"]
    else:
        parts.append("no token bore loss")
    parts.append(f"d {scalars['num_contexts']:.0f}")
    if "heldout_loss" in scalars:
        parts.append(f"held-out loss {scalars['heldout_loss']:.4f}")
    if "tokens_per_second" in scalars:
        parts.append(f"{scalars['tokens_per_second'] / 1000:.3g}k tokens/s")
        parts.append(f"ETA {duration(seconds_left)}")
    if "model_flops_utilisation" in scalars:
        parts.append(f"MFU {scalars['model_flops_utilisation']:.1%}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Returns a duration as 45s, 3m20s or 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
