"""The sandbox as a server of its own: a socket, uvicorn, one line that is true, and a quiet end.

It parses no command line and says nothing but its URL, why it cannot start and why it failed; the key is in none.
"""

import logging
import os
import signal
import socket
import sqlite3
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

import uvicorn

from agentphone.sandbox import Sandbox


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    db: str | os.PathLike[str] | None = None,
    api_key: str | None = None,
    demo: bool = False,
    retry_scale: float = 1.0,
) -> int:
    """Serve a sandbox until Ctrl-C or SIGTERM.

    The first line on stdout is its URL, written once connections are accepted.

    Args:
        host: The name or address to listen on.
        port: 0 to 65535; 0 takes a free one, which the printed URL names.
        db: The database file; None keeps the data in memory.
        api_key: The only bearer key to accept; None accepts any that is not empty.
        demo: Whether to load the demonstration data, if there is no data yet.
        retry_scale: The factor on the pauses between the attempts of a webhook delivery, from 0.

    Returns:
        The exit code: 0 after Ctrl-C or SIGTERM; 1 if the address or the file could not be opened, which stderr says.

    Raises:
        ValueError: The key is empty, or the factor is not a number from 0 on.
    """
    try:
        listener = _listen(host, port)
    except (OSError, ValueError) as error:
        return _fail(f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}")
    with listener:
        try:
            sandbox = Sandbox(db, api_key=api_key, retry_scale=retry_scale)
        except sqlite3.Error as error:
            return _fail(f"cannot open {db}: {error}")
        with sandbox:
            if demo:
                sandbox.load_demonstration()
            _say_failures()
            # No log configuration and no access log: nothing of a request, such as its key, is ever written.
            config = uvicorn.Config(
                sandbox.app,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                timeout_graceful_shutdown=1,
            )
            shown = f"[{host}]" if ":" in host else host
            with suppress(KeyboardInterrupt):  # A Ctrl-C just before or after uvicorn listens for it.
                _Server(config, f"http://{shown}:{listener.getsockname()[1]}").run([listener])
    return 0


class _Server(uvicorn.Server):
    """A uvicorn that says when it is ready, and for which a signal is the way to end, not an error."""

    def __init__(self, config: uvicorn.Config, url: str) -> None:
        super().__init__(config)
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        sys.stdout.write(f"AgentPhone sandbox at {self._url}\n")
        sys.stdout.flush()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        # uvicorn's own raises the signal again at the end: a KeyboardInterrupt, or death before the database is closed.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:  # getaddrinfo would take it modulo 65536.
        raise ValueError("a port is 0 to 65535")
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
    )[0]
    # With the protocol named: asyncio sets TCP_NODELAY only on sockets that name it, and without it an answer on a
    # connection kept alive takes 40 ms.
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # Elsewhere the option lets two servers share a port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


def _say_failures() -> None:
    # Python would itself, were it not for the silent handler that the package's core gives to the logger above.
    if logging.lastResort is not None and not logging.root.handlers:
        logging.getLogger("agentphone.sandbox").addHandler(logging.lastResort)


def _fail(reason: str) -> int:
    sys.stderr.write(f"agentphone sandbox: {reason}\n")
    return 1
