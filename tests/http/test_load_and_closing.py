"""Many concurrent calls, and closing a client while calls are running."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, cast

import anyio
import anyio.lowlevel
import httpcore
import httpx
import pytest
import trio
from anyio.abc import ByteStream

from agentphone import (
    AgentPhoneError,
    AsyncClient,
    Client,
    ClientClosedError,
    SendUnconfirmedError,
    UnprocessableEntityError,
)
from agentphone._http import connection as connection_module
from tests.support.fault_server import (
    SLOW,
    Connection,
    FaultServer,
    answering,
    never_answer,
    serving,
)
from tests.support.helpers import KEY, at_rest
from tests.support.long import count
from tests.support.processes import SECONDS

pytestmark = pytest.mark.anyio

KINDS = ["asyncio", "trio", "blocking"]
LIMIT = 200_000
CALLS = count(500, 10_000)
ALWAYS = float("inf")


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentphone._http.retry.INITIAL_BACKOFF", 0.001)


FAST_SERVER = """
import asyncio, json, sys

body = json.dumps({"data": [], "hasMore": False, "total": 0}).encode()
answer = b"HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n%s" % (len(body), body)

class Answering(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(answer * data.count(b"\\r\\n\\r\\n"))

async def main():
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def fast_server() -> Iterator[str]:
    """Return the URL of a server process that responds to each request with an empty page."""
    with subprocess.Popen([sys.executable, "-c", FAST_SERVER], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"http://127.0.0.1:{cast('IO[str]', process.stdout).readline().strip()}"
        finally:
            process.kill()


def tasks_alive() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return trio.lowlevel.current_statistics().tasks_living


async def test_hundreds_of_concurrent_calls_succeed(fast_server: str) -> None:
    before = tasks_alive()
    answers: list[Any] = []
    async with AsyncClient(KEY, base_url=fast_server, max_retries=0) as client:

        async def call() -> None:
            answers.append(await client.conversations.list())

        async with anyio.create_task_group() as tasks:
            for _ in range(CALLS):
                tasks.start_soon(call)
        at_rest(client)
    assert len(answers) == CALLS
    assert tasks_alive() == before


async def test_calls_of_which_half_are_cancelled_leave_nothing(fast_server: str) -> None:
    rand = random.Random(5)
    victims = set(rand.sample(range(CALLS), CALLS // 2))
    scopes = {number: anyio.CancelScope() for number in victims}
    current: contextvars.ContextVar[int] = contextvars.ContextVar("current", default=-1)
    answered = 0

    def perhaps_now(_: object) -> None:
        """Cancel calls while they send or read, and others that wait for their turn."""
        if current.get() in victims and rand.random() < 0.6:
            scopes[current.get()].cancel()
        scopes[rand.choice(waiting)].cancel()

    before = tasks_alive()
    waiting = sorted(victims)
    async with AsyncClient(
        KEY, base_url=fast_server, timeout=SECONDS, max_retries=0, on_request=perhaps_now, on_response=perhaps_now
    ) as client:

        async def call(number: int) -> None:
            nonlocal answered
            current.set(number)
            with scopes.get(number, anyio.CancelScope()):
                await client.conversations.list()
                answered += 1

        async with anyio.create_task_group() as tasks:
            for number in range(CALLS):
                tasks.start_soon(call, number)
        assert 0.5 * CALLS <= answered < 0.8 * CALLS
        at_rest(client)
        with anyio.fail_after(SECONDS):
            for _ in range(100):
                await client.conversations.list()
        at_rest(client)
    assert tasks_alive() == before


async def connected(server: FaultServer, connections: int) -> None:
    while server.connections < connections:  # noqa: ASYNC110  # the server is another thread
        await anyio.sleep(0.01)


async def test_aclose_ends_running_calls_and_opens_nothing() -> None:
    ended: list[AgentPhoneError] = []
    received: list[object] = []

    def read_and_wait(connection: Connection) -> None:
        received.append(connection.read())
        never_answer(connection)

    gc.disable()
    try:
        with serving(read_and_wait, times=ALWAYS) as server, anyio.fail_after(SECONDS):
            client = AsyncClient(KEY, base_url=server.url, max_connections=2)

            async def call() -> None:
                try:
                    await client.conversations.get("conv_1")
                except AgentPhoneError as error:
                    ended.append(error)

            async with anyio.create_task_group() as tasks:
                for _ in range(6):
                    tasks.start_soon(call)
                while len(received) < 2:  # noqa: ASYNC110  # the server is another thread
                    await anyio.sleep(0.01)
                await client.aclose()
            assert [type(error) for error in ended] == [ClientClosedError] * 6
            assert sum("it may have been sent" in str(error) for error in ended) == 2
            server.over.set()
            assert await anyio.to_thread.run_sync(server.wait_until_left)
            assert server.connections == 2
    finally:
        gc.enable()


class ClosingStream(ByteStream):
    """Close the client after a read, before the call can process it."""

    def __init__(self, stream: ByteStream, close: Callable[[], Awaitable[None]]) -> None:
        self._stream = stream
        self._close = close

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = await self._stream.receive(max_bytes)
        with anyio.CancelScope(shield=True):
            await self._close()
        return data

    async def send(self, item: bytes) -> None:
        await self._stream.send(item)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._stream.extra_attributes


@pytest.mark.parametrize("fault", ["one byte at a time of headers", "silence inside the answer"])
async def test_aclose_in_the_middle_of_a_response_is_a_client_closed_error(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = connection_module._NETWORK
    client = AsyncClient(KEY, base_url="http://localhost")

    class Network(httpcore.AnyIOBackend):
        async def connect_tcp(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
            stream: Any = await network.connect_tcp(*args, **options)
            stream._stream = ClosingStream(stream._stream, client.aclose)
            return cast("httpcore.AsyncNetworkStream", stream)

    monkeypatch.setattr(connection_module, "_NETWORK", Network())
    with serving(SLOW[fault]) as server, anyio.fail_after(SECONDS):
        client = AsyncClient(KEY, base_url=server.url)
        with pytest.raises(ClientClosedError):
            await client.conversations.get("conv_1")
        assert await anyio.to_thread.run_sync(server.wait_until_left)


async def test_aclose_wakes_a_call_that_waits_to_retry() -> None:
    with serving(answering(503, retry_after="50")) as server, anyio.fail_after(SECONDS):
        client = AsyncClient(KEY, base_url=server.url)
        async with anyio.create_task_group() as tasks:

            async def call() -> None:
                with pytest.raises(ClientClosedError):
                    await client.conversations.get("conv_1")

            tasks.start_soon(call)
            await connected(server, 1)
            await anyio.sleep(0.1)
            await client.aclose()


@pytest.mark.parametrize("status", [None, 404, 503])
async def test_client_closed_while_an_attempt_fails_is_a_client_closed_error(status: int | None) -> None:
    """The failure is not raised or retried, even where the closing does not cancel the call."""

    async def close_and_fail(_: httpx.Request) -> httpx.Response:
        # From another event loop, where no call is in progress, so nothing is cancelled.
        await anyio.to_thread.run_sync(anyio.run, client.aclose)
        if status is None:
            raise httpx.ConnectError("the network is down")
        return httpx.Response(status, content=b"")

    client = AsyncClient(KEY, transport=httpx.MockTransport(close_and_fail))
    with anyio.fail_after(SECONDS), pytest.raises(ClientClosedError):
        await client.conversations.get("conv_1")


@pytest.mark.parametrize(
    ("status", "error"), [(200, SendUnconfirmedError), (422, UnprocessableEntityError), (503, SendUnconfirmedError)]
)
async def test_client_closed_while_a_send_is_answered(status: int, error: type[AgentPhoneError]) -> None:
    """A rejection stays certain."""

    async def close_and_answer(_: httpx.Request) -> httpx.Response:
        await anyio.to_thread.run_sync(anyio.run, client.aclose)
        return httpx.Response(status, content=b"")

    client = AsyncClient(KEY, transport=httpx.MockTransport(close_and_answer))
    with anyio.fail_after(SECONDS), pytest.raises(error) as caught:
        await client.messages.send("Hello", to="+15555550110", number_id="num_1")
    assert len(caught.value.attempts) == 1  # type: ignore[attr-defined]


def test_close_from_another_thread_ends_sync_calls() -> None:
    with serving(never_answer) as server, ThreadPoolExecutor(1) as threads:
        client = Client(KEY, base_url=server.url)
        call = threads.submit(client.conversations.get, "conv_1")
        while not server.connections:
            time.sleep(0.01)
        client.close()
        with pytest.raises(ClientClosedError):
            call.result(SECONDS)
