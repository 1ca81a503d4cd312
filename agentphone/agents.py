r'''Agents without the inbox: histories for language models, and whole agents built on `watch`.

`history` returns a conversation as the messages that language models take:

```python
import asyncio

from agentphone import AsyncClient
from agentphone.agents import history


async def main() -> None:
    async with AsyncClient() as client:
        conversation = (await client.conversations.list(limit=1))[0]
        for entry in history(await client.conversations.messages(conversation.id, page_size=50)):
            print(entry["role"], entry["content"])


asyncio.run(main())
```

This agent plans its replies by rules, keeps its state in the conversation, and continues where it was after a restart.
One process at a time may run it; `agentphone.inbox` has no such limit.

```python
# agent.py
import asyncio
import re
from datetime import UTC, datetime
from pathlib import Path

from attrs import define

from agentphone import AsyncClient, Cursor

BOOKMARK = Path("agent.bookmark")  # the position of the message that was handled last


@define
class OrderState:
    order_id: str | None = None
    texts: int = 0


def think(text: str, state: OrderState) -> str:
    """Plan a reply: by rules here, by a model in a real agent."""
    state.texts += 1
    if found := re.search(r"\bORD-\d+\b", text):
        state.order_id = found[0]
    if state.order_id is None:
        return "Which order is it about? Its number begins with ORD-."
    if "where" in text.lower():
        return f"{state.order_id} is on its way."
    return f"Thank you, I have noted it for {state.order_id}."


def store(cursor: Cursor) -> None:
    """Write the bookmark atomically: a crash leaves the old one or the new one."""
    part = BOOKMARK.with_suffix(".part")
    part.write_text(f"{cursor}\n")
    part.replace(BOOKMARK)


async def newest(client: AsyncClient) -> Cursor:
    """Return the position of the newest message, where a first run begins."""
    async for conversation in client.conversations.list(limit=1):
        async for message in client.conversations.messages(conversation.id, limit=1):
            return message.cursor
    return Cursor(datetime(1970, 1, 1, tzinfo=UTC), "")  # no message yet, so every message will be new


async def main() -> None:
    async with AsyncClient() as client:
        if not BOOKMARK.exists():
            store(await newest(client))  # before the first poll: a text that arrives while this is stopped is not lost
        last = Cursor.parse(BOOKMARK.read_text())
        async for conversation, message in client.conversations.watch(after=last, poll_interval=1):
            if message.direction != "inbound":
                continue
            async with client.conversations.state(conversation.id, OrderState) as state:
                reply = think(message.body or "", state)
            store(message.cursor)  # before the reply: a crash may lose a reply, but never sends one twice
            await client.conversations.reply(conversation, reply)
            print(f"{conversation.participant}: {message.body!r} -> {reply!r}", flush=True)


asyncio.run(main())
```

The same inside an agent framework, whose tools await the SDK. With a model's name in `MODEL` it is a real one:

```python
# pydantic_ai_agent.py
import asyncio
import os
from dataclasses import dataclass

from pydantic_ai import Agent, RunContext

from agentphone import AsyncClient


@dataclass
class Deps:
    client: AsyncClient
    conversation_id: str


model = os.environ.get("MODEL", "test")  # "test" is built into pydantic-ai and needs no network
agent = Agent(model, deps_type=Deps, instructions="Answer the person's text in one sentence.")


@agent.tool
async def recent_texts(context: RunContext[Deps]) -> list[str]:
    """Return the latest messages of the conversation, with their directions."""
    deps = context.deps
    conversation = await deps.client.conversations.get(deps.conversation_id, message_limit=10)
    return [f"{message.direction}: {message.body}" for message in conversation.messages]


@agent.tool
async def remember_topic(context: RunContext[Deps], topic: str) -> str:
    """Store the topic of the conversation."""
    deps = context.deps
    async with deps.client.conversations.state(deps.conversation_id) as state:
        state["topic"] = topic
    return "remembered"


async def main() -> None:
    async with AsyncClient() as client:
        async for conversation, message in client.conversations.watch(poll_interval=1):
            if message.direction == "inbound":
                answer = await agent.run(message.body, deps=Deps(client, conversation.id))
                await client.conversations.reply(conversation, answer.output)
                print(f"{conversation.participant}: {answer.output}", flush=True)


asyncio.run(main())
```

`tests/recipes/` has more: pydantic-ai with the tools of `agentphone.mcp`, the OpenAI Agents SDK, and LangChain.
'''

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
