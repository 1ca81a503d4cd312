# langchain_tools.py
import asyncio
import os
from typing import Any

from langchain.agents import create_agent
from langchain.messages import AIMessage, HumanMessage
from langchain.tools import tool

from agentphone import AsyncClient, Conversation
from agentphone.agents import history

ROLES = {"user": HumanMessage, "assistant": AIMessage}


async def answer(client: AsyncClient, conversation: Conversation, model: Any) -> None:
    @tool
    async def store_topic(topic: str) -> None:
        """Store the topic of the conversation."""
        async with client.conversations.state(conversation.id) as state:
            state["topic"] = topic

    agent = create_agent(model, [store_topic], system_prompt="Answer the person's latest text in one sentence.")
    page = await client.conversations.messages(conversation.id, page_size=50)
    result = await agent.ainvoke({"messages": [ROLES[entry["role"]](entry["content"]) for entry in history(page)]})
    await client.conversations.reply(conversation, result["messages"][-1].text)


async def main(model: Any) -> None:
    async with AsyncClient() as client:
        async for conversation, message in client.conversations.watch(poll_interval=1):
            if message.direction == "inbound":
                await answer(client, conversation, model)


if __name__ == "__main__":
    asyncio.run(main(os.environ["MODEL"]))
