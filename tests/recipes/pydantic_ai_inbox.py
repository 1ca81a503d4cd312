# pydantic_ai_inbox.py
import os

from attrs import define
from pydantic_ai import Agent, RunContext

from agentphone.inbox import Inbox
from agentphone.webhooks import MessageEvent

inbox = Inbox()


@define
class OrderState:
    order_id: str | None = None


model = os.environ.get("MODEL", "test")  # "test" is built into pydantic-ai and needs no network
agent = Agent(model, deps_type=OrderState, instructions="Answer the person's text in one sentence.")


@agent.tool
def remember_order(context: RunContext[OrderState], order_id: str) -> str:
    """Store the number of the order that the conversation is about."""
    context.deps.order_id = order_id
    return "remembered"


@inbox.on_message
async def answer(text: MessageEvent, state: OrderState) -> str:
    history = [f"{item.direction}: {item.content}" for item in text.recent_history]
    result = await agent.run("\n".join([*history, f"inbound: {text.text}"]), deps=state)
    return result.output
