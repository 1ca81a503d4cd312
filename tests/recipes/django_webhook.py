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
LOCK_SECONDS = 30  # more than the work takes; for so long at most a worker that died keeps a conversation locked


@define
class OrderState:
    order_id: str | None = None
    texts: int = 0


class CacheDeliveryLog:
    """Remembers for a day what was handled, in a cache that all workers share."""

    def seen(self, delivery_id: str) -> bool:
        return cache.get(f"agentphone:{delivery_id}") is not None

    def mark(self, delivery_id: str) -> None:
        cache.set(f"agentphone:{delivery_id}", True, timeout=24 * 3600)


deliveries = CacheDeliveryLog()


@contextmanager
def one_at_a_time(conversation_id: str) -> Iterator[None]:
    """Two texts of one person at once would each overwrite what the other one stored."""
    key, mine = f"agentphone:lock:{conversation_id}", uuid.uuid4().hex
    while not cache.add(key, mine, timeout=LOCK_SECONDS):
        time.sleep(0.05)
    try:
        yield
    finally:
        if cache.get(key) == mine:  # or it has run out, and is somebody else's
            cache.delete(key)


def think(event: MessageEvent, state: OrderState) -> None:
    """The agent's work. If it raises, nothing is stored, and AgentPhone sends the text again."""
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
    if event.delivery_id is None:  # it could not be told from its repetition
        return HttpResponse(status=400)
    if isinstance(event, MessageEvent):
        with one_at_a_time(event.conversation_id):
            if not deliveries.seen(event.delivery_id):
                with client.conversations.state(event.conversation_id, OrderState) as state:
                    think(event, state)
                deliveries.mark(event.delivery_id)
    return HttpResponse(status=204)


urlpatterns = [path("agentphone", receive)]
