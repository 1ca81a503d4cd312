"""Serve a server over stdio or HTTP, until its client goes away or the process is told to stop."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import uvicorn
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

PATH = "/mcp"


def serve_stdio(server: Server[Any], close: Callable[[], Any]) -> None:
    """Serve over stdin and stdout until stdin ends. Nothing but the protocol is written to stdout.

    Args:
        server: The server.
        close: An async function to call in the end.
    """
    _log_to_stderr()

    async def run() -> None:
        try:
            async with stdio_server() as (reader, writer):
                await server.run(reader, writer, server.create_initialization_options())
        finally:
            await close()

    anyio.run(run)


def serve_http(server: Server[Any], close: Callable[[], Any], host: str, port: int) -> None:
    """Serve streamable HTTP until Ctrl-C or SIGTERM. The first line on stdout is the URL.

    Args:
        server: The server.
        close: An async function to call in the end.
        host: The name or address to listen on.
        port: The port; 0 chooses a free one.

    Raises:
        OSError: The address cannot be listened on.
    """
    _log_to_stderr()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=1024) as listener:
        app = server.streamable_http_app(host=host, streamable_http_path=PATH)
        # Without its log configuration and access log, nothing of a request is ever written.
        http = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on"))

        async def run() -> None:
            try:
                await http.serve([listener])
            finally:
                await close()

        shown = f"[{host}]" if ":" in host else host
        sys.stdout.write(f"AgentPhone MCP server at http://{shown}:{listener.getsockname()[1]}{PATH}\n")
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            anyio.run(run)


def _log_to_stderr() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="agentphone mcp: %(message)s")
