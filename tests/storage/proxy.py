"""A proxy in front of the bucket of tests: it makes every request wait, or refuses some as Cloud Storage does."""

import contextlib
import http.client
import http.server
import json
import re
import threading
import time
from collections.abc import Iterator

from tests.buckets import variables


class Proxy(http.server.ThreadingHTTPServer):
    """Passes requests on to a server.

    Attributes:
      delay: seconds that every request waits.
      refused: pattern of "METHOD PATH"; such requests are refused with 403.
      permission: named in the refusal.
      away: True: no request is answered but with 503.
      count: requests so far.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, server: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.server = server.removeprefix("http://")
        self.delay = 0.0
        self.refused: str | None = None
        self.permission = "storage.objects.create"
        self.away = False
        self.count = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *args: object) -> None:
        """Says nothing of a client that has gone away."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _pass_on(self) -> None:
        body = self._body()
        self.server.count += 1
        time.sleep(self.server.delay)
        if self.server.away:
            return self._answer(503, [], b"")
        if self.server.refused and re.search(self.server.refused, f"{self.command} {self.path}"):
            message = f"a@b does not have {self.server.permission} access to the Google Cloud Storage bucket."
            return self._answer(403, [], json.dumps({"error": {"code": 403, "message": message}}).encode())
        connection = http.client.HTTPConnection(self.server.server, timeout=60)
        skipped = ("host", "connection", "transfer-encoding", "content-length")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in skipped}
        connection.request(self.command, self.path, body=body, headers=headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in (*skipped, "date")]
        own = self.server.url.removeprefix("http://")
        return self._answer(answer.status, [(n, v.replace(self.server.server, own)) for n, v in kept], data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _pass_on  # noqa: N815

    def log_message(self, *args: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def proxied(gcs: dict[str, str]) -> Iterator[tuple[Proxy, dict[str, str]]]:
    """Yields a proxy, and the variables of a process that goes through it."""
    proxy = Proxy(gcs["STORAGE_EMULATOR_HOST"])
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy, variables(proxy.url)
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
