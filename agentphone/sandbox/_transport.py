"""The in-process transport: httpx's ASGI transport, with the failures of a network.

It adds read timeouts, connection resets, lost responses and truncated bodies.
"""

from collections.abc import AsyncIterator
from typing import NoReturn

import anyio
import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentphone.sandbox._app import DISCONNECT_EXTENSION, RESET_EXTENSION


class InProcessTransport(httpx.AsyncBaseTransport):
    """Send requests to an ASGI application on the caller's event loop.

    Args:
        app: The ASGI application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Return the application's response.

        Raises:
            httpx.ReadTimeout: There was no response within the request's `read` timeout.
            httpx.ReadError: The application reset the connection.
            httpx.RemoteProtocolError: The application closed the connection without a response.
        """
        is_complete = False

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            async def watch_send(message: Message) -> None:
                nonlocal is_complete
                is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)
                await send(message)

            extensions = {RESET_EXTENSION: _reset, DISCONNECT_EXTENSION: _disconnect}
            await self._app({**scope, "extensions": extensions}, receive, watch_send)
            if not is_complete:
                await send({"type": "http.response.body"})  # httpx's transport requires it.

        seconds = request.extensions.get("timeout", {}).get("read")
        try:
            with anyio.fail_after(seconds):
                response = await httpx.ASGITransport(app).handle_async_request(request)
        except TimeoutError:
            raise httpx.ReadTimeout(f"no response within {seconds:g} seconds", request=request) from None
        if is_complete:
            return response
        return httpx.Response(
            response.status_code, headers=response.headers, stream=_TruncatedStream(await response.aread())
        )


class _TruncatedStream(httpx.AsyncByteStream):
    """A body that ends too early. A class, because trio warns about a generator that is not read to its end."""

    def __init__(self, body: bytes) -> None:
        self._chunks = iter((body,))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for chunk in self._chunks:
            return chunk
        raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")


def _reset() -> NoReturn:
    raise httpx.ReadError("[Errno 104] Connection reset by peer")


def _disconnect() -> NoReturn:
    raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
