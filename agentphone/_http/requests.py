"""Describe requests: one function per endpoint returns a `RequestSpec`. Pure: no I/O, no httpx."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from attrs import frozen

from agentphone._json import encode_json
from agentphone._timestamps import format_timestamp
from agentphone.models import Conversation, ConversationDetail, Message, Page

T_co = TypeVar("T_co", covariant=True)

LIST_PATH = "/v1/conversations"

MAX_ID_LENGTH = 4096
"""Far longer than any id of the API, yet short enough for a URL: httpx raises its own error at 64 KiB."""

CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""No id has them. A line break is probably left from the file that the id was read from."""


@frozen
class RequestSpec(Generic[T_co]):
    """One request to the API, and the type of its result."""

    method: str
    target: str
    """Path and query, percent-encoded, starting with `/v1/`."""
    response_type: type[T_co]
    """The class that a successful response is decoded to."""
    body: bytes | None = None

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    def __str__(self) -> str:
        return f"{self.method} {self.target}"


def list_conversations(*, limit: int, offset: int) -> RequestSpec[Page[Conversation]]:
    """`GET /v1/conversations`."""
    return RequestSpec("GET", _target(LIST_PATH, limit=limit, offset=offset), Page[Conversation])


def get_conversation(conversation_id: str, *, message_limit: int | None) -> RequestSpec[ConversationDetail]:
    """`GET /v1/conversations/{id}`."""
    return RequestSpec("GET", _target(_path(conversation_id), message_limit=message_limit), ConversationDetail)


def update_conversation(conversation_id: str, *, metadata: Mapping[str, Any] | None) -> RequestSpec[ConversationDetail]:
    """`PATCH /v1/conversations/{id}`: replaces all metadata; None clears it."""
    body = b'{"metadata":' + encode_json(metadata, "metadata") + b"}"
    return RequestSpec("PATCH", _path(conversation_id), ConversationDetail, body)


def list_messages(
    conversation_id: str, *, limit: int, before: datetime | None, after: datetime | None
) -> RequestSpec[Page[Message]]:
    """`GET /v1/conversations/{id}/messages`."""
    target = _target(
        _path(conversation_id) + "/messages",
        limit=limit,
        before=None if before is None else format_timestamp(before),
        after=None if after is None else format_timestamp(after),
    )
    return RequestSpec("GET", target, Page[Message])


def _path(conversation_id: str) -> str:
    """Return the path of a conversation; any id stays one segment of it, percent-encoded."""
    if not isinstance(conversation_id, str):
        raise TypeError(f"conversation_id must be a string, got {type(conversation_id).__name__}")
    if not conversation_id:
        raise ValueError("conversation_id must not be empty")
    if len(conversation_id) > MAX_ID_LENGTH:
        raise ValueError(f"conversation_id must have at most {MAX_ID_LENGTH} characters, got {len(conversation_id)}")
    if CONTROL_CHARACTERS.search(conversation_id):
        raise ValueError(f"conversation_id must not contain control characters, got {conversation_id!r}")
    try:
        segment = quote(conversation_id, safe="")
    except UnicodeEncodeError:
        raise ValueError("conversation_id must be Unicode text, got half a surrogate pair") from None
    if not segment.strip("."):  # "." and ".." would be resolved as path steps
        segment = segment.replace(".", "%2E")
    return f"{LIST_PATH}/{segment}"


def _target(path: str, **query: int | str | None) -> str:
    given = "&".join([f"{name}={quote(str(value), safe='')}" for name, value in query.items() if value is not None])
    return f"{path}?{given}" if given else path
