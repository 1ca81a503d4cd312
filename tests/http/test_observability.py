"""Calls as seen from outside: log lines, hooks, and OpenTelemetry connected to them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import anyio
import httpx
import pytest
from opentelemetry.propagate import inject
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Span, StatusCode, set_span_in_context

from agentphone import (
    AgentPhoneError,
    APIConnectionError,
    APIStatusError,
    AsyncClient,
    Client,
    ResponseDecodeError,
    ServerError,
)
from tests.support.fault_server import Connection, Fault, serving
from tests.support.helpers import KEY

KINDS = ["asyncio", "trio", "blocking"]
each_client = pytest.mark.parametrize("kind", KINDS)

Around = Callable[[int], AbstractContextManager[None]]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentphone._http.retry.INITIAL_BACKOFF", 0.001)


def get(kind: str, url: str, *, times: int = 1, around: Around = lambda _: nullcontext(), **settings: Any) -> list[Any]:
    """Get conversations in turn, each call inside a context; return results and errors."""
    found: list[Any] = []
    settings = {"max_retries": 2, "max_connections": 1} | settings
    if kind == "blocking":
        with Client(KEY, base_url=url, **settings) as client:
            for number in range(times):
                try:
                    with around(number):
                        found.append(client.conversations.get("conv_1", message_limit=77).id)
                except Exception as error:  # noqa: BLE001  # it is what the test looks at
                    found.append(error)
        return found

    async def main() -> None:
        async with AsyncClient(KEY, base_url=url, **settings) as client:
            for number in range(times):
                try:
                    with around(number):
                        found.append((await client.conversations.get("conv_1", message_limit=77)).id)
                except Exception as error:  # noqa: BLE001
                    found.append(error)

    anyio.run(main, backend=kind)
    return found


def refused_then_reset() -> Fault:
    """Respond 503 on the first connection, and reset the second."""
    seen: list[Connection] = []

    def fault(connection: Connection) -> None:
        connection.read()
        seen.append(connection)
        if len(seen) == 1:
            connection.answer(503, connection="close")
        else:
            connection.reset()

    return fault


# ---- The log


@each_client
def test_attempts_are_logged_and_retries_are_warnings(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "agentphone")
    with serving(refused_then_reset(), times=2) as server:
        assert get(kind, server.url) == ["conv_1"]
    assert {record.name for record in caplog.records} == {"agentphone"}
    told = [f"{record.levelname} {record.getMessage()}" for record in caplog.records]
    assert [re.sub(r"[\d.]+ (m?s)\b", r"_ \1", line) for line in told] == [
        "DEBUG GET /v1/conversations/conv_1: 503, attempt 1, _ ms",
        "WARNING GET /v1/conversations/conv_1: 503; trying again in _ s",
        "DEBUG GET /v1/conversations/conv_1: ReadError, attempt 2, _ ms",
        "WARNING GET /v1/conversations/conv_1: ReadError; trying again in _ s",
        "DEBUG GET /v1/conversations/conv_1: 200, attempt 3, _ ms",
    ]


def test_final_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "agentphone")
    with serving(lambda connection: connection.wait_until_gone()) as server:
        get("asyncio", server.url, max_retries=0, timeout=0.1)
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        "GET /v1/conversations/conv_1: APITimeoutError"
    ]


# ---- Hooks


@each_client
def test_header_set_by_on_request_is_sent_with_each_attempt(kind: str) -> None:
    numbers = iter(range(9))

    def on_request(request: httpx.Request) -> None:
        request.headers["traceparent"] = f"00-{next(numbers):032}-0000000000000001-01"

    with serving(refused_then_reset(), times=2) as server:
        assert get(kind, server.url, times=2, on_request=on_request) == ["conv_1"] * 2
        assert [request.headers["traceparent"][34] for request in server.requests] == ["2", "3"]


@each_client
def test_on_response_sees_the_request(kind: str) -> None:
    seen: list[tuple[str, str]] = []

    def on_response(response: httpx.Response) -> None:
        response.raise_for_status()
        seen.append((response.request.method, response.request.url.path))

    with serving() as server:
        assert get(kind, server.url, on_response=on_response) == ["conv_1"]
    assert seen == [("GET", "/v1/conversations/conv_1")]


RAISED = [
    ZeroDivisionError("of the hook"),
    httpx.ConnectError("of the hook"),
    TimeoutError("of the hook"),
    APIConnectionError("of the hook", request="GET /"),
    APIStatusError("of the hook", request="GET /", status_code=503),
    ResponseDecodeError("of the hook", request="GET /", status_code=200),
]


@each_client
@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("hook", ["on_request", "on_response", "on_retry"])
def test_exception_of_a_hook_reaches_the_caller_and_leaks_no_connection(kind: str, hook: str, error: Exception) -> None:
    todo = [error]

    def once(*_: object) -> None:
        if todo:
            raise todo.pop()

    fault = refused_then_reset() if hook == "on_retry" else None
    with serving(fault) as server:
        hooks: dict[str, Any] = {hook: once}
        first, second = get(kind, server.url, times=2, **hooks)
        assert first is error
        assert second == "conv_1"
        assert len(server.requests) == {"on_request": 1, "on_response": 2, "on_retry": 1}[hook]
        assert server.wait_until_left()


# ---- OpenTelemetry, as an example of hooks


class Tracing:
    """A span per attempt inside the call's span, and the context in each request's `traceparent`.

    `with tracing.call("..."):` goes around a call, or around several in turn.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("agentphone")
        # A list in the context and not a span: the hooks may run in a copy of the caller's context.
        self._attempts: ContextVar[list[Span]] = ContextVar("attempts")

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        attempts: list[Span] = []
        token = self._attempts.set(attempts)
        try:
            with self._tracer.start_as_current_span(name):
                yield
        except Exception as error:
            self._fail(attempts, error)
            raise
        finally:
            self._attempts.reset(token)
            for span in attempts:  # that of a call that was cancelled
                span.end()
            attempts.clear()

    def on_request(self, request: httpx.Request) -> None:
        span = self._tracer.start_span(f"{request.method} {request.url.path}")
        self._attempts.get().append(span)
        inject(request.headers, set_span_in_context(span))

    def on_response(self, response: httpx.Response) -> None:
        span = self._attempts.get().pop()
        span.set_attribute("http.response.status_code", response.status_code)
        if response.status_code >= 400:
            span.set_status(StatusCode.ERROR)
        span.end()

    def on_retry(self, error: Exception, pause: float) -> None:
        self._fail(self._attempts.get(), error)

    def _fail(self, attempts: list[Span], error: Exception) -> None:
        while attempts:
            span = attempts.pop()
            span.record_exception(error)
            span.set_status(StatusCode.ERROR, str(error))
            span.end()


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(spans: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return Tracing(provider)


def hooks(tracing: Tracing) -> dict[str, Any]:
    return {"on_request": tracing.on_request, "on_response": tracing.on_response, "on_retry": tracing.on_retry}


def look(span: ReadableSpan) -> tuple[str, Any, str]:
    return span.name, (span.attributes or {}).get("http.response.status_code"), span.status.status_code.name


ATTEMPT = "GET /v1/conversations/conv_1"


@each_client
def test_opentelemetry_sees_each_attempt_in_the_callers_span(
    kind: str, tracing: Tracing, spans: InMemorySpanExporter
) -> None:
    with serving(refused_then_reset(), times=2) as server:
        around: Around = lambda number: tracing.call(f"call {number}")  # noqa: E731  # it has to have the type
        assert get(kind, server.url, times=2, around=around, **hooks(tracing)) == ["conv_1"] * 2
        sent = [request.headers["traceparent"].split("-")[1:3] for request in server.requests]
    done = spans.get_finished_spans()
    assert [look(span) for span in done] == [
        (ATTEMPT, 503, "ERROR"),
        (ATTEMPT, None, "ERROR"),
        (ATTEMPT, 200, "UNSET"),
        ("call 0", None, "UNSET"),
        (ATTEMPT, 200, "UNSET"),
        ("call 1", None, "UNSET"),
    ]
    for attempt, call in ((0, 3), (1, 3), (2, 3), (4, 5)):
        parent, context = done[attempt].parent, done[call].context
        assert parent is not None
        assert context is not None
        assert (parent.trace_id, parent.span_id) == (context.trace_id, context.span_id)
    contexts = [done[number].context for number in (2, 4)]
    assert sent == [[f"{context.trace_id:032x}", f"{context.span_id:016x}"] for context in contexts if context]
    assert [event.name for event in done[1].events] == ["exception"]


@each_client
def test_opentelemetry_sees_a_failed_call(kind: str, tracing: Tracing, spans: InMemorySpanExporter) -> None:
    with serving(lambda connection: connection.reset(), times=99) as server:
        (error,) = get(kind, server.url, around=lambda _: tracing.call("call"), **hooks(tracing))
    assert isinstance(error, AgentPhoneError)
    assert [look(span) for span in spans.get_finished_spans()] == [
        (ATTEMPT, None, "ERROR"),
        (ATTEMPT, None, "ERROR"),
        ("call", None, "ERROR"),
        (ATTEMPT, None, "ERROR"),
    ]


@pytest.mark.anyio
async def test_opentelemetry_separates_concurrent_calls(tracing: Tracing, spans: InMemorySpanExporter) -> None:
    failures: list[Exception] = []
    with serving(refused_then_reset(), times=1) as server:
        async with AsyncClient(KEY, base_url=server.url, max_retries=0, **hooks(tracing)) as client:

            async def call(number: int) -> None:
                try:
                    with tracing.call(f"call {number}"):
                        await client.conversations.get(f"conv_{number}")
                except ServerError as error:
                    failures.append(error)

            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(call, number)
    assert len(failures) == 1
    done = spans.get_finished_spans()
    calls = {span.context.span_id: span.name for span in done if span.context and span.name.startswith("call")}
    attempts = [span for span in done if span.name.startswith("GET")]
    assert len(calls) == len(attempts) == 20
    for span in attempts:
        assert span.parent is not None
        assert calls[span.parent.span_id].split()[1] == span.name.rpartition("_")[2]
