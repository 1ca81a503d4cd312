"""The events that webhooks deliver, each field declared once, and their creation from payloads.

Nothing is verified here; `webhooks` does that first. Source: the vendor's guide to webhooks.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from keyword import iskeyword
from typing import Any, TypeVar, overload

import attrs
from attrs import field, frozen

from agentphone._decoding import structure
from agentphone._json import DecodeError, to_camel_case
from agentphone._state import read_state, state_decode_error
from agentphone.models import Model, extra_field, nullable_list, to_json_data

T = TypeVar("T")

_PLACE = "agentphone.place"


def in_payload(place: str | None) -> dict[str, Any]:
    """Return the metadata of a field that the payload has elsewhere: `data.from`; None if it is not in the payload.

    By default, the field `agent_id` is `agentId` at the top of the payload.
    """
    return {_PLACE: place}


@frozen(kw_only=True, repr=False)
class HistoryItem(Model):
    """An earlier message of the conversation, as a webhook delivers it.

    Source: `recentHistory[]` of the payload.
    """

    content: str | None = None
    """The text; empty or None for a message that is all media."""
    direction: str | None = None
    """`"inbound"` (from the person) or `"outbound"` (from the agent); an open set."""
    channel: str | None = None
    """`"sms"`, `"voice"`, ...; an open set."""
    at: datetime
    """When it was received."""
    extra: Mapping[str, Any] = extra_field()
    """Every further field, under the API's own name, as received."""


@frozen(kw_only=True, repr=False)
class Event(Model):
    """The fields of every event. Use `match` on its subclasses, and ignore the events that are not handled.

    Source: the payload of a webhook.
    """

    type: str = field(metadata=in_payload("event"))
    """What happened: the payload's `event` (`"agent.message"`)."""
    delivery_id: str | None = field(default=None, metadata=in_payload(None))
    """The header `X-Webhook-ID`, the same on every retry; None without it. The signature does not cover it."""
    channel: str | None = None
    """`"sms"`, `"mms"`, `"imessage"`, `"voice"`, ...; an open set."""
    timestamp: datetime
    """When it happened. A handler may run later: for the time that it runs at, use `datetime.now(UTC)`."""
    agent_id: str | None = None
    """The id of the agent (`agentId`)."""
    conversation_state: dict[str, Any] | None = field(default=None, hash=False)
    """The conversation's metadata, as `conversations.update` stored it (`conversationState`)."""
    recent_history: tuple[HistoryItem, ...] = nullable_list()
    """The latest messages of the conversation, in the server's order (`recentHistory`)."""
    extra: Mapping[str, Any] = extra_field()
    """The fields of the payload that the class does not have, under the API's own names, as received; those of `data`
    are in `extra["data"]`."""

    def to_dict(self) -> dict[str, Any]:
        """Return the payload as plain data that `json.dumps` accepts.

        Returns:
            A new dict in the nested shape of the payload, with timestamps as ISO 8601 in UTC with `Z`, and with the
            unknown fields merged in. `delivery_id` is a header and not part of it.
        """
        cls: Any = type(self)
        payload: dict[str, Any] = {}
        for name, (level, key) in _places(cls).items():
            place = payload.setdefault(level, {}) if level else payload
            place[key.strip("_")] = to_json_data(getattr(self, name))
        unknown = to_json_data(self.extra)
        if "data" in payload:
            payload["data"] |= unknown.pop("data", {})
        payload |= unknown
        return payload

    @overload
    def state(self) -> dict[str, Any]: ...
    @overload
    def state(self, cls: builtins.type[T]) -> T: ...
    def state(self, cls: builtins.type[Any] = dict) -> Any:
        """Read the conversation's state as a class, the one that `conversations.state` reads and writes.

        Changing it does not change what is stored; use `conversations.state` for that.

        Args:
            cls: An attrs class, a dataclass, a TypedDict or a pydantic model: a field `order_id` is the key `orderId`.
                By default a dict, a copy.

        Returns:
            The state; without one, the class's defaults or an empty dict.

        Raises:
            StateDecodeError: The state does not fit the class.
            TypeError: `cls` is not such a class, or a field of it has a type that is not supported.
        """
        try:
            return read_state(self.conversation_state, cls, "conversationState")
        except DecodeError as error:
            raise state_decode_error(error, cls, describe_delivery(self.delivery_id)) from None


@frozen(kw_only=True, repr=False)
class MessageEvent(Event):
    """A message was received: `agent.message` on any channel except `voice`."""

    conversation_id: str = field(metadata=in_payload("data.conversationId"))
    """The id of its conversation (`data.conversationId`)."""
    message_id: str | None = field(default=None, metadata=in_payload("data.messageId"))
    """The id of the message (`data.messageId`); some payloads lack it."""
    number_id: str | None = field(default=None, metadata=in_payload("data.numberId"))
    """The id of the agent's number (`data.numberId`)."""
    from_number: str = field(metadata=in_payload("data.from"))
    """The sender's number, E.164 (`data.from`)."""
    to_number: str = field(metadata=in_payload("data.to"))
    """The agent's number, E.164 (`data.to`)."""
    text: str | None = field(default=None, metadata=in_payload("data.message"))
    """The text (`data.message`); empty or None for a message that is all media."""
    media_url: str | None = field(default=None, metadata=in_payload("data.mediaUrl"))
    """The URL of its media (`data.mediaUrl`)."""
    direction: str | None = field(default=None, metadata=in_payload("data.direction"))
    """`"inbound"`; an open set (`data.direction`)."""
    received_at: datetime | None = field(default=None, metadata=in_payload("data.receivedAt"))
    """When AgentPhone received the text (`data.receivedAt`); its history is in this order."""


@frozen(kw_only=True, repr=False)
class VoiceEvent(Event):
    """A turn of a phone call: `agent.message` on the channel `voice`."""

    call_id: str = field(metadata=in_payload("data.callId"))
    """The id of the call (`data.callId`)."""
    number_id: str | None = field(default=None, metadata=in_payload("data.numberId"))
    """The id of the agent's number (`data.numberId`)."""
    from_number: str = field(metadata=in_payload("data.from"))
    """The caller's number, E.164 (`data.from`)."""
    to_number: str = field(metadata=in_payload("data.to"))
    """The called number, E.164 (`data.to`)."""
    status: str | None = field(default=None, metadata=in_payload("data.status"))
    """The status of the call; an open set (`data.status`)."""
    transcript: str | None = field(default=None, metadata=in_payload("data.transcript"))
    """What was said (`data.transcript`)."""
    confidence: float | None = field(default=None, metadata=in_payload("data.confidence"))
    """The confidence in the transcript, 0 to 1 (`data.confidence`)."""
    direction: str | None = field(default=None, metadata=in_payload("data.direction"))
    """`"inbound"` or `"outbound"`; an open set (`data.direction`)."""


@frozen(kw_only=True, repr=False)
class ReactionEvent(Event):
    """A person reacted to a message: `agent.reaction`. The details are in `extra["data"]`, as received."""


@frozen(kw_only=True, repr=False)
class CallEndedEvent(Event):
    """A phone call ended: `agent.call_ended`. The details are in `extra["data"]`, as received."""


@frozen(kw_only=True, repr=False)
class UnknownEvent(Event):
    """An event of a type that this version does not know. Its `data` is in `extra["data"]`, as received."""


def read_event(raw: Any, delivery_id: str | None) -> Event:
    """Create the event for a payload.

    Args:
        raw: The payload, as parsed JSON.
        delivery_id: The id of the delivery, from its header.

    Raises:
        DecodeError: The payload does not fit its event.
    """
    cls: Any = UnknownEvent
    match raw:
        case {"event": "agent.message", "channel": "voice"}:
            cls = VoiceEvent
        case {"event": "agent.message"}:
            cls = MessageEvent
        case {"event": "agent.reaction"}:
            cls = ReactionEvent
        case {"event": "agent.call_ended"}:
            cls = CallEndedEvent
    places = _places(cls)
    payload = structure(raw, _payload_class(cls))
    data = getattr(payload, "data", None)
    arguments = {name: getattr(data if level else payload, key) for name, (level, key) in places.items()}
    extra = _merge_extra(payload.extra, data.extra if data else {})
    event: Event = cls(delivery_id=delivery_id, extra=extra, **arguments)
    return event


def describe_delivery(delivery_id: str | None) -> str:
    """Return how errors name a delivery."""
    return f"POST (webhook {delivery_id})" if delivery_id else "POST (webhook)"


@cache
def _places(cls: Any) -> dict[str, tuple[str, str]]:
    """Return where the payload has each field of an event: "" or "data", and the attribute of the payload class."""
    places = {}
    for each in attrs.fields(cls):
        place = each.metadata.get(_PLACE, to_camel_case(each.name))
        if place is not None and each.name != "extra":
            level, _, key = place.rpartition(".")
            places[each.name] = level, f"{key}_" if iskeyword(key) else key
    return places


@cache
def _payload_class(cls: Any) -> Any:
    """Return a class with the fields of an event as the payload nests them."""
    attrs.resolve_types(cls)
    levels: dict[str, dict[str, Any]] = {"": {}, "data": {}}
    for name, (level, key) in _places(cls).items():
        each = getattr(attrs.fields(cls), name)
        levels[level][key] = field(default=each.default, type=each.type, metadata=each.metadata)
    if levels["data"]:
        levels[""]["data"] = field(type=_make_class(levels["data"]))
    return _make_class(levels[""])


def _make_class(fields: dict[str, Any]) -> type:
    return attrs.make_class("Payload", {**fields, "extra": extra_field()}, kw_only=True)


def _merge_extra(outer: Mapping[str, Any], inner: Mapping[str, Any]) -> Mapping[str, Any]:
    """Put the unknown fields of `data` under its name: both levels may use one name for different things."""
    return {**outer, "data": inner} if inner else outer
