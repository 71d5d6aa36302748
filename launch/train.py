"""Trains an experiment; resumes by itself when the folder holds a checkpoint.

  python -m launch.train --config=configs/tiny_code.py [--config.train.steps=100 ...] [--workdir=DIR]
  python -m launch.train --gin_file=configs/NAME.gin [--gin_bindings='TrainConfig.steps = 100'] [--workdir=DIR]

The folder gets config.json, checkpoints/, metrics.jsonl and tensorboard/; it may be in a bucket (gs://BUCKET/FOLDER).
SIGTERM and Ctrl-C save after the current step, and the same command resumes from there. A second Ctrl-C ends at once,
without saving.

On several hosts run the same command on each, with a --workdir that all share. Hosts of TPU slices (Cloud TPU VMs,
GKE) find each other; elsewhere give each process --coordinator=HOST:PORT --num-processes=N --process-id=I.
docs/pods.md leads from an empty project to a running pod.

Exit codes: 0 done or stopped by SIGTERM, 1 a metric became NaN or infinite, 2 an error you can fix (a full disk too),
3 another process of the run died, 130 interrupted by Ctrl-C (SIGINT), saved if a step was done.
"""

import argparse
import re
import shlex
import sys
import traceback
from collections.abc import Callable

from fot_jax.config import ConfigError, ExperimentConfig, SourceKind, UserError
from fot_jax.storage.lease import LEASE_SECONDS, check_seconds, end_process
from fot_jax.storage.paths import StoragePath
from launch import cli, compilation_cache

NON_FINITE = 1  # exit code of a run that diverged
HELDOUT = "heldout_loss"


def main(flags: argparse.Namespace) -> None:
    """Trains the experiment of the flags, in this process or as one process of several."""
    from launch.multihost import supervisor

    config = cli.load_experiment(flags)
    given = supervisor.membership()
    if given is not None:
        _train_as_member(flags, config, *given)
    elif (process_id := _process_id(flags)) is not None:
        command = [sys.executable, "-m", "launch.train", *sys.argv[1:]]
        workdir = cli.workdir_of(flags, config)
        seconds = flags.preflight_seconds
        sys.exit(
            supervisor.run(command, process_id=process_id, config=config, workdir=workdir, seconds=seconds, log=_log)
        )
    else:
        code = _train(flags, config)
        if code:
            sys.exit(code)


def _process_id(flags: argparse.Namespace):
    """Returns the ProcessId of this process among several, None for a run of one."""
    from launch.multihost import process_ids

    named = process_ids.from_flags(flags.coordinator, flags.num_processes, flags.process_id)
    if named is not None or flags.hosts == "one":
        return named
    return process_ids.from_environment(attribute=process_ids.metadata_attribute())


def _train(flags: argparse.Namespace, config: ExperimentConfig, lost: Callable[[str], object] = end_process) -> int:
    """Trains in this process; returns the exit code. `lost` is called if the lock of a run in a bucket is lost.

    Raises:
      UserError: an error that the user can fix.
    """
    profile = _profile_steps(flags.profile_steps)  # fails before the slow imports
    check_seconds(flags.lease_seconds)
    from fot_jax.train.loop import train  # imports JAX only once the flags are valid
    from fot_jax.train.recorder import NonFiniteError

    compilation_cache.use(flags.compilation_cache, log=_log)
    allowed = [path for listed in flags.allow_change for path in listed.split(",") if path]
    workdir = cli.workdir_of(flags, config)
    try:
        lock = {"lease_seconds": flags.lease_seconds, "lost": lost}
        outcome = train(config, workdir=workdir, allow_changes=allowed, log=_log, profile=profile, **lock)
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        return NON_FINITE
    if not outcome.stopped:
        for line in closing_lines(config, workdir):
            _log(line)
    return cli.INTERRUPTED if outcome.interrupted else 0


def closing_lines(config: ExperimentConfig, workdir: StoragePath) -> list[str]:
    """Returns what a finished run ends with: its held-out loss and the commands that use it; [] but for one process."""
    from fot_jax.distributed import is_first
    from fot_jax.train.metrics import read_rows

    if not is_first():
        return []
    losses = {int(row["step"]): row[HELDOUT] for row in read_rows(workdir / "metrics.jsonl") if HELDOUT in row}
    lines = []
    if losses:
        last, best = max(losses), min(losses, key=losses.__getitem__)
        better = f"; {losses[best]:.4f} after step {best}, which is --step=best" if losses[best] < losses[last] else ""
        lines.append(f"held-out loss {losses[last]:.4f} nats a token after step {last}{better}")
    lookup = any(source.kind is SourceKind.DICTIONARY for source in config.data.sources)
    where = f"--workdir={shlex.quote(str(workdir))}"
    commands = []
    if config.model.memory_layers:
        commands.append(f"launch.evaluate {where} --task={'dictionary' if lookup else 'perplexity'}")
    if config.model.memory_layers and not lookup:
        commands.append(f"launch.read {where} --text=FILE")
    if not lookup:
        commands.append(f"launch.generate {where} --prompt-file=FILE --max-new-tokens=100 --temperature=0.8")
    return lines + [f"next: python -m {command}" for command in commands]


def _train_as_member(flags: argparse.Namespace, config: ExperimentConfig, member: dict, link) -> None:
    """Trains as one process of several, and tells the supervisor what went wrong."""
    from fot_jax import distributed

    def lost(message: str) -> None:
        print(f"error: {message}", file=sys.stderr)
        link.fail(message, cli.USER_ERROR)

    try:
        distributed.join(distributed.Member(**member))
        code = _train(flags, config, lost)
        if code == NON_FINITE:
            link.fail("a metric became NaN or infinite, see its output", code)
    except UserError as error:
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        link.fail(message, cli.USER_ERROR)
    except KeyboardInterrupt:
        link.fail("was interrupted", cli.INTERRUPTED)
    except BaseException as error:
        traceback.print_exc()
        link.fail(f"{type(error).__name__}, see its output", 70)  # not 1 or 2: a lost peer may be the cause
    distributed.leave()
    if code:  # all have saved at the same step
        sys.exit(code)


def _log(line: str) -> None:
    # In one write: unbuffered, `print` would end the line with a second one, and what a Ctrl-C says could come between.
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _profile_steps(text: str | None):
    """Parses FROM:TO into ProfileSteps; None without a text."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,18}):(\d{1,18})", text)
    if not match:
        raise ConfigError(f"--profile-steps must be FROM:TO, e.g. 20:24, got {text!r}.")
    from fot_jax.train.profile import ProfileSteps

    return ProfileSteps(first=int(match[1]), last=int(match[2]))


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command's flags."""
    parser = cli.make_parser(__doc__)
    cli.add_experiment_flags(parser, workdir=True)
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="PATH,PATH",
        help="config paths that may differ from the run already in the folder, e.g. train.steps,train.log_every",
    )
    parser.add_argument(
        "--profile-steps", metavar="FROM:TO", help="write a trace of these steps for XProf to WORKDIR/profile"
    )
    parser.add_argument(
        "--lease-seconds",
        type=float,
        default=LEASE_SECONDS,
        metavar="S",
        help="with a --workdir in a bucket: how long the lock of a killed run keeps others out (30)",
    )
    compilation_cache.add_flag(parser)
    hosts = parser.add_argument_group("several hosts")
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens; the next port is JAX's")
    hosts.add_argument("--num-processes", type=int, metavar="N", help="how many processes make the run")
    hosts.add_argument("--process-id", type=int, metavar="I", help="which one this is, from 0")
    hosts.add_argument(
        "--hosts",
        choices=["auto", "one"],
        default="auto",
        help="auto: all hosts of the TPU slice this machine belongs to, if any; one: this machine alone",
    )
    hosts.add_argument(
        "--preflight-seconds", type=float, default=300.0, metavar="S", help="how long all may take to come (300)"
    )
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
