"""What the live tests share: a person who texts, and clients of a sandbox that may respond with faults."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import anyio
import anyio.lowlevel
import httpx

from agentphone import AsyncClient, AsyncStream, Message
from agentphone.sandbox import Sandbox
from tests.support.helpers import client_of, page

AGENT, PERSON, OTHER = "+15555550100", "+15555550110", "+15555550111"

Fault = Callable[[httpx.Request], httpx.Response | None]
"""Returns a response to use instead of the sandbox's, or None."""


class Phone:
    """A person who texts, at times that the test decides."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.now = datetime(2025, 6, 30, 12, tzinfo=UTC)

    def text(self, body: str, person: str = PERSON, *, late: float = 0.0, wait: float = 1.0) -> str:
        """Text the agent `wait` seconds later, dated `late` seconds earlier, and return the conversation's id."""
        self.now += timedelta(seconds=wait)
        at = self.now - timedelta(seconds=late)
        message = self.sandbox.receive_sms(from_number=person, to_number=AGENT, body=body, at=at)
        return str(message["conversationId"])


def fill(sandbox: Sandbox) -> Phone:
    """Fill an account with old messages of 60 people."""
    phone = Phone(sandbox)
    for number in range(120):
        phone.text("old", f"+1555555{number % 60:04}", wait=100)
    return phone


def client_for(sandbox: Sandbox, **settings: Any) -> AsyncClient:
    """Create a client of a sandbox whose responses have no `Date`: the test decides the time of the messages."""
    return faulty_client(sandbox, lambda _: None, **settings)


def faulty_client(sandbox: Sandbox, fault: Fault, *, date: datetime | None = None, **settings: Any) -> AsyncClient:
    """Create a client of a sandbox whose responses `fault` may replace. `date` is their header `Date`, if any."""
    inner = sandbox.transport()

    async def respond(request: httpx.Request) -> httpx.Response:
        response = fault(request) or await inner.handle_async_request(request)
        response.headers.pop("Date", None)
        if date is not None:
            response.headers["Date"] = format_datetime(date, usegmt=True)
        return response

    return client_of(respond, **settings)[0]


def not_found(_: httpx.Request) -> httpx.Response:
    return httpx.Response(404, json={"error": {"message": "Not Found"}})


def no_conversations(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json=page(total=0))


def nth_list(respond: Callable[[httpx.Request], httpx.Response], *numbers: int) -> Fault:
    """Return a fault for some of the requests for the list, counted from 1."""
    count = 0

    def fault(request: httpx.Request) -> httpx.Response | None:
        nonlocal count
        if request.url.path != "/v1/conversations":
            return None
        count += 1
        return respond(request) if count in numbers else None

    return fault


async def bodies(stream: AsyncStream[Message], count: int) -> list[str | None]:
    """Return the texts of the next messages."""
    return [(await anext(stream)).body for _ in range(count)]


async def wait_for_requests(sandbox: Sandbox, count: int = 1) -> None:
    """Wait until the sandbox has received so many requests."""
    while len(sandbox.requests) < count:
        await anyio.lowlevel.checkpoint()


async def newest_of(sandbox: Sandbox) -> Message:
    """Return the newest message of an account."""
    async with client_for(sandbox) as client:
        conversation = (await client.conversations.list(limit=1))[0]
        return (await client.conversations.messages(conversation.id, limit=1))[0]
