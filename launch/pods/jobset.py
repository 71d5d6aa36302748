r"""Trains on TPU slices of a GKE cluster, by a JobSet manifest or by Google's Cluster Toolkit.

  python -m launch.pods.jobset build --image=us-docker.pkg.dev/my-project/fot/fot_jax:1
  python -m launch.pods.jobset apply --name=fot --image=us-docker.pkg.dev/my-project/fot/fot_jax:1 \
      --service-account=fot-runs --accelerator=tpu-v5-lite-podslice --topology=4x4 [--slices=2] [--spot] \
      [--queue=my-queue] -- --config=configs/X.py --workdir=gs://my-runs/X
  python -m launch.pods.jobset gcluster --name=fot --image=us-docker.pkg.dev/my-project/fot/fot_jax:1 \
      --service-account=fot-runs --compute-type=v5litepod-16 --topology=4x4 --project=my-project --cluster=pods \
      --location=us-west4-a [--slices=2] -- --config=... --workdir=...
  python -m launch.pods.jobset tail --name=fot
  python -m launch.pods.jobset delete --name=fot

`build` builds the image of ./Dockerfile for TPUs and pushes it. `apply` writes the manifest to --out (fot.yaml) and
passes it to kubectl; `gcluster` calls `gcluster job submit`, which makes its own manifest. --dry-run prints the
manifest and every command, and runs none. Flags after `--` go to launch.train. When a host is preempted or lost, all
hosts restart and go on from the last checkpoint.

Where --workdir is in a bucket, --service-account names the Kubernetes service account that may write there
(launch.pods.setup). Otherwise --claim names a PersistentVolumeClaim that many hosts may write (ReadWriteMany), mounted
at /mnt/shared, and --workdir is in it.

Source: gcluster's flags as in https://docs.cloud.google.com/cluster-toolkit/docs/reference/gcluster-job-submit
(experimental there; read with Cluster Toolkit's sources of 2026).
"""

import argparse
import json
import math
import re
import shlex
import string
from pathlib import Path

from fot_jax.config import UserError
from launch import cli
from launch.pods import shell
from launch.pods.shell import Shell

TEMPLATE = Path(__file__).with_name("jobset.yaml")
MOUNT = "/mnt/shared"
WORD = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
GRACE_SECONDS = 120  # between SIGTERM and SIGKILL: a step, and a checkpoint
VOLUME = """
                  volumeMounts:
                    - {{name: shared, mountPath: {mount}}}
              volumes:
                - name: shared
                  persistentVolumeClaim: {{claimName: {claim}}}"""


def training_root(flags: argparse.Namespace) -> str:
    """Returns what all hosts share and the training writes to: gs://BUCKET, or the mounted volume.

    Raises:
      UserError: --workdir is in neither, or the flag that gives access to it is missing.
    """
    workdirs = [argument.partition("=")[2] for argument in flags.train if argument.startswith("--workdir=")]
    folder = workdirs[0] if len(workdirs) == 1 else ""
    if bucket := re.match(r"gs://[^/]+(?=/.)", folder):
        if not flags.service_account:
            raise UserError(
                "--service-account=NAME must name the Kubernetes service account that may write to"
                f" {bucket[0]}, got none. `launch.pods.setup --gke-namespace=default` makes one."
            )
        return bucket[0]
    if not folder.startswith(MOUNT + "/"):
        raise UserError(
            f"--workdir=... of the training must be gs://BUCKET/FOLDER or in {MOUNT}, which all hosts share,"
            f" got {workdirs}."
        )
    if not flags.claim:
        raise UserError(
            f"--claim=NAME must name the volume claim to mount at {MOUNT} for --workdir={folder}, got none."
            " Or train with --workdir=gs://BUCKET/FOLDER, which needs no volume."
        )
    return MOUNT


def training_command(flags: argparse.Namespace) -> list[str]:
    """Returns the container's command."""
    return ["python", "-m", "launch.train", *flags.train]


def manifest(flags: argparse.Namespace) -> str:
    """Returns the JobSet as YAML.

    Raises:
      UserError: the topology does not fill whole hosts, or as `training_root`.
    """
    chips = math.prod(int(size) for size in flags.topology.split("x"))
    if chips % flags.chips_per_host:
        raise UserError(
            f"--topology={flags.topology} has {chips} chips, which hosts of --chips-per-host={flags.chips_per_host}"
            " do not divide."
        )
    queue = f"\n  labels:\n    kueue.x-k8s.io/queue-name: {flags.queue}" if flags.queue else ""
    spot = '\n                cloud.google.com/gke-spot: "true"' if flags.spot else ""
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=flags.name,
        image=flags.image,
        accelerator=flags.accelerator,
        topology=flags.topology,
        slices=flags.slices,
        hosts=chips // flags.chips_per_host,
        chips=flags.chips_per_host,
        restarts=flags.restarts,
        grace=GRACE_SECONDS,
        root=training_root(flags),
        account=f"\n              serviceAccountName: {flags.service_account}" if flags.service_account else "",
        mounts=VOLUME.format(mount=MOUNT, claim=flags.claim) if flags.claim else "",
        queue=queue,
        spot=spot,
        command=json.dumps(training_command(flags)),  # JSON's strings are YAML's
    )


def gcluster_command(flags: argparse.Namespace) -> list[str]:
    """Returns the `gcluster job submit` command for the training. Raises UserError as `training_root`."""
    training_root(flags)
    command = ["gcluster", "job", "submit"]
    command += [f"--project={flags.project}", f"--cluster={flags.cluster}", f"--location={flags.location}"]
    command += [f"--name={flags.name}", f"--image={flags.image}"]
    command += [f"--compute-type={flags.compute_type}", f"--topology={flags.topology}", f"--num-slices={flags.slices}"]
    command += [f"--restarts={flags.restarts}", f"--grace-period={GRACE_SECONDS}s"]
    command += [f"--mount={flags.claim}:{MOUNT}:rw"] if flags.claim else []
    command += [f"--service-account={flags.service_account}"] if flags.service_account else []
    command += [f"--queue={flags.queue}"] if flags.queue else []
    return [*command, f"--command={shlex.join(training_command(flags))}"]


def main(flags: argparse.Namespace) -> None:
    """Runs the subcommand."""
    commands = Shell(dry_run=flags.dry_run)
    match flags.action:
        case "build":
            commands.run(["docker", "build", "--build-arg=JAX=jax[tpu]", f"--tag={flags.image}", "."])
            commands.run(["docker", "push", flags.image])
        case "gcluster":
            commands.run(gcluster_command(flags))
        case "tail":
            commands.run(["kubectl", "logs", "--follow", f"--selector=jobset.sigs.k8s.io/jobset-name={flags.name}"])
        case "delete":
            commands.run(["kubectl", "delete", "jobset", flags.name])
        case _:
            apply(flags, commands)


def apply(flags: argparse.Namespace, commands: Shell) -> None:
    """Writes the manifest and passes it to kubectl; a dry run prints it instead."""
    text = manifest(flags)
    output = flags.out or f"{flags.name}.yaml"
    if flags.dry_run:
        print(text, end="")
    else:
        Path(output).write_text(text, encoding="utf-8")
    commands.run(["kubectl", "apply", f"--filename={output}"])


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command's flags."""
    parser = cli.make_parser(__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action in ("build", "apply", "gcluster", "tail", "delete"):
        _add_action(actions.add_parser(action, allow_abbrev=False), action)
    return parser


def _add_action(parser: argparse.ArgumentParser, action: str) -> None:
    if action != "build":
        parser.add_argument("--name", required=True, type=shell.NAME, help="the name in the cloud; of the JobSet")
    if action not in ("tail", "delete"):
        image = "the container image; built from Dockerfile (docs/pods.md)"
        parser.add_argument("--image", required=True, type=shell.IMAGE, help=image)
    if action in ("apply", "gcluster"):
        _add_training_flags(parser)
    parser.add_argument("--dry-run", action="store_true", help="print every command, run none; the manifest too")
    if action == "apply":
        kind = shell.matching(r"tpu[a-z0-9-]+", what="must be like tpu-v5-lite-podslice")
        parser.add_argument("--accelerator", required=True, type=kind, help="GKE's name of the TPU")
        parser.add_argument(
            "--chips-per-host", type=int, default=4, metavar="N", help="chips of a host; 4 on most slices"
        )
        parser.add_argument("--spot", action="store_true", help="cheaper, and may be taken away at any time")
        parser.add_argument(
            "--out", type=cli.on_disk, metavar="FILE", help="where the results go; the manifest, default: NAME.yaml"
        )
    elif action == "gcluster":
        kind = shell.matching(r"[a-z0-9-]+", what="must be like v5litepod-16 or tpu7x-64")
        place = shell.matching(r"[a-z]+-[a-z]+\d+(-[a-z])?", what="must be a region or zone")
        name = shell.matching(WORD, what="must be a GKE cluster's name")
        parser.add_argument("--compute-type", required=True, type=kind, help="Cluster Toolkit's name of the slice")
        parser.add_argument("--cluster", required=True, type=name, help="the GKE cluster")
        parser.add_argument("--location", required=True, type=place, help="region or zone of the cluster")
        parser.add_argument("--project", required=True, type=shell.PROJECT, help="the Google Cloud project")


def _add_training_flags(parser: argparse.ArgumentParser) -> None:
    account = shell.matching(WORD, what="must be a Kubernetes service account's name")
    who = "the service account; Kubernetes' own of that name, for --workdir=gs://..."
    parser.add_argument("--service-account", type=account, metavar="ID", help=who)
    claim = shell.matching(WORD, what="must be a PersistentVolumeClaim's name")
    volume = f"a volume claim; ReadWriteMany, mounted at {MOUNT}, for a --workdir there"
    parser.add_argument("--claim", type=claim, help=volume)
    parser.add_argument("--topology", required=True, type=shell.TOPOLOGY, help="the TPU chips; of one slice, e.g. 4x4")
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="several slices as one (multislice)")
    parser.add_argument(
        "--restarts", type=int, default=20, metavar="N", help="restarts of all hosts after one is lost (20)"
    )
    queue = shell.matching(WORD, what="must be a Kueue LocalQueue's name")
    parser.add_argument("--queue", type=queue, help="a Kueue LocalQueue")
    parser.add_argument("train", nargs="+", metavar="-- FLAGS", help="flags of launch.train, after --")


if __name__ == "__main__":
    cli.run(main, make_parser())
