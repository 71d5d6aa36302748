"""Data in a bucket that refuses or does not know the reader: one line, and no traceback in a client's log."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading

import pytest

from tests.buckets import variables

TEXTS = {
    401: "Anonymous caller does not have storage.objects.list access to the Google Cloud Storage bucket.",
    403: "fot-runs@p.iam.gserviceaccount.com does not have storage.objects.list access to the bucket.",
    404: "The specified bucket does not exist.",
}
SAID = {
    401: "gs://data-401/a.txt cannot be read without a login (Anonymous caller",
    403: "gs://data-403/a.txt cannot be read by this account (storage.objects.list is missing). Give it"
    " roles/storage.objectViewer on gs://data-403.",
    404: "data.sources must match at least one file, got none for 'gs://data-404/a.txt'.",
}


class Refusal(http.server.BaseHTTPRequestHandler):
    """Answers each request with the status that ends the bucket's name."""

    protocol_version = "HTTP/1.1"  # else clients meet closed connections, and try again

    def do_GET(self):
        status = int(re.search(r"data-(\d+)", self.path)[1])
        body = json.dumps({"error": {"code": status, "message": TEXTS[status]}}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def refusing():
    """The environment of a service that refuses all requests."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusal)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {**os.environ, **variables(f"http://127.0.0.1:{server.server_address[1]}")}
    server.shutdown()
    server.server_close()


def test_a_refusal_is_one_line(refusing):
    code = f"""
from fot_jax.config import UserError
from fot_jax.data.paths import matching_files
for status in {sorted(TEXTS)}:
    try:
        matching_files(f"gs://data-{{status}}/a.txt", what="data.sources")
    except UserError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=refusing, capture_output=True, text=True, timeout=300, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for status, line in zip(sorted(TEXTS), lines, strict=True):
        assert line.startswith(SAID[status])
    assert "Traceback" not in done.stderr
