"""OpenTelemetry spans, if `opentelemetry-api` is installed; nothing without it. They carry ids and no texts."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

try:
    import opentelemetry.trace as _  # noqa: F401
except ModuleNotFoundError:
    IS_INSTALLED = False
else:
    IS_INSTALLED = True

CONVERSATION, MESSAGE = "agentphone.conversation.id", "agentphone.message.id"


@contextmanager
def span(name: str, event: Any = None) -> Generator[None]:
    """Run the block in a span.

    Args:
        name: `receive`, `handler`, `state` or `reply`.
        event: The event, whose ids are attributes of the span.
    """
    if not IS_INSTALLED:
        yield
        return
    from opentelemetry import trace

    ids = {CONVERSATION: getattr(event, "conversation_id", None), MESSAGE: getattr(event, "message_id", None)}
    attributes = {key: value for key, value in ids.items() if value is not None}
    tracer = trace.get_tracer("agentphone")
    # Exceptions are not recorded: their texts may quote the person's.
    with tracer.start_as_current_span(f"agentphone.inbox.{name}", attributes=attributes, record_exception=False):
        yield


def current_trace() -> dict[str, str] | None:
    """Return the headers that name the current span, to be stored with an item; None if there is none."""
    if not IS_INSTALLED:
        return None
    from opentelemetry import propagate, trace

    if not trace.get_current_span().get_span_context().is_valid:
        return None
    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


@contextmanager
def continued(headers: dict[str, str] | None) -> Generator[None]:
    """Run the block in the trace that `current_trace` returned in another process."""
    if not IS_INSTALLED or not headers:
        yield
        return
    from opentelemetry import context, propagate

    token = context.attach(propagate.extract(headers))
    try:
        yield
    finally:
        context.detach(token)
