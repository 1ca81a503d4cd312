"""Cancellation at every step and in every phase leaves no connection, task or counted call."""

from __future__ import annotations

import asyncio
import gc
import random
import ssl
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agentphone import (
    AsyncClient,
)
from tests.support.fault_server import (
    SLOW,
    Fault,
    answering,
    never_answer,
    serving,
)
from tests.support.helpers import KEY, at_rest
from tests.support.processes import SECONDS

pytestmark = pytest.mark.anyio

KINDS = ["asyncio", "trio", "blocking"]
LIMIT = 200_000
ALWAYS = float("inf")


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentphone._http.retry.INITIAL_BACKOFF", 0.001)


class Stepped:
    """Await a coroutine, and call a function at its nth step, just before it waits or just after."""

    def __init__(self, coroutine: Awaitable[Any], step: int, when: str, act: Callable[[], None]) -> None:
        self._coroutine = coroutine
        self._step = step
        self._when = when
        self._act = act
        self.steps = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._coroutine.__await__()
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                waits_for = steps.send(value) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            self.steps += 1
            if self.steps == self._step and self._when == "before":
                self._act()
            value, error = None, None
            try:
                value = yield waits_for
            except BaseException as raised:  # noqa: BLE001  # it is thrown into the coroutine
                error = raised
            if self.steps == self._step and self._when == "after":
                self._act()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("used", [False, True], ids=["new connection", "used connection"])
async def test_call_can_be_cancelled_at_every_step(
    tls: ssl.SSLContext, trusting: ssl.SSLContext, secure: bool, used: bool, when: str
) -> None:
    gc.disable()  # what is not closed is to be seen
    try:
        with serving(tls=tls if secure else None) as server, anyio.fail_after(SECONDS):
            step = 0
            while True:
                step += 1
                async with AsyncClient(KEY, base_url=server.url, ssl_context=trusting, max_connections=1) as client:
                    if used:
                        await client.conversations.get("conv_1")
                    with anyio.CancelScope() as scope:
                        stepped = Stepped(client.conversations.get("conv_1"), step, when, scope.cancel)
                        await stepped
                    assert (await client.conversations.get("conv_2")).id  # its one connection is not lost
                if stepped.steps < step:
                    break
            assert step > 2  # it waits to send and to receive, at least
            assert await anyio.to_thread.run_sync(server.wait_until_left)
    finally:
        gc.enable()


PHASES: dict[str, tuple[Fault, bool, Any]] = {
    # What the server does, whether by TLS, and the metadata to be sent.
    "connecting": (never_answer, True, None),
    "sending": (never_answer, False, {"text": "x" * 20_000_000}),
    "waiting for the answer": (never_answer, False, None),
    "behavior": (SLOW["silence inside the answer"], False, None),
    "pausing": (answering(503, retry_after="50"), False, None),
}


@pytest.mark.parametrize("phase", PHASES)
async def test_call_can_be_cancelled_in_every_phase(phase: str, trusting: ssl.SSLContext) -> None:
    fault, secure, metadata = PHASES[phase]
    gc.disable()
    try:
        with serving(fault) as server, anyio.fail_after(SECONDS):
            url = server.url.replace("http://127.0.0.1", "https://localhost") if secure else server.url
            async with AsyncClient(KEY, base_url=url, ssl_context=trusting, max_connections=1) as client:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(partial(client.conversations.update, "conv_1", metadata=metadata))
                    while not server.connections:  # noqa: ASYNC110  # the server is another thread
                        await anyio.sleep(0.01)
                    await anyio.sleep(0.05)
                    tasks.cancel_scope.cancel()
                if not secure:
                    assert (await client.conversations.get("conv_1")).id
            server.over.set()
            assert await anyio.to_thread.run_sync(server.wait_until_left)
    finally:
        gc.enable()


async def test_waiting_call_can_be_cancelled() -> None:
    with serving(never_answer) as server, anyio.fail_after(SECONDS):
        async with AsyncClient(KEY, base_url=server.url, max_connections=1) as client:
            with anyio.CancelScope() as first:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(client.conversations.get, "conv_1")
                    await anyio.wait_all_tasks_blocked()
                    for _ in range(10):
                        with anyio.move_on_after(0.01) as waiting:
                            await client.conversations.get("conv_2")
                        assert waiting.cancelled_caught
                    first.cancel()
            assert (await client.conversations.get("conv_3")).id
        assert [request.target for request in server.requests] == ["/v1/conversations/conv_3"]


def test_native_cancellation_leaves_nothing() -> None:
    async def main() -> None:
        async with AsyncClient(KEY, base_url=server.url, max_connections=3) as client:
            for _ in range(40):
                tasks = [asyncio.create_task(client.conversations.get("conv_1")) for _ in range(6)]
                for task in tasks[::2]:
                    for _ in range(random.randrange(4)):
                        await asyncio.sleep(0)
                    task.cancel()
                done = await asyncio.gather(*tasks, return_exceptions=True)
                assert all(not isinstance(found, BaseException) for found in done[1::2])
            at_rest(client)

    with serving() as server:
        asyncio.run(asyncio.wait_for(main(), SECONDS))
        assert server.wait_until_left()


def test_second_native_cancellation_while_closing_forgets_the_connection() -> None:
    async def main() -> None:
        async with AsyncClient(KEY, base_url=server.url, max_connections=3) as client:
            for number in range(20):
                task = asyncio.create_task(client.conversations.get("conv_1"))
                while server.connections <= number:  # noqa: ASYNC110  # the server is another thread
                    await asyncio.sleep(0.001)
                for _ in range(2):
                    task.cancel()
                    await asyncio.sleep(0)
                with pytest.raises(asyncio.CancelledError):
                    await task
                at_rest(client)

    with serving(SLOW["silence after the request"], times=ALWAYS) as server:
        asyncio.run(asyncio.wait_for(main(), SECONDS))
        assert server.wait_until_left()


def test_native_cancellation_of_aclose_leaves_no_connection_open() -> None:
    async def main() -> None:
        client = AsyncClient(KEY, base_url=server.url)
        await asyncio.gather(*(client.conversations.get("conv_1") for _ in range(5)))
        closing = asyncio.create_task(client.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert await asyncio.to_thread(server.wait_until_left)
        await client.aclose()

    with serving() as server:
        asyncio.run(asyncio.wait_for(main(), SECONDS))
