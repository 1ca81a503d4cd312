"""What is done with a webhook delivery: pure decisions. The status to answer, and what is stored, if anything is.

AgentPhone sends a delivery again after a 5xx or a timeout, and never after a 4xx. So 4xx is for what can never be
accepted; a signature or a timestamp that does not fit is answered with 503, because a secret that is being replaced,
or a wrong clock, must not lose texts.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import frozen

from agentphone._events import read_event
from agentphone._timestamps import format_timestamp
from agentphone.errors import ResponseDecodeError, WebhookVerificationError
from agentphone.models import Conversation, Message
from agentphone.webhooks import Event, MessageEvent, Webhook

ACCEPTED, MALFORMED, TOO_LARGE, TRY_AGAIN = 202, 400, 413, 503
MAX_BODY = 1024 * 1024
"""The largest body that is read, in bytes."""
MAX_KEY = 200

logger = logging.getLogger("agentphone.inbox")


@frozen
class Item:
    """One event to be handled, as it is stored.

    Attributes:
        id: What makes it unique: the message's id, else the delivery's.
        partition: Items of one partition are handled one after the other: the conversation's id, else `id`.
        payload: The event as `Event.to_dict` returns it.
        delivery_id: The id of the delivery.
    """

    id: str
    partition: str
    payload: dict[str, Any]
    delivery_id: str | None = None

    @classmethod
    def from_event(cls, event: Event) -> Item:
        """Create the item for an event."""
        payload = event.to_dict()
        message_id = event.message_id if isinstance(event, MessageEvent) else None
        # Without any id a retry is recognized by its content.
        key = _key(message_id or event.delivery_id or json.dumps(payload, sort_keys=True))
        conversation = getattr(event, "conversation_id", None)
        if conversation is None and isinstance(data := payload.get("data"), Mapping):
            conversation = data.get("conversationId")
        partition = _key(conversation) if isinstance(conversation, str) and conversation else key
        return cls(key, partition, payload, event.delivery_id)

    def to_event(self) -> Event:
        """Return the event."""
        return read_event(self.payload, self.delivery_id)


def receive_delivery(
    webhook: Webhook, body: bytes, headers: Any, *, handled: Iterable[type[Event]]
) -> tuple[int, Item | None]:
    """Verify a delivery, and decide what becomes of it.

    Args:
        webhook: What verifies it.
        body: The raw body.
        headers: The headers.
        handled: The classes of events, other than texts, that have handlers.

    Returns:
        The status to answer, and the item to store before it is answered; None if there is nothing to store.
    """
    is_bytes = isinstance(body, bytes | bytearray | memoryview)  # `parse` raises for anything else
    if is_bytes and len(body) > MAX_BODY:
        logger.warning("A delivery of %d bytes was rejected; at most %d are read.", len(body), MAX_BODY)
        return TOO_LARGE, None
    try:
        event = webhook.parse(body, headers)
    except WebhookVerificationError as error:
        if error.is_mismatch:
            logger.warning("A delivery was answered with 503, so that it is sent again. %s", error)
            return TRY_AGAIN, None
        logger.warning("A delivery was rejected. %s", error)
        return MALFORMED, None
    except ResponseDecodeError as error:
        # Not the error's own text: it shows the beginning of the body.
        logger.error("A signed delivery cannot be read, and was rejected: %s %s", error.path, error.args[0])  # noqa: TRY400
        return MALFORMED, None
    if isinstance(event, MessageEvent):
        # Without a handler here too: the worker has it, and this process may only receive.
        return ACCEPTED, None if event.direction == "outbound" else Item.from_event(event)
    return ACCEPTED, Item.from_event(event) if isinstance(event, tuple(handled)) else None


def item_of_message(conversation: Conversation, message: Message) -> Item | None:
    """Return the item for a message that was polled, in the form of a webhook; None unless a person sent it."""
    sender = message.direction or ("inbound" if message.from_number == conversation.participant else "outbound")
    raw, listed = message.to_dict(), conversation.to_dict()
    if sender != "inbound" or raw.get("channel") == "voice":  # a turn of a call, which no text can answer
        return None
    known = ("id", "body", "fromNumber", "toNumber", "direction", "receivedAt", "channel")
    data = {name: value for name, value in raw.items() if name not in known}
    data |= {
        "conversationId": conversation.id,
        "messageId": message.id,
        "numberId": conversation.phone_number_id,
        "from": message.from_number,
        "to": message.to_number,
        "message": message.body,
        "mediaUrl": message.media_urls[0] if message.media_urls else None,
        "direction": sender,
        "receivedAt": format_timestamp(message.received_at),
    }
    if listed.get("isGroup"):
        group = ("isGroup", "groupId", "groupName", "participants")
        data["group"] = {name: listed[name] for name in group if name in listed}
    payload: dict[str, Any] = {
        "event": "agent.message",
        "channel": raw.get("channel") or listed.get("channel"),
        "timestamp": format_timestamp(message.received_at),
        "agentId": conversation.agent_id,
        "data": data,
        "conversationState": conversation.metadata,
        "recentHistory": [],
    }
    return Item(_key(message.id), _key(conversation.id), payload)


def _key(text: str) -> str:
    """Return a text as a key of the database; PostgreSQL, for one, has no texts with NUL."""
    if len(text) <= MAX_KEY and text.isascii() and text.isprintable():
        return text
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
