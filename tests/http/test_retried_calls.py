"""Retries through the client: delays, deadlines, hooks and the log, on clocks that jump over every wait."""

from __future__ import annotations

import logging
import math
import pickle
import socket
import ssl
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import httpx
import pytest

from agentphone import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncClient,
    ConflictError,
    DeadlineExceededError,
    NotFoundError,
    RateLimitError,
    ResponseDecodeError,
    ServerError,
)
from tests.support.clocks import jumping
from tests.support.helpers import KEY, client_of, conversation, ok

pytestmark = pytest.mark.anyio

NOW = 1_751_284_800.0  # 2025-06-30T12:00:00Z
HTTP_DATE = "Mon, 30 Jun 2025 12:00:{:02d} GMT"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return jumping(request.param)


# ---- Attempts and delays


def response(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize("failure", [response(503), httpx.ConnectError("refused"), httpx.ReadTimeout("")])
async def test_third_attempt_succeeds_after_two_failures(failure: Any) -> None:
    client, script = client_of(failure, failure, ok())
    started_at = anyio.current_time()
    assert len(await client.conversations.list()) == 1
    assert len(script.requests) == 3
    assert len({(request.method, request.url) for request in script.requests}) == 1
    first, second, third = (at - started_at for at in script.sent_at)
    assert first == 0
    assert second <= 0.5
    assert third - second <= 1.0


async def test_update_is_retried_with_the_same_body() -> None:
    client, script = client_of(response(502), httpx.ReadError(""), ok(conversation()))
    await client.conversations.update("conv_1", metadata={"a": 1})
    assert [(request.method, request.content) for request in script.requests] == [
        ("PATCH", b'{"metadata":{"a":1}}')
    ] * 3


@pytest.mark.parametrize(("status", "cls"), [(404, NotFoundError), (409, ConflictError), (501, ServerError)])
async def test_permanent_status_is_not_retried(status: int, cls: type[APIStatusError]) -> None:
    client, script = client_of(response(status), ok())
    with pytest.raises(cls) as caught:
        await client.conversations.list()
    assert len(script.requests) == 1
    assert [(attempt.outcome, attempt.delay) for attempt in caught.value.attempts] == [(str(status), 0.0)]


async def test_unreadable_response_is_not_retried() -> None:
    client, script = client_of(response(503), httpx.Response(200, content=b"{"), ok())
    with pytest.raises(ResponseDecodeError) as caught:
        await client.conversations.list()
    assert len(script.requests) == 2
    assert [attempt.outcome for attempt in caught.value.attempts] == ["503", "ResponseDecodeError"]


@pytest.mark.parametrize("max_retries", [0, 1, 5])
async def test_max_retries_is_the_number_of_retries(max_retries: int) -> None:
    client, script = client_of(response(503), max_retries=max_retries)
    with pytest.raises(ServerError) as caught:
        await client.conversations.list()
    assert len(script.requests) == max_retries + 1
    attempts = caught.value.attempts
    assert [attempt.outcome for attempt in attempts] == ["503"] * (max_retries + 1)
    waited = [after - before for before, after in zip(script.sent_at, script.sent_at[1:], strict=False)]
    assert [attempt.delay for attempt in attempts] == pytest.approx([*waited, 0.0])


async def test_attempts_have_outcome_and_elapsed_time() -> None:
    async def slowly(_: httpx.Request) -> httpx.Response:
        await anyio.sleep(2)
        return response(500)

    client, _ = client_of(slowly, httpx.ConnectError("x"), response(429), max_retries=2)
    with pytest.raises(RateLimitError) as caught:
        await client.conversations.list()
    assert [attempt.outcome for attempt in caught.value.attempts] == ["500", "ConnectError", "429"]
    assert [attempt.elapsed for attempt in caught.value.attempts] == pytest.approx([2, 0, 0])


@pytest.mark.parametrize("retry_after", ["7", format_datetime(datetime.fromtimestamp(NOW + 7, UTC), usegmt=True)])
async def test_retry_after_is_respected(retry_after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentphone._http.transport.time.time", lambda: NOW)
    client, script = client_of(response(429, retry_after=retry_after), ok())
    await client.conversations.list()
    assert 7 <= script.sent_at[1] - script.sent_at[0] <= 7.5


async def test_local_clock_ahead_makes_no_retry_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentphone._http.transport.time.time", lambda: NOW + 3600)
    client, script = client_of(response(503, retry_after=HTTP_DATE.format(20), date=HTTP_DATE.format(0)), ok())
    await client.conversations.list()
    assert 20 <= script.sent_at[1] - script.sent_at[0] <= 20.5


@pytest.mark.parametrize("retry_after", ["61", "inf", "Fri, 31 Dec 99999 23:59:59 GMT"])
async def test_retry_after_above_max_retry_after_raises_immediately(retry_after: str) -> None:
    client, script = client_of(response(429, retry_after=retry_after), ok())
    started_at = anyio.current_time()
    with pytest.raises(RateLimitError) as caught:
        await client.conversations.list()
    assert anyio.current_time() == started_at
    assert len(script.requests) == 1
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 60


async def test_max_retry_after_is_configurable() -> None:
    client, script = client_of(response(503, retry_after="300"), ok(), max_retry_after=300)
    await client.conversations.list()
    assert 300 <= script.sent_at[1] - script.sent_at[0] <= 300.5
    client, script = client_of(response(503, retry_after="1"), ok(), max_retry_after=0)
    with pytest.raises(ServerError):
        await client.conversations.list()


@pytest.mark.parametrize("retry_after", ["nan", "-5", "later", ""])
async def test_invalid_retry_after_is_ignored(retry_after: str) -> None:
    client, script = client_of(response(503, retry_after=retry_after), response(503, retry_after=retry_after))
    client = client.with_options(max_retries=1)
    with pytest.raises(ServerError) as caught:
        await client.conversations.list()
    assert caught.value.retry_after is None
    assert script.sent_at[1] - script.sent_at[0] <= 0.5


async def silence(_: httpx.Request) -> httpx.Response:
    await anyio.sleep_forever()
    raise AssertionError


async def test_silence_beyond_timeout_is_a_timeout_error() -> None:
    client, script = client_of(silence, timeout=10, max_retries=2)
    with pytest.raises(APITimeoutError, match="10 s") as caught:
        await client.conversations.list()
    assert type(caught.value) is APITimeoutError
    assert len(script.requests) == 3
    assert [attempt.outcome for attempt in caught.value.attempts] == ["APITimeoutError"] * 3
    assert [attempt.elapsed for attempt in caught.value.attempts] == pytest.approx([10] * 3)


async def test_slow_body_does_not_extend_the_timeout() -> None:
    async def trickle(_: httpx.Request) -> httpx.Response:
        async def drops() -> Any:
            while True:
                await anyio.sleep(1)
                yield b" "

        return httpx.Response(200, content=drops())

    client, _ = client_of(trickle, timeout=10, max_retries=0)
    started_at = anyio.current_time()
    with pytest.raises(APITimeoutError):
        await client.conversations.list()
    assert anyio.current_time() - started_at == pytest.approx(10)


@pytest.mark.parametrize("seconds", [None, 100.0, math.inf])
async def test_silence_beyond_deadline_is_a_deadline_error(seconds: float | None) -> None:
    client, script = client_of(silence, timeout=seconds, deadline=25)
    started_at = anyio.current_time()
    with pytest.raises(DeadlineExceededError, match="25 s") as caught:
        await client.conversations.list()
    assert anyio.current_time() - started_at == pytest.approx(25)
    assert len(script.requests) == 1
    assert [attempt.outcome for attempt in caught.value.attempts] == ["DeadlineExceededError"]


async def test_deadline_includes_all_attempts_and_delays() -> None:
    client, script = client_of(silence, timeout=10, deadline=25, max_retries=9)
    started_at = anyio.current_time()
    with pytest.raises(DeadlineExceededError) as caught:
        await client.conversations.list()
    assert anyio.current_time() - started_at == pytest.approx(25)
    assert len(script.requests) == 3
    assert [attempt.outcome for attempt in caught.value.attempts] == ["APITimeoutError"] * 2 + ["DeadlineExceededError"]
    spent = sum(attempt.elapsed + attempt.delay for attempt in caught.value.attempts)
    assert spent == pytest.approx(25)


async def test_delay_beyond_the_deadline_raises_immediately() -> None:
    client, script = client_of(response(503, retry_after="30"), ok(), deadline=30)
    started_at = anyio.current_time()
    with pytest.raises(ServerError) as caught:
        await client.conversations.list()
    assert anyio.current_time() == started_at
    assert caught.value.retry_after == 30
    assert caught.value.attempts[-1].delay == 0.0
    assert len(script.requests) == 1


async def test_wait_for_a_connection_counts_only_for_the_deadline() -> None:
    async def slowly(_: httpx.Request) -> httpx.Response:
        await anyio.sleep(8)
        return ok()

    client, script = client_of(slowly, max_connections=1, timeout=10, max_retries=0)
    async with anyio.create_task_group() as tasks:
        for _ in range(4):  # the last waits 24 s for a connection
            tasks.start_soon(client.conversations.list().page)
    assert len(script.requests) == 4

    client, script = client_of(slowly, max_connections=1, deadline=20, max_retries=0)
    late: list[DeadlineExceededError] = []

    async def call() -> None:
        try:
            await client.conversations.list()
        except DeadlineExceededError as error:
            late.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(call)
    assert len(late) == 2  # the third during its attempt, the fourth while waiting


async def test_cancelled_call_frees_its_connection() -> None:
    client, script = client_of(silence, ok(), max_connections=1)
    with anyio.move_on_after(3) as scope:
        await client.conversations.list()
    assert scope.cancelled_caught
    assert len(await client.conversations.list()) == 1
    assert len(script.requests) == 2


async def test_callers_time_limit_raises_timeout_error() -> None:
    client, _ = client_of(silence, timeout=10, deadline=20)
    with pytest.raises(TimeoutError), anyio.fail_after(5):
        await client.conversations.list()


# ---- The budget


async def test_retries_are_limited_while_the_api_is_down() -> None:
    client, script = client_of(response(503))
    failed: list[tuple[str, ...]] = []

    async def call() -> None:
        try:
            await client.conversations.list()
        except ServerError as error:
            failed.append(tuple(attempt.outcome for attempt in error.attempts))

    async def calls(number: int) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(number):
                tasks.start_soon(call)

    await calls(1000)
    assert len(failed) == 1000
    assert len(script.requests) < 1.3 * 1000
    assert all(set(outcomes) == {"503"} for outcomes in failed)

    script.steps = [ok()]
    await calls(20)
    assert len(failed) == 1000
    sent = len(script.requests)
    script.steps = [response(503), ok()]
    await calls(1)
    assert (len(failed), len(script.requests)) == (1000, sent + 2)


async def test_derived_clients_share_the_retry_budget() -> None:
    client, script = client_of(response(503), max_retries=60)
    for each in (client, client.with_options(timeout=9)):
        with pytest.raises(ServerError):
            await each.conversations.list()
    assert 2 + 100 <= len(script.requests) <= 2 + 102


# ---- Hooks and log


async def test_hooks_see_every_request_response_and_retry() -> None:
    events: list[Any] = []

    def on_request(request: httpx.Request) -> None:
        request.headers["X-Trace"] = "t1"
        events.append(f"{request.method} {request.url.path}")

    def on_response(response: httpx.Response) -> None:
        events.append(response.status_code)

    def on_retry(error: Exception, delay: float) -> None:
        events.append((type(error).__name__, delay <= 1.0))

    client, script = client_of(
        *(response(503), httpx.ConnectError("x"), ok()),
        on_request=on_request,
        on_response=on_response,
        on_retry=on_retry,
    )
    await client.conversations.list()
    request = "GET /v1/conversations"
    retries = [("ServerError", True), ("APIConnectionError", True)]
    assert events == [request, 503, retries[0], request, retries[1], request, 200]
    assert [sent.headers["X-Trace"] for sent in script.requests] == ["t1"] * 3


async def test_retry_is_logged_without_the_query(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "agentphone")
    client, _ = client_of(response(503), ok())
    await client.conversations.list()
    assert [record.levelname for record in caplog.records] == ["DEBUG", "WARNING", "DEBUG"]
    assert "503" in caplog.text
    assert "limit=" not in caplog.text


# ---- On a real socket and a real clock


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_refused_connection_is_a_connection_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentphone._http.retry.INITIAL_BACKOFF", 0.001)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with AsyncClient(KEY, base_url=f"http://127.0.0.1:{port}", max_retries=2) as client:
        with pytest.raises(APIConnectionError) as caught:
            await client.conversations.list()
    assert [attempt.outcome for attempt in caught.value.attempts] == ["ConnectError"] * 3
    assert "after 3 attempts" in str(caught.value)


# ---- Permanent failures


async def distrust(_: httpx.Request) -> httpx.Response:
    """Raise what httpx raises on trio for an untrusted certificate: the cause of an error without a text."""
    raise httpx.ConnectError("") from ssl.SSLCertVerificationError("certificate verify failed")


async def reject_password(_: httpx.Request) -> httpx.Response:
    raise httpx.ProxyError("407 Proxy Authentication Required")


async def reject_socks_password(_: httpx.Request) -> httpx.Response:
    raise httpx.ProxyError("Invalid username/password.")


@pytest.mark.parametrize("failure", [distrust, reject_password, reject_socks_password])
@pytest.mark.parametrize("live", ["follow", "watch"])
async def test_follow_and_watch_raise_permanent_errors(live: str, failure: Any) -> None:
    client, script = client_of(failure)
    iterator = client.conversations.watch() if live == "watch" else client.conversations.follow("conv_1")
    with pytest.raises(APIConnectionError, match="not temporary") as caught, anyio.fail_after(5):
        await anext(iterator)
    assert caught.value.is_permanent
    assert pickle.loads(pickle.dumps(caught.value)).is_permanent
    assert len(script.requests) == 1


async def test_callers_certificate_error_is_not_taken_for_the_apis() -> None:
    client, script = client_of(httpx.ConnectError("refused"), max_retries=1)

    async def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    script.steps = [refuse]
    try:
        raise ssl.SSLCertVerificationError("the caller's")  # noqa: TRY301
    except ssl.SSLCertVerificationError:
        with pytest.raises(APIConnectionError, match="usually temporary"):
            await client.conversations.list()
    assert len(script.requests) == 2
