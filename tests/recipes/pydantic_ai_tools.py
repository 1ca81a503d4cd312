# pydantic_ai_tools.py
import asyncio
import os
from typing import Any

from pydantic_ai import Agent, ModelRequest, ModelResponse, TextPart, UserPromptPart

from agentphone import AsyncClient, Conversation
from agentphone.agents import history


def to_message(role: str, content: str) -> ModelRequest | ModelResponse:
    return ModelRequest([UserPromptPart(content)]) if role == "user" else ModelResponse([TextPart(content)])


async def answer(client: AsyncClient, conversation: Conversation, model: Any) -> None:
    async def store_topic(topic: str) -> None:
        """Store the topic of the conversation."""
        async with client.conversations.state(conversation.id) as state:
            state["topic"] = topic

    agent = Agent(model, tools=[store_topic], instructions="Answer the person's latest text in one sentence.")
    page = await client.conversations.messages(conversation.id, page_size=50)
    result = await agent.run(message_history=[to_message(**entry) for entry in history(page)])
    await client.conversations.reply(conversation, result.output)


async def main(model: Any) -> None:
    async with AsyncClient() as client:
        async for conversation, message in client.conversations.watch(poll_interval=1):
            if message.direction == "inbound":
                await answer(client, conversation, model)


if __name__ == "__main__":
    asyncio.run(main(os.environ["MODEL"]))
