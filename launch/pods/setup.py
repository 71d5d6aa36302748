r"""Makes the bucket and the service account of runs on Google Cloud, once for a project.

  python -m launch.pods.setup --project=my-project --zone=us-central2-b --bucket=my-runs \
      --service-account=fot-runs [--gke-namespace=default]

The bucket is made in the zone's region, without soft delete: removed checkpoints would be billed for seven more days.
The service account gets the two roles that a run needs on this bucket, and no other. What is there already is left as
it is, so a command that stopped half-way can be run again. --gke-namespace also makes a Kubernetes service account
of the same name, whose pods act as the other one. --dry-run prints every command and runs none. Needs gcloud, and
kubectl for --gke-namespace.

Source: https://cloud.google.com/storage/docs/access-control/iam-roles,
https://cloud.google.com/kubernetes-engine/docs/how-to/workload-identity.
"""

import argparse

from launch import cli
from launch.pods import shell
from launch.pods.shell import Shell

SERVICES = ("compute.googleapis.com", "tpu.googleapis.com", "storage.googleapis.com", "iam.googleapis.com")
ROLES = (
    "roles/storage.objectUser",  # reads, writes, lists and removes objects
    "roles/storage.legacyBucketReader",  # storage.buckets.get: checkpoints ask for the bucket's kind
)


def make_bucket(commands: Shell, flags: argparse.Namespace) -> None:
    """Makes the bucket where the project has none of that name."""
    project = f"--project={flags.project}"
    there = ["gcloud", "storage", "buckets", "list", project, f"--filter=name={flags.bucket}", "--format=value(name)"]
    if not commands.ask(there, assume=""):
        place = f"--location={flags.zone.rpartition('-')[0]}"
        command = ["gcloud", "storage", "buckets", "create", f"gs://{flags.bucket}", project, place]
        commands.run([*command, "--uniform-bucket-level-access", "--soft-delete-duration=0"])


def make_account(commands: Shell, flags: argparse.Namespace) -> None:
    """Makes the service account where the project has none of that name, and grants ROLES on the bucket."""
    accounts = ["gcloud", "iam", "service-accounts"]
    project, email = f"--project={flags.project}", shell.account_email(flags.service_account, project=flags.project)
    if not commands.ask([*accounts, "list", project, f"--filter=email={email}", "--format=value(email)"], assume=""):
        commands.run([*accounts, "create", flags.service_account, project])
    for role in ROLES:
        grant = ["gcloud", "storage", "buckets", "add-iam-policy-binding", f"gs://{flags.bucket}"]
        commands.run([*grant, f"--member=serviceAccount:{email}", f"--role={role}"])


def make_kubernetes_account(commands: Shell, flags: argparse.Namespace) -> None:
    """Makes the Kubernetes service account and lets its pods act as the project's service account."""
    name, namespace = flags.service_account, f"--namespace={flags.gke_namespace}"
    email = shell.account_email(name, project=flags.project)
    there = ["kubectl", "get", "serviceaccount", name, namespace, "--ignore-not-found", "--output=name"]
    if not commands.ask(there, assume=""):
        commands.run(["kubectl", "create", "serviceaccount", name, namespace])
    annotation = f"iam.gke.io/gcp-service-account={email}"
    commands.run(["kubectl", "annotate", "serviceaccount", name, namespace, "--overwrite", annotation])
    member = f"--member=serviceAccount:{flags.project}.svc.id.goog[{flags.gke_namespace}/{name}]"
    grant = ["gcloud", "iam", "service-accounts", "add-iam-policy-binding", email, f"--project={flags.project}"]
    commands.run([*grant, member, "--role=roles/iam.workloadIdentityUser"])


def main(flags: argparse.Namespace) -> None:
    """Makes what is missing."""
    commands = Shell(dry_run=flags.dry_run)
    commands.run(["gcloud", "services", "enable", *SERVICES, f"--project={flags.project}"])
    make_bucket(commands, flags)
    make_account(commands, flags)
    if flags.gke_namespace:
        make_kubernetes_account(commands, flags)


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command's flags."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--project", required=True, type=shell.PROJECT, help="the Google Cloud project")
    parser.add_argument("--zone", required=True, type=shell.ZONE, help="its zone; of the TPUs")
    parser.add_argument("--bucket", required=True, type=shell.BUCKET, help="the bucket, without gs://")
    parser.add_argument(
        "--service-account", required=True, type=shell.NEW_ACCOUNT, help="the service account; its id in the project"
    )
    parser.add_argument("--gke-namespace", type=shell.NAME, metavar="NAMESPACE", help="for JobSet; kubectl's namespace")
    parser.add_argument("--dry-run", action="store_true", help="print every command, run none")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
