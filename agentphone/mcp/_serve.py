"""Serve a server over stdio or HTTP, until its client disconnects or the process gets a signal."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import uvicorn
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

PATH = "/mcp"
LOCAL = ("127.0.0.1", "localhost", "::1")


def serve_stdio(server: Server[Any], close: Callable[[], Awaitable[None]]) -> None:
    """Serve over stdin and stdout until stdin ends. Nothing but the protocol is written to stdout.

    Args:
        server: The server.
        close: An async function to call in the end.
    """
    _log_to_stderr()
    # Ctrl-C ends it like SIGTERM: a thread waits for stdin, and no exception could wake it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    async def run() -> None:
        try:
            async with stdio_server() as (reader, writer):
                await server.run(reader, writer, server.create_initialization_options())
        finally:
            await close()

    try:
        anyio.run(run)
    except* BrokenPipeError:
        pass  # the client has gone before it read an answer


def serve_http(server: Server[Any], close: Callable[[], Awaitable[None]], host: str, port: int) -> None:
    """Serve streamable HTTP until Ctrl-C or SIGTERM. The first line on stdout is the URL.

    Args:
        server: The server.
        close: An async function to call in the end.
        host: The name or address to listen on.
        port: The port; 0 chooses a free one.

    Raises:
        OSError: The address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=1024) as listener:
        _log_to_stderr()
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}{PATH}"
        app: ASGIApp = server.streamable_http_app(host=host, streamable_http_path=PATH)
        # For an address of this machine, the official SDK checks Host and Origin. For another, it checks nothing.
        http = _HTTPServer(app if host in LOCAL else _without_browsers(app), url)

        async def run() -> None:
            try:
                await http.serve([listener])
            finally:
                await close()

        with suppress(KeyboardInterrupt):  # a Ctrl-C before or after uvicorn handles signals
            anyio.run(run)


def _without_browsers(app: ASGIApp) -> ASGIApp:
    """Reject what a page in a browser sends: it may come from any site, by a name that leads to this address.

    Browsers put the site in the header Origin of each POST, and other clients do not send this header.
    """

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and any(name == b"origin" for name, _ in scope["headers"]):
            response = PlainTextResponse("Pages in a browser cannot use this server.", 403)
            await response(scope, receive, send)
        else:
            await app(scope, receive, send)

    return checked


class _HTTPServer(uvicorn.Server):
    """A uvicorn server that prints its URL when it is ready, and exits normally on a signal."""

    def __init__(self, app: ASGIApp, url: str) -> None:
        # Without log configuration and access log, nothing of a request is ever written.
        settings: dict[str, Any] = {"log_config": None, "log_level": "critical", "access_log": False}
        super().__init__(uvicorn.Config(app, **settings, ws="none", lifespan="on", timeout_graceful_shutdown=1))
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        sys.stdout.write(f"AgentPhone MCP server at {self._url}\n")
        sys.stdout.flush()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        # uvicorn's own raises the signal again at the end, which kills the process before the client is closed.
        previous = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _log_to_stderr() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="agentphone mcp: %(message)s")
