"""The sandbox's network inside the process: an httpx transport that carries requests to an ASGI application.

httpx's own does the carrying. What is added is what a network does besides: time runs out, connections are reset, and
bodies end in the middle.
"""

from collections.abc import AsyncIterator
from typing import NoReturn

import anyio
import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentphone.sandbox._app import RESET


class InProcessTransport(httpx.AsyncBaseTransport):
    """Carry requests to an application on the caller's event loop.

    Args:
        app: The ASGI application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Give the application's answer.

        Raises:
            httpx.ReadTimeout: It came too late for the request's own `read` timeout.
            httpx.ReadError: The application has reset the connection.
        """
        is_whole = False

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            async def watch(message: Message) -> None:
                nonlocal is_whole
                is_whole = message["type"] == "http.response.body" and not message.get("more_body", False)
                await send(message)

            await self._app({**scope, "extensions": {RESET: _reset}}, receive, watch)
            if not is_whole:
                await send({"type": "http.response.body"})  # httpx's transport takes nothing less for an answer.

        seconds = request.extensions.get("timeout", {}).get("read")
        try:
            with anyio.fail_after(seconds):
                response = await httpx.ASGITransport(app).handle_async_request(request)
        except TimeoutError:
            raise httpx.ReadTimeout(f"no answer within {seconds:g} seconds", request=request) from None
        if is_whole:
            return response
        return httpx.Response(response.status_code, headers=response.headers, stream=_Cut(await response.aread()))


class _Cut(httpx.AsyncByteStream):
    """A body after which more should have come. No generator, of which trio warns when it is left half-read."""

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
