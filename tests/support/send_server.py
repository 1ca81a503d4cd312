"""A server on a raw socket for sends: a test decides how it responds to each POST, and sees what it carried out."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import anyio
from attrs import define, field

from tests.support.fault_server import Connection, Received
from tests.support.helpers import conversation, message, page
from tests.support.processes import SECONDS


@define
class SendServer:
    """What it was asked, what it carried out, and how it meets the next POSTs."""

    url: str = ""
    on_post: Callable[[Connection, Received, SendServer], None] | None = None
    """How the POSTs are met; None for the answer of the API."""
    on_connect: Callable[[Connection, SendServer], bool] | None = None
    """Called with each new connection; True if that is all that happens to it."""
    posts: list[Received] = field(factory=list)
    """The POSTs that were read."""
    gets: list[str] = field(factory=list)
    """The targets of the GETs that were read."""
    history: list[dict[str, Any]] = field(factory=list)
    """The messages of the conversation, newest first."""
    clock_offset: timedelta = timedelta(0)
    """How much the server's clock is ahead."""
    connections: int = 0

    def now(self) -> datetime:
        """Return the time by the server's clock."""
        return datetime.now(UTC) + self.clock_offset

    def apply(self, post: Received, **changes: Any) -> dict[str, Any]:
        """Carry out a POST: put its message into the history, and return it."""
        sent = json.loads(post.body)
        stored = message(
            id=f"msg_{len(self.history) + 100}",
            body=sent["body"],
            direction="outbound",
            receivedAt=self.now().isoformat(),
            mediaUrls=sent.get("media_urls", []),
            status="sent",
            **changes,
        )
        self.history.insert(0, stored)
        return stored

    def answer(self, connection: Connection, status: int, body: Any, **headers: str) -> None:
        """Send an answer with the server's time."""
        told: dict[str, Any] = {"date": format_datetime(self.now(), usegmt=True)} | headers
        connection.answer(status, body if isinstance(body, bytes) else json.dumps(body).encode(), **told)

    def accept(self, connection: Connection, post: Received) -> None:
        """Carry out a POST and answer as the API does."""
        stored = self.apply(post)
        sent = {"id": stored["id"], "status": "sent", "channel": "sms", "conversation_id": "conv_1", "media_urls": []}
        self.answer(connection, 200, sent)

    async def wait_for_post(self) -> None:
        """Wait until a POST has been read."""
        while not self.posts:  # noqa: ASYNC110  # it is read in a thread
            await anyio.sleep(0.01)

    def _serve(self, connection: Connection) -> None:
        if self.on_connect is not None and self.on_connect(connection, self):
            return
        while (received := connection.read()) is not None:
            if received.method == "POST":
                self.posts.append(received)
                (self.on_post or (lambda c, r, s: s.accept(c, r)))(connection, received, self)
                continue
            self.gets.append(received.target)
            is_messages = received.target.partition("?")[0].endswith("/messages")
            self.answer(connection, 200, page(*self.history[:200]) if is_messages else conversation(messages=[]))


@contextmanager
def send_server(server: SendServer, port: int = 0, *, tls: ssl.SSLContext | None = None) -> Iterator[SendServer]:
    """Listen on a free port of this machine, or on the one that is given; over TLS if `tls` is given."""
    listener = socket.create_server(("127.0.0.1", port), backlog=100)
    name = "https://localhost" if tls else "http://127.0.0.1"
    server.url = f"{name}:{listener.getsockname()[1]}"
    over = threading.Event()
    sockets: set[socket.socket] = set()

    def attend(sock: socket.socket) -> None:
        with suppress(OSError, ValueError):
            if tls is not None:
                sock = tls.wrap_socket(sock, server_side=True)
            sockets.add(sock)
            server._serve(Connection(sock, over))
        sock.close()
        sockets.discard(sock)

    def accept() -> None:
        with suppress(OSError):
            while True:
                sock, _ = listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                server.connections += 1
                threading.Thread(target=attend, args=(sock,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        over.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(SECONDS)
        for sock in tuple(sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
