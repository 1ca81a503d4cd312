"""An HTTP server that records requests, their connections and the ends of those. It can hold responses."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.helpers import conversation, page
from tests.support.processes import SECONDS


class Listener:
    """The requests so far, in order: `(client port, "GET", "conv_1")`. The client's port identifies the connection."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[int, str, str]] = []
        self.ended: list[int] = []
        """The connections that the client has closed."""

    def ports(self, asked: str) -> list[int]:
        """Return the connections on which a conversation was requested."""
        return [port for port, _, name in self.requests if name == asked]

    def wait_for(self, what: Callable[[], bool]) -> bool:
        """Wait until a condition holds; return whether it did in time."""
        end = time.monotonic() + SECONDS
        while not what():
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True


@contextmanager
def listening() -> Iterator[Listener]:
    """Listen on a free port of this machine.

    It responds to an id with a conversation of that id, and to the list with a page of one, a new one each time. A
    request for an id that begins with `hold` never gets a response.
    """
    seen = Listener()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_GET(self) -> None:
            asked = self.path.partition("?")[0].removeprefix("/v1/conversations").removeprefix("/")
            port = self.client_address[1]
            seen.requests.append((port, self.command, asked))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if asked.startswith("hold"):
                if not self.rfile.read(1):
                    seen.ended.append(port)
                self.close_connection = True
                return
            if asked:
                found = conversation(id=asked, messages=[])
            else:
                found = page(conversation(id=f"conv_{len(seen.requests)}"), has_more=True)
            body = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PATCH = do_GET  # noqa: N815  # the base class's way

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def handle(self) -> None:
            with suppress(ConnectionError):  # a process was ended
                super().handle()

    class Server(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        seen.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield seen
        finally:
            server.shutdown()
            thread.join()
