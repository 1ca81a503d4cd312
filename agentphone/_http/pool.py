"""Connection pools, one per event loop: connections that a client owns, or one transport that is shared."""

from __future__ import annotations

import os
import ssl
import urllib.request
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import lru_cache, partial
from types import AsyncGeneratorType
from typing import TypeVar, cast
from weakref import WeakKeyDictionary

import anyio
import anyio.lowlevel
import httpx

from agentphone._config import Config, is_loopback
from agentphone._http.retry import RetryBudget
from agentphone.errors import (
    ClientClosedError,
    ConfigurationError,
)

T = TypeVar("T")


H = TypeVar("H")


KEEPALIVE_SECONDS = 30.0
"""How long an idle connection is kept. A server that closes it earlier does no harm: who sends looks first."""


_CLOSED = "The client was used after it was closed. Make a new one."


class Connections:
    """The connections of a client and of those that `with_options` made from it: one pool for each event loop."""

    def __init__(
        self,
        config: Config,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        http_client: httpx.AsyncClient | None = None,
    ) -> None:
        self._config = config
        self._transport = transport
        self._http_client = http_client
        self._pools: WeakKeyDictionary[object, _Pool] = WeakKeyDictionary()
        self._was_closed = False
        self.retry_budget: RetryBudget = RetryBudget()

    @property
    def is_closed(self) -> bool:
        """Whether nothing may be sent any more."""
        return self._was_closed or (self._http_client is not None and self._http_client.is_closed)

    async def pool(self) -> _Pool:
        """Give the pool of the running event loop, opening it at the first call.

        Raises:
            ClientClosedError: The client was closed.
        """
        if self.is_closed:
            raise ClientClosedError(_CLOSED)
        loop = anyio.lowlevel.current_token().native_token
        pool = self._pools.get(loop)
        if pool is None or pool.is_closed:
            # A pool refers to its loop, so that the weak key alone would not go. Other threads do the same meanwhile.
            for ended in filter(None, [reference() for reference in self._pools.keyrefs()]):
                if (old := self._pools.get(ended)) is not None and old.is_closed:
                    self._pools.pop(ended, None)
            pool = self._pools[loop] = await self._make_pool()
        return pool

    async def _make_pool(self) -> _Pool:
        limiter = anyio.Semaphore(self._config.max_connections, fast_acquire=True)
        if self._http_client is not None:
            return _Pool(limiter, shared=ClientTransport(self._http_client))
        if self._transport is not None:
            return _Pool(limiter, shared=self._transport)
        connections: set[httpx.AsyncBaseTransport] = set()
        guard = cast("AsyncGeneratorType[None, None]", _close_with_loop(connections))
        pool = _Pool(
            limiter, connection_factory=_connection_factory(self._config), connections=connections, guard=guard
        )
        await guard.asend(None)
        return pool

    async def aclose(self) -> None:
        """Close the connections of this loop now, and leave those of other loops to their own. Idempotent.

        Calls that are under way on this loop end with `ClientClosedError`, those on others before their next attempt.
        """
        if self._was_closed:
            return
        self._was_closed = True
        loop = anyio.lowlevel.current_token().native_token
        pool = self._pools.pop(loop, None)
        self._pools.clear()
        if pool is not None:
            await pool.aclose()
        if self._transport is not None:
            await self._transport.aclose()


class _Pool:
    """The connections of one client on one event loop.

    Each goes as a whole when anything goes wrong on it. A single httpx transport for all of them leaks: httpcore 1.0.9
    goes on counting a connection, and never uses it again, when its call was cancelled at the last step of the TLS
    handshake, or while waiting for it, or when its tunnel through a proxy failed; in the end each call waits for ever.
    Its cost for each call grows with the number of connections, too.
    """

    def __init__(
        self,
        limiter: anyio.Semaphore,
        *,
        shared: httpx.AsyncBaseTransport | None = None,
        connection_factory: Callable[[], httpx.AsyncBaseTransport] | None = None,
        connections: set[httpx.AsyncBaseTransport] | None = None,
        guard: AsyncGeneratorType[None, None] | None = None,
    ) -> None:
        self.limiter = limiter
        """As many as there are connections: calls wait here and nowhere else."""
        self._shared = shared
        self._open_line = connection_factory
        self._connections = set() if connections is None else connections
        self._guard = guard
        self._idle: list[tuple[float, httpx.AsyncBaseTransport]] = []
        self._calls: set[anyio.CancelScope] = set()

    @property
    def is_closed(self) -> bool:
        return self._guard is not None and self._guard.ag_frame is None

    @contextmanager
    def track_call(self, scope: anyio.CancelScope) -> Iterator[None]:
        """Note a call for as long as it takes, to be cancelled when the client is closed."""
        self._calls.add(scope)
        try:
            yield
        finally:
            self._calls.discard(scope)

    async def acquire(self) -> httpx.AsyncBaseTransport:
        """Give a connection: the one that was used last, or a new one."""
        if self._shared is not None:
            return self._shared
        now = anyio.current_time()
        while self._idle and self._idle[0][0] < now - KEEPALIVE_SECONDS:
            await self.discard(self._idle.pop(0)[1])
        if self._idle:
            return self._idle.pop()[1]
        assert self._open_line is not None  # noqa: S101  # for mypy: there is always one of the two
        connection = self._open_line()
        self._connections.add(connection)
        return connection

    def release(self, connection: httpx.AsyncBaseTransport) -> None:
        """Take back a connection on which all went well."""
        if connection is not self._shared:
            self._idle.append((anyio.current_time(), connection))

    async def discard(self, connection: httpx.AsyncBaseTransport) -> None:
        """Close a connection, in whatever state it is."""
        if connection is not self._shared:
            try:
                with anyio.CancelScope(shield=True):
                    await connection.aclose()
            finally:  # asyncio's own cancellation knows no shield; the socket is closed all the same
                self._connections.discard(connection)

    async def aclose(self) -> None:
        for scope in tuple(self._calls):
            scope.cancel()
        if self._guard is not None:
            await self._guard.aclose()


class ClientTransport(httpx.AsyncBaseTransport):
    """Sends through an `httpx.AsyncClient` of the user's, whose redirects and credentials have no say here."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._client.send(request, auth=None, follow_redirects=False, stream=True)


async def _close_with_loop(connections: set[httpx.AsyncBaseTransport]) -> AsyncGenerator[None, None]:
    """Close the connections when this generator ends.

    An event loop ends the generators that were begun on it: each when it is dropped, all when the loop itself ends.
    That is the one hook that asyncio and trio both have. It must hold nothing that leads back to the pool: a cycle
    would keep a dropped client's connections open until the garbage collector comes by.
    """
    try:
        yield
    finally:
        # A loop that ends has cancelled everything. The stack closes them all, though asyncio's own cancellation, which
        # knows no shield, ends the closing of one.
        with anyio.CancelScope(shield=True):
            async with AsyncExitStack() as stack:
                while connections:
                    stack.push_async_callback(connections.pop().aclose)


@lru_cache(maxsize=4)
def _default_ssl_context(*_environment: str | None) -> ssl.SSLContext:
    """Make the SSL context, once for all clients: loading the authorities takes longer than all the rest."""
    context = httpx.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])  # once and here: a context of the caller's is not ours to change
    return context


def _connection_factory(config: Config) -> Callable[[], httpx.AsyncBaseTransport]:
    """Prepare to open connections, without httpx's client layer on top: there is one host, no cookies, no redirects."""
    url = httpx.URL(config.base_url)
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEPALIVE_SECONDS)
    try:
        proxy = _proxy(url)
        if config.ssl_context is not None:
            context = config.ssl_context
        elif url.scheme == "https" or (proxy is not None and proxy.url.scheme == "https"):
            context = _default_ssl_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # nothing will use it; the default one takes 60 ms
        if proxy is not None and proxy.url.scheme == "https":
            proxy.ssl_context = context
        open_transport = partial(httpx.AsyncHTTPTransport, verify=context, proxy=proxy, limits=limits)
        open_transport()  # connects to nothing, and shows whether the proxy can be used
    except OSError as error:  # ssl.SSLError among them
        raise ConfigurationError(
            f"The certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be loaded ({error})."
        ) from None
    except (ImportError, ValueError, httpx.InvalidURL) as error:  # SOCKS without its package; an unknown scheme; no URL
        raise ConfigurationError(
            f"The proxy that the environment names for {config.base_url} cannot be used ({type(error).__name__})."
            " See HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, or give http_client= with a proxy of your own."
        ) from None
    if proxy is not None and url.scheme == "http" and not config.allow_http and not is_loopback(proxy.url.host):
        raise ConfigurationError(
            f"The proxy that the environment names would get the API key for {config.base_url} unencrypted. Except this"
            f" host with NO_PROXY={url.host}, or give allow_http=True if meant."
        )
    # Not at the top: it loads httpcore, which loads trio if it can, and that takes longer than all the rest.
    from agentphone._http.connection import Direct, Indirect

    if proxy is None:
        return lambda: Direct(context, lambda: Indirect(open_transport()))
    return lambda: Indirect(open_transport())


def _proxy(url: httpx.URL) -> httpx.Proxy | None:
    """Find the proxy that the environment names for the API's host: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY."""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(url.netloc.decode("ascii")):
        return None
    found = httpx.Proxy(proxy if "://" in proxy else f"http://{proxy}")
    found.url.host.encode("idna")  # or looking it up fails with an error of its own kind
    return found
