"""What many test files need: good responses written by hand, a transport that plays a script, open sockets.

Nothing here imports the decoder or the requests, so a mistake there cannot hide in the expectations.
"""

from __future__ import annotations

import gc
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import httpx

from agentphone import AsyncClient
from agentphone._http.pool import OwnedPool

KEY = "sk_test_9f8e7d6c5b4a"
BASE = "https://api.agentphone.test"
SAMPLES = Path(__file__).parents[1] / "samples"

Step = httpx.Response | Exception | Callable[[httpx.Request], Awaitable[httpx.Response]]


def sample(name: str) -> bytes:
    """Return the bytes of a file in `samples/`."""
    return (SAMPLES / f"{name}.json").read_bytes()


def conversation(**changes: Any) -> dict[str, Any]:
    """Return a good conversation as JSON, with changes under the API's names."""
    good: dict[str, Any] = {
        "id": "conv_1",
        "agentId": "agt_1",
        "phoneNumberId": "num_1",
        "phoneNumber": "+15555550100",
        "participant": "+15555550110",
        "lastMessageAt": "2025-06-30T12:00:00Z",
        "lastMessagePreview": "On its way",
        "messageCount": 3,
        "metadata": {"topic": "order"},
        "createdAt": "2025-06-30T11:30:00Z",
    }
    return good | changes


def message(**changes: Any) -> dict[str, Any]:
    """Return a good message as JSON, with changes under the API's names."""
    good: dict[str, Any] = {
        "id": "msg_1",
        "body": "Where is it?",
        "fromNumber": "+15555550110",
        "toNumber": "+15555550100",
        "direction": "inbound",
        "receivedAt": "2025-06-30T12:00:00Z",
        "channel": "sms",
        "mediaUrls": ["https://media.example/1.jpg"],
        "status": "received",
    }
    return good | changes


def page(*items: dict[str, Any], has_more: bool = False, **more: Any) -> dict[str, Any]:
    """Return a page as JSON."""
    return {"data": list(items), "hasMore": has_more, **more}


class Scripted(httpx.AsyncBaseTransport):
    """Respond to each request with the next step of a script; the last step repeats.

    A step is a response, an exception to raise, or a coroutine function that receives the request.
    """

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.requests: list[httpx.Request] = []
        self.sent_at: list[float] = []
        self.closed = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.sent_at.append(anyio.current_time())
        await request.aread()
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        return step if isinstance(step, httpx.Response) else await step(request)

    async def aclose(self) -> None:
        self.closed += 1

    @property
    def targets(self) -> list[str]:
        """Path and query of each request, as sent."""
        return [request.url.raw_path.decode() for request in self.requests]


def ok(content: Any = None) -> httpx.Response:
    """Return a 200 with this JSON; by default a page of one conversation."""
    return httpx.Response(200, content=json.dumps(page(conversation(), total=1) if content is None else content))


def client_of(*steps: Step, **settings: Any) -> tuple[AsyncClient, Scripted]:
    """Create a client that talks to a script, and return both."""
    script = Scripted(*steps)
    given: dict[str, Any] = {"api_key": KEY, "base_url": BASE, "transport": script}
    return AsyncClient(**(given | settings)), script


def open_sockets() -> set[int]:
    """Return the file descriptors of all open sockets of this process."""
    gc.collect()
    # type() and not isinstance(): lazy objects somewhere in memory answer __class__ with an import.
    return {found.fileno() for found in gc.get_objects() if issubclass(type(found), socket.socket)} - {-1}


def at_rest(client: AsyncClient) -> None:
    """Assert that no connection is in use and no call is counted."""
    (pool,) = client._connections._pools.values()
    assert isinstance(pool, OwnedPool)
    assert not pool._calls
    assert pool.limiter.value == client._config.max_connections
    assert {connection for _, connection in pool._idle} == pool._connections
    assert len(pool._connections) <= client._config.max_connections
