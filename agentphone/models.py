"""The models of the API as frozen values. They have no behaviour and know no JSON: `_decoding` creates them.

Names are the API's in snake_case; every timestamp is an aware `datetime` in UTC.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, NamedTuple, TypeVar, overload

from attrs import field, frozen

T = TypeVar("T")


EXTRA, NULL_IS_EMPTY = "agentphone.extra", "agentphone.null_is_empty"
"""Metadata of fields: the one for what a class does not know; and lists that may be null, which means empty."""


def extra_field() -> Any:
    """Return the field for what a class does not know; it is compared but not hashed, because dicts have no hash."""
    return field(factory=dict, hash=False, repr=lambda extra: "{...}" if extra else "{}", metadata={EXTRA: True})


def nullable_list() -> Any:
    """Return the field for a list that the API may leave out or send as null."""
    return field(default=(), metadata={NULL_IS_EMPTY: True})


@frozen(kw_only=True)
class Message:
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
    channel: str | None = None
    """`"sms"`, `"mms"`, `"imessage"`, ...; an open set."""
    media_urls: tuple[str, ...] = nullable_list()
    """The URLs of its media (`mediaUrls`)."""
    status: str | None = None
    """Delivery status; an open set."""
    extra: Mapping[str, Any] = extra_field()
    """Every other field of the response, under the API's own name, as received."""


@frozen(kw_only=True)
class Conversation:
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
    """The person's number, E.164."""
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
    extra: Mapping[str, Any] = extra_field()
    """Every other field of the response, under the API's own name, as received."""


@frozen(kw_only=True)
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


@frozen(kw_only=True)
class Page(Generic[T]):
    """A page of a list. Iterable, sized and indexable like its `data`."""

    data: tuple[T, ...]
    """The items."""
    has_more: bool
    """Whether the list has items after these (`hasMore`)."""
    total: int | None = None
    """The number of items of the whole list; None where the API omits it (messages)."""

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
