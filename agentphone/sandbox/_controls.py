"""What the phone needs beyond the API, under `/sandbox`: requests, deliveries, changes and search. Programs may use it.

Handlers of requests that are authenticated already. `_app` routes to them.
"""

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from agentphone.sandbox._events import EventResponse, EventSource
from agentphone.sandbox._inputs import FieldError, integer_parameter
from agentphone.sandbox._request_log import RequestLog
from agentphone.sandbox._store import Store

DEFAULT_PAGE, MAX_PAGE = 100, 1000  # of deliveries and requests
MAX_QUERY = 200

Handler = Callable[[Request, bytes], Response]


class Controls:
    """Handle the requests of the phone.

    Args:
        store: The data.
        request_log: The requests so far.
        respond: Makes a response of JSON-ready content; None for content that does not exist.
    """

    def __init__(
        self, store: Store, request_log: RequestLog, respond: Callable[[dict[str, Any] | None], Response]
    ) -> None:
        self._store = store
        self._request_log = request_log
        self._respond = respond
        self._events = EventSource(store.changes, request_log)

    def handlers(self, segments: list[str]) -> dict[str, Handler]:
        """Return the handler of each method at a path under `/sandbox`; empty if there is nothing at the path."""
        match segments:
            case ["events"]:
                return {"GET": self._stream}
            case ["changes"]:
                return {"GET": self._changes}
            case ["requests"]:
                return {"GET": self._requests}
            case ["requests", number]:
                return {"GET": lambda *_: self._respond(self._request_log.get(number))}
            case ["search"]:
                return {"GET": self._search}
            case ["deliveries"]:
                return {"GET": self._deliveries}
            case ["deliveries", delivery_id]:
                return {"GET": lambda *_: self._respond(self._store.queue.delivery(delivery_id))}
            case ["deliveries", delivery_id, "redeliver"]:
                return {"POST": lambda *_: self._respond(self._store.queue.redeliver(delivery_id))}
            case _:
                return {}

    def _stream(self, request: Request, _: bytes) -> Response:
        return EventResponse(self._events, _change_id("Last-Event-ID", request.headers.get("last-event-id")))

    def _changes(self, request: Request, _: bytes) -> Response:
        changes = self._store.changes.since(_change_id("after", request.query_params.get("after")))
        content = {
            "data": changes.data,
            "last": str(changes.last),
            "isReset": changes.is_reset,
            "hasMore": changes.has_more,
        }
        return self._respond(content)

    def _requests(self, request: Request, _: bytes) -> Response:
        limit = integer_parameter(request, "limit", DEFAULT_PAGE, minimum=1, maximum=MAX_PAGE)
        return self._respond(self._request_log.page(limit=limit))

    def _search(self, request: Request, _: bytes) -> Response:
        query = request.query_params.get("q", "")
        if not 0 < len(query) <= MAX_QUERY:
            raise FieldError("q", f"must have 1 to {MAX_QUERY} characters.")
        limit = integer_parameter(request, "limit", 50, minimum=1, maximum=100)
        return self._respond(self._store.search.page(query, limit=limit))

    def _deliveries(self, request: Request, _: bytes) -> Response:
        limit = integer_parameter(request, "limit", DEFAULT_PAGE, minimum=1, maximum=MAX_PAGE)
        conversation_id = request.query_params.get("conversation_id")
        return self._respond(self._store.queue.page(limit=limit, conversation_id=conversation_id))


def _change_id(field: str, text: str | None) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise FieldError(field, "must be the id of a change.")
    return int(text)
