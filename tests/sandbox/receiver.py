"""A webhook receiver behind a real socket: it notes what arrives, and answers as it is told."""

import hashlib
import hmac
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from attrs import frozen

SECRET = "whsec_0123456789"
SECONDS = 60
"""For what takes one: a limit that turns a hang into a failure, not a measure."""


def until(what: Callable[[], object]) -> None:
    """Wait until something has come about."""
    end = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


@frozen
class Received:
    """One POST as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["x-webhook-id"]

    @property
    def payload(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        text: str = self.payload["data"]["message"]
        return text

    def is_signed(self, secret: str = SECRET) -> bool:
        """Compute the signature anew, as the vendor's page tells it."""
        signed = self.headers["x-webhook-timestamp"].encode() + b"." + self.body
        expected = "sha256=" + hmac.digest(secret.encode(), signed, hashlib.sha256).hex()
        return self.headers["x-webhook-signature"] == expected


class Receiver:
    """What came in so far, in order, and the answer to give: a status, or None to close the connection without one."""

    def __init__(self) -> None:
        self.url = ""
        self.received: list[Received] = []
        self.accepted: list[Received] = []
        """Those that got a 2xx, noted just before it went out."""
        self.answer: Callable[[Received], int | None] = lambda _: 200
        self.write: Callable[[BaseHTTPRequestHandler], object] | None = None
        """Instead of an answer: what to do with the connection."""


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Receive on a free port of this machine, behind TLS if a context is given."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = self.rfile.read(length)
            if len(body) < length:  # The sender ended in the middle of it.
                return
            headers = {name.lower(): value for name, value in self.headers.items()}
            received = Received(self.path, headers, body)
            receiver.received.append(received)
            if receiver.write is not None:
                receiver.write(self)
                return
            status = receiver.answer(received)
            if status is None:
                return
            if 200 <= status <= 299:
                receiver.accepted.append(received)
            self.send_response(status)
            if 300 <= status <= 399:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def handle(self) -> None:
            with suppress(ConnectionError):  # The sender was ended, or has read enough.
                super().handle()

    class Server(ThreadingHTTPServer):
        request_queue_size = 256
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
            receiver.url = f"https://localhost:{server.server_port}/hook"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
