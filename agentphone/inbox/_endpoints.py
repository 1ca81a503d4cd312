"""The inbox for web servers: ASGI, WSGI and Django. Each reads the body, calls `receive`, and answers its status.

They answer POST on any path; none is imported before it is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Protocol

from agentphone.inbox._receiving import MAX_BODY, TOO_LARGE

METHOD_NOT_ALLOWED = 405

Message = MutableMapping[str, Any]


class _Receiver(Protocol):
    """What receives the deliveries: the inbox."""

    def receive(self, body: bytes, headers: Any) -> int: ...
    async def areceive(self, body: bytes, headers: Any) -> int: ...
    def check_receiving(self) -> None: ...


class ASGIEndpoint:
    """An ASGI application. An object, because uvicorn takes a bound method for an ASGI 2 application."""

    def __init__(self, inbox: _Receiver) -> None:
        self._inbox = inbox

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Handle a connection."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            status = METHOD_NOT_ALLOWED
            if scope["method"] == "POST":
                status = await self._receive(scope, receive)
            await send({"type": "http.response.start", "status": status, "headers": _headers(status)})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _receive(self, scope: MutableMapping[str, Any], receive: Callable[[], Awaitable[Message]]) -> int:
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return HTTPStatus.BAD_REQUEST  # nobody reads it
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MAX_BODY:
                return TOO_LARGE
        return await self._inbox.areceive(bytes(body), scope["headers"])

    async def _lifespan(
        self, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        await receive()
        try:
            self._inbox.check_receiving()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})


class WSGIEndpoint:
    """A WSGI application."""

    def __init__(self, inbox: _Receiver) -> None:
        self._inbox = inbox

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], Any]
    ) -> Iterable[bytes]:
        """Handle a request."""
        status = METHOD_NOT_ALLOWED
        if environ["REQUEST_METHOD"] == "POST":
            length = _length(environ.get("CONTENT_LENGTH"))
            if length is None and ("HTTP_TRANSFER_ENCODING" in environ or environ.get("wsgi.input_terminated")):
                length = MAX_BODY + 1  # chunked: servers that support it end the stream themselves
            body = environ["wsgi.input"].read(min(length or 0, MAX_BODY + 1))
            status = self._inbox.receive(body, environ)
        headers = [(name.decode(), value.decode()) for name, value in _headers(status)]
        start_response(f"{int(status)} {HTTPStatus(status).phrase}", headers)
        return [b""]


class DjangoView:
    """A view, blocking or to be awaited, whichever the caller needs."""

    csrf_exempt = True
    login_required = False
    __name__ = "agentphone_inbox"

    def __init__(self, inbox: _Receiver) -> None:
        self.__qualname__ = self.__name__  # Django wants both; a class body would name the class by it
        self._inbox = inbox

    def __call__(self, request: Any) -> Any:
        """Handle a request.

        Returns:
            The response; on a running event loop a coroutine for it. Django itself calls a view such as this one in a
            thread, also under ASGI.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._respond(self._inbox.receive(*self._read(request)) if request.method == "POST" else 405)
        return self._call_async(request)

    async def _call_async(self, request: Any) -> Any:
        if request.method != "POST":
            return self._respond(METHOD_NOT_ALLOWED)
        return self._respond(await self._inbox.areceive(*self._read(request)))

    def _read(self, request: Any) -> tuple[bytes, Any]:
        from django.core.exceptions import RequestDataTooBig

        length = _length(request.META.get("CONTENT_LENGTH")) or 0
        if length <= MAX_BODY:
            with suppress(RequestDataTooBig):
                return request.body, request.headers
        # Above Django's own limit, or above ours, which `receive` sees.
        return request.read(MAX_BODY + 1), request.headers

    def _respond(self, status: int) -> Any:
        from django.http import HttpResponse

        response = HttpResponse(status=int(status))
        if status == METHOD_NOT_ALLOWED:
            response["Allow"] = "POST"
        return response


def _headers(status: int) -> list[tuple[bytes, bytes]]:
    allow = [(b"allow", b"POST")] if status == METHOD_NOT_ALLOWED else []
    return [(b"content-length", b"0"), (b"content-type", b"text/plain"), *allow]


def _length(text: str | None) -> int | None:
    return int(text[:20]) if text and text.isascii() and text.isdigit() else None
