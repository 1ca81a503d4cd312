"""Which connection a call uses, and whether it is kept or discarded afterwards: one pool per event loop.

A client owns its connections (`OwnedPool`), or sends through a transport of the caller (`SharedPool`).
"""

from __future__ import annotations

import os
import ssl
import time
import urllib.request
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import lru_cache, partial
from types import AsyncGeneratorType
from typing import cast
from weakref import WeakKeyDictionary

import anyio
import anyio.lowlevel
import httpx

from agentphone._config import Config, is_loopback
from agentphone._http.retry import RetryBudget
from agentphone.errors import ClientClosedError, ConfigurationError

KEEPALIVE_SECONDS = 30.0
"""How long an idle connection is kept. A server may close it earlier: it is checked before each use."""
MAX_IDLE_FOR_SENDS = 1.0
"""How long a connection may have been idle for a request that must not be repeated.

If the server closes it at the same moment, it is unclear whether the request arrived. Servers close connections that
have been idle for a while (uvicorn after 5 seconds, gunicorn after 2): one that was in use just now is not closed.
"""

CLOSED_MESSAGE = "This client is closed. Create a new one."


class Connections:
    """The connections of a client and of those that `with_options` made from it: one pool per event loop.

    A client may be used from several loops (`asyncio.run` three times, two loops in two threads). A pool is closed with
    the client, when the client is dropped, or when its loop ends, whichever comes first.
    """

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
        self._pools: WeakKeyDictionary[object, Pool] = WeakKeyDictionary()
        self._was_closed = False
        self.retry_budget: RetryBudget = RetryBudget()
        self.sent_ids: deque[str] = deque(maxlen=1000)
        """The ids of the latest messages that were sent: none of them is a later send that is looked for."""
        self.latest_date: tuple[str | None, float] = None, 0.0
        """The latest `Date` header of any response, and when it was received (`time.monotonic()`)."""

    @property
    def is_closed(self) -> bool:
        """True once nothing can be sent any more."""
        return self._was_closed or (self._http_client is not None and self._http_client.is_closed)

    async def pool(self) -> Pool:
        """Return the pool of the running event loop; the first call creates it.

        Raises:
            ClientClosedError: The client was closed.
        """
        if self.is_closed:
            raise ClientClosedError(CLOSED_MESSAGE)
        loop = anyio.lowlevel.current_token().native_token
        pool = self._pools.get(loop)
        if pool is None or pool.is_closed:
            # A pool refers to its loop, so the weak key alone would keep both. Other threads may do the same meanwhile.
            for ended in filter(None, [reference() for reference in self._pools.keyrefs()]):
                if (old := self._pools.get(ended)) is not None and old.is_closed:
                    self._pools.pop(ended, None)
            pool = self._pools[loop] = await self._create_pool()
        return pool

    async def _create_pool(self) -> Pool:
        shared = self._transport if self._http_client is None else ClientTransport(self._http_client)
        if shared is not None:
            return SharedPool(self._config.max_connections, shared)
        pool = OwnedPool(self._config.max_connections, _connection_factory(self._config))
        await pool.start()
        return pool

    async def aclose(self) -> None:
        """Close this loop's connections now; other loops close their own when they end. Idempotent.

        Calls in progress on this loop raise `ClientClosedError`; those on other loops do so before their next attempt.
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


class Pool(ABC):
    """The calls of one client on one event loop; a subclass has the connections for them."""

    def __init__(self, max_connections: int) -> None:
        self.limiter = anyio.Semaphore(max_connections, fast_acquire=True)
        """One slot per connection: calls wait here and nowhere else."""
        self._calls: set[anyio.CancelScope] = set()

    @contextmanager
    def track_call(self, scope: anyio.CancelScope) -> Iterator[None]:
        """Remember a call until it ends, to cancel it when the client is closed."""
        self._calls.add(scope)
        try:
            yield
        finally:
            self._calls.discard(scope)

    @property
    @abstractmethod
    def is_closed(self) -> bool:
        """True once no connection can be acquired any more."""

    @abstractmethod
    async def acquire(self, max_idle: float = KEEPALIVE_SECONDS) -> httpx.AsyncBaseTransport:
        """Return a connection for one request that has not been idle for more than `max_idle` seconds."""

    @abstractmethod
    def release(self, connection: httpx.AsyncBaseTransport) -> None:
        """Keep a connection for the next request: this one left it in order."""

    @abstractmethod
    async def discard(self, connection: httpx.AsyncBaseTransport) -> None:
        """Close a connection, in whatever state it is."""

    async def aclose(self) -> None:
        for scope in tuple(self._calls):
            scope.cancel()


class SharedPool(Pool):
    """Sends everything through one transport, which has its own connections and is closed by its owner."""

    def __init__(self, max_connections: int, transport: httpx.AsyncBaseTransport) -> None:
        super().__init__(max_connections)
        self._transport = transport

    @property
    def is_closed(self) -> bool:
        return False  # the transport's owner closes it

    async def acquire(self, max_idle: float = KEEPALIVE_SECONDS) -> httpx.AsyncBaseTransport:
        return self._transport

    def release(self, connection: httpx.AsyncBaseTransport) -> None:
        pass

    async def discard(self, connection: httpx.AsyncBaseTransport) -> None:
        pass


class OwnedPool(Pool):
    """Opens connections, reuses them and closes them.

    A connection is discarded whole when anything fails on it. One httpx transport for all of them would leak: httpcore
    1.0.9 goes on counting a connection, and never uses it again, when its call was cancelled at the last step of the
    TLS handshake, or while waiting for it, or when its tunnel through a proxy failed; in the end every call waits
    forever. Its time per call grows with the number of connections, too.
    """

    def __init__(self, max_connections: int, connection_factory: Callable[[], httpx.AsyncBaseTransport]) -> None:
        super().__init__(max_connections)
        self._connection_factory = connection_factory
        self._connections: set[httpx.AsyncBaseTransport] = set()
        self._idle: list[tuple[float, httpx.AsyncBaseTransport]] = []
        self._guard = cast("AsyncGeneratorType[None, None]", _close_with_loop(self._connections))

    async def start(self) -> None:
        """Make the running event loop close the connections when it ends."""
        await self._guard.asend(None)

    @property
    def is_closed(self) -> bool:
        return self._guard.ag_frame is None

    async def acquire(self, max_idle: float = KEEPALIVE_SECONDS) -> httpx.AsyncBaseTransport:
        """Return the connection that was used last, or a new one."""
        now = time.monotonic()
        while self._idle and self._idle[0][0] < now - KEEPALIVE_SECONDS:
            await self.discard(self._idle.pop(0)[1])
        if self._idle and self._idle[-1][0] >= now - max_idle:
            return self._idle.pop()[1]
        if self._idle:  # the new one takes the place of the oldest
            await self.discard(self._idle.pop(0)[1])
        connection = self._connection_factory()
        self._connections.add(connection)
        return connection

    def release(self, connection: httpx.AsyncBaseTransport) -> None:
        self._idle.append((time.monotonic(), connection))

    async def discard(self, connection: httpx.AsyncBaseTransport) -> None:
        try:
            with anyio.CancelScope(shield=True):
                await connection.aclose()
        finally:  # asyncio's own cancellation ignores the shield; the socket is closed all the same
            self._connections.discard(connection)

    async def aclose(self) -> None:
        await super().aclose()
        await self._guard.aclose()


class ClientTransport(httpx.AsyncBaseTransport):
    """Sends through the user's `httpx.AsyncClient`, without its authentication and its redirects."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._client.send(request, auth=None, follow_redirects=False, stream=True)


async def _close_with_loop(connections: set[httpx.AsyncBaseTransport]) -> AsyncGenerator[None, None]:
    """Close the connections when this generator ends.

    An event loop closes the async generators that were started on it: each when it is dropped, all when the loop ends.
    No other hook exists on both asyncio and trio. The generator must not refer to the pool: a reference cycle would
    keep a dropped client's connections open until the garbage collector runs.
    """
    try:
        yield
    finally:
        # A loop that ends has cancelled everything. The stack closes all connections, even where asyncio's own
        # cancellation, which ignores the shield, interrupts the closing of one.
        with anyio.CancelScope(shield=True):
            async with AsyncExitStack() as stack:
                while connections:
                    stack.push_async_callback(connections.pop().aclose)


@lru_cache(maxsize=4)
def _default_ssl_context(*_environment: str | None) -> ssl.SSLContext:
    """Create the SSL context, once for all clients: loading the certificate authorities takes 60 ms.

    Args:
        _environment: The variables that it depends on, as the key of the cache.
    """
    context = httpx.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])  # once; behind a proxy, httpcore repeats it at each connection
    return context


def _connection_factory(config: Config) -> Callable[[], httpx.AsyncBaseTransport]:
    """Return a function that opens a connection, without httpx's client layer: one host, no cookies, no redirects.

    Raises:
        ConfigurationError: The proxy or the certificates that the environment names cannot be used.
    """
    url = httpx.URL(config.base_url)
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEPALIVE_SECONDS)
    try:
        proxy = _proxy(url)
        if config.ssl_context is not None:
            context = config.ssl_context
        elif url.scheme == "https" or (proxy is not None and proxy.url.scheme == "https"):
            context = _default_ssl_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # unused; the default one takes 60 ms
        if proxy is not None and proxy.url.scheme == "https":
            proxy.ssl_context = context
        open_transport = partial(httpx.AsyncHTTPTransport, verify=context, proxy=proxy, limits=limits)
        open_transport()  # does not connect, but raises if the proxy cannot be used
    except OSError as error:  # ssl.SSLError among them
        raise ConfigurationError(
            f"The certificates named by SSL_CERT_FILE or SSL_CERT_DIR cannot be loaded ({error})."
        ) from None
    except (ImportError, ValueError, httpx.InvalidURL) as error:  # SOCKS without its package; an unknown scheme; no URL
        raise ConfigurationError(
            f"The proxy named by the environment for {config.base_url} cannot be used ({type(error).__name__})."
            " See HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY; in code, http_client= takes a client with your own."
        ) from None
    if proxy is not None and url.scheme == "http" and not config.allow_http and not is_loopback(proxy.url.host):
        raise ConfigurationError(
            f"The proxy named by the environment would receive the API key for {config.base_url} unencrypted. Exclude"
            f" this host with NO_PROXY={url.host}; in code, allow_http=True permits it."
        )
    # Not at the top: it loads httpcore, which loads trio if installed, and that takes longer than everything else.
    from agentphone._http.connection import DirectConnection, ProxiedConnection

    return partial(DirectConnection, context) if proxy is None else lambda: ProxiedConnection(open_transport())


def _proxy(url: httpx.URL) -> httpx.Proxy | None:
    """Return the environment's proxy for the API's host: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY."""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(url.netloc.decode("ascii")):
        return None
    found = httpx.Proxy(proxy if "://" in proxy else f"http://{proxy}")
    found.url.host.encode("idna")  # otherwise the DNS lookup raises a bare UnicodeError
    return found
