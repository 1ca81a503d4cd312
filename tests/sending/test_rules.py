"""The rule of sends as a table: after which failures a send is repeated, raised as it is, or unconfirmed."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime
from typing import Any

import pytest

from agentphone import (
    AgentPhoneError,
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    Attempt,
    ConflictError,
    DeadlineExceededError,
    RateLimitError,
    ResponseDecodeError,
    SendUnconfirmedError,
    ServerError,
)
from agentphone._http.retry import Repeat, RetryPolicy, is_unconfirmed

POST = "POST /v1/messages"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def status(number: int, **more: Any) -> APIStatusError:
    cls = {409: ConflictError, 429: RateLimitError}.get(number, ServerError if number >= 500 else APIStatusError)
    return cls("no", request=POST, status_code=number, **more)


REPEATED, RAISED, UNCONFIRMED = "repeated", "raised", "unconfirmed"

TABLE: list[tuple[AgentPhoneError, str]] = [
    (APIConnectionError("refused", request=POST, is_unsent=True), REPEATED),
    (APITimeoutError("connecting", request=POST, is_unsent=True), REPEATED),
    (status(429), REPEATED),
    (status(429, retry_after=2.0), REPEATED),
    (APIConnectionError("certificate", request=POST, is_unsent=True, permanent_advice="Check it."), RAISED),
    (DeadlineExceededError("late", request=POST, is_unsent=True), RAISED),
    *[(status(code), RAISED) for code in (300, 301, 302, 307, 400, 401, 402, 403, 404, 409, 413, 422, 425, 451)],
    (status(409, code="SOMETHING_ELSE"), RAISED),
    (status(429, retry_after=1e9), RAISED),
    (APIConnectionError("reset", request=POST), UNCONFIRMED),
    (APITimeoutError("reading", request=POST), UNCONFIRMED),
    (DeadlineExceededError("late", request=POST), UNCONFIRMED),
    (ResponseDecodeError("not JSON", request=POST, path="", status_code=200, request_id=None, body=b""), UNCONFIRMED),
    (status(409, code="DELIVERY_UNCONFIRMED"), UNCONFIRMED),
    (status(409, body=b'{"code": "DELIVERY_UNCONFIRMED"}'), UNCONFIRMED),
    (status(409, body=b'{"detail": {"code": "DELIVERY_UNCONFIRMED"}}'), UNCONFIRMED),
    (status(429, code="DELIVERY_UNCONFIRMED"), UNCONFIRMED),
    (status(409, body=b'{"detail": "There is no such number."}'), RAISED),
    *[(status(code), UNCONFIRMED) for code in (408, 500, 501, 502, 503, 504, 507, 520, 599, 600, 199)],
    (status(503, retry_after=1.0), UNCONFIRMED),
]


@pytest.mark.parametrize(
    ("error", "expected"), TABLE, ids=lambda value: value if isinstance(value, str) else repr(value)
)
def test_rule_of_sends(error: AgentPhoneError, expected: str) -> None:
    policy = RetryPolicy(max_retries=3, max_retry_after=60.0)
    delay = policy.delay(error, 1, Repeat.IF_NOT_ACCEPTED)
    assert (delay is not None) == (expected == REPEATED)
    assert is_unconfirmed(error) == (expected == UNCONFIRMED)


@pytest.mark.parametrize(
    ("error", "expected"), TABLE, ids=lambda value: value if isinstance(value, str) else repr(value)
)
def test_request_that_is_never_repeated(error: AgentPhoneError, expected: str) -> None:
    assert RetryPolicy(max_retries=3, max_retry_after=60.0).delay(error, 1, Repeat.NEVER) is None


def test_error_says_what_happened_and_what_to_do() -> None:
    attempts = (Attempt("429", 0.1, 0.5), Attempt("503", 0.2, 0.0))
    error = SendUnconfirmedError("503 Busy", request=POST, since=NOW, status_code=503, attempts=attempts)
    assert str(error) == (
        "POST /v1/messages: 503 Busy (after 2 attempts). It may have been sent, so it was not sent again. Look for it"
        " in the conversation's newest messages before you send it again."
    )
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.since, copy.status_code, copy.attempts) == (str(error), NOW, 503, attempts)
