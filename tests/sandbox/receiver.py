"""A webhook receiver on a real socket: it records deliveries and responds as a test says."""

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

from tests.support.processes import SECONDS

SECRET = "whsec_0123456789"


def until(condition: Callable[[], object]) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.01)


@frozen
class Received:
    """One POST as received."""

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
        """Return whether the signature is valid, computed as the vendor documents it."""
        signed = self.headers["x-webhook-timestamp"].encode() + b"." + self.body
        expected = "sha256=" + hmac.digest(secret.encode(), signed, hashlib.sha256).hex()
        return self.headers["x-webhook-signature"] == expected


class Receiver:
    """The deliveries so far, in order, and the response: a status, or None to close the connection without one."""

    def __init__(self) -> None:
        self.url = ""
        self.received: list[Received] = []
        self.accepted: list[Received] = []
        """Deliveries that got a 2xx, recorded just before it was sent."""
        self.respond: Callable[[Received], int | None] = lambda _: 200
        self.write: Callable[[BaseHTTPRequestHandler], object] | None = None
        """Called with the handler instead of `respond`, to use the connection directly."""


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Receive on a free local port, over TLS if a context is given."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = self.rfile.read(length)
            if len(body) < length:  # the sender stopped in the middle
                return
            headers = {name.lower(): value for name, value in self.headers.items()}
            received = Received(self.path, headers, body)
            receiver.received.append(received)
            if receiver.write is not None:
                receiver.write(self)
                return
            status = receiver.respond(received)
            if status is None:
                return
            if 200 <= status <= 299:
                receiver.accepted.append(received)
            self.send_response(status)
            if 300 <= status <= 399:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

        def handle(self) -> None:
            with suppress(ConnectionError):  # the sender was killed, or closed early
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
