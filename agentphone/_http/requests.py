"""Describe calls: one function per endpoint returns a `RequestSpec`. Pure: no I/O, no httpx."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from attrs import frozen

from agentphone._json import encode_json
from agentphone.models import Conversation, ConversationDetail, Message, Page

T_co = TypeVar("T_co", covariant=True)


LIST_PATH = "/v1/conversations"


MAX_ID_LENGTH = 4096
"""Far beyond any id of the API, and short enough for its URL: httpx refuses one of 64 KiB with an error of its own."""


@frozen
class RequestSpec(Generic[T_co]):
    """One request to the API, and the shape of a good answer to it."""

    method: str
    target: str
    """Path and query, percent-encoded, beginning with `/v1/`."""
    response_type: type[T_co]
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
    """`PATCH /v1/conversations/{id}`: the metadata is replaced whole; None clears it."""
    body = b'{"metadata":' + encode_json(metadata, "metadata") + b"}"
    return RequestSpec("PATCH", _path(conversation_id), ConversationDetail, body)


def list_messages(
    conversation_id: str, *, limit: int, before: datetime | None, after: datetime | None
) -> RequestSpec[Page[Message]]:
    """`GET /v1/conversations/{id}/messages`."""
    path = _path(conversation_id) + "/messages"
    return RequestSpec(
        "GET", _target(path, limit=limit, before=format_datetime(before), after=format_datetime(after)), Page[Message]
    )


def _path(conversation_id: str) -> str:
    """Give the path of a conversation; whatever the id holds, it stays one segment of it."""
    if not isinstance(conversation_id, str):
        raise TypeError(f"conversation_id is a string, not {type(conversation_id).__name__}")
    if not conversation_id:
        raise ValueError("conversation_id is empty")
    if len(conversation_id) > MAX_ID_LENGTH:
        raise ValueError(f"conversation_id is longer than {MAX_ID_LENGTH} characters")
    try:
        segment = quote(conversation_id, safe="")
    except UnicodeEncodeError:
        raise ValueError("conversation_id is not Unicode text: it holds half a surrogate pair") from None
    if not segment.strip("."):  # "." and ".." would be taken for steps in the path
        segment = segment.replace(".", "%2E")
    return f"{LIST_PATH}/{segment}"


def _target(path: str, **query: int | str | None) -> str:
    given = "&".join([f"{name}={quote(str(value), safe='')}" for name, value in query.items() if value is not None])
    return f"{path}?{given}" if given else path


def format_datetime(instant: datetime | None) -> str | None:
    if instant is None:
        return None
    return instant.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"
