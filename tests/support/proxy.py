"""An HTTP proxy on a raw socket: it forwards plain requests, opens tunnels, and records what it sees."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from attrs import define, field

from tests.support.processes import SECONDS


@define
class Proxy:
    """Where it listens and what came in."""

    url: str
    heads: list[bytes] = field(factory=list)
    """The first head of each connection, up to its empty line."""
    refusals: list[bytes] = field(factory=list)
    """Responses to send instead of opening a tunnel, each once."""

    @property
    def lines(self) -> list[str]:
        """The request line of each connection."""
        return [head.partition(b"\r\n")[0].decode() for head in self.heads]


@contextmanager
def proxying(*, tls: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    """Listen on a free port of this machine, over TLS if `tls` is given."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    proxy = Proxy(f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}")
    left: set[socket.socket] = set()

    def serve(client: socket.socket) -> None:
        if tls is not None:
            client = tls.wrap_socket(client, server_side=True)
        with client:
            left.add(client)
            head = b""
            while b"\r\n\r\n" not in head:
                chunk = client.recv(65536)
                if not chunk:
                    return
                head += chunk
            proxy.heads.append(head)
            method, target, _ = head.split(b" ", 2)
            if proxy.refusals:
                client.sendall(proxy.refusals.pop(0))
                return
            host, other_port = re.search(rb"([^/:]+):(\d+)", target).groups()  # type: ignore[union-attr]
            with socket.create_connection((host.decode().replace("localhost", "127.0.0.1"), int(other_port))) as server:
                left.add(server)
                if method == b"CONNECT":
                    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                else:
                    server.sendall(head)
                back = threading.Thread(target=pump, args=(server.recv, client), daemon=True)
                back.start()
                pump(client.recv, server)
                back.join(SECONDS)

    def pump(receive: Callable[[int], bytes], to: socket.socket) -> None:
        with suppress(OSError):
            while chunk := receive(65536):
                to.sendall(chunk)
        with suppress(OSError):
            to.shutdown(socket.SHUT_RDWR)

    def attend(client: socket.socket) -> None:
        with suppress(OSError):
            serve(client)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=attend, args=(client,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(SECONDS)
        for sock in left:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
