"""The server of `run --webhook`: uvicorn on an event loop that is running, for the inbox alone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from agentphone.errors import ConfigurationError

DEFAULT_HOST = "127.0.0.1"


def parse_address(address: str) -> tuple[str, int]:
    """Return the host and the port of `HOST:PORT` or `PORT`; an IPv6 address is in brackets.

    Raises:
        ConfigurationError: It is neither.
        TypeError: It is not a string.
    """
    if not isinstance(address, str):
        raise TypeError(f"webhook must be HOST:PORT, got {address!r}")
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ConfigurationError(f"webhook must be HOST:PORT, such as 0.0.0.0:8000, got {address!r}")
    return host.removeprefix("[").removesuffix("]") or DEFAULT_HOST, int(port)


@asynccontextmanager
async def serving(
    app: Callable[..., Any], address: str, when_ready: Callable[[str], object]
) -> AsyncGenerator[asyncio.Task[None]]:
    """Serve an ASGI application while the block runs.

    Args:
        app: The application.
        address: The address, see `parse_address`; port 0 chooses a free one.
        when_ready: Called with the URL once connections are accepted.

    Raises:
        ConfigurationError: The address cannot be used.
        ModuleNotFoundError: uvicorn is not installed.
    """
    import uvicorn

    host, port = parse_address(address)

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Generator[None]:
            yield  # the worker handles them

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            shown = f"[{host}]" if ":" in host else host
            when_ready(f"http://{shown}:{listener.getsockname()[1]}")

    try:
        listener = _listen(host, port)
    except OSError as error:
        raise ConfigurationError(f"webhook: cannot listen on {host} port {port}: {error.strerror or error}") from None
    with listener:
        # Without log configuration and access log: no part of a request is written.
        config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, ws="none", interface="asgi3")
        server = Server(config)
        task = asyncio.create_task(server.serve([listener]))
        try:
            yield task
        finally:
            server.should_exit = True
            await asyncio.wait([task])


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)  # with a protocol, so that asyncio sets TCP_NODELAY
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener
