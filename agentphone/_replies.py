"""Reply in a conversation: who receives it, and whether a message whose outcome is unclear is in the history.

Sending a message names no conversation: the thread follows from the sender and the receiver.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

import anyio
from attrs import evolve, frozen

from agentphone._events import MessageEvent
from agentphone._http.requests import RequestSpec, get_conversation, list_messages, send_message
from agentphone._http.retry import Repeat
from agentphone._http.transport import Transport
from agentphone.errors import ClientClosedError, SendUnconfirmedError
from agentphone.models import Conversation, ConversationDetail, Message, NewMessage, SentMessage

Target = Conversation | NewMessage | MessageEvent
"""What names a conversation together with its sender and receiver."""

CLOCK_MARGIN = timedelta(seconds=10)
"""How much earlier than the attempt a message may be dated: the clocks of the API's servers may differ."""
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 4.0
"""The pauses between two looks at the history grow from the one to the other, in seconds."""
LOOK_TIMEOUT = 5.0
"""Seconds for one look: a server that does not respond must not use up the time of the others."""
EARLIER = 20
"""How many of the newest messages are read before a reply to a conversation that is given by its id."""
LOOKED_AT = 200
"""How many of the newest messages a look reads, the most that the API returns."""


@frozen
class Address:
    """Where a reply goes: the conversation, its receiver, and what it is sent from."""

    conversation_id: str
    to: str
    channel: str | None = None
    number_id: str | None = None
    from_number: str | None = None
    answers: datetime | None = None
    """When the text that it answers was received, by the server's clock; None if it answers no text."""


def address_of(target: object) -> Address:
    """Return where a reply to a conversation, a new message or an event goes.

    Raises:
        TypeError: It is none of them.
    """
    if isinstance(target, NewMessage):
        address, message = address_of(target.conversation), target.message
        return evolve(
            address,
            channel=address.channel or _reply_channel(message.channel),
            answers=message.received_at if message.direction == "inbound" else None,
        )
    if isinstance(target, MessageEvent):
        return _address_of_event(target)
    if not isinstance(target, Conversation):
        hint = "; pass its conversation" if isinstance(target, Message) else ""
        raise TypeError(
            "conversation must be a Conversation, a NewMessage, a MessageEvent or an id, got"
            f" {type(target).__name__}{hint}"
        )
    return Address(
        target.id,
        to=(target.group_id or target.participant) if target.is_group else target.participant,
        channel=_reply_channel(target.channel),
        number_id=target.phone_number_id,
        from_number=None if target.phone_number_id else target.phone_number,
    )


def _address_of_event(event: MessageEvent) -> Address:
    person, agent = event.from_number, event.to_number
    if event.direction == "outbound":  # an echo of what the agent sent
        person, agent = agent, person
    match event.extra:
        case {"data": {"group": {"groupId": str(group_id)}}} if group_id:
            person = group_id
    return Address(
        event.conversation_id,
        to=person,
        channel=_reply_channel(event.channel),
        number_id=event.number_id,
        from_number=None if event.number_id else agent,
        answers=None if event.direction == "outbound" else event.received_at,
    )


def _reply_channel(channel: str | None) -> str | None:
    # The API chooses between SMS and iMessage by itself, and rejects their names.
    return channel if channel == "whatsapp" else None


async def send_reply(
    transport: Transport,
    target: Target | str,
    body: str,
    *,
    media_urls: Sequence[str],
    reply_to: Message | str | None,
    send_style: str | None,
    confirm: float,
) -> SentMessage:
    """Send a reply; if the outcome is unclear, look for it in the history for `confirm` seconds.

    The arguments are those of `conversations.reply`.

    Raises:
        SendUnconfirmedError: It may have been sent, and was not found.
        AgentPhoneError: It was not sent.
    """

    def message_to(address: Address) -> RequestSpec[SentMessage]:
        return send_message(
            body,
            to=address.to,
            number_id=address.number_id,
            from_number=address.from_number,
            channel=address.channel,
            media_urls=media_urls,
            reply_to=reply_to,
            send_style=send_style,
        )

    deadline_at = transport.deadline_at()
    if isinstance(target, str):
        message_to(Address(target, to="?", number_id="?"))  # checks the arguments before anything is sent
        target = await transport.send(get_conversation(target, message_limit=EARLIER), deadline_at=deadline_at)
    address = address_of(target)
    spec = message_to(address)
    earlier = {message.id for message in target.messages} if isinstance(target, ConversationDetail) else set()
    began_at = time.monotonic()
    try:
        sent = await transport.send(spec, deadline_at=deadline_at)
    except SendUnconfirmedError as error:
        failed_at = anyio.current_time()
        ends_at = min(failed_at + confirm, deadline_at)
        found, looks = await _look_for(
            transport, address, body, tuple(media_urls), earlier, began_at=began_at, ends_at=ends_at
        )
        error.since = transport.server_time_at(began_at)  # the looks may have shown the server's time
        if found is None:
            seconds = round(anyio.current_time() - failed_at, 1)
            if looks:
                error.advice = f"It did not appear in the conversation within {seconds:g} s. {error.advice}"
            elif confirm:
                error.advice = f"The conversation could not be read to look for it. {error.advice}"
            raise
        sent = _as_sent(found, address)
    transport.sent_ids.append(sent.id)
    return sent


async def _look_for(
    transport: Transport,
    address: Address,
    body: str,
    media: tuple[str, ...],
    earlier: set[str],
    *,
    began_at: float,
    ends_at: float,
) -> tuple[Message | None, int]:
    """Read the conversation's newest messages until one is the reply, or the time is over.

    Returns:
        The reply, or None; and how often the messages could be read.
    """
    spec = evolve(list_messages(address.conversation_id, limit=LOOKED_AT, before=None, after=None), repeat=Repeat.NEVER)
    pause, looks = FIRST_PAUSE, 0
    while (now := anyio.current_time()) < ends_at:
        # Whatever fails here, also in a hook, the error that the caller must see is the send's.
        with suppress(Exception), anyio.move_on_after(min(LOOK_TIMEOUT, ends_at - now)):
            page = await transport.send(spec, deadline_at=math.inf)
            looks += 1
            since = transport.server_time_at(began_at)
            known, answers = earlier.union(transport.sent_ids), address.answers
            found = find_reply(page.data, body, media, since=since, known=known, answers=answers)
            if found is not None:
                return found, looks
        try:
            await transport.sleep_until(transport.clock() + min(pause, ends_at - anyio.current_time()))
        except ClientClosedError:
            return None, looks
        pause = min(2 * pause, LONGEST_PAUSE)
    return None, looks


def find_reply(
    messages: Iterable[Message],
    body: str,
    media: tuple[str, ...],
    *,
    since: datetime,
    known: Iterable[str],
    answers: datetime | None = None,
) -> Message | None:
    """Return the outbound message with the same text and media that is not older than the attempt to send it.

    Args:
        messages: The newest messages of the conversation.
        body: The text.
        media: The URLs of its media.
        since: When the first attempt began, by the server's clock.
        known: The ids of earlier messages, and of those that this client has sent: the same words again are another
            message.
        answers: When the text that it answers was received, if it answers one: no reply is older.
    """
    excluded = set(known)
    earliest = since - CLOCK_MARGIN
    if answers is not None:
        earliest = max(earliest, answers.replace(microsecond=0))  # timestamps may be truncated to seconds
    for message in messages:
        if (
            message.direction == "outbound"
            and (message.body or "") == body
            and _media_of(message) == media
            and message.received_at >= earliest
            and message.id not in excluded
        ):
            return message
    return None


def _media_of(message: Message) -> tuple[str, ...]:
    url = message.extra.get("mediaUrl")  # instead of `mediaUrls`, or its first
    return message.media_urls or ((url,) if isinstance(url, str) and url else ())


def _as_sent(message: Message, address: Address) -> SentMessage:
    return SentMessage(
        id=message.id,
        status=message.status,
        channel=message.channel,
        from_number=message.from_number,
        to_number=message.to_number,
        conversation_id=address.conversation_id,
        media_urls=_media_of(message),
        reply_to_message_id=message.reply_to.message_id if message.reply_to else None,
    )
