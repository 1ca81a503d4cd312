"""A blocking client that talks to a script, and what several test files do with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from agentphone import Client
from tests.support.helpers import BASE, KEY, Scripted, conversation, ok, page


def blocking(*steps: Any, **settings: Any) -> tuple[Client, Scripted]:
    """Return a blocking client that talks to a script, and the script."""
    script = Scripted(*steps)
    return Client(KEY, base_url=BASE, transport=script, **settings), script


def listing(count: int) -> Callable[[httpx.Request], Awaitable[httpx.Response]]:
    """Return a step that responds like a list of conversations with the ids conv_0, conv_1, ..."""

    async def respond(request: httpx.Request) -> httpx.Response:
        limit, offset = int(request.url.params["limit"]), int(request.url.params["offset"])
        numbers = range(offset, min(offset + limit, count))
        items = [conversation(id=f"conv_{number}") for number in numbers]
        return ok(page(*items, has_more=offset + limit < count, total=count))

    return respond
