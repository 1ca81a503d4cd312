"""A server on a raw socket that fails in every way a network, a proxy or a server can. No library repairs its faults.

The first `times` requests meet the fault; all others of the API's four calls get a good response.
"""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from attrs import define, field, frozen

from tests.support.helpers import conversation, message, page
from tests.support.processes import SECONDS

REQUEST_ID = "req_fault"


@frozen
class Received:
    """A request as it came over the wire."""

    method: str
    target: str
    headers: dict[str, str]
    """By their names in lower case."""
    body: bytes


class Connection:
    """One connection, from the server's side."""

    def __init__(self, sock: socket.socket, gone: threading.Event) -> None:
        self._sock = sock
        self._buffer = b""
        self.gone = gone
        """Set when the test is over, for what waits."""

    def read(self) -> Received | None:
        """Read a request; None when the client has closed."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._receive():
                return None
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        while len(self._buffer) < length:
            if not self._receive():
                return None
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        method, target, _ = first.split(" ")
        return Received(method, target, headers, body)

    def _receive(self) -> bool:
        chunk = self._sock.recv(65536)
        self._buffer += chunk
        return bool(chunk)

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._sock.sendall(data)

    def answer(self, status: int, body: bytes = b"", *, length: int | None = None, **headers: str) -> None:
        """Send an answer; `length` is what its Content-Length says, if not the truth."""
        told = {"content_type": "application/json", "x_request_id": REQUEST_ID} | headers
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in told.items()]
        lines.append(f"content-length: {len(body) if length is None else length}")
        self.send(f"HTTP/1.1 {status} X\r\n".encode() + "\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def send_beneath_tls(self, data: bytes) -> None:
        """Send bytes past the encryption, and close."""
        with socket.socket(fileno=self._sock.detach()) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass

    def cork(self) -> None:
        """Hold what is sent until the connection is closed or `uncork` is called, to send it as one packet."""
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)

    def uncork(self) -> None:
        """Send what was held."""
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

    def read_some(self) -> None:
        """Read the beginning of a request, and leave the rest unread."""
        self._receive()

    def close(self) -> None:
        """Close without reading the rest: the system sends a RST after what was sent."""
        self._sock.close()

    def reset(self) -> None:
        """End the connection with a RST, as a crashed machine or a firewall does."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    def wait_until_gone(self) -> None:
        """Say nothing until the client goes away."""
        with suppress(OSError):
            self._sock.settimeout(SECONDS)
            while self._sock.recv(65536):
                pass


Fault = Callable[[Connection], None]
"""What is done with a connection in place of a good answer; the connection is closed afterwards."""


def good(received: Received) -> bytes:
    """Give the body of a good answer."""
    path = received.target.partition("?")[0]
    if path.endswith("/messages"):
        return json.dumps(page(message())).encode()
    if path.endswith("/conversations"):
        return json.dumps(page(conversation(), total=1)).encode()
    metadata = json.loads(received.body)["metadata"] if received.method == "PATCH" else None
    return json.dumps(conversation(metadata=metadata, messages=[message()])).encode()


def after_request(then: Callable[[Connection, bytes], None]) -> Fault:
    """Make a fault that comes when the request was read; it is given the good body."""

    def fault(connection: Connection) -> None:
        received = connection.read()
        if received is not None:
            then(connection, good(received))

    return fault


def raw(data: bytes) -> Fault:
    """Answer with these bytes and close."""
    return after_request(lambda connection, _: connection.send(data))


def answering(status: int, body: bytes | None = None, **headers: str) -> Fault:
    """Answer with a status, and close."""
    told: dict[str, Any] = {"connection": "close"} | headers
    return after_request(lambda connection, well: connection.answer(status, well if body is None else body, **told))


def trickle(connection: Connection, data: bytes, *, pause: float = 0.05) -> None:
    """Send twenty bytes a second, until the client goes away: no single wait is long."""
    with suppress(OSError):
        for number in range(len(data)):
            connection.send(data[number : number + 1])
            if connection.gone.wait(pause):
                break


def endless(connection: Connection, head: bytes, chunk: bytes) -> None:
    """Send a body that does not end, until the client goes away."""
    with suppress(OSError):
        connection.send(head)
        while not connection.gone.is_set():
            connection.send(chunk)


def half(connection: Connection, body: bytes) -> None:
    """Announce a whole body and send half of it."""
    connection.answer(200, body[: len(body) // 2], length=len(body))


def reset_inside(connection: Connection, body: bytes) -> None:
    half(connection, body)
    connection.reset()


def reset_after(connection: Connection, body: bytes) -> None:
    """Answer well and reset: the client keeps a connection that is dead."""
    connection.answer(200, body)
    connection.reset()


def half_and_silence(connection: Connection, body: bytes) -> None:
    half(connection, body)
    connection.wait_until_gone()


def trickle_body(connection: Connection, body: bytes) -> None:
    connection.send(OK_HEAD + b"content-length: 9999\r\n\r\n")
    trickle(connection, body)


OK_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: " + REQUEST_ID.encode() + b"\r\n"
CHUNKED = OK_HEAD + b"transfer-encoding: chunked\r\n\r\n"
BOMB = gzip.compress(bytes(5_000_000), 9)

LOST: dict[str, Fault] = {
    # No whole answer came: tried again, else an APIConnectionError.
    "reset before the request": lambda connection: connection.reset(),
    "reset before the answer": after_request(lambda connection, _: connection.reset()),
    "reset inside the answer": after_request(reset_inside),
    "closed without a word": lambda _: None,
    "closed before the answer": after_request(lambda *_: None),
    "half a status line": raw(b"HTTP/1.1 2"),
    "half a header": raw(OK_HEAD[:-9]),
    "no HTTP": raw(b"220 mail.example ESMTP\r\n\r\n"),
    "HTTP/9": raw(b"HTTP/9 200 OK\r\n\r\n"),
    "TLS": raw(b"\x15\x03\x01\x00\x02\x02\x28"),
    "half a body": after_request(half),
    "half a chunk": raw(CHUNKED + b'ff\r\n{"data":'),
    "a chunk of no length": raw(CHUNKED + b"zz\r\n{}\r\n"),
    "two Content-Lengths": raw(OK_HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}"),
    "a Content-Length of no number": raw(OK_HEAD + b"content-length: -5\r\n\r\n{}"),
    "headers without end": after_request(
        lambda connection, _: endless(connection, OK_HEAD, b"x-more: " + b"x" * 1000 + b"\r\n")
    ),
}
SLOW: dict[str, Fault] = {
    # Nothing whole came in time: tried again, else an APITimeoutError.
    "silence": lambda connection: connection.wait_until_gone(),
    "silence after the request": after_request(lambda connection, _: connection.wait_until_gone()),
    "silence inside the answer": after_request(half_and_silence),
    "one byte at a time of headers": after_request(lambda connection, _: trickle(connection, OK_HEAD)),
    "one byte at a time of body": after_request(trickle_body),
    "interim answers without end": after_request(
        # A thousand at a time: there is always one to read, and sending them takes the tests little time.
        lambda connection, _: endless(connection, b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000)
    ),
}
REFUSED: dict[str, tuple[Fault, int]] = {
    # A status that may pass: tried again, else its own error.
    **{str(status): (answering(status, b""), status) for status in (408, 429, 500, 502, 503, 504)},
    "502 in HTML": (answering(502, b"<html><h1>Bad gateway</h1>", content_type="text/html"), 502),
    "503 of a broken encoding": (answering(503, b"no gzip", content_encoding="gzip"), 503),
    "503 of an unknown encoding": (answering(503, b"\x0b\x02\x80", content_encoding="br"), 503),
    "503 without end": (
        after_request(
            lambda connection, _: endless(
                connection,
                b"HTTP/1.1 503 X\r\nx-request-id: " + REQUEST_ID.encode() + b"\r\n\r\n",
                b"x" * 10_000,
            )
        ),
        503,
    ),
}
UNREADABLE: dict[str, tuple[Fault, str]] = {
    # An answer that is not what the API promises: not tried again, a ResponseDecodeError that says why.
    "HTML with 200": (answering(200, b"<!doctype html><h1>Sign in</h1>", content_type="text/html"), "not JSON"),
    "nothing with 200": (answering(200, b""), "empty"),
    "nothing with 204": (
        raw(b"HTTP/1.1 204 No Content\r\nx-request-id: " + REQUEST_ID.encode() + b"\r\n\r\n"),
        "empty",
    ),
    "another charset": (
        answering(200, '{"message":"größe"}'.encode("latin-1"), content_type="application/json; charset=latin-1"),
        "utf-8",
    ),
    "UTF-16": (answering(200, '{"data":[]}'.encode("utf-16")), "utf-8"),
    "no gzip": (answering(200, content_encoding="gzip"), "not gzip"),
    "half a gzip": (answering(200, gzip.compress(b'{"data":[]}')[:-9], content_encoding="gzip"), "too early"),
    "gzip and then more": (
        answering(200, gzip.compress(b'{"data":[]}') + b"more", content_encoding="gzip"),
        "not gzip",
    ),
    "a gzip bomb": (answering(200, BOMB, content_encoding="gzip"), "max_response_bytes"),
    "another compression": (answering(200, b"\x0b\x02\x80", content_encoding="br"), "'br'"),
    "a body without end": (
        after_request(lambda connection, _: endless(connection, OK_HEAD + b"\r\n", b" " * 10_000)),
        "max_response_bytes",
    ),
    "chunks without end": (
        after_request(lambda connection, _: endless(connection, CHUNKED, b"3e8\r\n" + b" " * 1000 + b"\r\n")),
        "max_response_bytes",
    ),
    "a gzip that ends and a body that does not": (
        after_request(
            lambda connection, _: endless(
                connection,
                OK_HEAD + b"content-encoding: gzip\r\n\r\n" + gzip.compress(b'{"data":[]}'),
                bytes(10_000),
            )
        ),
        "gzip",
    ),
    "a gzip without content or end": (
        after_request(
            lambda connection, _: endless(
                connection,
                OK_HEAD + b"content-encoding: gzip\r\n\r\n" + gzip.compress(b"")[:10],
                b"\x00\x00\x00\xff\xff" * 2000,
            )
        ),
        "max_response_bytes",
    ),
    "a Content-Length too small": (
        after_request(lambda connection, body: connection.answer(200, body, length=len(body) - 5)),
        "not JSON",
    ),
    "a list": (answering(200, b"[]"), "expected an object"),
    "null": (answering(200, b"null"), "expected an object"),
    "an error with 200": (answering(200, b'{"error":{"message":"no"}}'), "missing"),
    "a field of another type": (
        answering(200, json.dumps(conversation(participant=5, messages=[])).encode()[:-1] + b',"data":5,"hasMore":1}'),
        "expected",
    ),
    "nested too deeply": (answering(200, b'{"data":' * 20_000), "nested"),
    "a number of too many digits": (answering(200, b'{"data":' + b"9" * 5000 + b"}"), "not JSON"),
    "NaN": (answering(200, b'{"data":NaN}'), "not JSON"),
}


@define
class FaultServer:
    """What it was asked, and where it listens."""

    url: str
    requests: list[Received] = field(factory=list)
    """Those that were answered well."""
    connections: int = 0
    """How many were made."""
    over: threading.Event = field(factory=threading.Event)
    """Set to end what waits."""
    open: set[socket.socket] = field(factory=set)
    """Those that neither side has closed."""

    def wait_until_left(self) -> bool:
        """Say whether the client closes all its connections, now or soon."""
        end = time.monotonic() + SECONDS
        while self.open and time.monotonic() < end:
            time.sleep(0.005)
        return not self.open


@contextmanager
def serving(
    fault: Fault | None = None, *, times: float = 1, tls: ssl.SSLContext | None = None
) -> Iterator[FaultServer]:
    """Listen on a free port of this machine.

    Args:
        fault: What the first connections meet; None is good answers only.
        times: How many connections meet it.
        tls: The server's side of TLS, if it speaks that.
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = listener.getsockname()[1]
    server = FaultServer(f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}")

    def serve(sock: socket.socket, number: int) -> None:
        if tls is not None:
            sock.do_handshake()  # type: ignore[attr-defined]  # an SSLSocket by then
        connection = Connection(sock, server.over)
        if fault is not None and number <= times:
            fault(connection)
            return
        while (received := connection.read()) is not None:
            server.requests.append(received)
            connection.answer(200, good(received))

    def attend(sock: socket.socket, number: int) -> None:
        if tls is not None:
            sock = tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        server.open.add(sock)
        try:
            with suppress(OSError, ValueError):
                serve(sock, number)
            with suppress(OSError):
                # Read what came in, or the system sends a reset that overtakes the answer.
                sock.shutdown(socket.SHUT_WR)
                sock.settimeout(SECONDS)
                while sock.recv(65536):
                    pass
        finally:
            sock.close()
            server.open.discard(sock)

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.connections += 1
            threading.Thread(target=attend, args=(sock, server.connections), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(SECONDS)
        for sock in tuple(server.open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def never_answer(connection: Connection) -> None:
    connection.gone.wait(SECONDS)
