"""The one file that sends, sleeps and keeps deadlines (httpx, anyio). What is sent and what it means stands in `_wire`.

Connections belong to an event loop. A client may be used from several (`asyncio.run` three times, two loops in two
threads), so each loop gets a pool of its own, which goes when the client is closed, when it is dropped, or when the
loop ends, whichever is first.
"""

from __future__ import annotations

import logging
import math
import ssl
import time
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from functools import lru_cache, partial
from types import AsyncGeneratorType
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import anyio
import anyio.lowlevel
import httpx
from attrs import frozen

from agentphone import _wire
from agentphone._config import USER_AGENT, Config
from agentphone._decoding import DecodeError
from agentphone._retry import RetryBudget, RetryPolicy
from agentphone.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    Attempt,
    ClientClosedError,
    ConfigurationError,
    DeadlineExceededError,
)

T = TypeVar("T")

logger = logging.getLogger("agentphone")
logger.addHandler(logging.NullHandler())  # or Python prints warnings of programs that have set up no logging

KEEPALIVE_SECONDS = 30.0
"""How long an idle connection is kept. A server that closes it earlier does no harm: httpcore looks before it sends."""


class Transport:
    """Sends calls with one client's settings, over connections that it may share with other clients."""

    def __init__(self, config: Config, connections: Connections) -> None:
        self._config = config
        self._connections = connections
        self._policy = RetryPolicy(config.max_retries, config.max_retry_after)
        self._timeout = math.inf
        phases = httpx.Timeout(None)
        if isinstance(config.timeout, httpx.Timeout):
            phases = config.timeout
        elif config.timeout is not None:
            self._timeout = config.timeout
        self._extensions = {"timeout": phases.as_dict()}
        # httpx.Headers and not a dict: its repr hides the key, also where a traceback prints the locals.
        self._headers = httpx.Headers(
            {
                "Authorization": f"Bearer {config.api_key.value}",
                "Accept": "application/json",
                "Accept-Encoding": _wire.ACCEPTED_ENCODINGS,
                "User-Agent": USER_AGENT,
            }
        )

    async def send(self, call: _wire.Call[T]) -> T:
        """Send a call, trying again where that makes sense, and give its answer.

        Raises:
            ClientClosedError: The connections were closed.
            APIConnectionError: No whole answer came. So do its kinds for `timeout` and `deadline`.
            APIStatusError: The API said no.
            ResponseDecodeError: The answer is not what the API promises.
        """
        deadline = self._config.deadline
        give_up_at = math.inf if deadline is None else anyio.current_time() + deadline
        attempts: tuple[Attempt, ...] = ()
        while True:
            began = anyio.current_time()
            try:
                answer = await self._attempt(call, give_up_at, len(attempts) + 1)
            except (APIConnectionError, APIStatusError) as error:
                pause = self._policy.pause(error, len(attempts) + 1)
                now = anyio.current_time()
                if pause is not None and (now + pause >= give_up_at or not self._connections.retry_budget.take(now)):
                    pause = None
                attempts += (Attempt(_outcome(error), now - began, pause or 0.0),)
                error.attempts = attempts
                if pause is None:
                    raise
                failed = attempts[-1].outcome
                logger.warning("%s %s: %s; trying again in %.2f s", call.method, call.path, failed, pause)
                if self._config.on_retry is not None:
                    self._config.on_retry(error, pause)
            else:
                self._connections.retry_budget.succeed()
                return answer
            await anyio.sleep(pause)

    async def send_all(self, calls: Sequence[_wire.Call[T]]) -> Sequence[T]:
        """Send calls at once and give their answers in order; the first that fails cancels the others.

        Raises:
            AgentPhoneError: As `send` does, for the first call that failed.
        """
        if len(calls) == 1:
            return [await self.send(calls[0])]
        answers: dict[int, T] = {}
        failures: list[Exception] = []

        async def send(index: int, call: _wire.Call[T]) -> None:
            try:
                answers[index] = await self.send(call)
            except Exception as error:  # noqa: BLE001  # raised below, alone: a task group would wrap it in a group
                failures.append(error)
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for index, call in enumerate(calls):
                group.start_soon(send, index, call)
        if failures:
            raise failures[0]
        return [answers[index] for index in range(len(calls))]

    async def _attempt(self, call: _wire.Call[T], give_up_at: float, number: int) -> T:
        """Send a call once, within the time of this attempt and of the whole call."""
        pool = await self._connections.pool()
        with anyio.CancelScope(deadline=give_up_at):
            async with pool.limiter:
                began = anyio.current_time()
                with anyio.CancelScope(deadline=began + self._timeout):
                    status, headers, body = await self._exchange(call, pool)
                    milliseconds = (anyio.current_time() - began) * 1000
                    logger.debug("%s %s: %s, attempt %d, %.1f ms", call.method, call.path, status, number, milliseconds)
                    return _wire.read(call, status, headers, body, now=time.time())
            raise APITimeoutError(f"no whole answer within {self._timeout:g} s", request=str(call))
        raise DeadlineExceededError(f"no whole answer within {self._config.deadline:g} s", request=str(call))

    async def _exchange(self, call: _wire.Call[Any], pool: _Pool) -> tuple[int, httpx.Headers, bytes]:
        """Send one request and read its answer; whatever fails on the way becomes one of our errors."""
        config = self._config
        request = httpx.Request(
            call.method,
            config.base_url + call.target,
            headers=self._headers,
            content=call.body,
            extensions=self._extensions,
        )
        if call.body is not None:
            request.headers["Content-Type"] = "application/json"
        if config.on_request is not None:
            config.on_request(request)
        try:
            response = await pool.send(request)
            try:
                if config.on_response is not None:
                    config.on_response(response)
                body = await self._read_body(call, response)
            finally:
                await response.aclose()
        except httpx.TimeoutException as error:
            raise APITimeoutError(_describe(error), request=str(call)) from error
        except httpx.RequestError as error:
            raise APIConnectionError(_describe(error), request=str(call)) from error
        return response.status_code, response.headers, body

    async def _read_body(self, call: _wire.Call[Any], response: httpx.Response) -> bytes:
        """Read and decompress the body, up to the size that the client allows."""
        if response.is_stream_consumed:  # a transport that does not stream has given it whole, and decompressed
            reader = _wire.Body(None, self._config.max_response_bytes)
            chunks = _once(response.content)
        else:
            reader = _wire.Body(response.headers.get("content-encoding"), self._config.max_response_bytes)
            chunks = response.aiter_raw()
        failure: DecodeError | None = None
        with anyio.CancelScope() as scope:
            async for chunk in chunks:
                if failure is None:
                    try:
                        reader.feed(chunk)
                    except DecodeError as error:
                        # Cancelled and not left: trio warns of each generator of httpx's that is dropped half-way.
                        failure = error
                        scope.cancel()
        try:
            if failure is not None:
                raise failure
            return reader.finish()
        except DecodeError as error:
            raise _wire.decode_error(call, response.status_code, response.headers, error, reader.beginning) from None


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _outcome(error: APIConnectionError | APIStatusError) -> str:
    """Name an outcome in one word: the status, or the failure underneath."""
    if isinstance(error, APIStatusError):
        return str(error.status_code)
    return type(error.__cause__ or error).__name__


def _describe(error: httpx.RequestError) -> str:
    """Say what failed; httpx leaves many texts empty."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


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
        self.is_closed: bool = False
        self.retry_budget = RetryBudget()

    async def pool(self) -> _Pool:
        """Give the pool of the running event loop, opening it at the first call.

        Raises:
            ClientClosedError: The client was closed.
        """
        if self.is_closed or (self._http_client is not None and self._http_client.is_closed):
            raise ClientClosedError("The client was used after it was closed. Make a new one.")
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
            return _Pool(partial(self._http_client.send, auth=None, follow_redirects=False, stream=True), limiter)
        if self._transport is not None:
            return _Pool(self._transport.handle_async_request, limiter)
        own = _open(self._config)
        guard = cast("AsyncGeneratorType[None, None]", _close_with_loop(own))
        await guard.asend(None)
        return _Pool(own.handle_async_request, limiter, guard)

    async def aclose(self) -> None:
        """Close the connections of this loop now, and leave those of other loops to their own. Idempotent."""
        if self.is_closed:
            return
        self.is_closed = True
        loop = anyio.lowlevel.current_token().native_token
        pool = self._pools.pop(loop, None)
        self._pools.clear()
        if pool is not None and pool.guard is not None:
            await pool.guard.aclose()
        if self._transport is not None:
            await self._transport.aclose()


@frozen
class _Pool:
    """The connections of one client on one event loop."""

    send: Callable[[httpx.Request], Awaitable[httpx.Response]]
    limiter: anyio.Semaphore
    """As many as there are connections: calls wait here and never inside httpcore, whose pool loses the connections of
    waiters that are cancelled."""
    guard: AsyncGeneratorType[None, None] | None = None
    """Holds what the SDK has opened itself; its end closes that."""

    @property
    def is_closed(self) -> bool:
        return self.guard is not None and self.guard.ag_frame is None


async def _close_with_loop(own: httpx.AsyncBaseTransport) -> AsyncGenerator[None, None]:
    """Close the connections when this generator ends.

    An event loop ends the generators that were begun on it: each when it is dropped, all when the loop itself ends.
    That is the one hook that asyncio and trio both have. It must hold nothing that leads back to the pool: a cycle
    would keep a dropped client's connections open until the garbage collector comes by.
    """
    try:
        yield
    finally:
        await own.aclose()


@lru_cache
def _default_ssl_context() -> ssl.SSLContext:
    """Make the SSL context, once for all clients: loading the authorities takes longer than all the rest."""
    return httpx.create_ssl_context()


def _open(config: Config) -> httpx.AsyncBaseTransport:
    """Open a pool of httpx's, without the client layer on top: the SDK has one host, no cookies and no redirects."""
    https = httpx.URL(config.base_url).scheme == "https"  # in lower case, however it was written
    context = config.ssl_context or (_default_ssl_context() if https else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    limits = httpx.Limits(
        max_connections=config.max_connections,
        max_keepalive_connections=config.max_connections,
        keepalive_expiry=KEEPALIVE_SECONDS,
    )
    try:
        return httpx.AsyncHTTPTransport(verify=context, proxy=_proxy(config.base_url), limits=limits)
    except (ImportError, ValueError) as error:  # SOCKS without its package; no URL; an unknown scheme
        raise ConfigurationError(
            f"The proxy that the environment names for {config.base_url} cannot be used ({type(error).__name__})."
            " See HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, or give http_client= with a proxy of your own."
        ) from None


def _proxy(base_url: str) -> str | None:
    """Find the proxy that the environment names for the API's host: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY."""
    url = httpx.URL(base_url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(url.netloc.decode("ascii")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
