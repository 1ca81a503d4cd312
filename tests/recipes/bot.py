# bot.py
from attrs import define

from agentphone.inbox import Inbox
from agentphone.webhooks import MessageEvent

inbox = Inbox()  # key, webhook secret and database from the environment


@define
class OrderState:
    order_id: str | None = None


@inbox.on_message
async def answer(text: MessageEvent, state: OrderState) -> str | None:
    for word in (text.text or "").split():
        if word.startswith("ORD-"):
            state.order_id = word.strip(".,!?")
    return f"{state.order_id} is on its way." if state.order_id else "Which order?"
