"""The log of requests and their responses, for the phone and for programs that debug with it.

`Sandbox.requests` has what was received, as tests want it. This has the outcome besides. It lives in this process
only, and knows no HTTP framework.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import attrs

from agentphone.sandbox._behavior import Settings
from agentphone.sandbox._faults import MAX_REQUESTS, ReceivedRequest


@attrs.define(eq=False)
class LoggedRequest:
    """One request with its outcome.

    Args:
        id: Its number, from 1.
        at: When it arrived, as the API prints timestamps.
        request: What was received.
        is_fault: Whether a scripted fault replaces its response.
        status: The HTTP status of the response; None before, and where the connection broke.
        seconds: How long the response took; None while it is in progress.
        version: The log's version at its last change.
    """

    id: int
    at: str
    request: ReceivedRequest
    is_fault: bool = False
    status: int | None = None
    seconds: float | None = None
    version: int = 0

    def summary(self) -> dict[str, Any]:
        """Return it as JSON-ready data, without headers and body."""
        return {
            "id": self.id,
            "at": self.at,
            "method": self.request.method,
            "path": self.request.path,
            "query": dict(self.request.query),
            "status": self.status,
            "seconds": self.seconds,
            "isFault": self.is_fault,
        }

    def details(self) -> dict[str, Any]:
        """Return it as JSON-ready data, whole."""
        body = self.request.body.decode(errors="replace")
        return self.summary() | {"headers": dict(self.request.headers), "body": body}


class RequestLog:
    """The last 1,000 requests, oldest first.

    Args:
        settings: How timestamps are shown.

    Attributes:
        version: A number that grows with every change.
        on_finish: Called with each request once it is answered.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._entries: deque[LoggedRequest] = deque(maxlen=MAX_REQUESTS)
        self._numbers = itertools.count(1)
        self._versions = itertools.count(1)
        self.version: int = 0
        self.on_finish: Callable[[LoggedRequest], object] = lambda _: None

    @contextmanager
    def recording(self, request: ReceivedRequest) -> Generator[LoggedRequest]:
        """Add a request that has arrived; at the end, note how long it took."""
        at = self._settings.format(round(time.time() * 1_000_000))
        entry = LoggedRequest(next(self._numbers), at, request)
        self._entries.append(entry)  # before the version, which says that there is something to read
        self._mark(entry)
        started_at = time.monotonic()
        try:
            yield entry
        finally:
            entry.seconds = round(time.monotonic() - started_at, 4)
            self._mark(entry)
            self.on_finish(entry)

    def since(self, version: int) -> list[LoggedRequest]:
        """Return the requests that changed after a version, oldest first."""
        return [entry for entry in tuple(self._entries) if entry.version > version]

    def page(self, *, limit: int) -> dict[str, Any]:
        """Return the newest requests, newest first, as the sandbox's HTTP API shows them."""
        entries = tuple(self._entries)
        newest = [entry.details() for entry in reversed(entries[-limit:])]
        return {"data": newest, "hasMore": len(entries) > limit}

    def get(self, number: str) -> dict[str, Any] | None:
        """Return a request by its number, or None if it is not among them."""
        return next((entry.details() for entry in tuple(self._entries) if str(entry.id) == number), None)

    def _mark(self, entry: LoggedRequest) -> None:
        # `next` is atomic, so two threads never get the same version.
        entry.version = self.version = next(self._versions)
