"""What is seen from outside: spans of OpenTelemetry, in the trace of the web request, and what the log hides."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentphone import AsyncClient
from agentphone.inbox import _tracing
from agentphone.sandbox import Sandbox
from agentphone.webhooks import MessageEvent
from tests.inbox.account import Account, OrderState
from tests.inbox.world import person, until, working


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


KEY = "ap_key_of_the_account"
MESSAGES: list[tuple[str, Callable[[MessageEvent], Exception], str]] = [
    ("Hi there", lambda text: ValueError(f"from {text.from_number}: {text.text}"), "ValueError: from ***: ***"),
    ("my order is red shoes", lambda _: KeyError("red shoes"), "KeyError: '***'"),
    ("it's\nme", lambda text: ValueError(f"cannot parse {text.text!r}"), 'ValueError: cannot parse "***"'),
    ("one", lambda _: RuntimeError(f"with {KEY}\nand more"), "RuntimeError: with ***"),
    ("two", lambda _: RuntimeError("x" * 1000), f"RuntimeError: {'x' * 300}..."),
    ("no", lambda _: RuntimeError("nothing"), "RuntimeError: nothing"),
    ("none", lambda _: RuntimeError(), "RuntimeError"),
]


def test_log_of_an_exception_hides_what_a_person_wrote(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    box = Sandbox()
    client = AsyncClient(KEY, transport=box.transport())
    with closing(Account(tmp_path, box=box, client=client, max_attempts=1)) as account:

        @account.inbox.on_message
        def answer(text: MessageEvent) -> str:
            raise next(error(text) for said, error, _ in MESSAGES if said == text.text)

        with caplog.at_level(logging.DEBUG, "agentphone.inbox"), working(account.inbox):
            for number, (said, _, _) in enumerate(MESSAGES):
                account.text(said, person_number=number)
            account.wait("failed", count=len(MESSAGES))
    log = "\n".join(record.getMessage() for record in caplog.records if record.name == "agentphone.inbox")
    assert [logged for _, _, logged in MESSAGES if f"failed ({logged} (test_observability.py, line " not in log] == []
    assert log.count("Traceback (most recent call last):") == len(MESSAGES)
    for hidden in (KEY, person(0), "Hi there", "red shoes", "it's"):
        assert hidden not in log
