# agent.py
import asyncio
import pickle
import re
from pathlib import Path

from attrs import define

from agentphone import AsyncClient

BOOKMARK = Path("agent.bookmark")  # the message that was handled last


@define
class OrderState:
    order_id: str | None = None
    texts: int = 0
    reply: str | None = None


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


async def main() -> None:
    last = pickle.loads(BOOKMARK.read_bytes()) if BOOKMARK.exists() else None
    async with AsyncClient() as client:
        async for conversation, message in client.conversations.watch(after=last, poll_interval=1):
            if message.direction == "inbound":
                async with client.conversations.state(conversation.id, OrderState) as state:
                    state.reply = think(message.body or "", state)
                print(f"{conversation.participant}: {message.body!r} -> {state.reply!r}", flush=True)
            BOOKMARK.write_bytes(pickle.dumps(message))


asyncio.run(main())
