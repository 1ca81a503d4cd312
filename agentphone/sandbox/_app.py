"""The sandbox's HTTP API, an ASGI application: it routes requests and sends the documented responses.

Parsing is in `_inputs`, all data in `_store`. Paths are matched as sent, one percent-encoded segment at a time, so that
an id with `%2F` is an unknown id and never another path. Every response has an `x-request-id`. Every request is
recorded before it can be rejected, except those of the phone and those that observe the sandbox.

ASGI cannot reset a connection, nor close it without a response. A server or transport that is able to puts functions
for it into the scope, as the extensions `RESET_EXTENSION` and `DISCONNECT_EXTENSION`. A server that web pages can reach
puts the names that it may be called by there, as `HOSTS_EXTENSION`.
"""

import hmac
import json
import logging
import secrets
from collections.abc import Callable, Mapping
from email.utils import formatdate
from typing import Any, cast
from urllib.parse import quote, unquote

import anyio
import anyio.lowlevel
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from agentphone._logging import logger as package_logger
from agentphone.sandbox._behavior import Settings
from agentphone.sandbox._controls import Controls
from agentphone.sandbox._deliveries import DEFAULT_TIMEOUT, DeliveryQueue
from agentphone.sandbox._faults import Fault, Faults, ReceivedRequest, Requests
from agentphone.sandbox._hosts import is_local_host
from agentphone.sandbox._inputs import (
    FieldError,
    check_string,
    integer_parameter,
    parse_fault,
    parse_message,
    parse_object,
    parse_webhook,
    timestamp_parameter,
)
from agentphone.sandbox._page import page_response
from agentphone.sandbox._request_log import LoggedRequest, RequestLog
from agentphone.sandbox._sending import parse_outgoing, parse_reaction
from agentphone.sandbox._store import NotFoundError, Store, UnsupportedError

RESET_EXTENSION = "agentphone.sandbox.reset"
DISCONNECT_EXTENSION = "agentphone.sandbox.disconnect"
HOSTS_EXTENSION = "agentphone.sandbox.hosts"
HANG_SECONDS = 300.0
MAX_BODY = 1024 * 1024
DEFAULT_MESSAGE_LIMIT = 50
DEFAULT_CONTEXT_LIMIT = 10
HOST_ADVICE = "Use an address such as 127.0.0.1, or start the sandbox with --allow-host NAME."
EVENTS_PATH = "/sandbox/events"
OBSERVER_PATHS = (EVENTS_PATH, "/sandbox/changes", "/sandbox/requests", "/sandbox/search", "/sandbox/faults")
"""Paths that observe and control the sandbox: requests for them are not recorded, and no scripted fault hits them."""
FOREIGN_SITES = ("cross-site", "same-site")
"""What browsers send as `Sec-Fetch-Site` for pages that the sandbox did not serve: even a request that is not allowed
would use up a scripted fault and fill the log."""
PHONE_HEADER = "x-agentphone-phone"
"""The header of the phone's own requests, which are treated like those for `OBSERVER_PATHS`."""
ERROR_CODES = {
    400: ("BAD_REQUEST", "invalid_request_error"),
    401: ("UNAUTHORIZED", "authentication_error"),
    403: ("FORBIDDEN", "permission_error"),
    404: ("NOT_FOUND", "not_found_error"),
    405: ("METHOD_NOT_ALLOWED", "invalid_request_error"),
    409: ("CONFLICT", "conflict_error"),
    413: ("PAYLOAD_TOO_LARGE", "invalid_request_error"),
    422: ("VALIDATION_ERROR", "validation_error"),
    429: ("RATE_LIMIT_EXCEEDED", "rate_limit_error"),
    500: ("INTERNAL_ERROR", "server_error"),
}
"""The `code` and `type` of an error, by its HTTP status."""

logger: logging.Logger = package_logger.getChild("sandbox")

Handler = Callable[[Request, bytes], Response]


class HTTPError(Exception):
    """An error response; `code` replaces the usual one of the status."""

    def __init__(
        self, status: int, message: str, headers: Mapping[str, str] | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.code = code


class App:
    """Serve a store over ASGI.

    Args:
        store: The data.
        settings: The clock, for the `Date` of responses.
        api_key: The only bearer key to accept; None accepts any non-empty key.
        faults: The scripted faults, which replace ordinary responses.
        requests: Where every request is recorded.
        settings: How timestamps are shown.

    Attributes:
        request_log: The requests with their outcomes.
        queue: The webhook deliveries.
    """

    def __init__(
        self, store: Store, settings: Settings, api_key: str | None, faults: Faults, requests: Requests
    ) -> None:
        self._store = store
        self._settings = settings
        self._api_key = api_key
        self._faults = faults
        self._requests = requests
        self.request_log: RequestLog = RequestLog(settings)
        self.queue: DeliveryQueue = store.queue
        self._controls = Controls(store, self.request_log, _found)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to an HTTP request; acknowledge the start and end of a lifespan."""
        if scope["type"] == "lifespan":
            while (await receive())["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "http":
            body = await _read_body(receive)
            if body is None:
                return
            # In-process, nothing else here yields to the event loop, so a caller's timeout could never fire.
            await anyio.lowlevel.checkpoint()
            request = Request(scope, receive)
            path = _raw_path(scope)
            send = self._with_headers(send)
            allowed_hosts = (scope.get("extensions") or {}).get(HOSTS_EXTENSION)
            host = request.headers.get("host", "")
            if allowed_hosts is not None and not is_local_host(host, allowed_hosts):
                await _error_response(403, f"The host {host!r} is not allowed. {HOST_ADVICE}")(scope, receive, send)
                return
            page = page_response(request, path)
            if page is not None:
                await page(scope, receive, send)
            elif request.headers.get("sec-fetch-site") in FOREIGN_SITES:
                await _error_response(403, "Pages of other sites may not use the sandbox.")(scope, receive, send)
            elif path.startswith(OBSERVER_PATHS) or PHONE_HEADER in request.headers:
                await self._respond(request, path, body)(scope, receive, send)
            else:
                received = ReceivedRequest.from_request(request, path, body)
                self._requests.append(received)
                with self.request_log.recording(received) as entry:
                    await self._respond_or_fail(request, path, body, entry, send)

    async def _respond_or_fail(
        self, request: Request, path: str, body: bytes, entry: LoggedRequest, send: Send
    ) -> None:
        """Respond, or do what a scripted fault says."""

        async def note_status(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
            await send(message)

        fault = self._faults.next_for(request.method, path)
        entry.is_fault = fault is not None
        if fault is not None and fault.kind in ("hang", "reset"):
            await _hang_or_reset(fault, request.scope, request.receive, note_status)
            return
        if fault is None:
            response = self._respond(request, path, body)
        else:
            if fault.kind == "lost":
                self._respond(request, path, body)
            if fault.status is None:
                await _disconnect(DISCONNECT_EXTENSION, request.scope, note_status)
                return
            response = _fault_response(fault, fault.status)
        if fault is not None and fault.kind == "cut":
            await _send_truncated(response, note_status)
        else:
            await response(request.scope, request.receive, note_status)

    def _with_headers(self, send: Send) -> Send:
        """Add the headers that every response has."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = {"x-request-id": f"req_{secrets.token_hex(8)}", "date": self._http_date()}
                encoded = [(name.encode(), value.encode()) for name, value in added.items()]
                message = {**message, "headers": [*message["headers"], *encoded]}
            await send(message)

        return send_with_headers

    def _http_date(self) -> str:
        """Return the time of the clock that dates the messages; the real time if it returns none."""
        try:
            return formatdate(self._settings.clock(), usegmt=True)
        except Exception:  # noqa: BLE001  # a function of the user's, which may raise or return anything
            return formatdate(usegmt=True)

    def _respond(self, request: Request, path: str, body: bytes) -> Response:
        try:
            self._authenticate(request, body)
            return self._handler(request.method, path)(request, body)
        except FieldError as error:
            return _error_response(422, str(error), details=error.details)
        except HTTPError as error:
            return _error_response(error.status, str(error), error.headers, code=error.code)
        except NotFoundError as error:
            return _error_response(404, str(error), code=error.code)
        except UnsupportedError as error:
            return _error_response(400, str(error))
        except Exception:
            logger.exception("%s %s failed", request.method, path)
            return _error_response(500, "The sandbox failed; see its log.")

    def _authenticate(self, request: Request, body: bytes) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        key = key.strip()
        is_known = bool(key) if self._api_key is None else hmac.compare_digest(key.encode(), self._api_key.encode())
        if scheme.lower() != "bearer" or not is_known:
            message = "Missing or wrong API key: send it as Authorization: Bearer KEY."
            raise HTTPError(401, message, {"WWW-Authenticate": "Bearer"})
        if len(body) > MAX_BODY:
            raise HTTPError(413, f"The body is longer than {MAX_BODY} bytes.")

    def _handler(self, method: str, path: str) -> Handler:
        handlers: dict[str, Handler]
        match [unquote(segment) for segment in path.split("/")]:
            case ["", "v1", "conversations"]:
                handlers = {"GET": self._list}
            case ["", "v1", "conversations", conversation_id] if conversation_id:
                handlers = {
                    "GET": lambda request, _: self._get(request, conversation_id),
                    "PATCH": lambda _, body: self._update(body, conversation_id),
                }
            case ["", "v1", "conversations", conversation_id, "messages"] if conversation_id:
                handlers = {"GET": lambda request, _: self._messages(request, conversation_id)}
            case ["", "v1", "conversations", conversation_id, "typing"] if conversation_id:
                handlers = {"POST": lambda _, __: _json_response(200, self._store.show_typing(conversation_id))}
            case ["", "v1", "messages"]:
                handlers = {"POST": lambda _, body: self._send(body)}
            case ["", "v1", "messages", message_id, "reactions"] if message_id:
                handlers = {"POST": lambda _, body: self._react(body, message_id)}
            case ["", "sandbox", "messages"]:
                handlers = {"POST": lambda _, body: self._add_message(body)}
            case ["", "sandbox", "messages", message_id, "reactions"] if message_id:
                handlers = {"POST": lambda _, body: self._add_reaction(body, message_id)}
            case ["", "sandbox", "faults"]:
                handlers = {"POST": lambda _, body: self._add_fault(body), "DELETE": self._clear_faults}
            case ["", "sandbox", "webhook"]:
                handlers = {"PUT": lambda _, body: self._set_webhook(body)}
            case ["", "sandbox", *rest]:
                handlers = self._controls.handlers(rest)
            case _:
                handlers = {}
        if not handlers:
            raise HTTPError(404, "There is nothing at this path.")
        if method not in handlers:
            allowed = ", ".join(handlers)
            raise HTTPError(405, f"Allowed methods: {allowed}.", {"Allow": allowed})
        return handlers[method]

    def _list(self, request: Request, _: bytes) -> Response:
        limit = integer_parameter(request, "limit", 20, minimum=1, maximum=100)
        offset = integer_parameter(request, "offset", 0, minimum=0)
        return _json_response(200, self._store.conversations(limit=limit, offset=offset))

    def _get(self, request: Request, conversation_id: str) -> Response:
        message_limit = integer_parameter(request, "message_limit", DEFAULT_MESSAGE_LIMIT, minimum=1, maximum=100)
        return _found(self._store.conversation(conversation_id, message_limit=message_limit))

    def _update(self, body: bytes, conversation_id: str) -> Response:
        fields = parse_object(body)
        if "metadata" not in fields:
            return _found(self._store.conversation(conversation_id, message_limit=DEFAULT_MESSAGE_LIMIT))
        metadata = fields["metadata"]
        if metadata is not None and not isinstance(metadata, dict):
            raise FieldError("metadata", "must be an object or null.")
        try:
            updated = self._store.set_metadata(
                conversation_id, cast("dict[str, Any] | None", metadata), message_limit=DEFAULT_MESSAGE_LIMIT
            )
        except ValueError as error:  # 1e999 is valid JSON, but Python parses it as infinity.
            raise FieldError("metadata", "has a number out of range.") from error
        return _found(updated)

    def _messages(self, request: Request, conversation_id: str) -> Response:
        page = self._store.messages(
            conversation_id,
            limit=integer_parameter(request, "limit", 50, minimum=1, maximum=200),
            before=timestamp_parameter(request, "before"),
            after=timestamp_parameter(request, "after"),
        )
        return _found(page)

    def _send(self, body: bytes) -> Response:
        return _json_response(200, self._store.send(parse_outgoing(parse_object(body))))

    def _react(self, body: bytes, message_id: str) -> Response:
        reaction = parse_reaction(parse_object(body).get("reaction"))
        added = self._store.react(message_id, reaction, direction="outbound")
        answer = {"id": added["id"], "reaction_type": reaction, "message_id": message_id, "channel": added["channel"]}
        return _json_response(200, answer)

    def _add_message(self, body: bytes) -> Response:
        fields = parse_object(body)
        names = ("direction", "from", "to", "body", "at", "channel", "mediaUrls", "group")
        return _json_response(201, self._store.add(parse_message(*(fields.get(name) for name in names))))

    def _add_reaction(self, body: bytes, message_id: str) -> Response:
        fields = parse_object(body)
        sender = None if fields.get("from") is None else check_string("from", fields["from"])
        reaction = parse_reaction(fields.get("reaction"))
        added = self._store.react(message_id, reaction, direction="inbound", from_number=sender)
        return _json_response(201, added)

    def _add_fault(self, body: bytes) -> Response:
        arguments = parse_fault(parse_object(body))
        try:
            self._faults.add(**arguments)
        except (ValueError, TypeError) as error:
            raise HTTPError(422, str(error)) from error
        return _json_response(201, {})

    def _clear_faults(self, _: Request, __: bytes) -> Response:
        self._faults.clear()
        return _json_response(200, {})

    def _set_webhook(self, body: bytes) -> Response:
        fields = parse_object(body)
        context_limit = fields.get("contextLimit", DEFAULT_CONTEXT_LIMIT)
        timeout = fields.get("timeout", DEFAULT_TIMEOUT)
        webhook = parse_webhook(fields.get("url"), fields.get("secret"), context_limit, timeout)
        self._store.queue.set_webhook(webhook)
        shown = {"url": webhook.url, "contextLimit": webhook.context_limit, "timeout": webhook.timeout}
        return _json_response(200, shown)


async def _read_body(receive: Receive) -> bytes | None:
    """Read the body to its end and return little more than `MAX_BODY` of it; None if the client disconnected."""
    body, has_more = b"", True
    while has_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        if len(body) <= MAX_BODY:
            body += message.get("body", b"")
        has_more = message.get("more_body", False)
    return body


def _raw_path(scope: Scope) -> str:
    raw: bytes | None = scope.get("raw_path")  # optional in ASGI
    return quote(scope["path"]) if raw is None else raw.partition(b"?")[0].decode("latin-1")


def _found(content: dict[str, Any] | None) -> Response:
    if content is None:
        raise HTTPError(404, "There is no such conversation.")
    return _json_response(200, content)


def _json_response(status: int, content: object, headers: Mapping[str, str] | None = None) -> Response:
    # Escaped to ASCII, because metadata may contain lone surrogates, which UTF-8 cannot encode.
    return Response(json.dumps(content, allow_nan=False), status, headers, "application/json")


def _error_response(
    status: int,
    message: str,
    headers: Mapping[str, str] | None = None,
    details: object = (),
    code: str | None = None,
) -> Response:
    usual, kind = ERROR_CODES.get(status, ERROR_CODES[500 if status >= 500 else 400])
    error = {"message": message, "code": code or usual, "type": kind, "details": details}
    return _json_response(status, {"error": error}, headers)


async def _hang_or_reset(fault: Fault, scope: Scope, receive: Receive, send: Send) -> None:
    """Wait until the client disconnects, if the fault is a hang; else, and after `HANG_SECONDS`, reset."""
    if fault.kind == "hang":
        with anyio.move_on_after(HANG_SECONDS):
            await receive()
            return
    await _disconnect(RESET_EXTENSION, scope, send)


async def _disconnect(extension: str, scope: Scope, send: Send) -> None:
    """End the connection without a response."""
    disconnect = (scope.get("extensions") or {}).get(extension)
    if disconnect is None:
        await _send_truncated(_json_response(200, {}), send)  # the closest that ASGI has
    else:
        disconnect()


async def _send_truncated(response: Response, send: Send) -> None:
    """Send half of a body whose length says that it is longer; the server then closes the connection."""
    body = bytes(response.body)
    response.headers["content-length"] = str(len(body) + 1)
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})


def _fault_response(fault: Fault, status: int) -> Response:
    headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    match fault.body:
        case None:
            return _error_response(status, "Scripted fault.", headers)
        case str():
            return Response(fault.body, status, headers, "text/html")
        case bytes():
            return Response(fault.body, status, headers, "application/json")
        case _:
            return _json_response(status, fault.body, headers)
