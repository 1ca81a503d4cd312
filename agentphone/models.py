"""The models of the API as frozen values, and their way to plain JSON data. `_decoding` creates them.

Names are the API's in snake_case; every timestamp is an aware `datetime` in UTC. What a class does not know is in its
`extra`, under the API's names, as received. Fields that the API's reference does not describe tolerate other values:
one of another type stays in `extra` as well, and `to_dict()` leaves them out while they are None or empty. `direction`,
`channel`, `status`, `reaction_type` and `error_code` are plain text, because their values are open sets. `has_more` and
`total` of a page are about the whole list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar, overload
from urllib.parse import quote, unquote

import attrs
from attrs import field, frozen

from agentphone._json import to_camel_case
from agentphone._timestamps import format_timestamp, parse_timestamp

T = TypeVar("T")


EXTRA, NULLABLE_LIST, OPTIONAL = "agentphone.extra", "agentphone.null_is_empty", "agentphone.optional"
"""Metadata keys of fields: the field for unknown keys; a list that may be null; a field that the API's reference does
not describe, and whether it is tolerant."""


def extra_field() -> Any:
    """Return the field for what a class does not know; it is compared but not hashed, because dicts have no hash."""
    return field(factory=dict, hash=False, metadata={EXTRA: True})


def nullable_list() -> Any:
    """Return the field for a list that the API may leave out or send as null."""
    return field(default=(), metadata={NULLABLE_LIST: True})


def optional_field(*, is_tolerant: bool = True) -> Any:
    """Return a field that the API's reference does not describe, and that many responses lack.

    Args:
        is_tolerant: Whether a value of another type stays in `extra`, as received, and `to_dict` leaves the field out
            while it has no value. Otherwise such a value is an error, and the field is always there.
    """
    return field(default=None, metadata={OPTIONAL: is_tolerant})


def optional_list(*, is_tolerant: bool = True) -> Any:
    """Return the same for a list, which may also be null."""
    return field(default=(), metadata={OPTIONAL: is_tolerant, NULLABLE_LIST: True})


def to_json_data(value: Any) -> Any:
    """Return a value as plain JSON data: models by `to_dict`, timestamps as text, tuples as lists, all copied."""
    if isinstance(value, Model | NewMessage):
        return value.to_dict()
    if isinstance(value, datetime):
        return format_timestamp(value)
    if isinstance(value, Mapping):
        return {key: to_json_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_data(item) for item in value]
    return value


MAX_ITEMS = 3
"""How many items of a list a repr shows."""
MAX_LETTERS = 100
"""How many letters of a value a repr shows."""


def show(value: Any) -> str:
    """Return the repr of a field's value on one line, with a limited length."""
    if isinstance(value, datetime):
        return format_timestamp(value) if value.tzinfo is UTC else value.isoformat()
    if isinstance(value, tuple):
        more = [f"... {len(value) - MAX_ITEMS} more"] if len(value) > MAX_ITEMS else []
        return f"[{', '.join([*map(show, value[:MAX_ITEMS]), *more])}]"
    text = repr(value)
    return text if isinstance(value, Model) or len(text) <= MAX_LETTERS else text[: MAX_LETTERS - 3] + "..."


class Model:
    """The base of models: their repr, and their way to plain data."""

    __slots__ = ()

    def __repr__(self) -> str:
        cls: Any = type(self)
        fields = {each.name: getattr(self, each.name) for each in attrs.fields(cls)}
        if not fields.get("extra"):
            fields.pop("extra", None)
        shown = [f"{name}={show(value)}" for name, value in fields.items() if value is not None and value != ()]
        return f"{cls.__name__}({', '.join(shown)})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `json.dumps` accepts.

        Returns:
            A new dict under the API's names, with timestamps as ISO 8601 in UTC with `Z`, and with the unknown fields
            merged in. Fields that the API's reference does not describe are left out while they are None or empty.
        """
        cls: Any = type(self)
        data = {}
        for name, key in json_keys(cls):
            value = getattr(self, name)
            data[key] = value if value is None or type(value) is str else to_json_data(value)  # most of them
        for name, key in optional_keys(cls):
            value = getattr(self, name)
            if value is not None and value != ():
                data[key] = to_json_data(value)
        unknown: dict[str, Any] = to_json_data(getattr(self, "extra", {}))
        return data | unknown


class SnakeCaseModel(Model):
    """The base of models whose fields have the same names in the API: the answers to what is sent."""

    __slots__ = ()


def json_key(cls: Any, name: str) -> str:
    """Return the API's name of a field: camelCase, except in the answers to what is sent."""
    return name if issubclass(cls, SnakeCaseModel) else to_camel_case(name)


@cache
def json_keys(cls: Any) -> tuple[tuple[str, str], ...]:
    """Return the fields of a model that `to_dict` always has, each with the API's name."""
    names = [each.name for each in attrs.fields(cls) if each.name != "extra" and not each.metadata.get(OPTIONAL)]
    return tuple((name, json_key(cls, name)) for name in names)


@cache
def optional_keys(cls: Any) -> tuple[tuple[str, str], ...]:
    """Return the fields of a model that `to_dict` has if they have a value, each with the API's name."""
    names = [each.name for each in attrs.fields(cls) if each.metadata.get(OPTIONAL)]
    return tuple((name, json_key(cls, name)) for name in names)


def _to_utc(timestamp: datetime) -> datetime:
    if not isinstance(timestamp, datetime):
        raise TypeError(f"received_at must be an aware datetime, got {type(timestamp).__name__}")
    if timestamp.utcoffset() is None:
        raise ValueError(f"received_at must have an offset from UTC, got {timestamp!r}")
    try:
        return timestamp.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"received_at must be within the years 1 to 9999 in UTC, got {timestamp!r}") from None


@frozen(order=True)
class Cursor:
    """The position of a message in the order of `(received_at, id)`: what a program stores to resume.

    Pass it as `before` or `after` to `messages`, `follow` and `watch`, which then continue exactly after that message.
    `str(cursor)` is one line of text, and `Cursor.parse` reads it back.
    """

    received_at: datetime = field(converter=_to_utc)
    """When the message was received, in UTC."""
    id: str = field(validator=attrs.validators.instance_of(str))
    """The message's id."""

    def __repr__(self) -> str:
        return f"Cursor(received_at={show(self.received_at)}, id={self.id!r})"

    def __str__(self) -> str:
        # Percent-encoded, so that an id with a space or a line break stays one word.
        return f"{format_timestamp(self.received_at)}/{quote(self.id, safe='', errors='surrogatepass')}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Parse what `str(cursor)` returned.

        Args:
            text: The text. White space around it, such as a file's last line break, is ignored.

        Returns:
            The cursor.

        Raises:
            ValueError: The text is not a cursor.
            TypeError: It is not a string.
        """
        if not isinstance(text, str):
            raise TypeError(f"A cursor must be a string, got {type(text).__name__}")
        timestamp, slash, encoded_id = text.strip().partition("/")
        if slash:
            with suppress(ValueError):
                return cls(parse_timestamp(timestamp), unquote(encoded_id, errors="surrogatepass"))
        raise ValueError(f"A cursor must look like 2025-01-15T12:00:00Z/msg_001, as str(message.cursor), got {text!r}")


@frozen(kw_only=True, repr=False)
class Reaction(Model):
    """A reaction to a message.

    Source: `reactions[]` of a message.
    """

    id: str | None = optional_field()
    """Opaque id."""
    reaction_type: str | None = optional_field()
    """`"love"`, `"like"`, ..., or an emoji; an open set (`reactionType`)."""
    from_number: str | None = optional_field()
    """Who reacted, E.164 (`fromNumber`)."""
    direction: str | None = optional_field()
    """`"inbound"` (from the person) or `"outbound"` (from the agent); an open set."""
    created_at: datetime | None = optional_field()
    """When (`createdAt`)."""
    extra: Mapping[str, Any] = extra_field()
    """Every other field, under the API's own name, as received."""


@frozen(kw_only=True, repr=False)
class ReplyTo(Model):
    """The message that a message replies to.

    Source: `replyTo` of a message.
    """

    message_id: str | None = optional_field()
    """Its id (`messageId`)."""
    message: str | None = optional_field()
    """Its text."""
    media_urls: tuple[str, ...] = optional_list()
    """The URLs of its media (`mediaUrls`)."""
    extra: Mapping[str, Any] = extra_field()
    """Every other field, under the API's own name, as received."""


@frozen(kw_only=True, repr=False)
class Participant(Model):
    """A member of a group conversation.

    Source: `participants[]` of a conversation.
    """

    identifier: str | None = optional_field()
    """The person's number, E.164, or e-mail address (iMessage)."""
    name: str | None = optional_field()
    """The person's name."""
    extra: Mapping[str, Any] = extra_field()
    """Every other field, under the API's own name, as received."""


@frozen(kw_only=True, repr=False)
class Message(Model):
    """One message of a conversation.

    Source: `data[]` of `GET /v1/conversations/{id}/messages`, `messages[]` of `GET` and `PATCH /v1/conversations/{id}`.
    """

    id: str
    """Opaque id (`msg_...`)."""
    body: str | None = None
    """The text; empty or None for a message that is all media."""
    from_number: str
    """The sender's number, E.164 (`fromNumber`)."""
    to_number: str
    """The receiver's number, E.164 (`toNumber`)."""
    direction: str | None = None
    """`"inbound"` (from the person) or `"outbound"` (from the agent); an open set."""
    received_at: datetime
    """When it was received (`receivedAt`)."""
    channel: str | None = optional_field(is_tolerant=False)
    """`"sms"`, `"mms"`, `"imessage"`, ...; an open set."""
    media_urls: tuple[str, ...] = optional_list(is_tolerant=False)
    """The URLs of its media (`mediaUrls`)."""
    status: str | None = optional_field(is_tolerant=False)
    """Delivery status; an open set."""
    reactions: tuple[Reaction, ...] = optional_list()
    """The reactions to it, in the server's order."""
    reply_to: ReplyTo | None = optional_field()
    """The message that it replies to (`replyTo`)."""
    sender_identifier: str | None = optional_field()
    """Who wrote it, in a group: a number or an e-mail address (`senderIdentifier`)."""
    delivered_at: datetime | None = optional_field()
    """When it was delivered (`deliveredAt`)."""
    read_at: datetime | None = optional_field()
    """When it was read (`readAt`)."""
    error_code: str | None = optional_field()
    """Why it was not delivered; an open set (`errorCode`)."""
    extra: Mapping[str, Any] = extra_field()
    """Every other field of the response, under the API's own name, as received, and optional fields of other types."""

    @property
    def cursor(self) -> Cursor:
        """Its position, to store and to resume from."""
        return Cursor(self.received_at, self.id)


@frozen(kw_only=True, repr=False)
class Conversation(Model):
    """An SMS thread between an agent's number and a person.

    Source: `data[]` of `GET /v1/conversations`.
    """

    id: str
    """Opaque id (`conv_...`)."""
    agent_id: str | None = None
    """The id of the agent that has the number (`agentId`)."""
    phone_number_id: str | None = None
    """The id of the agent's number (`phoneNumberId`)."""
    phone_number: str
    """The agent's number, E.164 (`phoneNumber`)."""
    participant: str
    """The person's number, E.164; or an e-mail address (iMessage), or the id of a group."""
    last_message_at: datetime | None = None
    """When the latest message was received (`lastMessageAt`); the list is ordered by it."""
    last_message_preview: str | None = None
    """The beginning of the latest message (`lastMessagePreview`); only the list has it."""
    message_count: int | None = None
    """The number of its messages (`messageCount`)."""
    metadata: dict[str, Any] | None = field(default=None, hash=False)
    """The object that `update` stored, or None; the `conversationState` of every webhook."""
    created_at: datetime | None = None
    """When it was created (`createdAt`)."""
    channel: str | None = optional_field()
    """`"sms"`, `"mms"`, `"imessage"`, `"whatsapp"`, ...; an open set."""
    is_group: bool | None = optional_field()
    """True if it has several participants (`isGroup`)."""
    group_id: str | None = optional_field()
    """The id of the group (`groupId`, `grp_...`)."""
    group_name: str | None = optional_field()
    """The name of the group (`groupName`)."""
    participants: tuple[Participant, ...] = optional_list()
    """The members of the group."""
    extra: Mapping[str, Any] = extra_field()
    """Every other field of the response, under the API's own name, as received, and optional fields of other types."""


@frozen(kw_only=True, repr=False)
class ConversationDetail(Conversation):
    """A conversation with its recent messages.

    Source: `GET` and `PATCH /v1/conversations/{id}`.
    """

    messages: tuple[Message, ...] = ()
    """Its recent messages, in the server's order."""


class NewMessage(NamedTuple):
    """A new message and its conversation: a pair, to be unpacked.

    Source: `GET /v1/conversations`, and `GET /v1/conversations/{id}/messages` for those with new messages.
    """

    conversation: Conversation
    """The conversation as it was listed, with its metadata."""
    message: Message
    """The message."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `json.dumps` accepts: `{"conversation": ..., "message": ...}`."""
        return {"conversation": self.conversation.to_dict(), "message": self.message.to_dict()}


@frozen(kw_only=True, repr=False)
class SentMessage(SnakeCaseModel):
    """A message that the API has accepted.

    Source: the response of `POST /v1/messages`; or, where `reply` had to look for it, `data[]` of
    `GET /v1/conversations/{id}/messages`.
    """

    id: str
    """Opaque id (`msg_...`)."""
    status: str | None = optional_field()
    """`"sent"` when it was handed to the carrier; an open set."""
    channel: str | None = optional_field()
    """`"sms"`, `"mms"`, `"imessage"`, `"whatsapp"`, ...; an open set."""
    from_number: str | None = optional_field()
    """The agent's number that it was sent from, E.164."""
    to_number: str | None = optional_field()
    """The receiver: a number, an e-mail address (iMessage) or a group (`grp_...`)."""
    conversation_id: str | None = optional_field()
    """The id of its conversation; None where the API does not tell."""
    media_urls: tuple[str, ...] = optional_list()
    """The URLs of its media."""
    reply_to_message_id: str | None = optional_field()
    """The id of the message that it answers."""
    reply_parent_unresolved: bool | None = optional_field()
    """True if the API knows the message that it answers, but the channel could not show it as an answer."""
    extra: Mapping[str, Any] = extra_field()
    """Every other field of the response, under the API's own name, as received."""


@frozen(kw_only=True, repr=False)
class SentReaction(SnakeCaseModel):
    """A reaction that the API has accepted.

    Source: the response of `POST /v1/messages/{id}/reactions`.
    """

    id: str
    """Opaque id."""
    reaction_type: str | None = optional_field()
    """`"love"`, `"like"`, `"dislike"`, `"laugh"`, `"emphasize"`, `"question"`, or an emoji; an open set."""
    message_id: str | None = optional_field()
    """The id of the message."""
    channel: str | None = optional_field()
    """`"imessage"`, ...; an open set."""
    extra: Mapping[str, Any] = extra_field()
    """Every other field of the response, under the API's own name, as received."""


@frozen(kw_only=True, repr=False)
class Page(Model, Generic[T]):
    """A page of a list. Iterable, sized and indexable like its `data`."""

    data: tuple[T, ...]
    """The items."""
    has_more: bool
    """True if the list has items after these (`hasMore`)."""
    total: int | None = None
    """The number of items of the whole list; None where the API omits it (messages)."""

    def __repr__(self) -> str:
        total = "" if self.total is None else f" of {self.total}"
        return f"Page({len(self)}{total}, has_more={self.has_more}) {show(self.data)}"

    def __iter__(self) -> Iterator[T]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self.data[index]
