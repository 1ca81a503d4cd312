"""Parsing of what callers send, over HTTP or from Python: query parameters, JSON bodies, messages and webhooks.

Every error names the field as the API does. Nothing here knows the store's SQL or sends a response.
"""

import json
import re
from typing import cast

import httpx
from starlette.requests import Request

from agentphone.sandbox._behavior import parse_timestamp
from agentphone.sandbox._deliveries import WebhookConfig
from agentphone.sandbox._store import MessageInput

MAX_CONTEXT_LIMIT = 50
MAX_NESTING = 100
"""Far below Python's recursion limit, so that stored metadata can be encoded from any stack depth."""


class FieldError(ValueError):
    """An invalid field, by its name in the API: a 422 over HTTP, a ValueError from Python."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.details = [{"field": field, "message": str(self), "type": "value_error"}]


def parse_message(direction: object, from_number: object, to_number: object, body: object, at: object) -> MessageInput:
    """Check the parts of a message.

    Args:
        direction: `inbound` or `outbound`.
        from_number: The sender, a non-empty string.
        to_number: The receiver, a non-empty string.
        body: The text, a string that may be empty.
        at: Its timestamp, an aware datetime or ISO 8601 text with an offset; None for the time at which it is stored.

    Raises:
        FieldError: A part is invalid.
    """
    if direction not in ("inbound", "outbound"):
        raise FieldError("direction", "must be inbound or outbound.")
    sender, receiver = _string("from", from_number), _string("to", to_number)
    agent_number, participant = (receiver, sender) if direction == "inbound" else (sender, receiver)
    text = _string("body", body, may_be_empty=True)
    return MessageInput(direction, agent_number, participant, text, None if at is None else _timestamp("at", at))


def parse_webhook(url: object, secret: object, context_limit: object) -> WebhookConfig:
    """Check the parts of a webhook.

    Args:
        url: An `http://` or `https://` URL.
        secret: The key of the signatures, a non-empty string.
        context_limit: How many earlier messages each delivery carries, 0 to 50.

    Raises:
        FieldError: A part is invalid; the error does not contain the secret.
    """
    text = _string("url", url)
    try:
        parsed = httpx.URL(text)
        is_valid = parsed.scheme in ("http", "https") and bool(parsed.host) and (parsed.port or 0) <= 65535
    except (httpx.InvalidURL, UnicodeError):  # UnicodeError for an invalid IDNA host such as `xn--`
        is_valid = False
    if not is_valid:
        raise FieldError("url", "must be an http:// or https:// URL.")
    key = _string("secret", secret)
    if type(context_limit) is not int or not 0 <= context_limit <= MAX_CONTEXT_LIMIT:
        raise FieldError("contextLimit", f"must be an integer from 0 to {MAX_CONTEXT_LIMIT}.")
    return WebhookConfig(text, key, context_limit)


def parse_object(body: bytes) -> dict[str, object]:
    """Parse a JSON object.

    Raises:
        FieldError: The body is not JSON, not an object, or nested too deeply.
    """
    try:
        value: object = json.loads(body, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise FieldError("body", "must be JSON.") from error
    if not isinstance(value, dict):
        raise FieldError("body", "must be a JSON object.")
    fields = cast("dict[str, object]", value)
    if not _nests_within(MAX_NESTING, fields):
        raise FieldError("body", f"must not be nested deeper than {MAX_NESTING} levels.")
    return fields


def integer_parameter(request: Request, field: str, default: int, *, minimum: int, maximum: int | None = None) -> int:
    """Return an integer query parameter, or its default if it is missing.

    Raises:
        FieldError: It is not an integer in the range.
    """
    text = request.query_params.get(field)
    if text is None:
        return default
    value = int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None  # SQLite's integers hold 18 digits.
    if value is None or value < minimum or (maximum is not None and value > maximum):
        expected = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise FieldError(field, f"must be an integer {expected}.")
    return value


def timestamp_parameter(request: Request, field: str) -> int | None:
    """Return a query parameter as a timestamp, or None if it is missing.

    Raises:
        FieldError: It is not ISO 8601 with an offset.
    """
    text = request.query_params.get(field)
    return None if text is None else _timestamp(field, text)


def _timestamp(field: str, value: object) -> int:
    try:
        return parse_timestamp(cast("str", value))
    except (ValueError, AttributeError) as error:  # AttributeError for neither a str nor a datetime
        raise FieldError(field, "must be ISO 8601 with an offset or Z.") from error


def _string(field: str, value: object, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or may_be_empty):
        raise FieldError(field, "must be a string." if may_be_empty else "must be a non-empty string.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FieldError(field, "must not contain a lone surrogate.") from error
    return value


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _nests_within(depth: int, value: object) -> bool:
    if isinstance(value, dict):
        children = list(cast("dict[str, object]", value).values())
    elif isinstance(value, list):
        children = cast("list[object]", value)
    else:
        return True
    return depth > 0 and all(_nests_within(depth - 1, child) for child in children)
