# django_async_webhook.py
import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from attrs import define
from django.core.cache import cache
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from agentphone import AsyncClient, WebhookVerificationError
from agentphone.webhooks import MessageEvent, Webhook

client = AsyncClient()
webhook = Webhook(os.environ["AGENTPHONE_WEBHOOK_SECRET"])
LOCK_SECONDS = 30  # longer than the work takes; a worker that dies keeps a conversation locked for this long


@define
class OrderState:
    order_id: str | None = None
    texts: int = 0


@asynccontextmanager
async def one_at_a_time(conversation_id: str) -> AsyncIterator[None]:
    """Hold a lock, so that two messages at once do not overwrite each other's state."""
    key, mine = f"agentphone:lock:{conversation_id}", uuid.uuid4().hex
    while not await cache.aadd(key, mine, timeout=LOCK_SECONDS):
        await asyncio.sleep(0.05)
    try:
        yield
    finally:
        if await cache.aget(key) == mine:  # not if it expired and another worker has it
            await cache.adelete(key)


async def think(event: MessageEvent, state: OrderState) -> None:
    """Do the agent's work. If it raises, nothing is stored, and AgentPhone sends the webhook again."""
    state.texts += 1
    for word in (event.text or "").split():
        if word.startswith("ORD-"):
            state.order_id = word


@csrf_exempt
@require_POST
async def receive(request: HttpRequest) -> HttpResponse:
    try:
        event = webhook.parse(request.body, request.headers)
    except WebhookVerificationError:
        return HttpResponse(status=400)
    if event.delivery_id is None:  # its retries could not be recognized
        return HttpResponse(status=400)
    if isinstance(event, MessageEvent):
        handled = f"agentphone:{event.delivery_id}"
        async with one_at_a_time(event.conversation_id):
            if await cache.aget(handled) is None:
                async with client.conversations.state(event.conversation_id, OrderState) as state:
                    await think(event, state)
                await cache.aset(handled, True, timeout=24 * 3600)
    return HttpResponse(status=204)


urlpatterns = [path("agentphone", receive)]
