"""Errors of the clients of a bucket: which become one line, and which are not about the bucket."""

import jax
import pytest
from google.api_core import exceptions
from google.auth.exceptions import DefaultCredentialsError

from fot_jax.config import UserError
from fot_jax.storage.explain import bucket_error, explained

FOLDER = "gs://bucket/run"
DENIED = "a@b does not have storage.objects.list access to the Google Cloud Storage bucket."


def caused(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (exceptions.Forbidden(DENIED), "written by this account (storage.objects.list is missing). Give it roles/"),
        (OSError(f"Forbidden: b/bucket/o\n{DENIED}"), "written by this account (storage.objects.list is missing)."),
        (ValueError("PERMISSION_DENIED: Error writing"), "written by this account (403: PERMISSION_DENIED: Error"),
        (caused(ValueError("Orbax's"), exceptions.Forbidden(DENIED)), "written by this account (storage.objects.list"),
        (ExceptionGroup("of Orbax", [exceptions.Forbidden(DENIED)]), "written by this account (storage.objects.list"),
        (DefaultCredentialsError("none"), "written without a login (none). Run `gcloud auth"),
        (exceptions.ServiceUnavailable("503"), "written, got ServiceUnavailable: 503 503. Try again"),
        (ValueError("UNAVAILABLE: CURL error"), "written, got ValueError: UNAVAILABLE: CURL error. Try again"),
    ],
)
def test_errors_of_clients_are_one_line(error, line):
    found = bucket_error(error, FOLDER)
    assert found is not None and str(found).startswith(f"{FOLDER} cannot be {line}"), found
    assert "\n" not in str(found)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        ValueError("the checkpoint is damaged"),
        jax.errors.JaxRuntimeError("UNAVAILABLE: lost"),  # of another process of the run
        ValueError("UNAVAILABLE: Gloo AllGather failed"),
        caused(RuntimeError("in Orbax"), jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: barrier")),
    ],
)
def test_other_errors_are_not_blamed_on_the_bucket(error):
    assert bucket_error(error, FOLDER) is None
    with pytest.raises(type(error)), explained(FOLDER):
        raise error


def test_readers_are_told_the_role_of_readers():
    role = r"cannot be read by .* Give it roles/storage\.objectViewer on gs://bucket\.$"
    with pytest.raises(UserError, match=role), explained(FOLDER):
        raise exceptions.Forbidden(DENIED)


def test_errors_of_local_paths_pass(tmp_path):
    with pytest.raises(exceptions.Forbidden), explained(tmp_path):
        raise exceptions.Forbidden(DENIED)
