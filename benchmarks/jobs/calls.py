"""Calls: pages of conversations, on asyncio and blocking, and replies.

Each function returns what a user of a library writes. Each library gets as many connections as calls, where its public
API allows it, and half a minute for a call, as the SDKs have it.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from .turns import RUNNER, AsyncCall, Turn, repeat, repeat_in_flight

TEXT = "Thank you! Your order is on its way."


def pages(library: str, url: str, size: int) -> Turn:
    """Read pages of one conversation, with `size` calls in flight."""
    makers = {"ours": ours_page, "vendor": vendor_page, "httpx": httpx_page, "aiohttp": aiohttp_page}
    return repeat_in_flight(makers[library](url, size), size)


def blocking_pages(library: str, url: str, _: int) -> Turn:
    """Read pages of one conversation, one blocking call at a time."""
    makers = {"ours": ours_blocking_page, "vendor": vendor_blocking_page, "httpx": httpx_blocking_page}
    return repeat(makers[library](url))


def replies(library: str, url: str, _: int) -> Turn:
    """Send replies in a conversation, one at a time.

    Ours does more in the same time: it checks the arguments and the answer, retries only what was certainly not sent,
    and remembers the id, by which it tells this reply from another with the same words if an outcome is unclear.
    """
    makers = {"ours": ours_reply, "vendor": vendor_reply, "httpx": httpx_reply}
    return repeat_in_flight(makers[library](url), 1)


def ours_page(url: str, width: int) -> AsyncCall:
    """Return a call of this SDK: models, with timestamps parsed."""
    from agentphone import AsyncClient

    client = AsyncClient("key", base_url=url, max_connections=max(width, 20))
    return lambda: client.conversations.list(limit=1).page()


def vendor_page(url: str, _: int) -> AsyncCall:
    """Return a call of the vendor's SDK: models, with timestamps as text. Its 100 connections cannot be changed."""
    from agentphone import AsyncAgentPhone  # type: ignore[attr-defined]  # the vendor's package of this name

    client = AsyncAgentPhone("key", base_url=url)

    async def call() -> object:
        return (await client.conversations.list(limit=1)).data

    return call


def httpx_page(url: str, width: int) -> AsyncCall:
    """Return a call of httpx alone: dicts. The query is part of the URL, which is fastest."""
    import httpx

    limits = httpx.Limits(max_connections=max(width, 100), max_keepalive_connections=max(width, 20))
    client = httpx.AsyncClient(headers={"Authorization": "Bearer key"}, limits=limits, timeout=30)

    async def call() -> object:
        return (await client.get(f"{url}/v1/conversations?limit=1&offset=0")).json()["data"]

    return call


def aiohttp_page(url: str, width: int) -> AsyncCall:
    """Return a call of aiohttp alone, whose parser is in C: the bound for an asyncio client."""
    import aiohttp

    session: aiohttp.ClientSession | None = None

    async def call() -> object:
        nonlocal session
        if session is None:  # it wants a running event loop
            connector = aiohttp.TCPConnector(limit=max(width, 100))
            session = aiohttp.ClientSession(headers={"Authorization": "Bearer key"}, connector=connector)
        async with session.get(f"{url}/v1/conversations?limit=1&offset=0") as response:
            return json.loads(await response.read())["data"]

    return call


def ours_blocking_page(url: str) -> Callable[[], object]:
    """Return a blocking call of this SDK: models, with timestamps parsed."""
    from agentphone import Client

    client = Client("key", base_url=url)
    return lambda: client.conversations.list(limit=1).page()


def vendor_blocking_page(url: str) -> Callable[[], object]:
    """Return a blocking call of the vendor's SDK, on requests: models, with timestamps as text."""
    from agentphone import AgentPhone  # type: ignore[attr-defined]  # the vendor's package of this name

    client = AgentPhone("key", base_url=url)
    return lambda: client.conversations.list(limit=1).data


def httpx_blocking_page(url: str) -> Callable[[], object]:
    """Return a call of `httpx.Client`: dicts."""
    import httpx

    client = httpx.Client(headers={"Authorization": "Bearer key"}, timeout=30)
    return lambda: client.get(f"{url}/v1/conversations?limit=1&offset=0").json()["data"]


def ours_reply(url: str) -> AsyncCall:
    """Return a reply of this SDK to a conversation, which names the numbers."""
    from agentphone import AsyncClient, Conversation

    client = AsyncClient("key", base_url=url)

    async def read_conversation() -> Conversation:
        [conversation] = await client.conversations.list(limit=1)
        return conversation

    conversation = RUNNER.run(read_conversation())
    return lambda: client.conversations.reply(conversation, TEXT)


def vendor_reply(url: str) -> AsyncCall:
    """Return a message of the vendor's SDK, with the numbers that its user looks up: a dict."""
    from agentphone import AsyncAgentPhone  # type: ignore[attr-defined]  # the vendor's package of this name

    client = AsyncAgentPhone("key", base_url=url)
    return lambda: client.messages.send(number_id="num_xyz789", to_number="+15555550099", body=TEXT)


def httpx_reply(url: str) -> AsyncCall:
    """Return a message of httpx alone: a dict."""
    import httpx

    client = httpx.AsyncClient(headers={"Authorization": "Bearer key"}, timeout=30)
    message = {"number_id": "num_xyz789", "to_number": "+15555550099", "body": TEXT}

    async def call() -> object:
        return (await client.post(f"{url}/v1/messages", json=message)).json()

    return call
