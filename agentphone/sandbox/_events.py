"""The stream of changes as server-sent events, for any number of pages at the cost of one.

Commits of this process and of others, and requests, are found by polling: one comparison of three numbers ten times a
second while a stream is open. Of all streams of an event loop only one polls at a time; the others wait for a lock.
"""

import json
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from agentphone.sandbox._changes import ChangeLog
from agentphone.sandbox._request_log import RequestLog

POLL_SECONDS = 0.1
HEARTBEAT_SECONDS = 15.0
RETRY_MILLISECONDS = 1000

Version = tuple[int, int, int]


class EventSource:
    """Everything that may be worth an event.

    Args:
        changes: The changes of the database.
        request_log: The requests to this process.
    """

    def __init__(self, changes: ChangeLog, request_log: RequestLog) -> None:
        self.changes = changes
        self.request_log = request_log
        self._locks: anyio.lowlevel.RunVar[anyio.Lock] = anyio.lowlevel.RunVar("agentphone sandbox events")

    def version(self) -> Version:
        """Return a value that differs after every change and request."""
        return (self.request_log.version, *self.changes.version())

    async def wait(self, seen: Version) -> None:
        """Wait until the version is another one."""
        lock = self._locks.get(None)
        if lock is None:
            lock = anyio.Lock()
            self._locks.set(lock)
        async with lock:
            while self.version() == seen:  # noqa: ASYNC110  # another process cannot set an event
                await anyio.sleep(POLL_SECONDS)


class EventResponse(Response):
    """A response that ends when the client disconnects.

    Args:
        source: What to report.
        last_id: The id of the last event that the client has; None for a client that has none.
    """

    media_type = "text/event-stream"

    def __init__(self, source: EventSource, last_id: int | None) -> None:
        # Without a body: it would get a length.
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._source = source
        self._is_new = last_id is None
        # Before the headers are sent: a client that has seen them misses nothing.
        self._last_id = source.changes.since(None).last if last_id is None else last_id
        self._requests_seen = source.request_log.version

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the client disconnects."""
        async with anyio.create_task_group() as group:
            group.start_soon(_call_at_disconnect, receive, group.cancel_scope.cancel)
            start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            await send(start)
            await self._send_events(send)

    async def _send_events(self, send: Send) -> None:
        last_id, requests_seen = self._last_id, self._requests_seen
        text = f"retry: {RETRY_MILLISECONDS}\n\n"
        if self._is_new:
            text += _event("ready", {}, last_id)
        while True:
            version = self._source.version()
            changes = self._source.changes.since(last_id)
            if changes.is_reset:
                text += _event("reset", {}, changes.last)
            text += "".join(_event("change", change, int(change["id"])) for change in changes.data)
            last_id = changes.last
            entries = self._source.request_log.since(requests_seen)
            requests_seen = max([requests_seen, *(entry.version for entry in entries)])
            text += "".join(_event("request", entry.summary()) for entry in entries)
            if text:
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            text = ""
            if not changes.has_more:
                with anyio.move_on_after(HEARTBEAT_SECONDS) as timer:
                    await self._source.wait(version)
                if timer.cancelled_caught:
                    text = ": nothing new\n\n"  # It finds out whether the client is still there.


def _event(name: str, data: dict[str, Any], event_id: int | None = None) -> str:
    id_line = "" if event_id is None else f"id: {event_id}\n"
    return f"{id_line}event: {name}\ndata: {json.dumps(data)}\n\n"


async def _call_at_disconnect(receive: Receive, call: Callable[[], object]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    call()
