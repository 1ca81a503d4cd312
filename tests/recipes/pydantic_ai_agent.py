# pydantic_ai_agent.py
import asyncio
import os
from dataclasses import dataclass

from pydantic_ai import Agent, RunContext

from agentphone import AsyncClient


@dataclass
class Thread:
    client: AsyncClient
    conversation_id: str


model = os.environ.get("MODEL", "test")  # "test" is pydantic-ai's own, which needs no network
agent = Agent(model, deps_type=Thread, instructions="Answer the person's text in one sentence.")


@agent.tool
async def recent_texts(context: RunContext[Thread]) -> list[str]:
    """Give the latest texts of the conversation, each with who wrote it."""
    thread = context.deps
    conversation = await thread.client.conversations.get(thread.conversation_id, message_limit=10)
    return [f"{message.direction}: {message.body}" for message in conversation.messages]


@agent.tool
async def remember_topic(context: RunContext[Thread], topic: str) -> str:
    """Remember what the conversation is about."""
    thread = context.deps
    async with thread.client.conversations.state(thread.conversation_id) as state:
        state["topic"] = topic
    return "remembered"


async def main() -> None:
    async with AsyncClient() as client:
        async for conversation, message in client.conversations.watch(poll_interval=1):
            if message.direction == "inbound":
                answer = await agent.run(message.body, deps=Thread(client, conversation.id))
                print(f"{conversation.participant}: {answer.output}", flush=True)


asyncio.run(main())
