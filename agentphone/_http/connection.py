"""One HTTP/1.1 connection to the API, as an httpx transport: opened on first use, and again after the server closed it.

It knows HTTP/1.1 (h11) and sockets (httpcore's streams over anyio), but nothing of calls, retries or deadlines. The
pool gives it to one call at a time, and discards it when a request fails or is cancelled.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import sys
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, cast

import anyio
import anyio.lowlevel
import h11
import httpcore
import httpx

from agentphone._http.requests import PROGRESS, Progress
from agentphone._loop_thread import unpatched
from agentphone.errors import ConfigurationError

if sys.platform != "win32":
    _poll = unpatched("select", "poll")  # gevent's would enter its hub
READ_SIZE = 64 * 1024
"""Bytes per read, as in httpcore."""
MAX_HEADERS_SIZE = 100 * 1024
"""Largest response headers in bytes, as in httpcore."""
SMALL_REQUEST_SIZE = 16 * 1024
"""A request up to this size in bytes fits in the system's send buffer: it is sent without waiting for the server."""
MAX_EARLY_READ = 256 * 1024
"""Read at most this many bytes of a response while its request is still being sent."""


class DirectConnection(httpx.AsyncHTTPTransport):
    """A connection without a proxy, as an httpx transport.

    Libraries that mock or trace replace `httpx.AsyncHTTPTransport.handle_async_request` (pytest-httpx, OpenTelemetry)
    or `httpcore.AsyncHTTPConnection.handle_async_request` (respx), at any time. Each request goes through both.
    httpcore's pool and locks are left out: they take as long as h11 and the stream together. The attributes set for
    that are private in httpx and httpcore; tests fail with a version that does not use them.
    """

    def __init__(self, ssl_context: ssl.SSLContext) -> None:
        super().__init__(verify=ssl_context)
        self._pool = _EntryPoint(ssl_context)  # type: ignore[assignment]  # has all of the pool that httpx uses


class _EntryPoint(httpcore.AsyncHTTPConnection):
    """Passes requests to an `HTTP11Connection`."""

    def __init__(self, ssl_context: ssl.SSLContext) -> None:
        super().__init__(httpcore.Origin(b"", b"", 0), ssl_context)
        self._connection = HTTP11Connection(ssl_context)
        self._request_lock = contextlib.nullcontext()  # type: ignore[assignment]  # there is one request at a time

    def can_handle_request(self, origin: httpcore.Origin) -> bool:
        return True  # HTTP11Connection reconnects for another origin


class HTTP11Connection(httpcore.AsyncConnectionInterface):
    """A connection over h11 and a stream, with httpcore's interface."""

    def __init__(self, ssl_context: ssl.SSLContext) -> None:
        self._ssl_context = ssl_context
        self._origin: httpcore.Origin | None = None
        self._stream: httpcore.AsyncNetworkStream | None = None
        self._socket: socket.socket
        self._tls: ssl.SSLObject | None = None
        self._was_read_full = False
        self._protocol = _new_protocol()

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        timeouts = request.extensions.get("timeout", {})
        progress: Progress = request.extensions.get(PROGRESS) or Progress()
        progress.is_sent = False  # until the connection is open and the request complete
        body = b"".join([chunk async for chunk in cast("AsyncIterable[bytes]", request.stream)])
        stream = await self._connect(request.url.origin, timeouts.get("connect"))
        data = self.serialize_request(request, body)
        progress.is_sent = True
        await self._send(stream, data, timeouts.get("write"))
        event = await self.next_event(stream, timeouts.get("read"))
        while isinstance(event, h11.InformationalResponse):
            event = await self.next_event(stream, timeouts.get("read"))
        if not isinstance(event, h11.Response):
            raise httpcore.RemoteProtocolError("Server disconnected without sending a response.")
        return httpcore.Response(
            event.status_code,
            headers=event.headers.raw_items(),
            content=_ResponseStream(self, stream, timeouts.get("read")),
            extensions={
                "http_version": b"HTTP/" + event.http_version,
                "reason_phrase": event.reason,
                "network_stream": stream,
            },
        )

    async def _connect(self, origin: httpcore.Origin, seconds: float | None) -> httpcore.AsyncNetworkStream:
        """Return the open stream if it can serve this origin, which a hook may have changed; else open a new one."""
        if self._stream is not None:
            if self._origin == origin and not self._has_unread():
                return self._stream
            await self.aclose()
        host = origin.host.decode("ascii")
        self._stream = stream = await _NETWORK.connect_tcp(host, origin.port, seconds)
        if origin.scheme == b"https":
            self._stream = stream = await stream.start_tls(self._ssl_context, host, seconds)
        self._tls = stream.get_extra_info("ssl_object")
        # The caller's context may be shared with an HTTP/2 client. Read what was negotiated: setting ALPN on the
        # context at each connect would race with that client.
        negotiated = self._tls and self._tls.selected_alpn_protocol()
        if negotiated not in (None, "http/1.1"):
            raise ConfigurationError(
                f"ssl_context negotiated {negotiated!r}, but this SDK speaks HTTP/1.1. Pass an SSL context of its own,"
                ' without set_alpn_protocols() or with ["http/1.1"].'
            )
        self._origin = origin
        self._socket = stream.get_extra_info("socket")
        self._protocol = _new_protocol()
        return stream

    def _has_unread(self) -> bool:
        """Check for bytes between two responses: the end of the connection, or what would pass for the next response.

        They may wait in three places. The socket's buffer and the TLS layer's can be checked. The third is asyncio's:
        it reads up to 256 KiB at once, and the stream keeps what was not requested. A full read hints at that, but not
        under TLS: a record that came in one burst with 64 KiB before it remains undetected there (not on trio, which
        reads only what was requested). Bytes that arrive after this check cannot be detected at all.
        """
        if self._was_read_full or _is_readable(self._socket):
            return True
        if self._tls is None:
            return False
        # One read from the socket may bring several records, and `pending()` counts only the one that was decrypted.
        # This read touches no socket; it also consumes session tickets, which are not part of a response.
        try:
            self._tls.read(1)
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError:
            pass
        return True

    async def _send(self, stream: httpcore.AsyncNetworkStream, data: bytes, seconds: float | None) -> None:
        """Send a request. A server may respond and close before it has read all of it: keep its response."""
        if len(data) <= SMALL_REQUEST_SIZE:
            with contextlib.suppress(httpcore.WriteError):
                await _write(stream, data, seconds)
            return
        failure: Exception | None = None
        async with anyio.create_task_group() as group:
            # Read at the same time: when a write fails, asyncio discards what was not read, and so does anyio's TLS.
            group.start_soon(self._read_early, stream)
            await anyio.lowlevel.checkpoint()  # the read must have started when the write begins
            try:
                await _write(stream, data, seconds)
            except httpcore.WriteError:
                return  # after the reader, which ends as soon as it has read what was sent before the connection broke
            except _STREAM_ERRORS as error:
                failure = error
            group.cancel_scope.cancel()
        if failure is not None:  # not raised inside: the group would wrap it
            raise failure

    async def _read_early(self, stream: httpcore.AsyncNetworkStream) -> None:
        size = 0
        # An error here occurs again when the response is read. Busy: TLS may have to write during the read.
        with contextlib.suppress(*_STREAM_ERRORS, anyio.BusyResourceError):
            while size < MAX_EARLY_READ:
                data = await self._receive(stream, None)
                if not data:
                    break
                size += len(data)

    def serialize_request(self, request: httpcore.Request, body: bytes) -> bytes:
        """Return all bytes of a request, so that one write sends them."""
        try:
            head = h11.Request(method=request.method, target=request.url.target, headers=request.headers)
            data = [h11.Data(data=body)] if body else []
            return b"".join([self._protocol.send(event) or b"" for event in (head, *data, h11.EndOfMessage())])
        except h11.LocalProtocolError as error:
            raise httpcore.LocalProtocolError(str(error)) from error

    async def next_event(self, stream: httpcore.AsyncNetworkStream, seconds: float | None) -> object:
        """Read until the next h11 event, and return it.

        Args:
            stream: The stream that the request was sent on. Not `self._stream`: that is None once the client was
                closed, and reading from a closed stream fails as any lost connection does.
            seconds: Time limit of one read, in seconds; None for no limit.
        """
        while True:
            try:
                event = self._protocol.next_event()
            except h11.RemoteProtocolError as error:
                raise httpcore.RemoteProtocolError(str(error)) from error
            if event is not h11.NEED_DATA:
                return event
            if not await self._receive(stream, seconds) and self._protocol.their_state is h11.SEND_RESPONSE:
                raise httpcore.RemoteProtocolError("Server disconnected without sending a response.")

    async def _receive(self, stream: httpcore.AsyncNetworkStream, seconds: float | None) -> bytes:
        data = await _read(stream, seconds)
        self._was_read_full = len(data) == READ_SIZE
        self._protocol.receive_data(data)
        return data

    async def finish(self) -> None:
        """Prepare for the next request, or close where the response does not allow one."""
        protocol = self._protocol
        is_done = protocol.our_state is h11.DONE and protocol.their_state is h11.DONE
        if is_done and protocol.trailing_data == (b"", False):  # trailing bytes would pass for the next response
            protocol.start_next_cycle()
        else:
            await self.aclose()

    async def aclose(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.aclose()


_NETWORK = cast("httpcore.AsyncNetworkBackend", httpcore.AnyIOBackend())

_STREAM_ERRORS = (httpcore.TimeoutException, httpcore.NetworkError, OSError)
"""What reading from or writing to a stream raises; `OSError` for a broken TLS record under asyncio."""


async def _read(stream: httpcore.AsyncNetworkStream, seconds: float | None) -> bytes:
    """Read; without a time limit do it past httpcore, whose scope and context managers take a tenth of a call."""
    if seconds is not None:
        return await stream.read(READ_SIZE, seconds)
    try:
        return await _anyio_stream(stream).receive(READ_SIZE)
    except anyio.EndOfStream:
        return b""
    except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
        raise httpcore.ReadError(str(error)) from error


async def _write(stream: httpcore.AsyncNetworkStream, data: bytes, seconds: float | None) -> None:
    """Write, like `_read`."""
    if seconds is not None:
        return await stream.write(data, seconds)
    try:
        await _anyio_stream(stream).send(data)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
        raise httpcore.WriteError(str(error)) from error


def _anyio_stream(stream: httpcore.AsyncNetworkStream) -> anyio.abc.ByteStream:
    return cast("anyio.abc.ByteStream", stream._stream)  # type: ignore[attr-defined]  # noqa: SLF001


def _new_protocol() -> h11.Connection:
    return h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADERS_SIZE)


def _is_readable(sock: socket.socket) -> bool:
    """Check for bytes to read, or the end. A stream's "is_readable" is slower: anyio looks up the addresses, too."""
    if sock.fileno() < 0:
        return True
    if sys.platform == "win32":
        return bool(select.select([sock], [], [], 0)[0])
    poll = _poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


class _ResponseStream:
    """The body of a response as it arrives. Not a generator: trio warns of those that are dropped before their end."""

    def __init__(
        self, connection: HTTP11Connection, stream: httpcore.AsyncNetworkStream, seconds: float | None
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._seconds = seconds

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        event = await self._connection.next_event(self._stream, self._seconds)
        if isinstance(event, h11.Data):
            return bytes(event.data)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        await self._connection.finish()


class ProxiedConnection(httpx.AsyncBaseTransport):
    """A connection that httpx opens, through a proxy.

    httpcore 1.0.9 takes bytes that follow a response for the next one, and loses an early response on asyncio when its
    write fails. It exposes neither, so this class cannot prevent them.

    Behind a proxy, httpcore sets ALPN to `http/1.1` on the SSL context at each connection, also on the caller's.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport
        """It may open no more than one connection."""
        self._stream: httpcore.AsyncNetworkStream | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        progress: Progress = request.extensions.get(PROGRESS) or Progress()
        trace = partial(self._trace, progress, request.extensions.get("trace"))
        request.extensions = {**request.extensions, "trace": trace}
        if isinstance(request.stream, httpx.ByteStream):
            request.stream = _ByteStream(request.content)
        return await self._transport.handle_async_request(request)

    async def _trace(
        self,
        progress: Progress,
        hook: Callable[[str, dict[str, Any]], Awaitable[None]] | None,
        event: str,
        info: dict[str, Any],
    ) -> None:
        if event.endswith("connect_tcp.started"):
            progress.is_sent = False
        elif event.endswith("connect_tcp.complete"):
            self._stream = info["return_value"]
        elif event.endswith("send_request_headers.started") and info["request"].method != b"CONNECT":
            progress.is_sent = True
        if hook is not None:
            await hook(event, info)

    async def aclose(self) -> None:
        try:
            await self._transport.aclose()
        finally:
            if self._stream is not None:  # httpcore leaves it open when it is cancelled in the TLS handshake
                await self._stream.aclose()


class _ByteStream(httpx.AsyncByteStream):
    """The body of a request. httpx's own is a generator, and trio warns of it when the sending is cancelled."""

    def __init__(self, body: bytes) -> None:
        self._chunks = iter((body,))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for chunk in self._chunks:
            return chunk
        raise StopAsyncIteration
