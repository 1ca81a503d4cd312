"""Scripted faults and recorded requests: how a test controls and inspects the sandbox's HTTP side.

How a fault is sent is in `_app`. A test uses both from its own thread while the application runs in others. They need
no lock: each step is a single atomic operation of a list, a deque or an iterator.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Literal, get_args
from urllib.parse import unquote

import attrs
from starlette.requests import Request

from agentphone._checks import check_integer

Kind = Literal["hang", "reset", "cut", "lost"]

MAX_REQUESTS = 1000
MAX_RECORDED_BODY = 64 * 1024


@attrs.frozen
class ReceivedRequest:
    """One request as it arrived.

    Args:
        method: The HTTP method.
        path: The path, percent-encoded as it was sent, without the query.
        query: The query parameters, decoded; the last value of a repeated one.
        headers: By lower-case name; the value of `authorization` is replaced by `***`.
        body: The first 64 KiB of the body; `***` for `/sandbox/webhook`, whose body contains the secret.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @classmethod
    def from_request(cls, request: Request, path: str, body: bytes) -> "ReceivedRequest":
        """Return the record of a request."""
        headers = dict(request.headers)
        if "authorization" in headers:
            headers["authorization"] = "***"
        # Also under a misspelled path: the body has the secret.
        recorded = b"***" if unquote(path).startswith("/sandbox/webhook") else body[:MAX_RECORDED_BODY]
        return cls(request.method, path, dict(request.query_params), headers, recorded)


class Requests(deque[ReceivedRequest]):
    """The last 1,000 requests received, oldest first."""

    def __init__(self) -> None:
        super().__init__(maxlen=MAX_REQUESTS)


@attrs.frozen(eq=False)
class Fault:
    """One scripted fault.

    Args:
        status: The HTTP status; None for a fault without a response.
        kind: What happens to the connection; None for an ordinary response.
        retry_after: The `Retry-After` header.
        body: The response body.
        path: The only path that it applies to; None for all of the API.
        method: The only method that it applies to; None for all.
        remaining: One item for each request that it still applies to.
    """

    status: int | None
    kind: Kind | None
    retry_after: float | str | None
    body: object
    path: str | None
    method: str | None
    remaining: Iterator[int]

    def applies_to(self, method: str, path: str) -> bool:
        """Return whether it is for requests of this method and path; `/sandbox/...` and pages only if it names them."""
        is_path = path.startswith("/v1/") if self.path is None else path == self.path
        return is_path and self.method in (None, method)


class Faults:
    """Scripted faults, which replace the real responses in the order in which they were added."""

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
        method: str | None = None,
    ) -> None:
        """Make the next requests fail. They are not carried out, except with `kind="lost"`.

        `status` or `kind` is required.

        Args:
            status: The HTTP status, 200 to 599; with `kind="cut"` 200 by default.
            kind: What happens to the connection; None for an ordinary response.

                - `"lost"`: the request is carried out and its response is lost: the connection is closed without a
                  byte. With a `status` the client gets that response instead.
                - `"reset"`: the request is not carried out, and the connection is reset without a byte.
                - `"hang"`: the request is not carried out, and nothing comes back until the client disconnects, or for
                  5 minutes; then the connection is reset.
                - `"cut"`: the request is not carried out. The response is that of the fault, and the connection is
                  closed in the middle of its body.
            retry_after: The `Retry-After` header: seconds, or any text, sent as it is; None for no header.
            body: The response body: a str is sent as HTML, bytes as they are with the type `application/json`,
                anything else as JSON; None for the error envelope.
            times: How many requests fail, at least 1.
            path: Only requests for exactly this path fail (percent-encoded, without the query); None for any path of
                the API, under `/v1/`.
            method: Only requests of this method fail; None for any.

        Raises:
            ValueError: `status` or `times` is out of range, `kind` is unknown, `status` and `kind` are both missing,
                `retry_after` is not printable ASCII, or a fault without a response has a `status`, `retry_after` or
                `body`.
            TypeError: An argument has another type.
        """
        if status is None and kind is None:
            raise ValueError("status or kind is required")
        if kind not in (None, *get_args(Kind)):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        if kind in ("hang", "reset") and (status, retry_after, body) != (None, None, None):
            raise ValueError(f"kind={kind!r} has no response: remove status, retry_after and body")
        if kind == "lost" and status is None and (retry_after, body) != (None, None):
            raise ValueError("kind='lost' has no response without a status: add status, or remove retry_after and body")
        for name, value in (("path", path), ("method", method)):
            if not isinstance(value, str | None):
                raise TypeError(f"{name} must be a string or None, got {type(value).__name__}")
        if not isinstance(retry_after, float | int | str | None):
            raise TypeError(f"retry_after must be a number, a string or None, got {type(retry_after).__name__}")
        if not (str(retry_after).isascii() and str(retry_after).isprintable()):
            raise ValueError(f"retry_after must be printable ASCII, got {retry_after!r}")
        check_integer("status", status, minimum=200, maximum=599, optional=True)
        check_integer("times", times, minimum=1)
        if status is None and kind == "cut":
            status = 200
        method = None if method is None else method.upper()
        self._faults.append(Fault(status, kind, retry_after, body, path, method, iter(range(times))))

    def clear(self) -> None:
        """Remove all faults that have not happened yet."""
        self._faults.clear()

    def next_for(self, method: str, path: str) -> Fault | None:
        """Return the fault for a request of this method and path, if any, and count it."""
        for fault in tuple(self._faults):
            # `next` on a range iterator is atomic, so two concurrent requests never use up the same item.
            if fault.applies_to(method, path) and next(fault.remaining, None) is not None:
                return fault
        return None
