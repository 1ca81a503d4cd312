"""Send calls, retry them, and keep their deadlines. The only module that sleeps."""

from __future__ import annotations

import logging
import math
import re
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import httpx

from agentphone._config import USER_AGENT, Config
from agentphone._http.pool import CLOSED_MESSAGE, Connections, Pool
from agentphone._http.requests import RequestSpec
from agentphone._http.responses import ACCEPTED_ENCODINGS, Answer, BodyReader, read
from agentphone._http.retry import RETRIED_STATUSES, RetryPolicy, parse_date
from agentphone._secret import Secret
from agentphone.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    Attempt,
    ClientClosedError,
    DeadlineExceededError,
    NotFoundError,
    ResponseDecodeError,
)

T = TypeVar("T")


H = TypeVar("H")


logger = logging.getLogger("agentphone")
logger.addHandler(logging.NullHandler())  # or Python prints warnings of programs that have set up no logging


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
                "Accept-Encoding": ACCEPTED_ENCODINGS,
                "User-Agent": USER_AGENT,
            }
        )

    def __reduce__(self) -> str:
        raise TypeError(NO_COPY)  # whatever is made from a client holds this

    async def send(self, spec: RequestSpec[T]) -> T:
        """Send a call, trying again where that makes sense, and give its answer.

        Raises:
            ClientClosedError: The connections were closed, before the call or in the middle of it.
            APIConnectionError: No whole answer came. So do its kinds for `timeout` and `deadline`.
            APIStatusError: The API said no.
            ResponseDecodeError: The answer is not what the API promises.
        """
        pool = await self._connections.pool()
        started_at = anyio.current_time()
        deadline_at = math.inf if self._config.deadline is None else started_at + self._config.deadline
        attempts: tuple[Attempt, ...] = ()
        with anyio.CancelScope(deadline=deadline_at) as scope, pool.track_call(scope):
            while True:
                try:
                    answer = await self._attempt(spec, pool, len(attempts) + 1)
                except _HookError as raised:
                    raise raised.error from raised.error.__cause__
                except (APIConnectionError, APIStatusError, ResponseDecodeError) as error:
                    if self._connections.is_closed:
                        break
                    delay = self._policy.delay(error, len(attempts) + 1)
                    now = anyio.current_time()
                    if delay is not None and not (
                        now + delay < deadline_at and self._connections.retry_budget.try_acquire(time.monotonic())
                    ):
                        delay = None
                    attempts += (Attempt(_outcome(error), now - started_at, delay or 0.0),)
                    error.attempts = attempts
                    if delay is None:
                        raise
                    self.notify_retry(error, delay)
                else:
                    self._connections.retry_budget.record_success()
                    return answer
                started_at = anyio.current_time() + delay
                await anyio.sleep(delay)
        if self._connections.is_closed:
            raise ClientClosedError(f"{spec}: the client was closed before the answer came; it may have been sent.")
        late = DeadlineExceededError(f"no whole answer within {self._config.deadline:g} s", request=str(spec))
        late.attempts = (*attempts, Attempt(_outcome(late), max(0.0, anyio.current_time() - started_at), 0.0))
        raise late

    def notify_retry(self, error: APIConnectionError | APIStatusError | ResponseDecodeError, delay: float) -> None:
        """Tell the log and the hook that a call failed and is tried again after `pause` seconds."""
        path = error.request.partition("?")[0]
        logger.warning("%s: %s; trying again in %.2f s", path, _outcome(error), delay)
        if self._config.on_retry is not None:
            self._config.on_retry(error, delay)

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
        """Send calls at once and give their answers in order; the first that fails cancels the others.

        Args:
            calls: What to send.
            at_once: How many of them may be under way at a time; None for all.
            missing: What stands for the answer to a call whose subject is not there (404); None to fail.

        Raises:
            AgentPhoneError: As `send` does, for the first call that failed.
        """
        if len(specs) == 1:
            return [await self._send_or(specs[0], default_on_not_found)]
        answers: dict[int, T] = {}
        failures: list[Exception] = []
        turns = anyio.Semaphore(max_concurrency or len(specs), fast_acquire=True)

        async def send(index: int, spec: RequestSpec[T]) -> None:
            try:
                async with turns:
                    answers[index] = await self._send_or(spec, default_on_not_found)
            except Exception as error:  # noqa: BLE001  # raised below, alone: a task group would wrap it in a group
                failures.append(error)
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for index, spec in enumerate(specs):
                group.start_soon(send, index, spec)
        if failures:
            raise failures[0]
        return [answers[index] for index in range(len(specs))]

    async def _send_or(self, spec: RequestSpec[T], default_on_not_found: T | None) -> T:
        try:
            return await self.send(spec)
        except NotFoundError:
            if default_on_not_found is None:
                raise
            return default_on_not_found

    async def _attempt(self, spec: RequestSpec[T], pool: Pool, number: int) -> T:
        """Send a call once, on a connection of its own, within the time of one attempt."""
        async with pool.limiter:
            if self._connections.is_closed:  # while the call waited for its turn
                raise ClientClosedError(CLOSED_MESSAGE)
            started_at = anyio.current_time()
            connection = await pool.acquire()
            try:
                with anyio.CancelScope(deadline=started_at + self._timeout):
                    answer = await self._send_once(spec, connection)
                    self._date = answer.headers.get("date")
                    _log(spec, str(answer.status), number, started_at)
                    model = read(spec, answer, now=time.time(), secret=self._secret)
                    pool.release(connection)
                    return model
                raise APITimeoutError(f"no whole answer within {self._timeout:g} s", request=str(spec))  # noqa: TRY301
            except APIStatusError:
                pool.release(connection)
                raise
            except BaseException as error:
                if isinstance(error, APIConnectionError):
                    _log(spec, _outcome(error), number, started_at)
                await pool.discard(
                    connection
                )  # also after an answer that cannot be read: its rest may be still to come
                raise

    async def _send_once(self, spec: RequestSpec[Any], connection: httpx.AsyncBaseTransport) -> Answer:
        """Send one request and read its answer; whatever fails on the way becomes one of our errors."""
        config = self._config
        request = httpx.Request(
            spec.method,
            config.base_url + spec.target,
            headers=self._headers,
            content=spec.body,
            extensions=self._extensions,
        )
        if spec.body is not None:
            request.headers["Content-Type"] = "application/json"
        _call_hook(config.on_request, request)
        with _map_exceptions(spec, self._secret):
            response = await connection.handle_async_request(request)
        response.request = request  # what httpx's client layer would do, and a hook relies on
        try:
            _call_hook(config.on_response, response)
            with _map_exceptions(spec, self._secret):
                body = await self._read_body(response)
        finally:
            if not response.is_closed:
                # Shielded: a close that is cancelled half-way leaves the connection counted and never used again.
                with anyio.CancelScope(shield=True):
                    await response.aclose()
        return Answer(response.status_code, response.headers, body)

    async def _read_body(self, response: httpx.Response) -> BodyReader:
        """Read and decompress the body, up to the size that the client allows."""
        if response.is_stream_consumed:  # a transport that does not stream has given it whole, and decompressed
            body = BodyReader(None, self._config.max_response_bytes)
            chunks = _once(response.content)
        else:
            body = BodyReader(response.headers.get("content-encoding"), self._config.max_response_bytes)
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


def _log(spec: RequestSpec[Any], outcome: str, number: int, started_at: float) -> None:
    took = (anyio.current_time() - started_at) * 1000
    logger.debug("%s %s: %s, attempt %d, %.1f ms", spec.method, spec.path, outcome, number, took)


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
def _map_exceptions(spec: RequestSpec[Any], secret: Secret) -> Iterator[None]:
    """Make one of our errors of whatever fails between here and the API.

    Not all of it is httpx's: under asyncio a TLS record that is none comes through httpcore as a bare `SSLError`.
    """
    handled = sys.exception()
    try:
        yield
    except (httpx.TimeoutException, TimeoutError) as error:
        raise APITimeoutError(_describe(error, handled, secret), request=str(spec)) from error
    except (httpx.RequestError, OSError) as error:
        advice = _permanent_advice(error, handled)
        what = _describe(error, handled, secret)
        raise APIConnectionError(what, request=str(spec), permanent_advice=advice) from error


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
