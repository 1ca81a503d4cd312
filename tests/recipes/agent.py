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
