"""The two handles a test has on the sandbox's HTTP side: what it shall do wrong, and what it received.

How a fault looks on a connection is not known here.

Both are used from the test's thread while the application runs in others, without a lock: each step is one operation
of a list, a deque or an iterator.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Literal, get_args
from urllib.parse import unquote

import attrs
from starlette.requests import Request

Kind = Literal["hang", "reset", "cut"]

RECORDED_REQUESTS = 1000
RECORDED_BODY = 64 * 1024


@attrs.frozen
class ReceivedRequest:
    """One request as it arrived.

    Args:
        method: The HTTP method.
        path: The path, percent-encoded as it was sent, without the query.
        query: The query's parameters, decoded; of a repeated one the last.
        headers: By lower-case name; `***` stands for the value of `authorization`.
        body: The first 64 KiB of the body; `***` stands for that of `/sandbox/webhook`, which has the secret.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @classmethod
    def of(cls, request: Request, path: str, body: bytes) -> "ReceivedRequest":
        """Take the record from a request and its body."""
        headers = dict(request.headers)
        if "authorization" in headers:
            headers["authorization"] = "***"
        recorded = b"***" if unquote(path) == "/sandbox/webhook" else body[:RECORDED_BODY]
        return cls(request.method, path, dict(request.query_params), headers, recorded)


class Requests(deque[ReceivedRequest]):
    """The last 1,000 requests, oldest first."""

    def __init__(self) -> None:
        super().__init__(maxlen=RECORDED_REQUESTS)


@attrs.frozen(eq=False)
class Fault:
    """One scripted answer; `tickets` has an item for each time it may still be given."""

    status: int
    kind: Kind | None
    retry_after: float | str | None
    body: object
    path: str | None
    remaining: Iterator[int]


class Faults:
    """Scripted answers, given in place of the real ones, in the order in which they were added."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(
        self,
        *,
        status: int | None = None,
        kind: Kind | None = None,
        retry_after: float | str | None = None,
        body: object = None,
        times: int = 1,
        path: str | None = None,
    ) -> None:
        """Answer the next requests without doing what they ask for.

        Either `status` or `kind` says how.

        Args:
            status: The HTTP status, 200 to 599; with `kind="cut"` 200 if None.
            kind: `"hang"`: no answer until the client goes away, or for 5 minutes. `"reset"`: the connection is reset.
                `"cut"`: the connection is closed in the middle of the body.
            retry_after: The `Retry-After` header: seconds, or any text as it is; absent if None.
            body: None for the error envelope; a str is sent as HTML, bytes are sent as they are under the type
                `application/json`, anything else is sent as JSON.
            times: How many requests get this answer, at least 1.
            path: Only requests for exactly this path (percent-encoded, without the query); any request if None.

        Raises:
            ValueError: `status` or `times` is out of range, there is no such `kind`, or nothing says what to answer, or
                what is never answered has an answer.
        """
        if status is None and kind is None:
            raise ValueError("status or kind must be given")
        if kind not in (None, *get_args(Kind)):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}: {kind!r}")
        if kind in ("hang", "reset") and (status, retry_after, body) != (None, None, None):
            raise ValueError(f"kind={kind!r} must be alone: it has no answer, so no status, retry_after or body")
        if status is not None and not 200 <= status <= 599:
            raise ValueError(f"status must be 200 to 599: {status}")
        if times < 1:
            raise ValueError(f"times must be at least 1: {times}")
        self._faults.append(Fault(200 if status is None else status, kind, retry_after, body, path, iter(range(times))))

    def clear(self) -> None:
        """Forget all faults that have not happened yet."""
        self._faults.clear()

    def take(self, path: str) -> Fault | None:
        """Give the fault that a request for this path meets, and count it."""
        for fault in tuple(self._faults):
            # `next` on a range is one step: two requests at once never use the same ticket.
            if fault.path in (None, path) and next(fault.remaining, None) is not None:
                return fault
        return None
