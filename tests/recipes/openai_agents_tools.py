# openai_agents_tools.py
import asyncio
import os
from typing import Any, cast

from agents import Agent, Runner, TResponseInputItem, function_tool

from agentphone import AsyncClient, Conversation
from agentphone.agents import history


async def answer(client: AsyncClient, conversation: Conversation, model: Any) -> None:
    @function_tool
    async def store_topic(topic: str) -> None:
        """Store the topic of the conversation."""
        async with client.conversations.state(conversation.id) as state:
            state["topic"] = topic

    instructions = "Answer the person's latest text in one sentence."
    agent = Agent(name="Texting", model=model, tools=[store_topic], instructions=instructions)
    page = await client.conversations.messages(conversation.id, page_size=50)
    messages: list[TResponseInputItem] = [cast(Any, entry) for entry in history(page)]
    result = await Runner.run(agent, messages)
    await client.conversations.reply(conversation, result.final_output)


async def main(model: Any) -> None:
    async with AsyncClient() as client:
        async for conversation, message in client.conversations.watch(poll_interval=1):
            if message.direction == "inbound":
                await answer(client, conversation, model)


if __name__ == "__main__":
    asyncio.run(main(os.environ["MODEL"]))
