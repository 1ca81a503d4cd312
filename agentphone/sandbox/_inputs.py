"""Parsing of what callers send, over HTTP or from Python: query parameters, JSON bodies, messages and webhooks.

Every error names the field as the API does. Nothing here knows the store's SQL or sends a response.
"""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, cast

import httpx
from starlette.requests import Request

from agentphone.sandbox._behavior import parse_timestamp
from agentphone.sandbox._deliveries import WebhookConfig
from agentphone.sandbox._messages import MessageInput

CHANNELS = ("sms", "mms", "imessage", "whatsapp")
MAX_CONTEXT_LIMIT = 50
MAX_MEDIA = 20
MAX_SECONDS = 1e9
MAX_NESTING = 100
"""Far below Python's recursion limit, so that stored metadata can be encoded from any stack depth."""


class FieldError(ValueError):
    """An invalid field, by its name in the API: a 422 over HTTP, a ValueError from Python."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.details = [{"field": field, "message": str(self), "type": "value_error"}]


def parse_message(
    direction: object,
    from_number: object,
    to_number: object,
    body: object,
    at: object,
    channel: object = None,
    media_urls: object = None,
    group: object = None,
) -> MessageInput:
    """Check the parts of a message.

    Args:
        direction: `inbound` or `outbound`.
        from_number: The sender, a non-empty string.
        to_number: The receiver, a non-empty string.
        body: The text, a string that may be empty.
        at: Its timestamp, an aware datetime or ISO 8601 text with an offset; None for the time at which it is stored.
        channel: One of `CHANNELS`; None for the conversation's own.
        media_urls: The `http://` or `https://` URLs of its media, at most 20; None for none.
        group: The id of the group that an inbound message is for; None for a message between two.

    Raises:
        FieldError: A part is invalid.
    """
    if direction not in ("inbound", "outbound"):
        raise FieldError("direction", "must be inbound or outbound.")
    if channel not in (None, *CHANNELS):
        raise FieldError("channel", f"must be one of {', '.join(CHANNELS)}.")
    sender, receiver = check_string("from", from_number), check_string("to", to_number)
    agent_number, participant = (receiver, sender) if direction == "inbound" else (sender, receiver)
    text = check_string("body", body, may_be_empty=True)
    if group is not None:
        if direction != "inbound":
            raise FieldError("group", "is for inbound messages; an outbound one is sent to the group's id.")
        participant = check_string("group", group)
    return MessageInput(
        direction,
        agent_number,
        participant,
        text,
        None if at is None else _timestamp("at", at),
        channel=channel,
        media_urls=() if media_urls is None else parse_media_urls("mediaUrls", media_urls, schemes=("http", "https")),
        sender=None if group is None else sender,
    )


def parse_media_urls(field: str, value: object, *, schemes: Collection[str], minimum: int = 0) -> tuple[str, ...]:
    """Check a list of URLs.

    Args:
        field: Its name.
        value: The list.
        schemes: The schemes that a URL may have.
        minimum: How many there are at least.

    Raises:
        FieldError: It is not a list of such URLs, or has too few or more than 20.
    """
    urls = cast("list[object]", list(value)) if isinstance(value, list | tuple) else None
    if urls is None or not minimum <= len(urls) <= MAX_MEDIA:
        raise FieldError(field, f"must be a list of {minimum} to {MAX_MEDIA} URLs.")
    if not all(_is_url(check_string(field, url), schemes) for url in urls):
        raise FieldError(field, f"must contain {' or '.join(f'{scheme}://' for scheme in schemes)} URLs only.")
    return tuple(cast("list[str]", urls))


def parse_webhook(url: object, secret: object, context_limit: object, timeout: object) -> WebhookConfig:
    """Check the parts of a webhook.

    Args:
        url: An `http://` or `https://` URL.
        secret: The key of the signatures, a non-empty string.
        context_limit: How many earlier messages each delivery carries, 0 to 50.
        timeout: How many seconds a response may take: more than 0. The API itself accepts 5 to 120.

    Raises:
        FieldError: A part is invalid; the error does not contain the secret.
    """
    text = check_string("url", url)
    if not _is_url(text, ("http", "https")):
        raise FieldError("url", "must be an http:// or https:// URL.")
    key = check_string("secret", secret)
    if type(context_limit) is not int or not 0 <= context_limit <= MAX_CONTEXT_LIMIT:
        raise FieldError("contextLimit", f"must be an integer from 0 to {MAX_CONTEXT_LIMIT}.")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < MAX_SECONDS:
        raise FieldError("timeout", "must be a number of seconds greater than 0.")
    return WebhookConfig(text, key, context_limit, float(timeout))


def parse_fault(fields: Mapping[str, object]) -> dict[str, Any]:
    """Return the arguments of `Faults.add` for a JSON object with `retryAfter` for `retry_after`; it checks the rest.

    Raises:
        FieldError: There is no such argument, or a text cannot be sent.
    """
    names = {"status": "status", "kind": "kind", "retry_after": "retryAfter", "body": "body"}
    names |= {"times": "times", "path": "path", "method": "method"}
    for key in fields.keys() - set(names.values()):
        raise FieldError(key, f"is not an argument; they are {', '.join(names.values())}.")
    given = {name: fields[key] for name, key in names.items() if fields.get(key) is not None}
    if isinstance(given.get("body"), str):
        check_string("body", given["body"], may_be_empty=True)
    return given


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


def check_string(field: str, value: object, *, may_be_empty: bool = False) -> str:
    """Return a string that UTF-8 can encode.

    Raises:
        FieldError: It is not a string, or empty.
    """
    if not isinstance(value, str) or not (value or may_be_empty):
        raise FieldError(field, "must be a string." if may_be_empty else "must be a non-empty string.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FieldError(field, "must not contain a lone surrogate.") from error
    return value


def _is_url(text: str, schemes: Collection[str]) -> bool:
    try:
        url = httpx.URL(text)
        return url.scheme in schemes and bool(url.host) and (url.port or 0) <= 65535
    except (httpx.InvalidURL, UnicodeError):  # UnicodeError for an invalid IDNA host such as `xn--`
        return False


def _timestamp(field: str, value: object) -> int:
    try:
        return parse_timestamp(cast("str", value))
    except (ValueError, AttributeError) as error:  # AttributeError for neither a str nor a datetime
        raise FieldError(field, "must be ISO 8601 with an offset or Z.") from error


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
