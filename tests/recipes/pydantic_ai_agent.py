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
