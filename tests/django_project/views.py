"""The views of a Django project, sync and async: each lists, reads and updates conversations with a module's client.

All settings come from the environment; both clients are created when the module is imported.
"""

from __future__ import annotations

import os
from typing import Any

from django.http import HttpRequest, JsonResponse
from django.urls import path

from agentphone import AsyncClient, Client, Conversation, ConversationDetail, Page

client = Client()
async_client = AsyncClient()


def blocking(request: HttpRequest, conversation_id: str, token: str) -> JsonResponse:
    page = client.conversations.list(limit=3).page()
    before = client.conversations.get(conversation_id, message_limit=1)
    after = client.conversations.update(conversation_id, metadata={"token": token})
    return respond(page, before, after)


async def awaiting(request: HttpRequest, conversation_id: str, token: str) -> JsonResponse:
    page = await async_client.conversations.list(limit=3)
    before = await async_client.conversations.get(conversation_id, message_limit=1)
    after = await async_client.conversations.update(conversation_id, metadata={"token": token})
    return respond(page, before, after)


def respond(page: Page[Conversation], before: ConversationDetail, after: ConversationDetail) -> JsonResponse:
    result: dict[str, Any] = {
        "listed": [len(page), page.total],
        "read": [before.id, len(before.messages)],
        "updated": [after.id, (after.metadata or {})["token"]],
        "process": os.getpid(),
    }
    return JsonResponse(result)


urlpatterns = [
    path("blocking/<str:conversation_id>/<str:token>", blocking),
    path("async/<str:conversation_id>/<str:token>", awaiting),
]
