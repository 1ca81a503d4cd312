"""The policy of live iterations: which failures of a poll are waited out, and for how long at least."""

from __future__ import annotations

import pytest

from agentphone import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    DeadlineExceededError,
    NotFoundError,
    RateLimitError,
    ServerError,
)
from agentphone._http.retry import MAX_POLL_RETRY_AFTER, min_poll_delay

REQUEST = "GET /v1/conversations"


def status_error(cls: type[APIStatusError], status: int, retry_after: float | None = None) -> APIStatusError:
    return cls("no", request=REQUEST, status_code=status, retry_after=retry_after)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (APIConnectionError("no", request=REQUEST), 0.0),
        (APIConnectionError("no", request=REQUEST, permanent_advice="Fix the certificate."), None),
        (APITimeoutError("no", request=REQUEST), 0.0),
        (DeadlineExceededError("no", request=REQUEST), 0.0),
        (status_error(ServerError, 503), 0.0),
        (status_error(ServerError, 503, 7.5), 7.5),
        (status_error(RateLimitError, 429, 0.0), 0.0),
        (status_error(RateLimitError, 429, MAX_POLL_RETRY_AFTER), MAX_POLL_RETRY_AFTER),
        (status_error(RateLimitError, 429, MAX_POLL_RETRY_AFTER + 1), None),
        (status_error(RateLimitError, 429, float("inf")), None),
        (status_error(ServerError, 501), None),
        (status_error(NotFoundError, 404), None),
        (status_error(NotFoundError, 404, 1.0), None),
    ],
    ids=repr,
)
def test_min_poll_delay(error: APIConnectionError | APIStatusError, expected: float | None) -> None:
    """None means that the error is raised."""
    assert min_poll_delay(error) == expected
