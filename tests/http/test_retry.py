"""Trying again: the policy as a table, and through the client on clocks that jump, so that hours pass in no time."""

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
from hypothesis import given, settings
from hypothesis import strategies as st

from agentphone import (
    AgentPhoneError,
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncClient,
    ClientClosedError,
    ConflictError,
    DeadlineExceededError,
    NotFoundError,
    RateLimitError,
    ResponseDecodeError,
    ServerError,
)
from agentphone._http.retry import RetryBudget, RetryPolicy, parse_retry_after
from tests.support.clocks import jumping
from tests.support.helpers import KEY, client_of, conversation, ok

pytestmark = pytest.mark.anyio

NOW = 1_751_284_800.0  # 2025-06-30T12:00:00Z


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return jumping(request.param)


# ---- The policy


def status_error(status: int, retry_after: float | None = None) -> APIStatusError:
    return APIStatusError("x", request="GET /", status_code=status, retry_after=retry_after)


def policy(rand: float = 0.5, max_retries: int = 3, max_retry_after: float = 60.0) -> RetryPolicy:
    return RetryPolicy(max_retries, max_retry_after, rand=lambda: rand)


CONNECTION = APIConnectionError("x", request="GET /")


@pytest.mark.parametrize(
    ("error", "again"),
    [
        *((status_error(status), True) for status in (408, 429, 500, 502, 503, 504)),
        *(
            (status_error(status), False)
            for status in (301, 304, 400, 401, 403, 404, 405, 409, 410, 422, 451, 501, 505)
        ),
        (CONNECTION, True),
        (APIConnectionError("x", request="GET /", permanent_advice="Set it."), False),
        (APITimeoutError("x", request="GET /"), True),
        (DeadlineExceededError("x", request="GET /"), False),
        (ResponseDecodeError("x", request="GET /", status_code=200), False),
        (ClientClosedError("x"), False),
        (AgentPhoneError("x"), False),
    ],
    ids=lambda part: type(part).__name__ + str(getattr(part, "status_code", "")),
)
def test_only_what_may_pass_is_tried_again(error: AgentPhoneError, again: bool) -> None:
    assert (policy().delay(error, 1) is not None) is again


def test_after_the_last_retry_the_call_ends() -> None:
    assert [policy(max_retries=2).delay(CONNECTION, attempt) is None for attempt in (1, 2, 3)] == [False, False, True]
    assert policy(max_retries=0).delay(CONNECTION, 1) is None


@pytest.mark.parametrize(("rand", "pauses"), [(0.0, [0.0] * 7), (1.0, [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0])])
def test_pauses_are_drawn_below_a_bound_that_doubles_to_eight_seconds(rand: float, pauses: list[float]) -> None:
    given_policy = policy(rand, max_retries=10_000)
    assert [given_policy.delay(CONNECTION, attempt) for attempt in range(1, 8)] == pauses
    assert given_policy.delay(CONNECTION, 10_000) == pauses[-1]


@pytest.mark.parametrize(
    ("retry_after", "rand", "pause"),
    [(0.0, 0.0, 0.0), (0.0, 1.0, 0.5), (2.0, 0.0, 2.0), (2.0, 1.0, 2.5), (60.0, 0.0, 60.0), (60.0, 1.0, 60.5)],
)
def test_a_retry_after_is_waited_for_and_a_little_longer(retry_after: float, rand: float, pause: float) -> None:
    assert policy(rand).delay(status_error(503, retry_after), 1) == pause


@pytest.mark.parametrize("retry_after", [60.001, 3600.0, 1e300, math.inf])
def test_a_retry_after_beyond_what_is_allowed_ends_the_call(retry_after: float) -> None:
    assert policy().delay(status_error(429, retry_after), 1) is None


@given(st.floats(0, 1), st.integers(1, 50), st.none() | st.floats(0, 60))
def test_a_pause_is_never_shorter_than_asked_nor_longer_than_the_bounds(
    rand: float, attempt: int, retry_after: float | None
) -> None:
    pause = policy(rand, max_retries=50).delay(status_error(503, retry_after), attempt)
    assert pause is not None
    least = retry_after or 0.0
    assert least <= pause <= (8.0 if retry_after is None else least + 0.5)


HTTP_DATE = "Mon, 30 Jun 2025 12:00:{:02d} GMT"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("5", 5.0),
        (" 7 ", 7.0),
        ("2.5", 2.5),
        ("1e3", 1000.0),
        ("1e999", math.inf),
        ("inf", math.inf),
        ("Infinity", math.inf),
        (HTTP_DATE.format(30), 30.0),
        (HTTP_DATE.format(0), 0.0),
        ("Mon, 30 Jun 2025 11:00:00 GMT", 0.0),
        ("Mon, 30 Jun 2025 14:00:10 +0200", 10.0),
        ("Monday, 30-Jun-25 12:00:10 GMT", 10.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 99999 23:59:59 GMT", math.inf),
        ("", None),
        (" ", None),
        ("-1", None),
        ("-0.001", None),
        ("-inf", None),
        ("nan", None),
        ("NaN", None),
        ("soon", None),
        ("5 seconds", None),
        ("5,6", None),
        ("0x10", None),
        ("1_000", None),
        ("2025-06-30", None),
        ("99 Foo 2025 99:99:99", None),
        ("\udcff", None),
    ],
)
def test_a_retry_after_header_is_seconds_or_a_date_or_nothing(header: str | None, seconds: float | None) -> None:
    assert parse_retry_after(header, NOW) == seconds


@pytest.mark.parametrize(
    ("header", "date", "seconds"),
    [
        (HTTP_DATE.format(30), HTTP_DATE.format(10), 20.0),  # the server's clock, not ours, that may be ahead
        (HTTP_DATE.format(30), "Mon, 30 Jun 2025 13:00:00 GMT", 0.0),
        (HTTP_DATE.format(30), "yesterday", 30.0),
        (HTTP_DATE.format(30), "Fri, 31 Dec 99999 23:59:59 GMT", 30.0),
        ("5", HTTP_DATE.format(10), 5.0),
    ],
)
def test_a_date_in_retry_after_is_measured_from_the_servers_own_date(header: str, date: str, seconds: float) -> None:
    assert parse_retry_after(header, NOW, date) == seconds


@settings(max_examples=300)
@given(
    st.text()
    | st.from_regex(
        r"[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} \d{1,6} \d{1,3}:\d{1,3}(:\d{1,3})? ([A-Z]{1,4}|[+-]\d{1,9})?"
    )
    | st.lists(st.sampled_from(["Mon,", "30", "Jun", "2025", "12:00:00", "GMT", "-", "99999999", "+0000", ":"])).map(
        " ".join
    )
)
def test_no_header_makes_the_parser_fail(header: str) -> None:
    seconds = parse_retry_after(header, NOW)
    assert seconds is None or seconds >= 0


# ---- Through the client


def answer(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize("failure", [answer(503), httpx.ConnectError("refused"), httpx.ReadTimeout("")])
async def test_two_failures_then_an_answer_is_a_success_after_three_attempts(failure: Any) -> None:
    client, script = client_of(failure, failure, ok())
    began = anyio.current_time()
    assert len(await client.conversations.list()) == 1
    assert len(script.requests) == 3
    assert len({(request.method, request.url) for request in script.requests}) == 1
    first, second, third = (at - began for at in script.sent_at)
    assert first == 0
    assert second <= 0.5
    assert third - second <= 1.0


async def test_an_update_is_tried_again_with_the_same_body() -> None:
    client, script = client_of(answer(502), httpx.ReadError(""), ok(conversation()))
    await client.conversations.update("conv_1", metadata={"a": 1})
    assert [(request.method, request.content) for request in script.requests] == [
        ("PATCH", b'{"metadata":{"a":1}}')
    ] * 3


@pytest.mark.parametrize(("status", "cls"), [(404, NotFoundError), (409, ConflictError), (501, ServerError)])
async def test_a_refusal_is_not_tried_again(status: int, cls: type[APIStatusError]) -> None:
    client, script = client_of(answer(status), ok())
    with pytest.raises(cls) as caught:
        await client.conversations.list()
    assert len(script.requests) == 1
    assert [(attempt.outcome, attempt.delay) for attempt in caught.value.attempts] == [(str(status), 0.0)]


async def test_an_answer_that_cannot_be_read_is_not_tried_again() -> None:
    client, script = client_of(answer(503), httpx.Response(200, content=b"{"), ok())
    with pytest.raises(ResponseDecodeError) as caught:
        await client.conversations.list()
    assert len(script.requests) == 2
    assert [attempt.outcome for attempt in caught.value.attempts] == ["503", "ResponseDecodeError"]


@pytest.mark.parametrize("max_retries", [0, 1, 5])
async def test_max_retries_is_how_often_it_is_tried_again(max_retries: int) -> None:
    client, script = client_of(answer(503), max_retries=max_retries)
    with pytest.raises(ServerError) as caught:
        await client.conversations.list()
    assert len(script.requests) == max_retries + 1
    attempts = caught.value.attempts
    assert [attempt.outcome for attempt in attempts] == ["503"] * (max_retries + 1)
    waited = [after - before for before, after in zip(script.sent_at, script.sent_at[1:], strict=False)]
    assert [attempt.delay for attempt in attempts] == pytest.approx([*waited, 0.0])


async def test_the_attempts_tell_each_outcome_and_how_long_it_took() -> None:
    async def slowly(_: httpx.Request) -> httpx.Response:
        await anyio.sleep(2)
        return answer(500)

    client, _ = client_of(slowly, httpx.ConnectError("x"), answer(429), max_retries=2)
    with pytest.raises(RateLimitError) as caught:
        await client.conversations.list()
    assert [attempt.outcome for attempt in caught.value.attempts] == ["500", "ConnectError", "429"]
    assert [attempt.elapsed for attempt in caught.value.attempts] == pytest.approx([2, 0, 0])


@pytest.mark.parametrize("retry_after", ["7", format_datetime(datetime.fromtimestamp(NOW + 7, UTC), usegmt=True)])
async def test_a_retry_after_is_obeyed(retry_after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentphone._http.transport.time.time", lambda: NOW)
    client, script = client_of(answer(429, retry_after=retry_after), ok())
    await client.conversations.list()
    assert 7 <= script.sent_at[1] - script.sent_at[0] <= 7.5


async def test_a_clock_here_that_is_ahead_makes_no_retry_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentphone._http.transport.time.time", lambda: NOW + 3600)
    client, script = client_of(answer(503, retry_after=HTTP_DATE.format(20), date=HTTP_DATE.format(0)), ok())
    await client.conversations.list()
    assert 20 <= script.sent_at[1] - script.sent_at[0] <= 20.5


@pytest.mark.parametrize("retry_after", ["61", "inf", "Fri, 31 Dec 99999 23:59:59 GMT"])
async def test_a_retry_after_beyond_max_retry_after_raises_at_once(retry_after: str) -> None:
    client, script = client_of(answer(429, retry_after=retry_after), ok())
    began = anyio.current_time()
    with pytest.raises(RateLimitError) as caught:
        await client.conversations.list()
    assert anyio.current_time() == began
    assert len(script.requests) == 1
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 60


async def test_max_retry_after_is_the_callers_choice() -> None:
    client, script = client_of(answer(503, retry_after="300"), ok(), max_retry_after=300)
    await client.conversations.list()
    assert 300 <= script.sent_at[1] - script.sent_at[0] <= 300.5
    client, script = client_of(answer(503, retry_after="1"), ok(), max_retry_after=0)
    with pytest.raises(ServerError):
        await client.conversations.list()


@pytest.mark.parametrize("retry_after", ["nan", "-5", "later", ""])
async def test_a_retry_after_that_cannot_be_read_counts_as_absent(retry_after: str) -> None:
    client, script = client_of(answer(503, retry_after=retry_after), answer(503, retry_after=retry_after))
    client = client.with_options(max_retries=1)
    with pytest.raises(ServerError) as caught:
        await client.conversations.list()
    assert caught.value.retry_after is None
    assert script.sent_at[1] - script.sent_at[0] <= 0.5


async def silence(_: httpx.Request) -> httpx.Response:
    await anyio.sleep_forever()
    raise AssertionError


async def test_silence_beyond_timeout_is_a_timeout_with_its_attempts() -> None:
    client, script = client_of(silence, timeout=10, max_retries=2)
    with pytest.raises(APITimeoutError, match="10 s") as caught:
        await client.conversations.list()
    assert type(caught.value) is APITimeoutError
    assert len(script.requests) == 3
    assert [attempt.outcome for attempt in caught.value.attempts] == ["APITimeoutError"] * 3
    assert [attempt.elapsed for attempt in caught.value.attempts] == pytest.approx([10] * 3)


async def test_a_trickling_body_does_not_stretch_the_timeout() -> None:
    async def trickle(_: httpx.Request) -> httpx.Response:
        async def drops() -> Any:
            while True:
                await anyio.sleep(1)
                yield b" "

        return httpx.Response(200, content=drops())

    client, _ = client_of(trickle, timeout=10, max_retries=0)
    began = anyio.current_time()
    with pytest.raises(APITimeoutError):
        await client.conversations.list()
    assert anyio.current_time() - began == pytest.approx(10)


@pytest.mark.parametrize("seconds", [None, 100.0, math.inf])
async def test_silence_beyond_the_deadline_is_a_deadline_exceeded(seconds: float | None) -> None:
    client, script = client_of(silence, timeout=seconds, deadline=25)
    began = anyio.current_time()
    with pytest.raises(DeadlineExceededError, match="25 s") as caught:
        await client.conversations.list()
    assert anyio.current_time() - began == pytest.approx(25)
    assert len(script.requests) == 1
    assert [attempt.outcome for attempt in caught.value.attempts] == ["DeadlineExceededError"]


async def test_the_deadline_counts_all_attempts_and_pauses() -> None:
    client, script = client_of(silence, timeout=10, deadline=25, max_retries=9)
    began = anyio.current_time()
    with pytest.raises(DeadlineExceededError) as caught:
        await client.conversations.list()
    assert anyio.current_time() - began == pytest.approx(25)
    assert len(script.requests) == 3
    assert [attempt.outcome for attempt in caught.value.attempts] == ["APITimeoutError"] * 2 + ["DeadlineExceededError"]
    spent = sum(attempt.elapsed + attempt.delay for attempt in caught.value.attempts)
    assert spent == pytest.approx(25)


async def test_a_pause_beyond_the_deadline_raises_the_error_in_hand_at_once() -> None:
    client, script = client_of(answer(503, retry_after="30"), ok(), deadline=30)
    began = anyio.current_time()
    with pytest.raises(ServerError) as caught:
        await client.conversations.list()
    assert anyio.current_time() == began
    assert caught.value.retry_after == 30
    assert caught.value.attempts[-1].delay == 0.0
    assert len(script.requests) == 1


async def test_waiting_for_a_free_connection_counts_for_the_deadline_and_not_for_the_timeout() -> None:
    async def slowly(_: httpx.Request) -> httpx.Response:
        await anyio.sleep(8)
        return ok()

    client, script = client_of(slowly, max_connections=1, timeout=10, max_retries=0)
    async with anyio.create_task_group() as tasks:
        for _ in range(4):  # the last waits 24 s for its turn
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
    assert len(late) == 2  # the third in the middle of its attempt, the fourth still waiting


async def test_a_cancelled_call_ends_at_once_and_frees_its_place() -> None:
    client, script = client_of(silence, ok(), max_connections=1)
    with anyio.move_on_after(3) as scope:
        await client.conversations.list()
    assert scope.cancelled_caught
    assert len(await client.conversations.list()) == 1
    assert len(script.requests) == 2


async def test_the_callers_own_time_limit_is_not_taken_for_ours() -> None:
    client, _ = client_of(silence, timeout=10, deadline=20)
    with pytest.raises(TimeoutError), anyio.fail_after(5):
        await client.conversations.list()


# ---- The budget


async def test_retries_stay_a_small_share_while_nothing_but_503_comes_and_come_back_with_the_api() -> None:
    client, script = client_of(answer(503))
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
    script.steps = [answer(503), ok()]
    await calls(1)
    assert (len(failed), len(script.requests)) == (1000, sent + 2)


def test_the_budget_fills_by_success_and_by_time_up_to_its_size() -> None:
    budget = RetryBudget(size=4, per_success=0.5, per_second=1)

    def left(now: float) -> int:
        return next(number for number in range(100) if not budget.try_acquire(now))

    assert left(1000.0) == 4
    assert left(1000.0) == 0
    budget.record_success()
    assert left(1000.0) == 0
    budget.record_success()
    assert left(1000.0) == 1
    assert left(1002.5) == 2
    assert left(990.0) == 0  # a clock that is not this one gives nothing
    assert left(9999.0) == 4
    for _ in range(100):
        budget.record_success()
    assert left(9999.0) == 4


async def test_clients_that_share_connections_share_the_budget() -> None:
    client, script = client_of(answer(503), max_retries=60)
    for each in (client, client.with_options(timeout=9)):
        with pytest.raises(ServerError):
            await each.conversations.list()
    assert 2 + 100 <= len(script.requests) <= 2 + 102


# ---- What is seen of it


async def test_the_hooks_see_each_request_answer_and_retry() -> None:
    seen: list[Any] = []

    def on_request(request: httpx.Request) -> None:
        request.headers["X-Trace"] = "t1"
        seen.append(f"{request.method} {request.url.path}")

    def on_response(response: httpx.Response) -> None:
        seen.append(response.status_code)

    def on_retry(error: Exception, pause: float) -> None:
        seen.append((type(error).__name__, pause <= 1.0))

    client, script = client_of(
        *(answer(503), httpx.ConnectError("x"), ok()), on_request=on_request, on_response=on_response, on_retry=on_retry
    )
    await client.conversations.list()
    request = "GET /v1/conversations"
    retries = [("ServerError", True), ("APIConnectionError", True)]
    assert seen == [request, 503, retries[0], request, retries[1], request, 200]
    assert [sent.headers["X-Trace"] for sent in script.requests] == ["t1"] * 3


async def test_a_retry_is_logged_as_a_warning_without_the_query(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "agentphone")
    client, _ = client_of(answer(503), ok())
    await client.conversations.list()
    assert [record.levelname for record in caplog.records] == ["DEBUG", "WARNING", "DEBUG"]
    assert "503" in caplog.text
    assert "limit=" not in caplog.text


# ---- Over a real socket, on a real clock


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_refused_connection_is_a_connection_error_with_its_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentphone._http.retry.INITIAL_BACKOFF", 0.001)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with AsyncClient(KEY, base_url=f"http://127.0.0.1:{port}", max_retries=2) as client:
        with pytest.raises(APIConnectionError) as caught:
            await client.conversations.list()
    assert [attempt.outcome for attempt in caught.value.attempts] == ["ConnectError"] * 3
    assert "after 3 attempts" in str(caught.value)


GARBLED = {
    "nothing": b"",
    "noise": b"\x00\xff garbage\r\n\r\n",
    "half a header": b"HTTP/1.1 200 OK\r\nContent-Le",
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{",
    "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{",
    "endless header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000,
}


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("garbled", GARBLED.values(), ids=GARBLED.keys())
async def test_a_server_that_goes_away_in_the_middle_is_a_connection_error(garbled: bytes) -> None:
    async def serve(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(garbled)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with AsyncClient(KEY, base_url=f"http://127.0.0.1:{port}", max_retries=0, timeout=20) as client:
            with pytest.raises(APIConnectionError) as caught:
                await client.conversations.list()
        assert type(caught.value) is APIConnectionError
        tasks.cancel_scope.cancel()


COMPRESSED = {"Content-Encoding": "gzip"}


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_body_that_is_not_compressed_as_it_says_is_a_decode_error() -> None:
    client, _ = client_of(httpx.Response(200, stream=httpx.ByteStream(b"no gzip"), headers=COMPRESSED))
    with pytest.raises(ResponseDecodeError, match="gzip"):
        await client.conversations.list()


@pytest.mark.parametrize("size", [1000, 6000])
@pytest.mark.parametrize("status", [200, 500])
async def test_a_body_beyond_max_response_bytes_is_refused_unread(status: int, size: int) -> None:
    read = 0

    async def flood(_: httpx.Request) -> httpx.Response:
        async def chunks() -> Any:
            nonlocal read
            for _ in range(1000):
                read += size
                yield b" " * size
                await anyio.lowlevel.checkpoint()

        return httpx.Response(status, content=chunks())

    client, _ = client_of(flood, max_response_bytes=5000, max_retries=0)
    with pytest.raises((ResponseDecodeError, ServerError), match="max_response_bytes=5000") as caught:
        await client.conversations.list()
    assert isinstance(caught.value, ServerError if status == 500 else ResponseDecodeError)
    assert caught.value.status_code == status
    assert caught.value.body == b" " * 500
    assert read <= 5000 + 2 * size


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_refused_body_leaves_no_connection_and_no_warning() -> None:
    async def serve(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            await stream.receive()
            try:
                await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
                while True:
                    await stream.send(b" " * 10_000)
            except anyio.BrokenResourceError:
                gone.set()

    gone = anyio.Event()
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with AsyncClient(KEY, base_url=f"http://127.0.0.1:{port}", max_response_bytes=50_000) as client:
            with pytest.raises(ResponseDecodeError, match="max_response_bytes=50000"):
                await client.conversations.list()
            with anyio.fail_after(30):
                await gone.wait()
        tasks.cancel_scope.cancel()


# ---- What does not pass


async def distrust(_: httpx.Request) -> httpx.Response:
    """Fail as httpx and trio do where a certificate is not trusted: its error is below one without a text."""
    raise httpx.ConnectError("") from ssl.SSLCertVerificationError("certificate verify failed")


async def refuse_password(_: httpx.Request) -> httpx.Response:
    raise httpx.ProxyError("407 Proxy Authentication Required")


async def refuse_socks(_: httpx.Request) -> httpx.Response:
    raise httpx.ProxyError("Invalid username/password.")


@pytest.mark.parametrize("failure", [distrust, refuse_password, refuse_socks])
@pytest.mark.parametrize("live", ["follow", "watch"])
async def test_follow_and_watch_raise_what_no_retry_can_clear(live: str, failure: Any) -> None:
    client, script = client_of(failure)
    iterator = client.conversations.watch() if live == "watch" else client.conversations.follow("conv_1")
    with pytest.raises(APIConnectionError, match="not temporary") as caught, anyio.fail_after(5):
        await anext(iterator)
    assert caught.value.is_permanent
    assert pickle.loads(pickle.dumps(caught.value)).is_permanent
    assert len(script.requests) == 1


async def test_a_certificate_that_the_caller_is_concerned_with_is_not_taken_for_the_apis() -> None:
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
