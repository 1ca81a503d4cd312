"""The law of sending, under random faults: the history has each send that returned once, and each that did not at most
once, and only if it is unconfirmed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable

import anyio
import httpx
import pytest

from agentphone import AgentPhoneError, AsyncClient, Conversation, SendUnconfirmedError
from agentphone.sandbox import Sandbox
from tests.support.helpers import BASE, KEY
from tests.support.long import count

SENDS = count(200, 2000)
CONVERSATIONS = 20

Fault = Callable[[httpx.AsyncBaseTransport, httpx.Request], Awaitable[httpx.Response]]


async def carry_out(inner: httpx.AsyncBaseTransport, request: httpx.Request) -> httpx.Response:
    return await inner.handle_async_request(request)


def failing(error: type[httpx.TransportError], *, applied: bool) -> Fault:
    async def fault(inner: httpx.AsyncBaseTransport, request: httpx.Request) -> httpx.Response:
        if applied:
            await inner.handle_async_request(request)
        raise error("random")

    return fault


def answering(status: int, *, applied: bool = False, body: bytes = b"", **headers: str) -> Fault:
    async def fault(inner: httpx.AsyncBaseTransport, request: httpx.Request) -> httpx.Response:
        if applied:
            await inner.handle_async_request(request)
        return httpx.Response(status, content=body, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return fault


SEND_FAULTS = [
    failing(httpx.ConnectError, applied=False),
    failing(httpx.ConnectTimeout, applied=False),
    failing(httpx.ReadError, applied=False),
    failing(httpx.ReadError, applied=True),
    failing(httpx.ReadTimeout, applied=True),
    failing(httpx.RemoteProtocolError, applied=True),
    answering(429, retry_after="0"),
    answering(503),
    answering(503, applied=True),
    answering(504, applied=True),
    answering(500, applied=True, retry_after="0"),
    answering(200, applied=True, body=b"<html>"),
    answering(200, body=b"{}"),
    answering(409, applied=True, body=b'{"error": {"code": "DELIVERY_UNCONFIRMED", "message": "?"}}'),
    answering(422),
]
READ_FAULTS = [failing(httpx.ReadError, applied=True), answering(503), answering(404), answering(200, body=b"{")]


class RandomFaults(httpx.AsyncBaseTransport):
    """Lets half of the sends meet a fault, and a third of the reads."""

    def __init__(self, inner: httpx.AsyncBaseTransport, rand: random.Random) -> None:
        self._inner = inner
        self._rand = rand
        self.sent: Counter[bytes] = Counter()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        fault: Fault = carry_out
        if request.method == "POST" and self._rand.random() < 0.5:
            fault = self._rand.choice(SEND_FAULTS)
        elif request.method == "GET" and self._rand.random() < 0.33:
            fault = self._rand.choice(READ_FAULTS)
        await anyio.sleep(self._rand.random() * 0.002)
        return await fault(self._inner, request)


@pytest.mark.anyio
@pytest.mark.parametrize("seed", [1, 2])
async def test_history_is_what_the_sends_say(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentphone._http.retry.INITIAL_BACKOFF", 0.001)
    monkeypatch.setattr("agentphone._replies.FIRST_PAUSE", 0.005)
    rand = random.Random(seed)
    outcomes: dict[str, str] = {}
    with Sandbox() as sandbox:
        for number in range(CONVERSATIONS):
            sandbox.receive_sms(from_number=f"+1555555{number:04}", to_number="+15555550100", body="Hi")
        transport = RandomFaults(sandbox.transport(), rand)
        async with AsyncClient(KEY, base_url=BASE, transport=sandbox.transport()) as client:
            people = [conversation async for conversation in client.conversations.list()]

            async def send(flaky: AsyncClient, number: int) -> None:
                text, person = f"Text {number}", people[number % CONVERSATIONS]
                try:
                    await answer(flaky, person, text, number)
                except SendUnconfirmedError:
                    outcomes[text] = "unconfirmed"
                except AgentPhoneError:
                    outcomes[text] = "rejected"
                else:
                    outcomes[text] = "sent"

            async with AsyncClient(KEY, base_url=BASE, transport=transport) as flaky:
                slots = anyio.Semaphore(20)

                async def limited(number: int) -> None:
                    async with slots:
                        await send(flaky, number)

                async with anyio.create_task_group() as group:
                    for number in range(SENDS):
                        group.start_soon(limited, number)
            copies = Counter(
                [
                    message.body
                    for person in people
                    async for message in client.conversations.messages(person.id)
                    if message.direction == "outbound"
                ]
            )
    kinds = Counter(outcomes.values())
    assert len(outcomes) == SENDS
    assert kinds.keys() == {"sent", "unconfirmed", "rejected"}  # otherwise the faults are too few
    for text, outcome in outcomes.items():
        assert copies[text] in {"sent": {1}, "rejected": {0}, "unconfirmed": {0, 1}}[outcome], (text, outcome)
    assert copies.keys() <= outcomes.keys()


async def answer(client: AsyncClient, person: Conversation, text: str, number: int) -> None:
    """Send by `reply` or by `send`, in turn."""
    if number % 2:
        await client.conversations.reply(person, text, confirm=0.1)
    else:
        await client.messages.send(text, to=person.participant, number_id=person.phone_number_id)
