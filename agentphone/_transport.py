"""The one file that sends, sleeps and keeps deadlines (httpx, anyio). What is sent and what it means stands in `_wire`.

Connections belong to an event loop. A client may be used from several (`asyncio.run` three times, two loops in two
threads), so each loop gets a pool of its own, which goes when the client is closed, when it is dropped, or when the
loop ends, whichever is first.
"""

from __future__ import annotations

import logging
import math
import os
import re
import ssl
import sys
import time
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime
from functools import lru_cache, partial
from types import AsyncGeneratorType
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import anyio
import anyio.lowlevel
import httpx

from agentphone import _wire
from agentphone._config import USER_AGENT, Config, Secret, is_loopback
from agentphone._retry import RETRIED_STATUSES, RetryBudget, RetryPolicy, parse_date
from agentphone.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    Attempt,
    ClientClosedError,
    ConfigurationError,
    DeadlineExceededError,
    NotFoundError,
    ResponseDecodeError,
)

T = TypeVar("T")
H = TypeVar("H")

logger = logging.getLogger("agentphone")
logger.addHandler(logging.NullHandler())  # or Python prints warnings of programs that have set up no logging

KEEPALIVE_SECONDS = 30.0
"""How long an idle connection is kept. A server that closes it earlier does no harm: who sends looks first."""


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
        self._secret = config.api_key
        self._date: str | None = None
        """When the latest answer was made, as its `Date` header says."""
        # httpx.Headers and not a dict: its repr hides the key, also where a traceback prints the locals.
        self._headers = httpx.Headers(
            {
                "Authorization": f"Bearer {config.api_key.value}",
                "Accept": "application/json",
                "Accept-Encoding": _wire.ACCEPTED_ENCODINGS,
                "User-Agent": USER_AGENT,
            }
        )

    def __reduce__(self) -> str:
        raise TypeError(NO_COPY)  # whatever is made from a client holds this

    async def send(self, call: _wire.Call[T]) -> T:
        """Send a call, trying again where that makes sense, and give its answer.

        Raises:
            ClientClosedError: The connections were closed, before the call or in the middle of it.
            APIConnectionError: No whole answer came. So do its kinds for `timeout` and `deadline`.
            APIStatusError: The API said no.
            ResponseDecodeError: The answer is not what the API promises.
        """
        pool = await self._connections.pool()
        began = anyio.current_time()
        give_up_at = math.inf if self._config.deadline is None else began + self._config.deadline
        attempts: tuple[Attempt, ...] = ()
        with anyio.CancelScope(deadline=give_up_at) as scope, pool.under_way(scope):
            while True:
                try:
                    answer = await self._attempt(call, pool, len(attempts) + 1)
                except _HookError as raised:
                    raise raised.error from raised.error.__cause__
                except (APIConnectionError, APIStatusError, ResponseDecodeError) as error:
                    if self._connections.is_closed:
                        break
                    pause = self._policy.pause(error, len(attempts) + 1)
                    now = anyio.current_time()
                    if pause is not None and not (
                        now + pause < give_up_at and self._connections.retry_budget.take(time.monotonic())
                    ):
                        pause = None
                    attempts += (Attempt(_outcome(error), now - began, pause or 0.0),)
                    error.attempts = attempts
                    if pause is None:
                        raise
                    self.report(error, pause)
                else:
                    self._connections.retry_budget.succeed()
                    return answer
                began = anyio.current_time() + pause
                await anyio.sleep(pause)
        if self._connections.is_closed:
            raise ClientClosedError(f"{call}: the client was closed before the answer came; it may have been sent.")
        late = DeadlineExceededError(f"no whole answer within {self._config.deadline:g} s", request=str(call))
        late.attempts = (*attempts, Attempt(_outcome(late), max(0.0, anyio.current_time() - began), 0.0))
        raise late

    def report(self, error: APIConnectionError | APIStatusError | ResponseDecodeError, pause: float) -> None:
        """Tell the log and the hook that a call failed and is tried again after `pause` seconds."""
        path = error.request.partition("?")[0]
        logger.warning("%s: %s; trying again in %.2f s", path, _outcome(error), pause)
        if self._config.on_retry is not None:
            self._config.on_retry(error, pause)

    def clock(self) -> float:
        """Give the time in seconds, of one clock for all event loops: trio begins each of its own anywhere."""
        return anyio.current_time() + _clock_offset()

    def server_time(self) -> datetime | None:
        """Give what the server's own clock said in the latest answer; None where it did not say."""
        seconds = parse_date(self._date or "")
        try:
            return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
        except (ValueError, OverflowError, OSError):
            return None

    async def sleep_until(self, when: float) -> None:
        """Rest until an instant of `clock`.

        Raises:
            ClientClosedError: The connections were closed, before or meanwhile.
        """
        pool = await self._connections.pool()
        with anyio.CancelScope() as scope, pool.under_way(scope):
            await anyio.sleep_until(when - _clock_offset())
        if self._connections.is_closed:
            raise ClientClosedError(_CLOSED)

    async def send_all(
        self, calls: Sequence[_wire.Call[T]], *, at_once: int | None = None, missing: T | None = None
    ) -> Sequence[T]:
        """Send calls at once and give their answers in order; the first that fails cancels the others.

        Args:
            calls: What to send.
            at_once: How many of them may be under way at a time; None for all.
            missing: What stands for the answer to a call whose subject is not there (404); None to fail.

        Raises:
            AgentPhoneError: As `send` does, for the first call that failed.
        """
        if len(calls) == 1:
            return [await self._send_or(calls[0], missing)]
        answers: dict[int, T] = {}
        failures: list[Exception] = []
        turns = anyio.Semaphore(at_once or len(calls), fast_acquire=True)

        async def send(index: int, call: _wire.Call[T]) -> None:
            try:
                async with turns:
                    answers[index] = await self._send_or(call, missing)
            except Exception as error:  # noqa: BLE001  # raised below, alone: a task group would wrap it in a group
                failures.append(error)
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for index, call in enumerate(calls):
                group.start_soon(send, index, call)
        if failures:
            raise failures[0]
        return [answers[index] for index in range(len(calls))]

    async def _send_or(self, call: _wire.Call[T], missing: T | None) -> T:
        try:
            return await self.send(call)
        except NotFoundError:
            if missing is None:
                raise
            return missing

    async def _attempt(self, call: _wire.Call[T], pool: _Pool, number: int) -> T:
        """Send a call once, on a connection of its own, within the time of one attempt."""
        async with pool.limiter:
            if self._connections.is_closed:  # while the call waited for its turn
                raise ClientClosedError(_CLOSED)
            began = anyio.current_time()
            line = await pool.take()
            try:
                with anyio.CancelScope(deadline=began + self._timeout):
                    answer = await self._exchange(call, line)
                    self._date = answer.headers.get("date")
                    _log(call, str(answer.status), number, began)
                    model = _wire.read(call, answer, now=time.time(), secret=self._secret)
                    pool.give_back(line)
                    return model
                raise APITimeoutError(f"no whole answer within {self._timeout:g} s", request=str(call))  # noqa: TRY301
            except APIStatusError:
                pool.give_back(line)
                raise
            except BaseException as error:
                if isinstance(error, APIConnectionError):
                    _log(call, _outcome(error), number, began)
                await pool.throw_away(line)  # also after an answer that cannot be read: its rest may be still to come
                raise

    async def _exchange(self, call: _wire.Call[Any], line: httpx.AsyncBaseTransport) -> _wire.Answer:
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
        _call_hook(config.on_request, request)
        with _typed(call, self._secret):
            response = await line.handle_async_request(request)
        response.request = request  # what httpx's client layer would do, and a hook relies on
        try:
            _call_hook(config.on_response, response)
            with _typed(call, self._secret):
                body = await self._read_body(response)
        finally:
            if not response.is_closed:
                # Shielded: a close that is cancelled half-way leaves the connection counted and never used again.
                with anyio.CancelScope(shield=True):
                    await response.aclose()
        return _wire.Answer(response.status_code, response.headers, body)

    async def _read_body(self, response: httpx.Response) -> _wire.Body:
        """Read and decompress the body, up to the size that the client allows."""
        if response.is_stream_consumed:  # a transport that does not stream has given it whole, and decompressed
            body = _wire.Body(None, self._config.max_response_bytes)
            chunks = _once(response.content)
        else:
            body = _wire.Body(response.headers.get("content-encoding"), self._config.max_response_bytes)
            chunks = response.aiter_raw()
        async for chunk in chunks:
            if not body.feed(chunk):
                # Cancelled and not left: trio warns of each generator of httpx's that is dropped half-way.
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    async for _ in chunks:
                        pass
                break
        return body


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


_offset: anyio.lowlevel.RunVar[float] = anyio.lowlevel.RunVar("agentphone clock offset")


def _clock_offset() -> float:
    """Say by how much the clock that all event loops have in common is ahead of the running loop's own."""
    try:
        return _offset.get()
    except LookupError:
        _offset.set(time.monotonic() - anyio.current_time())
        return _offset.get()


def _log(call: _wire.Call[Any], outcome: str, number: int, began: float) -> None:
    took = (anyio.current_time() - began) * 1000
    logger.debug("%s %s: %s, attempt %d, %.1f ms", call.method, call.path, outcome, number, took)


class _HookError(Exception):
    """Carries what a hook raised past all that would take it for the outcome of the call."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _call_hook(hook: Callable[[H], object] | None, argument: H) -> None:
    if hook is not None:
        try:
            hook(argument)
        except (APIConnectionError, APIStatusError, ResponseDecodeError) as error:
            raise _HookError(error) from None


@contextmanager
def _typed(call: _wire.Call[Any], secret: Secret) -> Iterator[None]:
    """Make one of our errors of whatever fails between here and the API.

    Not all of it is httpx's: under asyncio a TLS record that is none comes through httpcore as a bare `SSLError`.
    """
    handled = sys.exception()
    try:
        yield
    except (httpx.TimeoutException, TimeoutError) as error:
        raise APITimeoutError(_describe(error, handled, secret), request=str(call)) from error
    except (httpx.RequestError, OSError) as error:
        advice = _permanent_advice(error, handled)
        what = _describe(error, handled, secret)
        raise APIConnectionError(what, request=str(call), permanent_advice=advice) from error


def _chain(error: BaseException, handled: BaseException | None) -> Iterator[BaseException]:
    """Follow an error to what it was made of.

    Args:
        error: What failed.
        handled: The exception that the caller was handling when the call began. Python chains it to whatever is raised
            inside the call, but it is the caller's own.
    """
    seen: list[BaseException] = []
    reason: BaseException | None = error
    while reason is not None and reason is not handled and reason not in seen:
        yield reason
        seen.append(reason)
        reason = reason.__cause__ or reason.__context__


def _permanent_advice(error: Exception, handled: BaseException | None) -> str | None:
    """Say what to do about a failure that no further attempt can clear; None where one may."""
    # Through a proxy on trio, the certificate's error is deep below an error without a text.
    if any(isinstance(reason, ssl.SSLCertVerificationError) for reason in _chain(error, handled)):
        return APIConnectionError.advice_for_certificates
    # httpx tells a proxy's status in the text only; and as words what a SOCKS proxy says to a wrong password.
    status = re.match(r"4\d\d(?= )|Invalid username", str(error)) if isinstance(error, httpx.ProxyError) else None
    if status is None or (status[0].isdigit() and int(status[0]) in RETRIED_STATUSES):
        return None
    return APIConnectionError.advice_for_proxies


def _outcome(error: APIConnectionError | APIStatusError | ResponseDecodeError) -> str:
    """Name an outcome in one word: the status, or the failure underneath."""
    if isinstance(error, APIStatusError):
        return str(error.status_code)
    return type(error.__cause__ or error).__name__


def _describe(error: BaseException, handled: BaseException | None, secret: Secret) -> str:
    """Say what failed, drop its frames, and the key out of its texts, which may quote what the server said.

    httpx leaves many texts empty, and so do those under it; the first that says something may be the system's own. The
    frames of the libraries below hold the headers with the key as plain lists, which tools that print the locals of a
    traceback would show.

    Args:
        error: What failed.
        handled: The exception that the caller was handling when the call began; it is left alone.
        secret: The key.
    """
    text, name = "", type(error).__name__
    for reason in _chain(error, handled):
        reason.args = tuple(secret.redact(told) if isinstance(told, str) else told for told in reason.args)
        text = text or secret.redact(str(reason))
        reason.__traceback__ = None
    return f"{name}: {text.rstrip('.')}" if text else name


NO_COPY = (
    "A client cannot be copied or pickled, nor what was made from it. Tasks and threads can share one client;"
    " with_options() makes one with other settings on the same connections; each process makes its own."
)
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
            return _Pool(limiter, shared=_ThroughClient(self._http_client))
        if self._transport is not None:
            return _Pool(limiter, shared=self._transport)
        lines: set[httpx.AsyncBaseTransport] = set()
        guard = cast("AsyncGeneratorType[None, None]", _close_with_loop(lines))
        pool = _Pool(limiter, open_line=_opener(self._config), lines=lines, guard=guard)
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
        open_line: Callable[[], httpx.AsyncBaseTransport] | None = None,
        lines: set[httpx.AsyncBaseTransport] | None = None,
        guard: AsyncGeneratorType[None, None] | None = None,
    ) -> None:
        self.limiter = limiter
        """As many as there are connections: calls wait here and nowhere else."""
        self._shared = shared
        self._open_line = open_line
        self._lines = set() if lines is None else lines
        self._guard = guard
        self._idle: list[tuple[float, httpx.AsyncBaseTransport]] = []
        self._calls: set[anyio.CancelScope] = set()

    @property
    def is_closed(self) -> bool:
        return self._guard is not None and self._guard.ag_frame is None

    @contextmanager
    def under_way(self, scope: anyio.CancelScope) -> Iterator[None]:
        """Note a call for as long as it takes, to be cancelled when the client is closed."""
        self._calls.add(scope)
        try:
            yield
        finally:
            self._calls.discard(scope)

    async def take(self) -> httpx.AsyncBaseTransport:
        """Give a connection: the one that was used last, or a new one."""
        if self._shared is not None:
            return self._shared
        now = anyio.current_time()
        while self._idle and self._idle[0][0] < now - KEEPALIVE_SECONDS:
            await self.throw_away(self._idle.pop(0)[1])
        if self._idle:
            return self._idle.pop()[1]
        assert self._open_line is not None  # noqa: S101  # for mypy: there is always one of the two
        line = self._open_line()
        self._lines.add(line)
        return line

    def give_back(self, line: httpx.AsyncBaseTransport) -> None:
        """Take back a connection on which all went well."""
        if line is not self._shared:
            self._idle.append((anyio.current_time(), line))

    async def throw_away(self, line: httpx.AsyncBaseTransport) -> None:
        """Close a connection, in whatever state it is."""
        if line is not self._shared:
            try:
                with anyio.CancelScope(shield=True):
                    await line.aclose()
            finally:  # asyncio's own cancellation knows no shield; the socket is closed all the same
                self._lines.discard(line)

    async def aclose(self) -> None:
        for scope in tuple(self._calls):
            scope.cancel()
        if self._guard is not None:
            await self._guard.aclose()


class _ThroughClient(httpx.AsyncBaseTransport):
    """Sends through an `httpx.AsyncClient` of the user's, whose redirects and credentials have no say here."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._client.send(request, auth=None, follow_redirects=False, stream=True)


async def _close_with_loop(lines: set[httpx.AsyncBaseTransport]) -> AsyncGenerator[None, None]:
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
                while lines:
                    stack.push_async_callback(lines.pop().aclose)


@lru_cache(maxsize=4)
def _default_ssl_context(*_environment: str | None) -> ssl.SSLContext:
    """Make the SSL context, once for all clients: loading the authorities takes longer than all the rest."""
    context = httpx.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])  # once and here: a context of the caller's is not ours to change
    return context


def _opener(config: Config) -> Callable[[], httpx.AsyncBaseTransport]:
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
    from agentphone._connection import Direct, Indirect

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
