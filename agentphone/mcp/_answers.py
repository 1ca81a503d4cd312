"""What the tools return: bounded answers with a schema, and each as a short text beside it.

A model pays for every character that it reads. So long texts are cut and say so, a page ends before it gets too long,
and what is left out can be asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from agentphone._timestamps import format_timestamp
from agentphone.models import Conversation, Message

MAX_BODY = 2_000
"""The longest text of a message that is shown whole, in characters."""
MAX_ANSWER = 20_000
"""About how many characters of messages, or of state, an answer holds."""
MAX_PREVIEW = 200
MAX_MEDIA = 10
MAX_NAMES = 20

NextCursor = Field(
    default=None, description="Where the rest begins: pass it as `cursor`, with the same other arguments."
)


class MessageAnswer(BaseModel):
    """A message."""

    id: str = Field(description="Its id, for `react` and `reply_to`.")
    sender: str = Field(description="Who wrote it: `person`, `agent`, or what else the API calls it.")
    received_at: str = Field(description="When, ISO 8601 in UTC.")
    body: str = Field(description="The text; empty for a message that is all media.")
    body_length: int | None = Field(default=None, description="The length of the text, if `body` is cut.")
    media_urls: list[str] | None = Field(default=None, description="The URLs of its media.")
    media_left_out: int | None = Field(default=None, description="How many more media it has.")
    channel: str | None = Field(default=None, description="`sms`, `mms`, `imessage`, `whatsapp`, ...")
    status: str | None = Field(default=None, description="The delivery status.")

    @classmethod
    def of(cls, message: Message) -> MessageAnswer:
        """Return what is shown of a message."""
        body = message.body or ""
        media = [url for url in message.media_urls if len(url) <= MAX_BODY][:MAX_MEDIA]
        return cls(
            id=message.id,
            sender={"inbound": "person", "outbound": "agent"}.get(message.direction or "", message.direction or "?"),
            received_at=format_timestamp(message.received_at),
            body=body[:MAX_BODY],
            body_length=len(body) if len(body) > MAX_BODY else None,
            media_urls=media or None,
            media_left_out=len(message.media_urls) - len(media) or None,
            channel=message.channel,
            status=message.status,
        )

    @property
    def size(self) -> int:
        """Return about how many characters it takes."""
        return 100 + len(self.id) + len(self.body) + sum(map(len, self.media_urls or ()))

    def text(self) -> str:
        """Return it as a line; what the person wrote cannot look like another line."""
        parts = ["\n    ".join(self.body.splitlines())]
        if self.body_length:
            parts.append(f"[cut: {self.body_length:,} characters in all]")
        parts += [f"[media: {url}]" for url in self.media_urls or ()]
        if self.media_left_out:
            parts.append(f"[{self.media_left_out} more media]")
        return f"{self.received_at} {self.sender} ({self.id}): {' '.join(filter(None, parts)) or '[no text]'}"


class ConversationAnswer(BaseModel):
    """A conversation."""

    id: str = Field(description="Its id: the `conversation_id` of the other tools.")
    participant: str = Field(description="The person: a phone number, an e-mail address, or a group.")
    phone_number: str = Field(description="The agent's number.")
    channel: str | None = None
    group_name: str | None = None
    last_message_at: str | None = Field(default=None, description="When its latest message was received, in UTC.")
    last_message_preview: str | None = Field(default=None, description="The beginning of that message.")
    message_count: int | None = None
    created_at: str | None = None

    @classmethod
    def of(cls, conversation: Conversation) -> ConversationAnswer:
        """Return what is shown of a conversation."""
        data = conversation.to_dict()
        channel, group_name = data.get("channel"), data.get("groupName")
        return cls(
            id=conversation.id,
            participant=conversation.participant,
            phone_number=conversation.phone_number,
            channel=channel if isinstance(channel, str) else None,
            group_name=_cut(group_name, MAX_PREVIEW) if isinstance(group_name, str) else None,
            last_message_at=_format(conversation.last_message_at),
            last_message_preview=_cut(conversation.last_message_preview, MAX_PREVIEW),
            message_count=conversation.message_count,
            created_at=_format(conversation.created_at),
        )

    def text(self) -> str:
        """Return it as a line."""
        facts = [self.participant]
        if self.group_name:
            facts.append(f"group {' '.join(self.group_name.split())}")
        if self.message_count is not None:
            facts.append(f"{self.message_count} messages")
        if self.last_message_at:
            facts.append(f"last {self.last_message_at}")
        preview = " ".join((self.last_message_preview or "").split())
        return f"{self.id}: {', '.join(facts)}" + (f": {preview}" if preview else "")


class Conversations(BaseModel):
    """A page of conversations, most recent activity first."""

    conversations: list[ConversationAnswer]
    next_cursor: str | None = NextCursor

    def text(self) -> str:
        """Return it as text."""
        return _lines(self.conversations, self.next_cursor, "No conversations.")


class State(BaseModel):
    """The state of a conversation."""

    conversation_id: str
    state: dict[str, Any] | None = Field(default=None, description="The keys and their values, if any are stored.")
    keys_left_out: list[str] | None = Field(
        default=None,
        description="Keys whose values do not fit into this answer: get_state reads one alone with `keys`.",
    )
    more_keys_left_out: int | None = Field(default=None, description="How many more keys were left out.")

    @classmethod
    def of(cls, conversation_id: str, state: dict[str, Any] | None, keys: list[str] | None, room: int) -> State:
        """Return as many keys as there is room for.

        Args:
            conversation_id: The conversation's id.
            state: What is stored.
            keys: The keys to return; None for all.
            room: How many characters to return.
        """
        if state is None:
            return cls(conversation_id=conversation_id, state=None)
        shown: dict[str, Any] = {}
        left_out = []
        for key in state if keys is None else [key for key in dict.fromkeys(keys) if key in state]:
            size = len(_as_json({key: state[key]}))
            if size <= room:
                shown[key] = state[key]
                room -= size
            else:
                left_out.append(_cut(key, MAX_PREVIEW) or "")
        return cls(
            conversation_id=conversation_id,
            state=shown,
            keys_left_out=left_out[:MAX_NAMES] or None,
            more_keys_left_out=len(left_out[MAX_NAMES:]) or None,
        )

    def text(self) -> str:
        """Return it as text."""
        lines = [f"State: {'nothing is stored' if self.state is None else _as_json(self.state)}"]
        if self.keys_left_out:
            more = f" and {self.more_keys_left_out} more keys" if self.more_keys_left_out else ""
            lines.append(f"Left out because they are long: {', '.join(self.keys_left_out)}{more}.")
            lines.append(
                f"get_state reads one alone with `keys`; a value longer than {MAX_ANSWER:,} characters cannot be read."
            )
        return "\n".join(lines)


class Messages(BaseModel):
    """A page of messages."""

    messages: list[MessageAnswer]
    next_cursor: str | None = NextCursor

    def text(self) -> str:
        """Return it as text."""
        return _lines(self.messages, self.next_cursor, "No messages.")


class Detail(BaseModel):
    """A conversation with its state and its latest messages."""

    conversation: ConversationAnswer
    state: State
    messages: list[MessageAnswer] = Field(description="The latest messages, newest first.")
    next_cursor: str | None = Field(
        default=None, description="Where the earlier messages begin: pass it to `read_messages`."
    )

    def text(self) -> str:
        """Return it as text."""
        messages = _lines(self.messages, self.next_cursor, "No messages.", "read_messages with ")
        return f"{self.conversation.text()}\n{self.state.text()}\n{messages}"


class Match(BaseModel):
    """A message that was found."""

    conversation_id: str
    message: MessageAnswer

    def text(self) -> str:
        """Return it as a line."""
        return f"{self.conversation_id} {self.message.text()}"


class Matches(BaseModel):
    """What a search has found."""

    matches: list[Match]
    searched_messages: int = Field(description="How many messages this call has looked at.")
    next_cursor: str | None = Field(
        default=None,
        description="Where the search goes on: pass it as `cursor`. Without it, everything was searched.",
    )

    def text(self) -> str:
        """Return it as text."""
        found = "Nothing found" if not self.matches else f"{len(self.matches)} found"
        return f"{found} in {self.searched_messages:,} messages.\n" + _lines(self.matches, self.next_cursor, "")


class Sent(BaseModel):
    """What became of a reply or a reaction."""

    status: Literal["sent", "unconfirmed"] = Field(
        description="`sent`, or `unconfirmed`: it may have been sent, so it must not be sent again."
    )
    id: str | None = Field(default=None, description="The id of what was sent.")
    conversation_id: str | None = None
    channel: str | None = None
    delivery_status: str | None = Field(default=None, description="What the API says of its delivery.")
    advice: str | None = Field(default=None, description="What to do if it is unconfirmed.")

    def text(self) -> str:
        """Return it as text."""
        if self.status == "unconfirmed":
            return f"Unconfirmed. {self.advice}"
        return f"Sent ({', '.join(filter(None, [self.id, self.channel, self.delivery_status]))})."


Answer = Conversations | Detail | Messages | Matches | State | Sent


def _lines(items: Iterable[Any], next_cursor: str | None, nothing: str, where: str = "") -> str:
    lines = [item.text() for item in items] or [nothing]
    if next_cursor:
        lines.append(f"There is more: {where}cursor={next_cursor}")
    return "\n".join(filter(None, lines))


def _cut(text: str | None, length: int) -> str | None:
    return text if text is None or len(text) <= length else text[: length - 1] + "\u2026"


def _format(timestamp: datetime | None) -> str | None:
    return None if timestamp is None else format_timestamp(timestamp)


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
