"""Runs other programs: argument lists, printed before they run, or only printed with --dry-run."""

import argparse
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence

from fot_jax.config import UserError


class Shell:
    """Runner of commands, which prints each as a line that a shell would accept.

    With `dry_run` nothing runs, and `ask` returns the answer that it is told to assume.
    """

    def __init__(self, *, dry_run: bool, log: Callable[[str], None] = print) -> None:
        self.dry_run = dry_run
        self._log = log

    def run(self, command: Sequence[str]) -> None:
        """Runs a command in the terminal.

        Raises:
          UserError: it is not installed or fails.
        """
        if self._announced(command):
            self._checked(command, subprocess.run(command, check=False).returncode)

    def ask(self, command: Sequence[str], *, assume: str) -> str:
        """Returns a command's output without white space around it; `assume` in a dry run.

        Raises:
          UserError: it is not installed or fails.
        """
        if not self._announced(command):
            return assume
        answer = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
        self._checked(command, answer.returncode)
        return answer.stdout.strip()

    def _announced(self, command: Sequence[str]) -> bool:
        self._log(shlex.join(command))
        return not self.dry_run

    def _checked(self, command: Sequence[str], code: int) -> None:
        if code:
            raise UserError(f"{shlex.join(command[:5])} ... ended with exit code {code}; its own output says why.")


def matching(pattern: str, *, what: str) -> Callable[[str], str]:
    """Makes a check for argparse's `type`: it returns a text that matches, else fails with `what` it must be."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{what}, got {text!r}")
        return text

    return check


NAME = matching(
    r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", what="must be lower-case letters, digits and '-', at most 40, from a letter"
)
PROJECT = matching(r"[a-z][-a-z0-9.:]{4,61}[a-z0-9]", what="must be a project's id, e.g. my-project-1")
IMAGE = matching(
    r"[a-z0-9][a-z0-9._/:@-]*", what="must be a container image, e.g. us-docker.pkg.dev/PROJECT/REPO/fot_jax:1"
)
TOPOLOGY = matching(r"\d+x\d+(x\d+)?", what="must be chips along each axis, e.g. 4x4 or 4x4x8")
ZONE = matching(r"[a-z]+-[a-z]+\d+-[a-z]", what="must be a zone, e.g. us-central2-b")
BUCKET = matching(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]", what="must be a bucket's name without gs://, e.g. my-runs")
NEW_ACCOUNT = matching(
    r"[a-z][-a-z0-9]{4,28}[a-z0-9]", what="must be 6 to 30 lower-case letters, digits and '-', e.g. fot-runs"
)
ACCOUNT = matching(
    r"[a-z0-9][-a-z0-9]*(@[-a-z0-9.]+)?", what="must be a service account's id or e-mail address, e.g. fot-runs"
)


def account_email(account: str, *, project: str) -> str:
    """Returns a service account's e-mail address; one given by its id is the project's."""
    return account if "@" in account else f"{account}@{project}.iam.gserviceaccount.com"
