"""Messages on their way into the store, checked already: from a person or a test, and from the API.

Nothing here knows JSON, SQL or HTTP.
"""

from typing import Literal

import attrs

Direction = Literal["inbound", "outbound"]


@attrs.frozen
class MessageInput:
    """A message to store.

    Args:
        direction: Who sent it: the participant (`inbound`) or the agent (`outbound`).
        agent_number: The agent's number.
        participant: The other number.
        body: The text.
        at: Its timestamp; None for the time at which it is stored.
        channel: `sms`, `mms`, `imessage` or `whatsapp`; None for that of the conversation, SMS for a new one.
        media_urls: The URLs of its media.
        status: Its delivery status; None for `received` or `delivered`, by the direction.
        sender: The member who sent it, for an inbound message of the group `participant`.
        members: The members, if it is the first message of a new group.
        visible_at: When the history shows it, in seconds of real time since 1970.
    """

    direction: Direction
    agent_number: str
    participant: str
    body: str
    at: int | None
    channel: str | None = None
    media_urls: tuple[str, ...] = ()
    status: str | None = None
    sender: str | None = None
    members: tuple[str, ...] | None = None
    visible_at: float = 0.0


@attrs.frozen(kw_only=True)
class OutgoingMessage:
    """The body of `POST /v1/messages`. Exactly one of `to_number` and `recipients` is set, and at least one sender.

    Args:
        body: The text; empty only with media.
        to_number: The receiver: E.164, a short code, an e-mail address, or a group's id.
        recipients: The members of a new group.
        from_number: The agent's number to send from.
        number_id: Its id; `from_number` precedes it.
        agent_id: The agent whose number to send from; the other two precede it.
        media_urls: The URLs of the media.
        reply_to_message_id: The message to reply to.
        is_whatsapp: Whether it is sent over WhatsApp.
    """

    body: str
    to_number: str | None
    recipients: tuple[str, ...] | None
    from_number: str | None
    number_id: str | None
    agent_id: str | None
    media_urls: tuple[str, ...]
    reply_to_message_id: str | None
    is_whatsapp: bool
