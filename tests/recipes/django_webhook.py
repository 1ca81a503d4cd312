# django_webhook.py
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import define
from django.core.cache import cache
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from agentphone import Client, WebhookVerificationError
from agentphone.webhooks import MessageEvent, Webhook

client = Client()
webhook = Webhook(os.environ["AGENTPHONE_WEBHOOK_SECRET"])
LOCK_SECONDS = 30  # longer than the work takes; a worker that dies keeps a conversation locked for this long


@define
class OrderState:
    order_id: str | None = None
    texts: int = 0


class CacheDeliveryLog:
    """A delivery log in the cache, which all workers share; it remembers a delivery for a day."""

    def seen(self, delivery_id: str) -> bool:
        return cache.get(f"agentphone:{delivery_id}") is not None

    def mark(self, delivery_id: str) -> None:
        cache.set(f"agentphone:{delivery_id}", True, timeout=24 * 3600)


deliveries = CacheDeliveryLog()


@contextmanager
def one_at_a_time(conversation_id: str) -> Iterator[None]:
    """Hold a lock, so that two messages at once do not overwrite each other's state."""
    key, mine = f"agentphone:lock:{conversation_id}", uuid.uuid4().hex
    while not cache.add(key, mine, timeout=LOCK_SECONDS):
        time.sleep(0.05)
    try:
        yield
    finally:
        if cache.get(key) == mine:  # not if it expired and another worker has it
            cache.delete(key)


def think(event: MessageEvent, state: OrderState) -> None:
    """Do the agent's work. If it raises, nothing is stored, and AgentPhone sends the webhook again."""
    state.texts += 1
    for word in (event.text or "").split():
        if word.startswith("ORD-"):
            state.order_id = word


@csrf_exempt
@require_POST
def receive(request: HttpRequest) -> HttpResponse:
    try:
        event = webhook.parse(request.body, request.headers)
    except WebhookVerificationError:
        return HttpResponse(status=400)
    if event.delivery_id is None:  # its retries could not be recognized
        return HttpResponse(status=400)
    if isinstance(event, MessageEvent):
        with one_at_a_time(event.conversation_id):
            if not deliveries.seen(event.delivery_id):
                with client.conversations.state(event.conversation_id, OrderState) as state:
                    think(event, state)
                deliveries.mark(event.delivery_id)
    return HttpResponse(status=204)


urlpatterns = [path("agentphone", receive)]
