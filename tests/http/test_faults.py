"""Bad networks, servers and proxies, for real: each fault on each call through each client, and nothing left behind.

What is decided about retries is in `test_retry.py`, on clocks that jump. Here no time is measured but for what must
not hang; a slow machine makes these tests slower and nothing else.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import random
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import IO, Any, cast

import anyio
import anyio.lowlevel
import httpcore
import httpx
import pytest
import trio

from agentphone import (
    AgentPhoneError,
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncClient,
    Client,
    ClientClosedError,
    DeadlineExceededError,
    ResponseDecodeError,
    ServerError,
)
from agentphone._http import connection as connection_module
from agentphone._http.pool import OwnedPool
from tests.support.fault_server import (
    LOST,
    OK_HEAD,
    REFUSED,
    REQUEST_ID,
    SLOW,
    UNREADABLE,
    Connection,
    Fault,
    FaultServer,
    after_request,
    answering,
    reset_after,
    serving,
)
from tests.support.helpers import KEY
from tests.support.processes import SECONDS

pytestmark = pytest.mark.anyio

KINDS = ["asyncio", "trio", "blocking"]
LIMIT = 200_000
ALWAYS = float("inf")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentphone._http.retry.INITIAL_BACKOFF", 0.001)


# ---- Each fault, each call, each client

CALLS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], bool]]] = {
    # The call on either face, and whether its answer is the right one.
    "list": (lambda c: c.list().page(), lambda page: ([c.id for c in page], page.total) == (["conv_1"], 1)),
    "get": (lambda c: c.get("conv_1"), lambda found: [m.id for m in found.messages] == ["msg_1"]),
    "update": (lambda c: c.update("conv_1", metadata={"a": [1]}), lambda found: bool(found.metadata == {"a": [1]})),
    "messages": (lambda c: c.messages("conv_1").page(), lambda page: [m.id for m in page] == ["msg_1"]),
}


def meet(kind: str, fault: Fault, times: float, **settings: Any) -> dict[str, tuple[Any, FaultServer]]:
    """Make each call against a fault of its own, all at once; give their answers or errors."""
    given: dict[str, Any] = {"api_key": KEY, "timeout": SECONDS, "max_response_bytes": LIMIT} | settings
    found: dict[str, tuple[Any, FaultServer]] = {}
    with ExitStack() as stack:
        servers = {name: stack.enter_context(serving(fault, times=times)) for name in CALLS}

        def blocking(name: str) -> None:
            with Client(base_url=servers[name].url, **given) as client:
                try:
                    found[name] = CALLS[name][0](client.conversations), servers[name]
                except AgentPhoneError as error:
                    found[name] = error, servers[name]

        async def call(name: str) -> None:
            async with AsyncClient(base_url=servers[name].url, **given) as client:
                try:
                    found[name] = await CALLS[name][0](client.conversations), servers[name]
                except AgentPhoneError as error:
                    found[name] = error, servers[name]

        async def main() -> None:
            with anyio.fail_after(SECONDS):
                async with anyio.create_task_group() as tasks:
                    for name in CALLS:
                        tasks.start_soon(call, name)

        if kind == "blocking":
            with ThreadPoolExecutor(len(CALLS)) as threads:
                list(threads.map(blocking, CALLS))
        else:
            anyio.run(main, backend=kind)
        assert all(server.wait_until_left() for server in servers.values())
    assert set(found) == set(CALLS)
    return found


def outcomes(error: Any) -> list[str]:
    return [attempt.outcome for attempt in error.attempts]


each_client = pytest.mark.parametrize("kind", KINDS)
PASSING = {**LOST, **SLOW, **{name: fault for name, (fault, _) in REFUSED.items()}}


@each_client
@pytest.mark.parametrize("name", PASSING)
def test_a_fault_that_passes_is_followed_by_the_right_answer(kind: str, name: str) -> None:
    # Where a timeout is needed, a slow machine may need more attempts than two.
    settings = {"timeout": 0.1, "max_retries": 50} if name in SLOW else {"max_retries": 1}
    for call, (answer, server) in meet(kind, PASSING[name], 1, **settings).items():
        assert not isinstance(answer, Exception), call
        assert CALLS[call][1](answer), call
        if name not in SLOW:
            assert len(server.requests) == 1


@each_client
@pytest.mark.parametrize("name", LOST)
def test_an_answer_that_never_comes_whole_is_a_connection_error(kind: str, name: str) -> None:
    for error, server in meet(kind, LOST[name], ALWAYS, max_retries=1).values():
        assert type(error) is APIConnectionError
        assert len(error.attempts) == 2
        assert server.connections == 2
        assert outcomes(error)[0].endswith("Error")
        assert error.args[0].partition(": ")[2]  # it says more than the class


@each_client
@pytest.mark.parametrize("name", SLOW)
def test_an_answer_that_takes_too_long_is_a_timeout(kind: str, name: str) -> None:
    for error, server in meet(kind, SLOW[name], ALWAYS, timeout=0.1, max_retries=1).values():
        assert type(error) is APITimeoutError
        assert outcomes(error) == ["APITimeoutError"] * 2
        assert server.connections <= 2


@each_client
@pytest.mark.parametrize("name", REFUSED)
def test_a_status_that_does_not_pass_is_its_error_whatever_the_body(kind: str, name: str) -> None:
    fault, status = REFUSED[name]
    for error, server in meet(kind, fault, ALWAYS, max_retries=1).values():
        assert isinstance(error, APIStatusError)
        assert (error.status_code, error.request_id) == (status, REQUEST_ID)
        assert outcomes(error) == [str(status)] * 2
        assert server.connections == 2
        assert len(error.body) <= 500
        if status == 503:
            assert isinstance(error, ServerError)
        if name == "503 without end":
            assert f"max_response_bytes={LIMIT}" in str(error)
            assert error.body == b"x" * 500
        if "encoding" in name:
            assert "compressed" in str(error) or "not gzip" in str(error)
            assert error.body


@each_client
@pytest.mark.parametrize("name", UNREADABLE)
def test_an_answer_that_cannot_be_read_is_a_decode_error_at_once(kind: str, name: str) -> None:
    fault, why = UNREADABLE[name]
    for call, (error, server) in meet(kind, fault, ALWAYS, max_retries=3).items():
        assert type(error) is ResponseDecodeError, call
        assert why in str(error)
        assert (error.status_code, error.request_id) == (204 if "204" in name else 200, REQUEST_ID)
        assert outcomes(error) == ["ResponseDecodeError"]
        assert server.connections == 1
        assert len(error.body) <= 500
        assert error.body or "nothing" in name


@each_client
def test_a_connection_that_dies_between_two_calls_does_no_harm(kind: str) -> None:
    with serving(after_request(reset_after), times=3) as server:
        if kind == "blocking":
            with Client(KEY, base_url=server.url) as client:
                assert [client.conversations.get("conv_1").id for _ in range(5)] == ["conv_1"] * 5
            return

        async def main() -> None:
            async with AsyncClient(KEY, base_url=server.url) as client:
                assert [(await client.conversations.get("conv_1")).id for _ in range(5)] == ["conv_1"] * 5

        anyio.run(main, backend=kind)


async def test_what_is_left_of_one_answer_is_not_taken_for_the_next() -> None:
    body = b'{"data":[],"hasMore":false}'
    forged = OK_HEAD + f"content-length: {len(body)}\r\n\r\n".encode() + body

    def answer_too_much(connection: Connection) -> None:
        connection.read()
        connection.answer(200, b"{}" + forged, length=2)
        connection.wait_until_gone()

    with serving(answer_too_much) as server:
        async with AsyncClient(KEY, base_url=server.url) as client:
            with pytest.raises(ResponseDecodeError):
                await client.conversations.list()
            assert len(await client.conversations.list()) == 1


async def test_a_tls_record_that_is_none_is_a_connection_error(tls: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    def garble(connection: Connection) -> None:
        connection.read()
        connection.send(OK_HEAD + b"content-length: 100\r\n\r\n{")
        connection.send_beneath_tls(b"this is no TLS record, whatever it is\r\n" * 9)

    with serving(garble, times=ALWAYS, tls=tls) as server:
        async with AsyncClient(KEY, base_url=server.url, ssl_context=trusting, max_retries=1) as client:
            with pytest.raises(APIConnectionError, match="WRONG_VERSION_NUMBER") as caught:
                await client.conversations.list()
    assert len(caught.value.attempts) == 2


# ---- Time


@each_client
@pytest.mark.parametrize("settings", [{"timeout": 60}, {"timeout": None}, {"timeout": httpx.Timeout(60)}], ids=str)
def test_the_deadline_holds_on_a_real_clock(kind: str, settings: dict[str, Any]) -> None:
    began = time.monotonic()
    for error, _ in meet(kind, SLOW["one byte at a time of body"], ALWAYS, deadline=0.3, **settings).values():
        assert type(error) is DeadlineExceededError
        assert outcomes(error) == ["DeadlineExceededError"]
    assert 0.29 <= time.monotonic() - began < 10


@each_client
def test_no_retry_is_earlier_than_the_server_asks(kind: str) -> None:
    seen: list[float] = []

    def later(connection: Connection) -> None:
        connection.read()
        seen.append(time.monotonic())
        connection.answer(429, retry_after="0.25")

    with serving(later, times=2) as server:
        times: list[float] = seen
        if kind == "blocking":
            with Client(KEY, base_url=server.url) as client:
                client.conversations.get("conv_1")
        else:
            anyio.run(_get_one, server.url, backend=kind)
        times.append(time.monotonic())
    assert all(after - before >= 0.25 for before, after in itertools.pairwise(times))


async def _get_one(url: str) -> None:
    async with AsyncClient(KEY, base_url=url) as client:
        await client.conversations.get("conv_1")


# ---- Cancellation


class Stepped:
    """Await a coroutine, and do something at its nth step, just before it waits or just after."""

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
async def test_a_call_can_be_cancelled_at_every_single_step(
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


def never_answer(connection: Connection) -> None:
    connection.gone.wait(SECONDS)


PHASES: dict[str, tuple[Fault, bool, Any]] = {
    # What the server does, whether by TLS, and the metadata to be sent.
    "connecting": (never_answer, True, None),
    "sending": (never_answer, False, {"text": "x" * 20_000_000}),
    "waiting for the answer": (never_answer, False, None),
    "behavior": (SLOW["silence inside the answer"], False, None),
    "pausing": (answering(503, retry_after="50"), False, None),
}


@pytest.mark.parametrize("phase", PHASES)
async def test_a_call_can_be_cancelled_in_every_phase(phase: str, trusting: ssl.SSLContext) -> None:
    fault, secure, metadata = PHASES[phase]
    gc.disable()
    try:
        with serving(fault) as server, anyio.fail_after(SECONDS):
            url = server.url.replace("http://127.0.0.1", "https://localhost") if secure else server.url
            async with AsyncClient(KEY, base_url=url, ssl_context=trusting, max_connections=1) as client:
                with anyio.move_on_after(0.3) as scope:
                    await client.conversations.update("conv_1", metadata=metadata)
                assert scope.cancelled_caught
                if not secure:
                    assert (await client.conversations.get("conv_1")).id
            server.over.set()
            assert await anyio.to_thread.run_sync(server.wait_until_left)
    finally:
        gc.enable()


async def test_a_call_that_waits_for_its_turn_can_be_cancelled_and_leaves_the_queue() -> None:
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


def test_tasks_that_asyncio_itself_cancels_leave_nothing_either() -> None:
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


def test_a_second_cancellation_of_asyncio_while_a_connection_is_closed_forgets_the_connection() -> None:
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


def test_a_cancellation_of_asyncio_while_a_client_closes_leaves_no_connection_open() -> None:
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


# ---- Many calls

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
    """Give the URL of a server that answers each request with an empty page, in a process of its own."""
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


def at_rest(client: AsyncClient) -> None:
    """Make sure that no connection is in use, and no call counted."""
    (pool,) = client._connections._pools.values()
    assert isinstance(pool, OwnedPool)
    assert not pool._calls
    assert pool.limiter.value == client._config.max_connections
    assert {connection for _, connection in pool._idle} == pool._connections
    assert len(pool._connections) <= client._config.max_connections


async def test_a_thousand_calls_at_once_all_get_their_answers(fast_server: str) -> None:
    before = tasks_alive()
    answers: list[Any] = []
    async with AsyncClient(KEY, base_url=fast_server, max_retries=0) as client:

        async def call() -> None:
            answers.append(await client.conversations.list())

        async with anyio.create_task_group() as tasks:
            for _ in range(1000):
                tasks.start_soon(call)
        at_rest(client)
    assert len(answers) == 1000
    assert tasks_alive() == before


async def test_ten_thousand_calls_half_of_them_cancelled_leave_nothing(fast_server: str) -> None:
    rand = random.Random(5)
    victims = set(rand.sample(range(10_000), 5000))
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
            for number in range(10_000):
                tasks.start_soon(call, number)
        assert 5000 <= answered < 8000
        at_rest(client)
        with anyio.fail_after(SECONDS):
            for _ in range(100):
                await client.conversations.list()
        at_rest(client)
    assert tasks_alive() == before


# ---- Closing


async def connected(server: FaultServer, connections: int) -> None:
    while server.connections < connections:  # noqa: ASYNC110  # the server is another thread
        await anyio.sleep(0.01)


async def test_closing_ends_the_calls_that_are_under_way_and_opens_nothing_again() -> None:
    ended: list[AgentPhoneError] = []
    gc.disable()
    try:
        with serving(never_answer, times=ALWAYS) as server, anyio.fail_after(SECONDS):
            client = AsyncClient(KEY, base_url=server.url, max_connections=2)

            async def call() -> None:
                try:
                    await client.conversations.get("conv_1")
                except AgentPhoneError as error:
                    ended.append(error)

            async with anyio.create_task_group() as tasks:
                for _ in range(6):
                    tasks.start_soon(call)
                await connected(server, 2)
                await client.aclose()
            assert [type(error) for error in ended] == [ClientClosedError] * 6
            assert "it may have been sent" in str(ended[0])
            server.over.set()
            assert await anyio.to_thread.run_sync(server.wait_until_left)
            assert server.connections == 2
    finally:
        gc.enable()


class ClosingStream(httpcore.AsyncNetworkStream):
    """Close the client just after something was read, before the call can look at it."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, close: Callable[[], Awaitable[None]]) -> None:
        self._stream = stream
        self._close = close

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        data = await self._stream.read(max_bytes, timeout)
        with anyio.CancelScope(shield=True):
            await self._close()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


@pytest.mark.parametrize("fault", ["one byte at a time of headers", "silence inside the answer"])
async def test_closing_while_part_of_an_answer_has_arrived_is_a_client_closed_error(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = connection_module._NETWORK
    client = AsyncClient(KEY, base_url="http://localhost")

    class Network(httpcore.AnyIOBackend):
        async def connect_tcp(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
            return ClosingStream(await network.connect_tcp(*args, **options), client.aclose)

    monkeypatch.setattr(connection_module, "_NETWORK", Network())
    with serving(SLOW[fault]) as server, anyio.fail_after(SECONDS):
        client = AsyncClient(KEY, base_url=server.url)
        with pytest.raises(ClientClosedError):
            await client.conversations.get("conv_1")
        assert await anyio.to_thread.run_sync(server.wait_until_left)


async def test_closing_wakes_a_call_that_pauses() -> None:
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


def test_a_blocking_client_that_another_thread_closes_gives_up_its_calls() -> None:
    with serving(never_answer) as server, ThreadPoolExecutor(1) as threads:
        client = Client(KEY, base_url=server.url)
        call = threads.submit(client.conversations.get, "conv_1")
        while not server.connections:
            time.sleep(0.01)
        client.close()
        with pytest.raises(ClientClosedError):
            call.result(SECONDS)
