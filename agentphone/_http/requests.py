"""Describe requests: one function per endpoint returns a `RequestSpec`. Pure: no I/O, no httpx."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from attrs import define, frozen

from agentphone._http.retry import Repeat
from agentphone._json import encode_json
from agentphone._timestamps import format_timestamp
from agentphone.models import Conversation, ConversationDetail, Message, Page, SentMessage, SentReaction

T_co = TypeVar("T_co", covariant=True)

LIST_PATH = "/v1/conversations"
MESSAGES_PATH = "/v1/messages"

MAX_MEDIA = 20
MAX_RECIPIENTS = 32

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
    repeat: Repeat = Repeat.ALWAYS
    """When it may be sent again after a failure."""

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    def __str__(self) -> str:
        return f"{self.method} {self.target}"


PROGRESS = "agentphone.progress"
"""The key of a `Progress` in the extensions of a request."""


@define
class Progress:
    """How far one attempt to send a request got. Connections that know it keep it up to date."""

    is_sent: bool = False
    """False while the API cannot have received any of it."""


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


def start_typing(conversation_id: str) -> RequestSpec[dict[str, Any]]:
    """`POST /v1/conversations/{id}/typing`."""
    return RequestSpec("POST", _path(conversation_id) + "/typing", dict[str, Any], repeat=Repeat.NEVER)


def send_message(
    body: str,
    *,
    to: str | None = None,
    recipients: Sequence[str] | None = None,
    from_number: str | None = None,
    number_id: str | None = None,
    agent_id: str | None = None,
    media_urls: Sequence[str] = (),
    reply_to: Message | str | None = None,
    send_style: str | None = None,
    channel: str | None = None,
) -> RequestSpec[SentMessage]:
    """`POST /v1/messages`.

    Raises:
        ValueError: The API would reject it: no receiver or two kinds of them, no sender, nothing to send.
        TypeError: An argument has the wrong type.
    """
    if not isinstance(body, str):
        raise TypeError(f"body must be a string, got {type(body).__name__}")
    _check_unicode("body", body)
    media = _strings("media_urls", media_urls)
    if not body and not media:
        raise ValueError('body must not be "" without media_urls: there is nothing to send')
    if len(media) > MAX_MEDIA:
        raise ValueError(f"media_urls must have at most {MAX_MEDIA} items, got {len(media)}")
    for url in media:
        if not url.lower().startswith("https://") or not url[len("https://") :].strip("/"):
            raise ValueError(f"media_urls must be https:// URLs, got {url!r}")
    if (to is None) == (recipients is None):
        raise ValueError("to or recipients must be given, and not both")
    several = None if recipients is None else _strings("recipients", recipients)
    if several is not None and not 2 <= len(several) <= MAX_RECIPIENTS:
        raise ValueError(f"recipients must have 2 to {MAX_RECIPIENTS} items, got {len(several)}; for one, pass to=")
    texts = {
        "to": to,
        "from_number": from_number,
        "number_id": number_id,
        "agent_id": agent_id,
        "send_style": send_style,
        "channel": channel,
    }
    for name, value in texts.items():
        _check_text(name, value)
    if from_number is None and number_id is None and agent_id is None:
        raise ValueError("from_number, number_id or agent_id must be given: who sends it?")
    fields = {
        "body": body,
        "to_number": texts.pop("to"),
        "recipients": several,
        **texts,
        "media_urls": media or None,
        "reply_to_message_id": None if reply_to is None else _message_id(reply_to, "reply_to"),
    }
    given = {name: value for name, value in fields.items() if value is not None}
    encoded = encode_json(given, "message")
    return RequestSpec("POST", MESSAGES_PATH, SentMessage, encoded, Repeat.IF_NOT_ACCEPTED)


def add_reaction(message: Message | str, reaction: str) -> RequestSpec[SentReaction]:
    """`POST /v1/messages/{id}/reactions`."""
    _check_text("reaction", reaction, optional=False)
    path = f"{MESSAGES_PATH}/{_segment(_message_id(message, 'message'), 'message')}/reactions"
    encoded = encode_json({"reaction": reaction}, "reaction")
    return RequestSpec("POST", path, SentReaction, encoded, Repeat.IF_NOT_ACCEPTED)


def _message_id(message: Message | str, name: str) -> str:
    if not isinstance(message, Message | str):
        raise TypeError(f"{name} must be a Message or the id of one, got {type(message).__name__}")
    message_id = message.id if isinstance(message, Message) else message
    _check_text(name, message_id)
    return message_id


def _check_text(name: str, value: str | None, *, optional: bool = True) -> None:
    if value is None and optional:
        return
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string{' or None' if optional else ''}, got {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{name} must not be empty")
    _check_unicode(name, value)


def _check_unicode(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be Unicode text, got half a surrogate pair") from None


def _strings(name: str, values: Sequence[str]) -> list[str]:
    # A string is a sequence of strings, too: each of its characters would be taken for an item.
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a list or tuple of strings, got {type(values).__name__}")
    strings = list(values)
    for value in strings:
        _check_text(f"each item of {name}", value, optional=False)
    return strings


def _path(conversation_id: str) -> str:
    """Return the path of a conversation."""
    return f"{LIST_PATH}/{_segment(conversation_id, 'conversation_id')}"


def _segment(given_id: str, name: str) -> str:
    """Return an id as one segment of a path, whatever characters it has."""
    if not isinstance(given_id, str):
        raise TypeError(f"{name} must be a string, got {type(given_id).__name__}")
    if not given_id:
        raise ValueError(f"{name} must not be empty")
    if len(given_id) > MAX_ID_LENGTH:
        raise ValueError(f"{name} must have at most {MAX_ID_LENGTH} characters, got {len(given_id)}")
    if CONTROL_CHARACTERS.search(given_id):
        raise ValueError(f"{name} must not contain control characters, got {given_id!r}")
    _check_unicode(name, given_id)
    segment = quote(given_id, safe="")
    if not segment.strip("."):  # "." and ".." would be resolved as path steps
        segment = segment.replace(".", "%2E")
    return segment


def _target(path: str, **query: int | str | None) -> str:
    given = "&".join([f"{name}={quote(str(value), safe='')}" for name, value in query.items() if value is not None])
    return f"{path}?{given}" if given else path
