# pydantic_ai_mcp.py
import asyncio
import os
import sys
from typing import Any

from fastmcp.client.transports import StdioTransport
from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset

from agentphone import AsyncClient

server = StdioTransport(sys.executable, ["-m", "agentphone", "mcp"], env={**os.environ})
agent = Agent(toolsets=[MCPToolset(server)], instructions="Answer the person's latest text with the tool reply.")


async def main(model: Any) -> None:
    async with AsyncClient() as client, agent:
        async for conversation, message in client.conversations.watch(poll_interval=1):
            if message.direction == "inbound":
                await agent.run(f"A text arrived in the conversation {conversation.id}.", model=model)


if __name__ == "__main__":
    asyncio.run(main(os.environ["MODEL"]))
