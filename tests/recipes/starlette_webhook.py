# starlette_webhook.py
import asyncio
import os
from weakref import WeakValueDictionary

from attrs import define
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agentphone import AsyncClient, WebhookVerificationError
from agentphone.webhooks import MessageEvent, SQLiteDeliveryLog, Webhook

client = AsyncClient()
webhook = Webhook(os.environ["AGENTPHONE_WEBHOOK_SECRET"])
deliveries = SQLiteDeliveryLog("deliveries.db")
locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()


@define
class OrderState:
    order_id: str | None = None
    texts: int = 0


async def think(event: MessageEvent, state: OrderState) -> None:
    """Do the agent's work. If it raises, nothing is stored, and AgentPhone sends the webhook again."""
    state.texts += 1
    for word in (event.text or "").split():
        if word.startswith("ORD-"):
            state.order_id = word


async def receive(request: Request) -> Response:
    try:
        event = webhook.parse(await request.body(), request.headers)
    except WebhookVerificationError:
        return Response(status_code=400)
    if event.delivery_id is None:  # its retries could not be recognized
        return Response(status_code=400)
    if isinstance(event, MessageEvent):
        # Two messages at once must not overwrite each other's state.
        lock = locks.setdefault(event.conversation_id, asyncio.Lock())
        async with lock:
            if not await asyncio.to_thread(deliveries.seen, event.delivery_id):
                async with client.conversations.state(event.conversation_id, OrderState) as state:
                    await think(event, state)
                await asyncio.to_thread(deliveries.mark, event.delivery_id)
    return Response(status_code=204)


app = Starlette(routes=[Route("/agentphone", receive, methods=["POST"])])
