"""Conversations for agent frameworks: a history as the messages that language models take."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from agentphone.models import Message
from agentphone.webhooks import HistoryItem, MessageEvent


def history(messages: Iterable[Message | HistoryItem | MessageEvent]) -> list[dict[str, Any]]:
    """Return a conversation's messages as a language model takes them.

    What the person wrote has the role `user`, what the agent wrote has the role `assistant`. Each message stays one of
    its own, also if one side wrote several in a row. A message that came more than once is there once, so that
    `history([*event.recent_history, event])` ends with the text to answer.

    Args:
        messages: The messages, in any order: a `Message` each (`detail.messages`, or the items of `messages()`), or
            what a webhook delivers: the items of `recent_history`, and the `MessageEvent` itself.

    Returns:
        A list of `{"role": "user" or "assistant", "content": text}`, oldest first. Media follow the text as
        `[media: URL]`; without text and media the content is `[no text]`, because models reject an empty one.

    Raises:
        TypeError: `messages` is not an iterable of such messages.
    """
    given: Any = messages
    if not isinstance(given, Iterable):
        advice = ": pass its messages" if hasattr(given, "messages") else ""
        advice = ": collect it first, [message async for message in ...]" if hasattr(given, "__aiter__") else advice
        raise TypeError(f"messages must be an iterable of messages, got {type(given).__name__}{advice}")
    entries: dict[Any, tuple[datetime, str, dict[str, Any]]] = {}
    for number, message in enumerate(messages):
        received_at, its_id, text, media_urls = _parts(message)
        role = "assistant" if message.direction == "outbound" else "user"
        content = "\n".join(filter(None, [text, *(f"[media: {url}]" for url in media_urls)])) or "[no text]"
        entries[its_id or number] = received_at, its_id, {"role": role, "content": content}
    # Items of `recent_history` may lack the id that the event has: then the same time and text are the same message.
    known = [(at, entry) for at, its_id, entry in entries.values() if its_id]
    found = [each for each in entries.values() if each[1] or (each[0], each[2]) not in known]
    return [entry for _, _, entry in sorted(found, key=lambda each: each[:2])]


def _parts(message: Message | HistoryItem | MessageEvent) -> tuple[datetime, str, str | None, list[str]]:
    """Return when a message was received, its id (empty if unknown), its text and the URLs of its media."""
    if isinstance(message, Message):
        return message.received_at, message.id, message.body, [*message.media_urls]
    if isinstance(message, HistoryItem):
        return message.at, str(message.extra.get("messageId") or ""), message.content, _media(None, message.extra)
    if isinstance(message, MessageEvent):
        media_urls = _media(message.media_url, message.extra.get("data") or {})
        return message.received_at or message.timestamp, message.message_id or "", message.text, media_urls
    raise TypeError(f"messages must contain Message, HistoryItem or MessageEvent objects, got {type(message).__name__}")


def _media(url: str | None, extra: Any) -> list[str]:
    several = extra.get("mediaUrls")
    found = [url, extra.get("mediaUrl"), *(several if isinstance(several, list) else ())]
    return [*dict.fromkeys(each for each in found if isinstance(each, str) and each)]
