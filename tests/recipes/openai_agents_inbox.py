# openai_agents_inbox.py
from agents import Agent, RunContextWrapper, Runner, function_tool
from attrs import define

from agentphone.inbox import Inbox
from agentphone.webhooks import MessageEvent

inbox = Inbox()


@define
class OrderState:
    order_id: str | None = None


@function_tool
def remember_order(context: RunContextWrapper[OrderState], order_id: str) -> str:
    """Store the number of the order that the conversation is about."""
    context.context.order_id = order_id
    return "remembered"


agent = Agent[OrderState](
    name="Orders", instructions="Answer the person's text in one sentence.", tools=[remember_order]
)


@inbox.on_message
async def answer(text: MessageEvent, state: OrderState) -> str:
    history = [f"{item.direction}: {item.content}" for item in text.recent_history]
    result = await Runner.run(agent, "\n".join([*history, f"inbound: {text.text}"]), context=state)
    return str(result.final_output)
