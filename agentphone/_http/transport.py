"""Send requests, retry them, and enforce their deadlines. The only module of the client that sleeps."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import httpx

from agentphone._config import USER_AGENT, Config
from agentphone._http.exceptions import CALL_ERRORS, NETWORK_ERRORS, CallError, map_exception, outcome_of
from agentphone._http.pool import CLOSED_MESSAGE, KEEPALIVE_SECONDS, MAX_IDLE_FOR_SENDS, Connections, Pool
from agentphone._http.requests import PROGRESS, Progress, RequestSpec
from agentphone._http.responses import ACCEPTED_ENCODINGS, BodyReader, RawResponse, parse_response
from agentphone._http.retry import Repeat, RetryPolicy, is_rejected, is_unconfirmed, parse_http_date
from agentphone._logging import logger
from agentphone.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    Attempt,
    ClientClosedError,
    DeadlineExceededError,
    NotFoundError,
    ResponseDecodeError,
    SendUnconfirmedError,
)

T = TypeVar("T")
H = TypeVar("H")

NO_COPY = (
    "A client cannot be copied or pickled, nor what was made from it. Tasks and threads can share one client;"
    " with_options() makes one with other settings on the same connections; each process makes its own."
)


class Transport:
    """Sends requests with one client's settings, over connections that it may share with other clients."""

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
        """The `Date` header of the latest response."""
        self._base_url = httpx.URL(config.base_url)
        self._base_path = self._base_url.raw_path.decode("ascii").rstrip("/")
        # httpx.Headers and not a dict: its repr hides the key, also where a traceback prints the locals.
        self._headers = httpx.Headers(
            {
                "Host": self._base_url.netloc.decode("ascii"),
                "Authorization": f"Bearer {config.api_key.value}",
                "Accept": "application/json",
                "Accept-Encoding": ACCEPTED_ENCODINGS,
                "User-Agent": USER_AGENT,
            }
        )

    def __reduce__(self) -> str:
        raise TypeError(NO_COPY)  # everything made from a client refers to this

    @property
    def sent_ids(self) -> deque[str]:
        """The ids of the latest messages that were sent over these connections."""
        return self._connections.sent_ids

    def deadline_at(self) -> float:
        """Return when a call that begins now must end, in the event loop's time."""
        return math.inf if self._config.deadline is None else anyio.current_time() + self._config.deadline

    async def send(self, spec: RequestSpec[T], *, deadline_at: float | None = None) -> T:
        """Send a request, retry it as the policy says, and return the decoded response.

        Args:
            spec: The request.
            deadline_at: The result of `deadline_at()` when a call of several requests began; None for a call of one.

        Raises:
            ClientClosedError: The connections were closed, before or during the call.
            APIConnectionError: No complete response arrived; its subclasses are for `timeout` and `deadline`.
            APIStatusError: The API returned an error status.
            ResponseDecodeError: The response is not what the API promises.
            SendUnconfirmedError: Instead of the errors above, for a request that must not be repeated and may have been
                carried out. The error above is its cause.
        """
        pool = await self._connections.pool()
        began_at = time.monotonic()
        started_at = anyio.current_time()
        deadline_at = self.deadline_at() if deadline_at is None else deadline_at
        attempts: tuple[Attempt, ...] = ()
        delay: float | None = None
        while True:
            progress = Progress()
            failure: CallError | None = None
            with anyio.CancelScope(deadline=deadline_at) as scope, pool.track_call(scope):
                if delay is not None:
                    await anyio.sleep(delay)
                try:
                    result = await self._attempt(spec, pool, scope, len(attempts) + 1, progress)
                except _HookError as wrapper:
                    raise wrapper.error from wrapper.error.__cause__
                except CALL_ERRORS as raised:
                    failure = raised
                else:
                    self._connections.retry_budget.record_success()
                    return result
            now = anyio.current_time()
            is_closed = self._connections.is_closed
            error: CallError | ClientClosedError
            if failure is None:  # the scope was cancelled
                error = self._interruption(spec, progress, is_deadline=scope.deadline == deadline_at)
            elif is_closed and not (spec.repeat is Repeat.IF_NOT_ACCEPTED and is_rejected(failure)):
                error = self._interruption(spec, progress, is_deadline=False)
            else:  # also where the client is closed: a rejected message was not sent, whatever happened since
                error = failure
            if isinstance(error, APIConnectionError):
                error.is_unsent = error.is_unsent or not progress.is_sent
                _log(spec, outcome_of(error), len(attempts) + 1, started_at)
            delay = None if is_closed else self._policy.delay(error, len(attempts) + 1, spec.repeat)
            if delay is not None and not (
                now + delay < deadline_at and self._connections.retry_budget.try_acquire(time.monotonic())
            ):
                delay = None
            attempts += (Attempt(outcome_of(error), max(0.0, now - started_at), delay or 0.0),)
            if not isinstance(error, ClientClosedError):
                error.attempts = attempts
                if delay is not None:
                    self.notify_retry(error, delay)
                    started_at = now + delay
                    continue
            try:
                if spec.repeat is Repeat.IF_NOT_ACCEPTED and progress.is_sent and is_unconfirmed(error):
                    raise self._unconfirmed(spec, error, attempts, began_at) from error
                raise error
            finally:
                del error, failure  # their tracebacks refer to this frame

    def _interruption(
        self, spec: RequestSpec[Any], progress: Progress, *, is_deadline: bool
    ) -> ClientClosedError | APITimeoutError:
        """Return the error of an attempt that was interrupted: the client was closed, or a time limit passed."""
        if self._connections.is_closed:
            fate = "it may have been sent" if progress.is_sent else "nothing was sent"
            return ClientClosedError(f"{spec}: the client was closed before the response; {fate}.")
        if is_deadline:
            return DeadlineExceededError(f"no complete response within {self._config.deadline:g} s", request=str(spec))
        return APITimeoutError(f"no complete response within {self._timeout:g} s", request=str(spec))

    def _unconfirmed(
        self,
        spec: RequestSpec[Any],
        error: CallError | ClientClosedError,
        attempts: tuple[Attempt, ...],
        began_at: float,
    ) -> SendUnconfirmedError:
        """Return the error of a request that must not be repeated and may have been carried out."""
        is_closed = isinstance(error, ClientClosedError)
        reason = "the client was closed before the response" if is_closed else str(error.args[0]).rstrip(".")
        status = error.status_code if isinstance(error, APIStatusError | ResponseDecodeError) else None
        if status is not None:
            reason = f"{status} {reason}"
        logger.warning("%s %s: %s; it may have been sent", spec.method, spec.path, outcome_of(error))
        return SendUnconfirmedError(
            reason, request=str(spec), since=self.server_time_at(began_at), status_code=status, attempts=attempts
        )

    def notify_retry(self, error: CallError, delay: float) -> None:
        """Report through the log and `on_retry` that a request failed and is retried after `delay` seconds."""
        path = error.request.partition("?")[0]
        logger.warning("%s: %s; trying again in %.2f s", path, outcome_of(error), delay)
        if self._config.on_retry is not None:
            self._config.on_retry(error, delay)

    def clock(self) -> float:
        """Return the time in seconds, of one clock for all event loops: each trio loop starts its own anywhere."""
        return anyio.current_time() + _clock_offset()

    def server_time(self) -> datetime | None:
        """Return the time in the `Date` header of the latest response; None without a valid one."""
        return _to_datetime(self._date)

    def server_time_at(self, when: float) -> datetime:
        """Return the server's time at a moment of `time.monotonic()`; by the local clock while it is not known.

        It is never late, but up to a second and the duration of a request early: the `Date` header has no fractions.
        """
        header, received_at = self._connections.latest_date
        date = _to_datetime(header)
        if date is None:
            date, received_at = datetime.now(UTC), time.monotonic()
        try:
            return date - timedelta(seconds=received_at - when)
        except OverflowError:  # a server in the year 1
            return date

    async def sleep_until(self, when: float) -> None:
        """Wait until a time of `clock`.

        Raises:
            ClientClosedError: The connections were closed, before or meanwhile.
        """
        pool = await self._connections.pool()
        with anyio.CancelScope() as scope, pool.track_call(scope):
            await anyio.sleep_until(when - _clock_offset())
        if self._connections.is_closed:
            raise ClientClosedError(CLOSED_MESSAGE)

    async def send_all(
        self,
        specs: Sequence[RequestSpec[T]],
        *,
        max_concurrency: int | None = None,
        default_on_not_found: T | None = None,
    ) -> Sequence[T]:
        """Send requests concurrently and return the results in order; the first failure cancels the others.

        Args:
            specs: The requests.
            max_concurrency: How many may be in flight at once; None for all.
            default_on_not_found: The result for a request that gets a 404; None to raise `NotFoundError`.

        Raises:
            AgentPhoneError: As from `send`, for the first request that failed.
        """
        if len(specs) == 1:
            return [await self._send_or_default(specs[0], default_on_not_found)]
        results: dict[int, T] = {}
        failures: list[Exception] = []
        slots = anyio.Semaphore(max_concurrency or len(specs), fast_acquire=True)

        async def send(index: int, spec: RequestSpec[T]) -> None:
            try:
                async with slots:
                    results[index] = await self._send_or_default(spec, default_on_not_found)
            except Exception as error:  # noqa: BLE001  # raised below: a task group would wrap it in a group
                failures.append(error)
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for index, spec in enumerate(specs):
                group.start_soon(send, index, spec)
        if failures:
            raise failures[0]
        return [results[index] for index in range(len(specs))]

    async def _send_or_default(self, spec: RequestSpec[T], default_on_not_found: T | None) -> T:
        try:
            return await self.send(spec)
        except NotFoundError:
            if default_on_not_found is None:
                raise
            return default_on_not_found

    async def _attempt(
        self, spec: RequestSpec[T], pool: Pool, scope: anyio.CancelScope, number: int, progress: Progress
    ) -> T:
        """Send a request once, on a connection that nothing else uses.

        Args:
            spec: The request.
            pool: The connections.
            scope: The scope around it, with the deadline of the call. Once there is a connection, the time of one
                attempt limits it as well.
            number: The number of the attempt, from 1; for the log.
            progress: How far it got.
        """
        async with pool.limiter:
            if self._connections.is_closed:  # while this waited for a slot
                raise ClientClosedError(CLOSED_MESSAGE)
            started_at = anyio.current_time()
            connection = await pool.acquire(KEEPALIVE_SECONDS if spec.repeat is Repeat.ALWAYS else MAX_IDLE_FOR_SENDS)
            scope.deadline = min(scope.deadline, started_at + self._timeout)
            try:
                response = await self._send_once(spec, connection, progress)
                self._date = response.headers.get("date")
                if self._date is not None:  # the error pages of some proxies have none
                    self._connections.latest_date = self._date, time.monotonic()
                _log(spec, str(response.status), number, started_at)
                result = parse_response(spec, response, now=time.time(), secret=self._secret)
            except APIStatusError:
                pool.release(connection)
                raise
            except BaseException:
                # Also after an unreadable response: the rest of it may still arrive.
                await pool.discard(connection)
                raise
            pool.release(connection)
            return result

    async def _send_once(
        self, spec: RequestSpec[Any], connection: httpx.AsyncBaseTransport, progress: Progress
    ) -> RawResponse:
        """Send one request and read its response; raise an SDK error for any failure on the way."""
        config = self._config
        request = self._build_request(spec, progress)
        _call_hook(config.on_request, request)
        if spec.repeat is Repeat.IF_NOT_ACCEPTED and anyio.current_effective_deadline() <= anyio.current_time():
            await anyio.sleep_forever()  # until the cancellation that is due: nothing is written yet
        progress.is_sent = True  # a connection that is not ours does not say when
        handled = sys.exception()
        try:
            response = await connection.handle_async_request(request)
        except NETWORK_ERRORS as error:
            raise map_exception(error, str(spec), self._secret, handled, sending=request) from error
        response.request = request  # httpx's client layer would do this, and hooks rely on it
        try:
            _call_hook(config.on_response, response)
            try:
                body = await self._read_body(response)
            except NETWORK_ERRORS as error:
                raise map_exception(error, str(spec), self._secret, handled) from error
        finally:
            if not response.is_closed:
                # Shielded: a close that is cancelled halfway leaves the connection counted but never used again.
                with anyio.CancelScope(shield=True):
                    await response.aclose()
        return RawResponse(response.status_code, response.headers, body)

    def _build_request(self, spec: RequestSpec[Any], progress: Progress) -> httpx.Request:
        """Return the request. Given a stream, httpx adds no headers: the client has prepared them."""
        body = spec.body or b""
        request = httpx.Request(
            spec.method,
            self._url(spec.target),
            headers=self._headers,
            stream=httpx.ByteStream(body),
            extensions={**self._extensions, PROGRESS: progress},
        )
        request.read()  # hooks and mocks may look at its content
        if spec.method != "GET":
            request.headers["Content-Length"] = str(len(body))
        if body:
            request.headers["Content-Type"] = "application/json"
        return request

    def _url(self, target: str) -> httpx.URL:
        """Return the URL of a target.

        Nothing has to be parsed: the client has parsed the base URL, and targets are percent-encoded. Parsing each URL
        takes a tenth of a call. The attribute is private in httpx; tests fail with a version that does not use it.
        """
        path, _, query = target.partition("?")
        url = httpx.URL(self._base_url)
        parts = url._uri_reference  # noqa: SLF001
        url._uri_reference = parts._replace(path=self._base_path + path, query=query or None)  # noqa: SLF001
        return url

    async def _read_body(self, response: httpx.Response) -> BodyReader:
        """Read and decompress the body, up to the size that the client allows."""
        if response.is_stream_consumed:  # a transport that does not stream has the whole body, decompressed
            body = BodyReader(None, self._config.max_response_bytes)
            chunks = _single_chunk(response.content)
        else:
            body = BodyReader(response.headers.get("content-encoding"), self._config.max_response_bytes)
            chunks = response.aiter_raw()
        async for chunk in chunks:
            if not body.feed(chunk):
                # Cancelled instead of dropped: trio warns of each of httpx's generators that is dropped before its end.
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    async for _ in chunks:
                        pass
                break
        return body


async def _single_chunk(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _to_datetime(header: str | None) -> datetime | None:
    """Return the time in a `Date` header; None if there is none, or it is not valid."""
    seconds = parse_http_date(header or "")
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


_offset: anyio.lowlevel.RunVar[float] = anyio.lowlevel.RunVar("agentphone clock offset")


def _clock_offset() -> float:
    """Return the offset between `time.monotonic()` and this event loop's clock."""
    try:
        return _offset.get()
    except LookupError:
        _offset.set(time.monotonic() - anyio.current_time())
        return _offset.get()


def _log(spec: RequestSpec[Any], outcome: str, number: int, started_at: float) -> None:
    if logger.isEnabledFor(logging.DEBUG):
        elapsed = (anyio.current_time() - started_at) * 1000
        logger.debug("%s %s: %s, attempt %d, %.1f ms", spec.method, spec.path, outcome, number, elapsed)


class _HookError(Exception):
    """Wraps an exception raised by a user's hook, so it is not mistaken for the call's own failure."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _call_hook(hook: Callable[[H], object] | None, argument: H) -> None:
    if hook is not None:
        try:
            hook(argument)
        except CALL_ERRORS as error:
            raise _HookError(error) from None
