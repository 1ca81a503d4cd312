"""The sandbox's HTTP face, an ASGI application: requests in, the documented envelopes out.

It reads and refuses what arrives, and leaves all data to the store. Paths are matched as sent, one percent-encoded
segment at a time, so that an id holding `%2F` is an unknown id and never another path. Each answer carries an
`x-request-id`; each request is recorded before anything can refuse it.

ASGI has no way to reset a connection: whoever carries it may offer one by the scope's extension `RESET`, a function.
"""

import hmac
import json
import logging
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any, cast
from urllib.parse import quote, unquote

import anyio
import anyio.lowlevel
import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from agentphone.sandbox._behavior import parse_timestamp
from agentphone.sandbox._faults import Fault, Faults, ReceivedRequest, Requests
from agentphone.sandbox._store import NewMessage, Store, Webhook

RESET = "agentphone.sandbox.reset"
HANG_SECONDS = 300.0
MAX_BODY = 1024 * 1024
MAX_NESTING = 100  # Far below Python's recursion limit: what is stored must be printable from anywhere.
DETAIL_MESSAGES = 50  # In a conversation, unless message_limit says otherwise.
DELIVERIES, MOST_DELIVERIES = 100, 1000
CONTEXT_LIMIT, MOST_CONTEXT = 10, 50
CODES = {
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

logger = logging.getLogger("agentphone.sandbox")

Handler = Callable[[Request, bytes], Response]


class HTTPError(Exception):
    """A request that gets an error for an answer."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class FieldError(ValueError):
    """A field that cannot be, by its name in the API: a 422, or a ValueError to who calls Python."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.details = [{"field": field, "message": str(self), "type": "value_error"}]


class App:
    """Serve a store over ASGI.

    Args:
        store: Where the data is.
        api_key: The only bearer key to accept; any that is not empty if None.
        faults: The scripted faults, asked before anything else.
        requests: Where each request is recorded.
    """

    def __init__(self, store: Store, api_key: str | None, faults: Faults, requests: Requests) -> None:
        self._store = store
        self._api_key = api_key
        self._faults = faults
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an HTTP request; acknowledge the start and the end of a lifespan."""
        if scope["type"] == "lifespan":
            while (await receive())["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "http":
            body = await _body_of(receive)
            if body is None:
                return
            # In-process nothing else here waits: without this a caller's timeout could never strike.
            await anyio.lowlevel.checkpoint()
            request = Request(scope)
            path = _raw_path(scope)
            self._requests.append(ReceivedRequest.of(request, path, body))
            fault = self._faults.take(path)
            if fault is not None and fault.kind in ("hang", "reset"):
                await _give_no_answer(fault, scope, receive, send)
                return
            response = self._respond(request, path, body) if fault is None else _fault_response(fault)
            response.headers["x-request-id"] = f"req_{secrets.token_hex(8)}"
            if fault is not None and fault.kind == "cut":
                await _cut(response, send)
            else:
                await response(scope, receive, send)

    def _respond(self, request: Request, path: str, body: bytes) -> Response:
        try:
            self._authenticate(request, body)
            return self._handler(request.method, path)(request, body)
        except FieldError as error:
            return _error(422, str(error), details=error.details)
        except HTTPError as refusal:
            return _error(refusal.status, str(refusal), refusal.headers)
        except Exception:
            logger.exception("%s %s failed", request.method, path)
            return _error(500, "The sandbox failed; its log says why.")

    def _authenticate(self, request: Request, body: bytes) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        key = key.strip()
        good = bool(key) if self._api_key is None else hmac.compare_digest(key.encode(), self._api_key.encode())
        if scheme.lower() != "bearer" or not good:
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
            case ["", "sandbox", "messages"]:
                handlers = {"POST": lambda _, body: self._add_message(body)}
            case ["", "sandbox", "webhook"]:
                handlers = {"PUT": lambda _, body: self._set_webhook(body)}
            case ["", "sandbox", "deliveries"]:
                handlers = {"GET": self._deliveries}
            case _:
                raise HTTPError(404, "There is nothing at this path.")
        if method not in handlers:
            allowed = ", ".join(handlers)
            raise HTTPError(405, f"Possible here: {allowed}.", {"Allow": allowed})
        return handlers[method]

    def _list(self, request: Request, _: bytes) -> Response:
        limit = _integer(request, "limit", 20, lowest=1, highest=100)
        offset = _integer(request, "offset", 0, lowest=0)
        return _json(200, self._store.conversations(limit=limit, offset=offset))

    def _get(self, request: Request, conversation_id: str) -> Response:
        message_limit = _integer(request, "message_limit", DETAIL_MESSAGES, lowest=1, highest=100)
        return _found(self._store.conversation(conversation_id, message_limit=message_limit))

    def _update(self, body: bytes, conversation_id: str) -> Response:
        fields = _object(body)
        if "metadata" not in fields:
            return _found(self._store.conversation(conversation_id, message_limit=DETAIL_MESSAGES))
        metadata = fields["metadata"]
        if metadata is not None and not isinstance(metadata, dict):
            raise FieldError("metadata", "must be an object or null.")
        try:
            updated = self._store.set_metadata(
                conversation_id, cast("dict[str, Any] | None", metadata), message_limit=DETAIL_MESSAGES
            )
        except ValueError as error:  # 1e999 is JSON, but what Python reads from it is not.
            raise FieldError("metadata", "has a number out of range.") from error
        return _found(updated)

    def _messages(self, request: Request, conversation_id: str) -> Response:
        page = self._store.messages(
            conversation_id,
            limit=_integer(request, "limit", 50, lowest=1, highest=200),
            before=_instant(request, "before"),
            after=_instant(request, "after"),
        )
        return _found(page)

    def _add_message(self, body: bytes) -> Response:
        fields = _object(body)
        parts = (fields.get(name) for name in ("direction", "from", "to", "body", "at"))
        return _json(201, self._store.add(new_message(*parts)))

    def _set_webhook(self, body: bytes) -> Response:
        fields = _object(body)
        webhook = new_webhook(fields.get("url"), fields.get("secret"), fields.get("contextLimit", CONTEXT_LIMIT))
        self._store.set_webhook(webhook)
        return _json(200, {"url": webhook.url, "contextLimit": webhook.context_limit})

    def _deliveries(self, request: Request, _: bytes) -> Response:
        limit = _integer(request, "limit", DELIVERIES, lowest=1, highest=MOST_DELIVERIES)
        return _json(200, self._store.deliveries(limit=limit))


def new_message(direction: object, from_number: object, to_number: object, body: object, at: object) -> NewMessage:
    """Check the parts of a message that is to be stored.

    Args:
        direction: `inbound` or `outbound`.
        from_number: Who sent it, a text that is not empty.
        to_number: Who received it, a text that is not empty.
        body: Its text, which may be empty.
        at: When, as an aware datetime or ISO 8601 text with an offset; None is when it is stored.

    Raises:
        FieldError: One of them is something else.
    """
    if direction not in ("inbound", "outbound"):
        raise FieldError("direction", "must be inbound or outbound.")
    sender, receiver = _text("from", from_number), _text("to", to_number)
    agent_number, participant = (receiver, sender) if direction == "inbound" else (sender, receiver)
    text = _text("body", body, may_be_empty=True)
    try:
        instant = None if at is None else parse_timestamp(cast("str", at))
    except (ValueError, AttributeError) as error:
        raise FieldError("at", "must be ISO 8601 with an offset or Z.") from error
    return NewMessage(direction, agent_number, participant, text, instant)


def new_webhook(url: object, secret: object, context_limit: object) -> Webhook:
    """Check the parts of a webhook that is to be stored.

    Args:
        url: An `http://` or `https://` URL.
        secret: The key of the signatures, a text that is not empty.
        context_limit: How many earlier messages come with each delivery, 0 to 50.

    Raises:
        FieldError: One of them is something else; the text does not tell the secret.
    """
    text = _text("url", url)
    try:
        parsed = httpx.URL(text)
        good = parsed.scheme in ("http", "https") and bool(parsed.host) and (parsed.port or 0) <= 65535
    except (httpx.InvalidURL, UnicodeError):  # the latter for a host that is no name, `xn--`
        good = False
    if not good:
        raise FieldError("url", "must be an http:// or https:// URL.")
    key = _text("secret", secret)
    if type(context_limit) is not int or not 0 <= context_limit <= MOST_CONTEXT:
        raise FieldError("contextLimit", f"must be an integer, 0 to {MOST_CONTEXT}.")
    return Webhook(text, key, context_limit)


def deliveries_limit(limit: int) -> int:
    """Check how many deliveries are asked for.

    Raises:
        FieldError: It is not 1 to 1,000.
    """
    if not 1 <= limit <= MOST_DELIVERIES:
        raise FieldError("limit", f"must be an integer, 1 to {MOST_DELIVERIES}.")
    return limit


def _text(field: str, value: object, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or may_be_empty):
        raise FieldError(field, "must be a text." if may_be_empty else "must be a text that is not empty.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FieldError(field, "has half of a surrogate pair.") from error
    return value


async def _body_of(receive: Receive) -> bytes | None:
    """Read the body to its end, but keep little more than what is accepted; None if the client has gone."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        if len(body) <= MAX_BODY:
            body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _raw_path(scope: Scope) -> str:
    raw: bytes | None = scope.get("raw_path")  # Optional in ASGI.
    return quote(scope["path"]) if raw is None else raw.partition(b"?")[0].decode("latin-1")


def _integer(request: Request, field: str, default: int, *, lowest: int, highest: int | None = None) -> int:
    text = request.query_params.get(field)
    if text is None:
        return default
    value = int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None  # SQLite holds 18 digits.
    if value is None or value < lowest or (highest is not None and value > highest):
        bounds = f"at least {lowest}" if highest is None else f"{lowest} to {highest}"
        raise FieldError(field, f"must be an integer, {bounds}.")
    return value


def _instant(request: Request, field: str) -> int | None:
    text = request.query_params.get(field)
    try:
        return None if text is None else parse_timestamp(text)
    except ValueError as error:
        raise FieldError(field, "must be ISO 8601 with an offset or Z.") from error


def _object(body: bytes) -> dict[str, object]:
    try:
        value: object = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise FieldError("body", "must be JSON.") from error
    if not isinstance(value, dict):
        raise FieldError("body", "must be a JSON object.")
    fields = cast("dict[str, object]", value)
    if not _nests_within(MAX_NESTING, fields):
        raise FieldError("body", f"must not be nested deeper than {MAX_NESTING}.")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _nests_within(depth: int, value: object) -> bool:
    if isinstance(value, dict):
        children = list(cast("dict[str, object]", value).values())
    elif isinstance(value, list):
        children = cast("list[object]", value)
    else:
        return True
    return depth > 0 and all(_nests_within(depth - 1, child) for child in children)


def _found(content: dict[str, Any] | None) -> Response:
    if content is None:
        raise HTTPError(404, "There is no such conversation.")
    return _json(200, content)


def _json(status: int, content: object, headers: Mapping[str, str] | None = None) -> Response:
    # Escaped to ASCII, because metadata may hold halves of surrogate pairs.
    return Response(json.dumps(content, allow_nan=False), status, headers, "application/json")


def _error(status: int, message: str, headers: Mapping[str, str] | None = None, details: object = ()) -> Response:
    code, kind = CODES.get(status, CODES[500 if status >= 500 else 400])
    return _json(status, {"error": {"message": message, "code": code, "type": kind, "details": details}}, headers)


async def _give_no_answer(fault: Fault, scope: Scope, receive: Receive, send: Send) -> None:
    """Wait until the client has gone, if the fault is that, and reset the connection."""
    if fault.kind == "hang":
        with anyio.move_on_after(HANG_SECONDS):
            await receive()
            return
    reset = (scope.get("extensions") or {}).get(RESET)
    if reset is None:
        await _cut(_json(200, {}), send)  # The nearest that ASGI has.
    else:
        reset()


async def _cut(response: Response, send: Send) -> None:
    """Send half of a body that claims to be longer, and leave it at that: the server then closes the connection."""
    body = bytes(response.body)
    response.headers["content-length"] = str(len(body) + 1)
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})


def _fault_response(fault: Fault) -> Response:
    headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    match fault.body:
        case None:
            return _error(fault.status, "Scripted fault.", headers)
        case str():
            return Response(fault.body, fault.status, headers, "text/html")
        case bytes():
            return Response(fault.body, fault.status, headers, "application/json")
        case _:
            return _json(fault.status, fault.body, headers)
