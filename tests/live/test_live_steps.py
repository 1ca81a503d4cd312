"""Stepping through `follow` and `watch`: closing, cancelling, interrupting, other event loops, invalid arguments."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import anyio
import httpx
import pytest
import trio.testing

from agentphone import (
    AsyncStream,
    ClientClosedError,
)
from agentphone._paging import polling
from agentphone.sandbox import Sandbox
from tests.live.support import (
    Phone,
    bodies,
    client_for,
)
from tests.support.helpers import client_of, ok

pytestmark = pytest.mark.anyio


async def test_interrupted_stream_raises_at_each_further_step(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox() as sandbox:
        conversation = Phone(sandbox).text("old")
        async with client_for(sandbox) as client:
            stream = client.conversations.follow(conversation)

            def interrupt(*_: Any) -> None:
                raise KeyboardInterrupt

            monkeypatch.setattr(polling.SeenMessages, "add_new", interrupt)
            with pytest.raises(KeyboardInterrupt):
                await anext(stream)
            for _ in range(2):
                with pytest.raises(RuntimeError, match="Begin a new one"):
                    await anext(stream)


async def test_closing_a_stream_ends_a_waiting_step() -> None:
    with Sandbox() as sandbox:
        conversation = Phone(sandbox).text("old")
        async with client_for(sandbox) as client:
            for stream in (client.conversations.follow(conversation), client.conversations.watch()):
                async with anyio.create_task_group() as group:

                    async def read(stream: AsyncStream[Any] = stream) -> None:
                        assert [item async for item in stream] == []

                    group.start_soon(read)
                    await anyio.sleep(100)
                    await stream.aclose()
                await stream.aclose()
                with pytest.raises(StopAsyncIteration):
                    await anext(stream)


async def test_closing_the_client_ends_a_waiting_step_with_an_error() -> None:
    with Sandbox() as sandbox:
        conversation = Phone(sandbox).text("old")
        client = client_for(sandbox)
        async with anyio.create_task_group() as group:

            async def read() -> None:
                with pytest.raises(ClientClosedError):
                    await anext(client.conversations.follow(conversation))

            group.start_soon(read)
            await anyio.sleep(100)
            began = anyio.current_time()
            await client.aclose()
        assert anyio.current_time() - began < 1


async def test_cancelled_step_loses_nothing() -> None:
    with Sandbox() as sandbox:
        phone = Phone(sandbox)
        conversation = phone.text("old")
        async with client_for(sandbox) as client:
            stream = client.conversations.follow(conversation, after=phone.now)
            received: list[str | None] = []
            for number in range(50):
                phone.text(str(number))
                with anyio.move_on_after(0.1 * (number % 20)):
                    received.append((await anext(stream)).body)
            while len(received) < 50:
                received.append((await anext(stream)).body)
    assert received == [str(number) for number in range(50)]


async def test_time_between_steps_counts_as_delay() -> None:
    with Sandbox() as sandbox:
        phone = Phone(sandbox)
        conversation = phone.text("old")
        async with client_for(sandbox) as client:
            stream = client.conversations.follow(conversation, after=phone.now)
            phone.text("one")
            await anext(stream)
            phone.text("two")
            await anyio.sleep(60)
            began = anyio.current_time()
            await anext(stream)
            assert anyio.current_time() == began


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"poll_interval": 0}, ValueError),
        ({"poll_interval": -1.0}, ValueError),
        ({"poll_interval": float("nan")}, ValueError),
        ({"poll_interval": True}, TypeError),
        ({"poll_interval": "2"}, TypeError),
        ({"max_poll_interval": float("inf")}, ValueError),
        ({"overlap": -1}, ValueError),
        ({"overlap": None}, TypeError),
        ({"after": "2025-06-30"}, ValueError),
        ({"after": datetime(2025, 6, 30)}, ValueError),  # naive
        ({"after": 5}, TypeError),
    ],
)
async def test_invalid_argument_is_rejected_before_anything_is_sent(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    client, script = client_of(ok())
    async with client:
        with pytest.raises(error):
            client.conversations.follow("conv_1", **arguments)
        with pytest.raises(error):
            client.conversations.watch(**arguments)
        with pytest.raises(ValueError, match="conversation_id"):
            client.conversations.follow("")
    assert script.requests == []


def test_stream_continues_in_another_event_loop() -> None:
    """trio starts the clock of each event loop at a random time within eleven days."""
    with Sandbox() as sandbox:
        phone = Phone(sandbox)
        client = client_for(sandbox)
        stream = client.conversations.follow(phone.text("old"), after=phone.now, poll_interval=0.05)

        async def step(seconds: float) -> list[str | None]:
            with anyio.move_on_after(seconds):
                return await bodies(stream, 1)
            return []

        later = trio.testing.MockClock(rate=1.0)
        later.jump(10_000.0)
        assert anyio.run(step, 0.2, backend="trio", backend_options={"clock": later}) == []
        phone.text("new")
        earlier = trio.testing.MockClock(rate=1.0)
        assert anyio.run(step, 30.0, backend="trio", backend_options={"clock": earlier}) == ["new"]
        anyio.run(client.aclose)


async def test_many_streams_share_the_connection_limit() -> None:
    with Sandbox() as sandbox:
        phone = Phone(sandbox)
        start = phone.now
        conversations = [phone.text("new", f"+1555555{number:04}") for number in range(100)]
        inner = sandbox.transport()
        in_flight = most = 0

        async def respond(request: httpx.Request) -> httpx.Response:
            nonlocal in_flight, most
            in_flight += 1
            most = max(most, in_flight)
            await anyio.sleep(0.1)
            in_flight -= 1
            return await inner.handle_async_request(request)

        client, _ = client_of(respond, max_connections=5)
        received: list[str | None] = []

        async def follow(conversation: str) -> None:
            received.extend(await bodies(client.conversations.follow(conversation, after=start), 1))

        async with client, anyio.create_task_group() as group:
            for conversation in conversations:
                group.start_soon(follow, conversation)
    assert received == ["new"] * 100
    assert most == 5
