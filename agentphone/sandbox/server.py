"""The sandbox over HTTP, served by uvicorn: as a process of its own, or from a thread of this one.

It parses no command line. The process prints its URL, why it could not start, its failures and, unless it is quiet, a
line per request and per webhook attempt. Nothing that it prints contains the key.

Requests must name the server by an address or a local name, so that no web page can reach it by DNS rebinding.
"""

import ipaddress
import logging
import os
import signal
import socket
import sqlite3
import struct
import sys
import threading
from collections.abc import Callable, Collection, Generator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress

import uvicorn
from starlette.types import Receive, Scope, Send

from agentphone._checks import check_integer
from agentphone.sandbox import Sandbox
from agentphone.sandbox._activity import LineWriter, delivery_line, request_line
from agentphone.sandbox._app import DISCONNECT_EXTENSION, EVENTS_PATH, HOSTS_EXTENSION, RESET_EXTENSION

STOP_SECONDS = 30.0
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # by which a browser reaches a server on all addresses


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    db: str | os.PathLike[str] | None = None,
    api_key: str | None = None,
    demo: bool = False,
    retry_scale: float = 1.0,
    webhook: tuple[str, str] | None = None,
    allowed_hosts: Collection[str] = (),
    quiet: bool = True,
) -> int:
    """Serve a sandbox until Ctrl-C or SIGTERM.

    The first line on stdout is its URL, printed once connections are accepted. It is also the URL of the phone.

    Args:
        host: The name or address to listen on.
        port: 0 to 65535; 0 chooses a free port, which the printed URL contains.
        db: The database file; None keeps the data in memory.
        api_key: The only bearer key to accept; None accepts any non-empty key.
        demo: Whether to load the demo data, if there is no data yet.
        retry_scale: The factor on the delays between the attempts of a webhook delivery, at least 0.
        webhook: The URL and the secret of the webhook to set; None leaves it as it is.
        allowed_hosts: Names by which requests may call this server, besides addresses, `host` and local names.
        quiet: Whether to print the URL only.

    Returns:
        The exit code: 0 after Ctrl-C or SIGTERM; 1 if the address or the file could not be opened, with the reason on
        stderr.

    Raises:
        ValueError: `db` is `":memory:"`, the key or the webhook is invalid, or `retry_scale` is negative or not finite.
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
                sandbox.load_demo_data()
            if webhook is not None:
                sandbox.set_webhook(*webhook)
            _log_failures_to_stderr()
            address, bound_port = listener.getsockname()[:2]

            def print_urls() -> None:
                sys.stdout.write(f"AgentPhone sandbox at {_url(host, bound_port)}\n")
                if not quiet:
                    page = _url(LOOPBACK.get(address, host), bound_port)
                    sys.stdout.write(f"Open {page}/ in a browser to text with your agent.\n")
                    if not ipaddress.ip_address(address).is_loopback:
                        key = "that key" if api_key is not None else "any key"
                        sys.stdout.write(f"It listens on {address}: other machines can use it too, with {key}.\n")
                sys.stdout.flush()

            with (
                suppress(KeyboardInterrupt),  # a Ctrl-C before or after uvicorn handles signals
                nullcontext() if quiet else printing_activity(sandbox),
            ):
                _Server(sandbox, when_ready=print_urls, allowed_hosts={host, *allowed_hosts}).run([listener])
    return 0


@contextmanager
def printing_activity(sandbox: Sandbox) -> Generator[None]:
    """Print a line per request to a sandbox and per webhook attempt of this process, on stdout.

    Args:
        sandbox: The sandbox.
    """
    writer = LineWriter(sys.stdout)
    sandbox.app.request_log.on_finish = lambda entry: writer.write(request_line(entry))
    sandbox.app.queue.on_finish = lambda *attempt: writer.write(delivery_line(*attempt))
    try:
        yield
    finally:
        writer.close()


@contextmanager
def running(sandbox: Sandbox, *, port: int = 0) -> Iterator[str]:
    """Serve a sandbox over HTTP from a thread, on 127.0.0.1, and yield its URL.

    The sandbox can be used meanwhile, and stays open afterwards.

    Args:
        sandbox: The sandbox to serve.
        port: The port, 0 to 65535; 0 chooses a free one.

    Raises:
        OSError: The port is in use, or there is no free one.
    """
    ready: Future[None] = Future()
    with _listen("127.0.0.1", port) as listener:
        server = _Server(sandbox, when_ready=lambda: ready.set_result(None))

        def run() -> None:
            try:
                server.run([listener])
            except BaseException as error:
                if ready.done():
                    raise
                ready.set_exception(error)

        # A daemon thread, so that it does not keep the interpreter from exiting.
        thread = threading.Thread(target=run, name="agentphone sandbox", daemon=True)
        thread.start()
        try:
            ready.result()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(STOP_SECONDS)


class _Server(uvicorn.Server):
    """A uvicorn server that reports when it is ready, can reset connections, and exits normally on a signal."""

    def __init__(
        self, sandbox: Sandbox, *, when_ready: Callable[[], object], allowed_hosts: Collection[str] = ()
    ) -> None:
        # Without log configuration and access log, no part of a request, such as its key, is ever written.
        config = uvicorn.Config(
            self._app,
            interface="asgi3",  # uvicorn takes a bound method for ASGI 2
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            date_header=False,  # the application sends it, by the clock that dates the messages
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self._sandbox = sandbox
        self._when_ready = when_ready
        self._allowed_hosts = frozenset(name.lower() for name in allowed_hosts)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"] = {
            **(scope.get("extensions") or {}),
            RESET_EXTENSION: lambda: self._disconnect(scope["client"], reset=True),
            HOSTS_EXTENSION: self._allowed_hosts,
            DISCONNECT_EXTENSION: lambda: self._disconnect(scope["client"], reset=False),
        }
        await self._sandbox.app(scope, receive, send)

    def _disconnect(self, client: tuple[str, int], *, reset: bool) -> None:
        for connection in tuple(self.server_state.connections):
            transport = connection.transport
            if (transport.get_extra_info("peername") or ())[:2] == tuple(client):
                if reset:
                    # With a linger time of 0 the kernel closes with a reset instead of an orderly FIN.
                    no_linger = struct.pack("ii", 1, 0)
                    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
                transport.abort()  # Unlike close(), it also discards what is still to be written.

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # An open stream of events would delay the end until uvicorn's timeout.
        for connection in tuple(self.server_state.connections):
            if (getattr(connection, "scope", None) or {}).get("path") == EVENTS_PATH:
                connection.transport.close()
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._when_ready()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        # uvicorn's own raises the signal again at the end, which would be a KeyboardInterrupt, or kill the process
        # before the database is closed.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listen(host: str, port: int) -> socket.socket:
    check_integer("port", port, minimum=0, maximum=65535)  # getaddrinfo would take it modulo 65536.
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
    )[0]
    # With an explicit protocol: asyncio sets TCP_NODELAY only on sockets that have one, and without it a response on a
    # kept-alive connection takes 40 ms.
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # On Windows the option lets two servers share a port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


def _log_failures_to_stderr() -> None:
    # Python would do so itself, but the package's logger has a NullHandler.
    if logging.lastResort is not None and not logging.root.handlers:
        logging.getLogger("agentphone.sandbox").addHandler(logging.lastResort)


def _fail(reason: str) -> int:
    sys.stderr.write(f"agentphone sandbox: {reason}\n")
    return 1
