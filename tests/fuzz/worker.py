"""Tries inputs in a process of its own, which may crash, hang or take too much memory without harm.

python -m tests.fuzz.worker KIND FOLDER    tries one input and shows what comes of it

`harness.Worker` starts it with `--serve`: a JSON line on stdin names a folder, a JSON line tells what came of it.
"""

import faulthandler
import gc
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).parents[2]
# Orbax abandons its other reads when a restore fails; a command ends before the collector meets them, this process not.
ABANDONED = "_read_array_index_and_device_put"
TRACEBACK = "Traceback (most recent call last)"
OURS = ("fot_jax", "launch", "configs")


def _peak_bytes() -> int:
    """The largest resident memory since `_reset_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _place(error: BaseException) -> str:
    """Where an error comes from: the innermost line of this project, and the innermost line of all."""
    frames = traceback.extract_tb(error.__traceback__)
    while error.__cause__ is not None and not frames:
        error = error.__cause__
        frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith(tuple(str(ROOT / name) for name in OURS))]
    shown = []
    for frame in (ours or frames)[-1:] + frames[-1:]:
        name = frame.filename.removeprefix(f"{ROOT}/").split("site-packages/")[-1]
        text = f"{name}:{frame.lineno} {frame.name}"
        shown += [text] if text not in shown else []
    return " < ".join(shown)


def attempt(kind: Any, *, source: Path, out: Path, intact: Path, log: TextIO) -> dict[str, Any]:
    """Tries one input: {"outcome": "same" | "refused" | "fault", "place": ..., "text": ...}.

    Args:
      kind: a Kind.
      source: the folder of the input.
      out: an empty folder; what is left there after a refusal is a fault.
      intact: the folder of the undamaged input.
      log: the file behind stdout and stderr.
    """
    from launch import cli

    os.ftruncate(log.fileno(), 0)
    before, start = sorted(source.rglob("*")), time.perf_counter()
    _reset_peak()
    low = _peak_bytes()
    found: dict[str, Any] = {"outcome": "same"}
    try:
        cli.run(lambda flags: kind.attempt(source, out / "target", intact), cli.make_parser(None), [])
    except SystemExit as stop:
        found = {"outcome": "refused"} if stop.code == cli.USER_ERROR else _fault(f"exit code {stop.code}", "")
    except BaseException as error:
        found = _fault(f"{type(error).__name__} at {_place(error)}", traceback.format_exc())
        if type(error).__name__ == "WrongError":
            found["place"] = f"wrong: {error}"
    gc.collect()  # what libraries abandoned may be reported when it is freed
    sys.stdout.flush()
    sys.stderr.flush()
    said = Path(log.name).read_text(errors="replace")
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if found["outcome"] == "refused":
        if len(errors) != 1:
            found = _fault(f"{len(errors)} lines begin with 'error: '", said)
        elif left := sorted(str(path.relative_to(out)) for path in out.rglob("*")):
            found = _fault(f"left behind after a refusal: {left[0]}", said)
    if found["outcome"] != "fault" and TRACEBACK in said:
        head = said.split(TRACEBACK)[0].strip().splitlines()[-1:] or [""]
        found = _fault(f"a traceback is printed: {re.sub('0x[0-9a-f]+', '0x', head[0])[:100]}", said)
    if sorted(source.rglob("*")) != before:
        found = _fault("files appeared or vanished next to the input", said)
    seconds, peak = time.perf_counter() - start, _peak_bytes() - low
    return {"message": errors[0] if errors else "", "seconds": seconds, "bytes": peak, **found}


def _fault(place: str, text: str) -> dict[str, Any]:
    return {"outcome": "fault", "place": place, "text": text[-6000:]}


def ignore_abandoned_reads() -> None:
    """Drops "Exception ignored in" of Orbax's abandoned reads."""
    before = sys.unraisablehook
    sys.unraisablehook = lambda found: None if ABANDONED in repr(found.object) else before(found)


def serve(kind: Any, intact: Path, out: Path, log: TextIO, answers: TextIO) -> None:
    """Answers requests until stdin ends; the first answer says that everything is imported."""
    ignore_abandoned_reads()
    first = attempt(kind, source=intact, out=out, intact=intact, log=log)
    gc.freeze()  # modules are no garbage
    print(json.dumps(first), file=answers, flush=True)
    requests = os.fdopen(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a command may read stdin
    for line in requests:
        clear(out)
        found = attempt(kind, source=Path(line.strip()), out=out, intact=intact, log=log)
        print(json.dumps(found), file=answers, flush=True)


def clear(folder: Path) -> None:
    """Empties a folder."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def replay(kind: Any, source: Path) -> None:
    """Tries one input and shows what is said and what comes of it."""
    from tests.fuzz.kind import read_files, write_files

    with tempfile.TemporaryDirectory() as place, open(Path(place, "log"), "a+") as file:
        ignore_abandoned_reads()
        root = Path(place)
        write_files(root / "intact", kind.files())
        write_files(root / "input", read_files(source))
        (root / "out").mkdir()
        shown, descriptors = os.fdopen(os.dup(1), "w"), (1, 2)
        for descriptor in descriptors:
            os.dup2(file.fileno(), descriptor)
        found = attempt(kind, source=root / "input", out=root / "out", intact=root / "intact", log=file)
        print(Path(file.name).read_text(errors="replace"), file=shown)
        for key, value in found.items():
            print(f"{key}: {value}", file=shown)


def main() -> None:
    """Serves requests, or tries one input."""
    from tests.fuzz.kinds import KINDS

    if sys.argv[1] == "--serve":
        kind, intact, out, log = KINDS[sys.argv[2]], *map(Path, sys.argv[3:6])
        answers = os.fdopen(os.dup(1), "w")
        with open(log, "a+") as file:  # what was said is read back: append, so that truncation empties it
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
            faulthandler.enable(file)
            faulthandler.register(signal.SIGUSR1, file, all_threads=True)
            serve(kind, intact, out, file, answers)
        return
    replay(KINDS[sys.argv[1]], Path(sys.argv[2]))


if __name__ == "__main__":
    main()
