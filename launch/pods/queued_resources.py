r"""Gets a Cloud TPU slice by `gcloud compute tpus queued-resources`, and trains on all of its hosts.

  python -m launch.pods.queued_resources create --name=fot --project=my-project --zone=us-central2-b \
      --accelerator-type=v4-32 --runtime-version=tpu-ubuntu2204-base --service-account=fot-runs [--spot] [--slices=2]
  ... sync                                copies the committed files to every host and installs what they need
  ... run -- --config=configs/X.py --workdir=gs://my-runs/X           on every host, in the background
  ... tail                                follows the log of host 0
  ... status                              state of the slice, exit code of the training
  ... stop                                SIGTERM: all hosts save at the same step and end
  ... delete
  ... keep --spot [--retries=20] -- ...   create, sync, run; after a preemption again, until the training has ended

Every action needs --name, --project and --zone. --dry-run prints every command and runs none. Flags after `--`
go to launch.train; --workdir is gs://BUCKET/FOLDER, or a folder that all hosts share: nothing is mounted here.
Needs gcloud and git.
"""

import argparse
import shlex
import time
from collections.abc import Sequence

from fot_jax.config import UserError
from launch import cli
from launch.pods import shell
from launch.pods.shell import Shell

FOLDER = "fot_jax"  # in the home of every host
GCLOUD = ("gcloud", "compute", "tpus", "queued-resources")
ENDED = ("FAILED", "SUSPENDED")  # states that a slice does not leave by itself
_INSTALL = (
    "python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --allow-existing --python=3.11 .venv"
    " && python3 -m uv pip install --quiet --python=.venv/bin/python -r requirements.txt 'jax[tpu]>=0.10,<0.11'"
)


class Slice:
    """One queued resource; each method runs one or two gcloud commands."""

    def __init__(self, flags: argparse.Namespace, commands: Shell) -> None:
        self._flags = flags
        self._shell = commands
        self._where = [f"--project={flags.project}", f"--zone={flags.zone}"]

    def create(self) -> None:
        """Requests the slice; Google grants it when there is room."""
        flags = self._flags
        nodes = [f"--node-count={flags.slices}", f"--node-prefix={flags.name}"] if flags.slices > 1 else []
        command = [*GCLOUD, "create", flags.name, *self._where]
        command += [f"--accelerator-type={flags.accelerator_type}", f"--runtime-version={flags.runtime_version}"]
        command += nodes or [f"--node-id={flags.name}"]
        if flags.service_account:
            command += [f"--service-account={shell.account_email(flags.service_account, project=flags.project)}"]
        command += ["--spot"] if flags.spot else []
        self._shell.run([*command, "--async"])

    def state(self) -> str:
        """Returns the slice's state: ACCEPTED, PROVISIONING, ACTIVE, FAILED, SUSPENDED, ..."""
        command = [*GCLOUD, "describe", self._flags.name, *self._where, "--format=value(state.state)"]
        return self._shell.ask(command, assume="ACTIVE")

    def delete(self) -> None:
        """Deletes the slice, even if it still has nodes."""
        self._shell.run([*GCLOUD, "delete", self._flags.name, *self._where, "--force", "--quiet"])

    def sync(self) -> None:
        """Copies the files of the last commit to every host, and installs what they need."""
        archive = f"/tmp/{self._flags.name}.tar.gz"
        self._shell.run(["git", "archive", "--format=tar.gz", f"--output={archive}", "HEAD"])
        to = f"{self._flags.name}:{FOLDER}.tar.gz"
        self._shell.run([*GCLOUD, "scp", archive, to, *self._where, "--worker=all", "--node=all"])
        stale = f"rm -rf {FOLDER}/fot_jax {FOLDER}/launch {FOLDER}/configs"  # files deleted since the last time
        unpack = f"mkdir -p {FOLDER} && tar -xzf {FOLDER}.tar.gz -C {FOLDER} && cd {FOLDER}"
        self.everywhere(f"{stale} && {unpack} && {_INSTALL}")

    def train(self, arguments: Sequence[str]) -> None:
        """Starts the training on every host; it outlives the connection."""
        command = shlex.join([".venv/bin/python", "-m", "launch.train", *arguments])
        kept = f"{command} & echo $! > logs/pid; wait $!; echo $? > logs/exit"
        self.everywhere(
            f"cd {FOLDER} && mkdir -p logs && rm -f logs/exit && "
            f"(nohup bash -c {shlex.quote(kept)} >> logs/train.log 2>&1 < /dev/null &)"
        )

    def tail(self) -> None:
        """Follows the log of host 0."""
        self._shell.run(self._ssh(f"tail -n 100 -F {FOLDER}/logs/train.log", worker="0", node="0"))

    def stop(self) -> None:
        """Sends SIGTERM to host 0's training, which tells the others."""
        self._shell.run(self._ssh(f"kill -TERM $(cat {FOLDER}/logs/pid)", worker="0", node="0"))

    def exit_code(self) -> str:
        """Returns the exit code of the training on host 0; "" while it runs."""
        command = self._ssh(f"cat {FOLDER}/logs/exit 2> /dev/null || true", worker="0", node="0")
        return self._shell.ask(command, assume="0")

    def everywhere(self, command: str) -> None:
        """Runs a shell command on every host."""
        self._shell.run(self._ssh(command, worker="all", node="all"))

    def _ssh(self, command: str, *, worker: str, node: str) -> list[str]:
        places = [f"--worker={worker}", f"--node={node}", f"--command={command}"]
        return [*GCLOUD, "ssh", self._flags.name, *self._where, *places]


def keep(pod: Slice, flags: argparse.Namespace, *, wait=time.sleep, log=print) -> None:
    """Creates, syncs and trains; after a preemption again, until the training has ended.

    Raises:
      UserError: a command failed though the slice is there, the training ended with an error, or `--retries`
        are used up.
    """
    for attempt in range(flags.retries + 1):
        if attempt:
            log(f"attempt {attempt + 1} of {flags.retries + 1}")
            pod.delete()
        pod.create()
        if not _wait_until_active(pod, flags, wait=wait):
            continue
        try:
            pod.sync()
            pod.train(flags.train)
            code = _wait_until_ended(pod, flags, wait=wait)
        except UserError as error:
            if pod.state() == "ACTIVE":
                raise
            log(str(error))  # ssh fails when the slice is taken away
            continue
        if code == "0":
            return
        if code in ("1", "2"):
            raise UserError(f"the training ended with exit code {code}, which a retry does not fix; see `tail`.")
    raise UserError(f"the slice was lost {flags.retries + 1} times. Give --retries more, or leave out --spot.")


def _wait_until_active(pod: Slice, flags: argparse.Namespace, *, wait) -> bool:
    """Waits for the slice: True when it is active, False when it will not come."""
    while (state := pod.state()) != "ACTIVE":
        if state in ENDED:
            return False
        wait(flags.poll_seconds)
    return True


def _wait_until_ended(pod: Slice, flags: argparse.Namespace, *, wait) -> str:
    """Waits for the training and returns its exit code; "" when the slice is lost before."""
    while pod.state() == "ACTIVE":
        if code := pod.exit_code():
            return code
        wait(flags.poll_seconds)
    return ""


def main(flags: argparse.Namespace) -> None:
    """Runs the subcommand."""
    pod = Slice(flags, Shell(dry_run=flags.dry_run))
    match flags.action:
        case "run":
            pod.train(flags.train)
        case "keep":
            keep(pod, flags)
        case "status":
            print(f"slice: {pod.state()}")
            print(f"training: {pod.exit_code() or 'runs'}")
        case action:
            {"create": pod.create, "sync": pod.sync, "tail": pod.tail, "stop": pod.stop, "delete": pod.delete}[action]()


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command's flags."""
    parser = cli.make_parser(__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action in ("create", "sync", "run", "tail", "status", "stop", "delete", "keep"):
        _add_action(actions.add_parser(action, allow_abbrev=False), action)
    return parser


def _add_action(parser: argparse.ArgumentParser, action: str) -> None:
    parser.add_argument(
        "--name", required=True, type=shell.NAME, help="the name in the cloud; of the queued resource and its nodes"
    )
    parser.add_argument("--project", required=True, type=shell.PROJECT, help="the Google Cloud project")
    parser.add_argument("--zone", required=True, type=shell.ZONE, help="its zone")
    parser.add_argument("--dry-run", action="store_true", help="print every command, run none")
    if action in ("create", "keep"):
        kind = shell.matching(r"v\d+[a-z]*-\d+", what="must be like v4-32, v5litepod-16 or v6e-64")
        version = shell.matching(r"[a-z0-9][a-z0-9.-]*", what="must be like tpu-ubuntu2204-base")
        parser.add_argument("--accelerator-type", required=True, type=kind, help="the TPU and its cores, e.g. v4-32")
        parser.add_argument("--runtime-version", required=True, type=version, help="the system of the hosts")
        account = "the service account; whose rights the hosts have (the project's default)"
        parser.add_argument("--service-account", type=shell.ACCOUNT, metavar="ID", help=account)
        parser.add_argument("--spot", action="store_true", help="cheaper, and may be taken away at any time")
        parser.add_argument("--slices", type=int, default=1, metavar="N", help="several slices as one (multislice)")
    if action == "keep":
        parser.add_argument("--retries", type=int, default=20, metavar="N", help="new slices after the first (20)")
        parser.add_argument(
            "--poll-seconds", type=float, default=60.0, metavar="S", help="seconds between two looks (60)"
        )
    if action in ("run", "keep"):
        parser.add_argument("train", nargs="+", metavar="-- FLAGS", help="flags of launch.train, after --")


if __name__ == "__main__":
    cli.run(main, make_parser())
