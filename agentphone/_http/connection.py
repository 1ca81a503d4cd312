"""One connection to the API, as an httpx transport: opened when it is needed, and again when the other side closed it.

It knows HTTP/1.1 (h11) and sockets (httpcore's streams over anyio). Of calls, retries and time limits it knows nothing.
Whoever has it uses it for one request at a time, and closes it when one fails or is cancelled.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from types import FunctionType
from typing import Any, cast

import anyio
import anyio.lowlevel
import h11
import httpcore
import httpx

from agentphone.errors import ConfigurationError

READ_BYTES = 64 * 1024
HEADERS_BYTES = 100 * 1024
"""How much is read at once, and how long the headers of an answer may be: as httpcore has it."""
SHORT_BYTES = 16 * 1024
"""A request up to this size fits in the system's send buffer: it is sent without waiting for the server."""
EARLY_BYTES = 256 * 1024
"""Read at most this much of a response while its request is still being sent."""


class Direct(httpx.AsyncBaseTransport):
    """A connection without a proxy.

    What `httpx.AsyncHTTPTransport` puts above h11 and the stream, a pool and locks for connections that are shared,
    takes as long again as they do, and has nothing to do for one request at a time.

    Args:
        ssl_context: For https.
        open_indirect: Opens a connection through httpx, for as long as a program has put something in httpx's place.
    """

    def __init__(self, ssl_context: ssl.SSLContext, open_indirect: Callable[[], Indirect]) -> None:
        self._ssl_context = ssl_context
        self._open_indirect = open_indirect
        self._indirect: Indirect | None = None
        self._origin: httpcore.Origin | None = None
        self._stream: httpcore.AsyncNetworkStream | None = None
        self._tls: ssl.SSLObject | None = None
        self._was_read_full = False
        self._protocol = _new_protocol()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if _is_httpx_replaced():
            self._indirect = self._indirect or self._open_indirect()
            return await self._indirect.handle_async_request(request)
        timeouts = request.extensions.get("timeout", {})
        try:
            stream = await self._connect(request.url, timeouts.get("connect"))
            await self._send(stream, self.format_datetime(request), timeouts.get("write"))
            answer = await self.next_event(stream, timeouts.get("read"))
            while isinstance(answer, h11.InformationalResponse):
                answer = await self.next_event(stream, timeouts.get("read"))
            if not isinstance(answer, h11.Response):
                raise httpcore.RemoteProtocolError("Server disconnected without sending a response.")
        except _CORE_ERRORS as error:
            raise _as_httpx(error) from error
        return httpx.Response(
            answer.status_code,
            headers=answer.headers.raw_items(),
            stream=_Answer(self, stream, timeouts.get("read")),
            extensions={
                "http_version": b"HTTP/" + answer.http_version,
                "reason_phrase": answer.reason,
                "network_stream": stream,
            },
        )

    async def _connect(self, url: httpx.URL, seconds: float | None) -> httpcore.AsyncNetworkStream:
        """Give the connection if it is still good for this URL, which a hook may have changed; else a new one."""
        origin = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=b"/").origin
        if self._stream is not None:
            if self._origin == origin and not self._has_unread(self._stream):
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
                f"ssl_context negotiated {negotiated!r}, and this SDK speaks HTTP/1.1. Give it an SSL context of its"
                ' own, without set_alpn_protocols() or with ["http/1.1"].'
            )
        self._origin = origin
        self._protocol = _new_protocol()
        return stream

    def _has_unread(self, stream: httpcore.AsyncNetworkStream) -> bool:
        """Check for bytes between two responses: the end of the connection, or what would pass for the next response.

        They may wait in three places. The socket's buffer and the TLS layer's can be seen. The third is asyncio's: it
        reads up to 256 KiB at once and the stream keeps what it was not asked for. A full read hints at that, but under
        TLS it is not visible: a record that came in one burst with 64 KiB before it remains undetected there (not on
        trio, which reads only what was asked for). Bytes that arrive after this check cannot be detected at all.
        """
        if self._was_read_full or stream.get_extra_info("is_readable"):
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
        if len(data) <= SHORT_BYTES:
            with contextlib.suppress(httpcore.WriteError):
                await stream.write(data, seconds)
            return
        failure: Exception | None = None
        async with anyio.create_task_group() as group:
            # Read at the same time: when a write fails, asyncio discards what was not read, and so does anyio's TLS.
            group.start_soon(self._read_early, stream)
            await anyio.lowlevel.checkpoint()  # it must be reading when the writing begins
            try:
                await stream.write(data, seconds)
            except httpcore.WriteError:
                return  # after the reader, which ends as soon as it has read what was sent before the connection broke
            except (*_CORE_ERRORS, OSError) as error:
                failure = error
            group.cancel_scope.cancel()
        if failure is not None:  # not inside: the group would wrap it
            raise failure

    async def _read_early(self, stream: httpcore.AsyncNetworkStream) -> None:
        size = 0
        # What fails here fails again for who reads the response. Busy: TLS wants to write while the request is sent.
        with contextlib.suppress(*_CORE_ERRORS, OSError, anyio.BusyResourceError):
            while size < EARLY_BYTES:
                data = await self._receive(stream, None)
                if not data:
                    break
                size += len(data)

    def format_datetime(self, request: httpx.Request) -> bytes:
        """Give the bytes of a request, all of them, so that it takes one write."""
        try:
            head = h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
            body = [h11.Data(data=request.content)] if request.content else []
            return b"".join([self._protocol.send(event) or b"" for event in (head, *body, h11.EndOfMessage())])
        except h11.LocalProtocolError as error:
            raise httpcore.LocalProtocolError(str(error)) from error

    async def next_event(self, stream: httpcore.AsyncNetworkStream, seconds: float | None) -> object:
        """Read on, up to the next of h11's events.

        Args:
            stream: What the request was sent on. Not `self._stream`: that is None once the client was closed, and
                reading from a closed stream fails as any lost connection does.
            seconds: For one read.
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
        data = await stream.read(READ_BYTES, seconds)
        self._was_read_full = len(data) == READ_BYTES
        self._protocol.receive_data(data)
        return data

    async def finish(self) -> None:
        """Make ready for the next request, or close where the answer does not allow one."""
        protocol = self._protocol
        is_done = protocol.our_state is h11.DONE and protocol.their_state is h11.DONE
        if is_done and protocol.trailing_data == (b"", False):  # what nobody asked for would pass for the next answer
            protocol.start_next_cycle()
        else:
            await self.aclose()

    async def aclose(self) -> None:
        stream, self._stream = self._stream, None
        try:
            if stream is not None:
                await stream.aclose()
        finally:
            if self._indirect is not None:
                await self._indirect.aclose()


_NETWORK = cast("httpcore.AsyncNetworkBackend", httpcore.AnyIOBackend())


def _new_protocol() -> h11.Connection:
    return h11.Connection(h11.CLIENT, max_incomplete_event_size=HEADERS_BYTES)


def _is_httpx_replaced() -> bool:
    """Whether something wants the requests that go through httpx: respx, pytest-httpx, an instrumentation."""
    # By the module whose names a function uses: `functools.wraps` copies its `__module__`, too.
    return not all(
        type(function) is FunctionType and function.__globals__["__name__"].startswith(("httpx.", "httpcore."))
        for function in (
            httpx.AsyncHTTPTransport.handle_async_request,
            httpcore.AsyncConnectionPool.handle_async_request,
        )
    )


class _Answer(httpx.AsyncByteStream):
    """The body of an answer, as it comes in. No generator: trio warns of those that are dropped half-way."""

    def __init__(self, connection: Direct, stream: httpcore.AsyncNetworkStream, seconds: float | None) -> None:
        self._line = connection
        self._stream = stream
        self._seconds = seconds

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            event = await self._line.next_event(self._stream, self._seconds)
        except _CORE_ERRORS as error:
            raise _as_httpx(error) from error
        if isinstance(event, h11.Data):
            return bytes(event.data)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        await self._line.finish()


_CORE_ERRORS = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
)


def _as_httpx(error: Exception) -> httpx.TransportError:
    """Give httpx's error for one of httpcore's: both name them alike."""
    kind: type[httpx.TransportError] = getattr(httpx, type(error).__name__)
    return kind(str(error))


class Indirect(httpx.AsyncBaseTransport):
    """A connection that httpx opens, through a proxy.

    httpcore 1.0.9 takes bytes that follow a response for the next one, and loses an early response on asyncio when its
    write fails. It shows neither, so this class cannot prevent them.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport
        """It may open no more than one connection."""
        self._stream: Any = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions = {**request.extensions, "trace": partial(self._trace, request.extensions.get("trace"))}
        if isinstance(request.stream, httpx.ByteStream):
            request.stream = _Whole(request.content)
        return await self._transport.handle_async_request(request)

    async def _trace(
        self, hook: Callable[[str, dict[str, Any]], Awaitable[None]] | None, event: str, info: dict[str, Any]
    ) -> None:
        if event.endswith("connect_tcp.complete"):
            self._stream = info["return_value"]
        if hook is not None:
            await hook(event, info)

    async def aclose(self) -> None:
        try:
            await self._transport.aclose()
        finally:
            if self._stream is not None:  # httpcore leaves it open when it is cancelled in the TLS handshake
                await self._stream.aclose()


class _Whole(httpx.AsyncByteStream):
    """A request's body. httpx's own is a generator, and trio warns of it when the sending is cancelled."""

    def __init__(self, body: bytes) -> None:
        self._chunks = iter((body,))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for chunk in self._chunks:
            return chunk
        raise StopAsyncIteration
