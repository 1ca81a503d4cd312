"""What is seen from outside: spans of OpenTelemetry, in the trace of the web request. The log is in `test_handling`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentphone.inbox import _tracing
from agentphone.webhooks import MessageEvent
from tests.inbox.account import Account, OrderState
from tests.inbox.world import until, working


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


def answering(account: Account) -> None:
    @account.inbox.on_message
    def answer(text: MessageEvent, state: OrderState) -> str:
        state.texts += 1
        return "ok"


def test_spans_continue_the_trace_of_the_request(spans: InMemorySpanExporter, account: Account) -> None:
    answering(account)
    with working(account.inbox):
        with trace.get_tracer("web").start_as_current_span("POST /agentphone"):
            account.text("a secret")
        until(lambda: any(span.name == "agentphone.inbox.reply" for span in spans.get_finished_spans()))
    found: dict[str, ReadableSpan] = {span.name: span for span in spans.get_finished_spans()}
    names = {f"agentphone.inbox.{name}" for name in ("receive", "handler", "state", "reply")}
    assert names | {"POST /agentphone"} == set(found)
    traces = {span.context.trace_id for span in found.values() if span.context}
    assert len(traces) == 1
    attributes: Any = found["agentphone.inbox.handler"].attributes
    assert set(attributes) == {"agentphone.conversation.id", "agentphone.message.id"}
    assert "a secret" not in "".join(span.to_json() for span in found.values())


def test_nothing_of_it_is_required(monkeypatch: pytest.MonkeyPatch, account: Account) -> None:
    monkeypatch.setattr(_tracing, "IS_INSTALLED", False)
    answering(account)
    with working(account.inbox):
        account.text()
        account.wait("done")
