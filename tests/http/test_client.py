"""`AsyncClient`: lifetime, shared connections, the built-in sandbox; on one event loop and on several."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

import agentphone
from agentphone import (
    AsyncClient,
    AuthenticationError,
    Client,
    ClientClosedError,
    ConfigurationError,
    DeadlineExceededError,
    ServerError,
)
from agentphone.sandbox import Sandbox
from tests.conftest import Server
from tests.support.helpers import BASE, KEY, Scripted, client_of, ok, open_sockets
from tests.support.processes import SECONDS

pytestmark = pytest.mark.anyio

# ---- Reprs and copies


@pytest.mark.parametrize("make", [lambda client: client, lambda client: client.with_options(timeout=1)])
def test_no_repr_contains_the_key(make: Any) -> None:
    client = make(AsyncClient(KEY, base_url=BASE))
    assert repr(client) == f"<AsyncClient {BASE}>"
    for part in (client, client._config, client._conversations, client._conversations._transport.__dict__):
        assert KEY not in repr(part)


COPIES = [copy.copy, copy.deepcopy, pickle.dumps]


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("cls", [AsyncClient, Client])
def test_client_cannot_be_copied_or_pickled(cls: Any, copied: Any) -> None:
    client = cls(KEY)
    for made in (client, client.with_options(timeout=1)):
        with pytest.raises(TypeError, match=r"with_options\(\).*each process makes its own"):
            copied(made)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize("cls", [AsyncClient, Client])
def test_objects_of_a_client_cannot_be_copied_or_pickled(cls: Any, copied: Any) -> None:
    conversations = cls(KEY).conversations
    for made in (conversations, conversations.list(), conversations.state("conv_1")):
        with pytest.raises(TypeError, match="A client cannot be copied or pickled"):
            copied(made)


@pytest.mark.parametrize("copied", COPIES)
def test_iterator_cannot_be_copied_or_pickled(copied: Any) -> None:
    made: list[Any] = [aiter(AsyncClient(KEY).conversations.list()), AsyncClient(KEY).conversations.follow("conv_1")]
    for iterator in (*made, iter(Client(KEY).conversations.list()), Client(KEY).conversations.list().pages()):
        with pytest.raises(TypeError, match="An iterator cannot be copied or pickled"):
            copied(iterator)


# ---- Lifetime


async def test_calls_after_close_raise() -> None:
    client, script = client_of(ok())
    derived = client.with_options(timeout=1)
    pager = client.conversations.list()
    await pager
    await client.aclose()
    await client.aclose()
    assert script.closed == 1
    for conversations in (client.conversations, derived.conversations):
        with pytest.raises(ClientClosedError):
            await conversations.list()
        with pytest.raises(ClientClosedError):
            await conversations.get("conv_1")
        with pytest.raises(ClientClosedError):
            await conversations.update("conv_1", metadata=None)
        with pytest.raises(ClientClosedError):
            await anext(aiter(conversations.messages("conv_1")))
    with pytest.raises(ClientClosedError):
        await pager
    assert len(script.requests) == 1


async def test_unused_client_can_be_closed() -> None:
    client = AsyncClient(KEY)
    await client.aclose()
    with pytest.raises(ClientClosedError):
        await client.conversations.list()


async def test_closing_a_derived_client_closes_nothing() -> None:
    client, script = client_of(ok())
    async with client.with_options(timeout=1) as derived:
        await derived.conversations.list()
    await client.conversations.list()
    await derived.conversations.list()
    assert script.closed == 0
    await client.aclose()
    assert script.closed == 1


async def test_with_options_changes_only_the_given_options() -> None:
    failure = httpx.Response(503, headers={"retry-after": "0"})
    client, script = client_of(failure, max_retries=0, timeout=httpx.Timeout(7))
    derived = client.with_options(max_retries=1).with_options(timeout=None)
    for each, attempts, seconds in ((derived, 2, None), (client, 1, 7), (client.with_options(), 1, 7)):
        script.requests.clear()
        with pytest.raises(ServerError):
            await each.conversations.list()
        assert [request.extensions["timeout"]["read"] for request in script.requests] == [seconds] * attempts


async def test_with_options_keeps_the_deadline() -> None:
    async def silence(_: httpx.Request) -> httpx.Response:
        await anyio.sleep_forever()
        raise AssertionError

    client, _ = client_of(silence, deadline=0.05)
    with pytest.raises(DeadlineExceededError, match=r"0\.05 s"):
        await client.with_options(max_retries=0).conversations.list()


@pytest.mark.parametrize("options", [{"api_key": "other"}, {"max_retries": None}])
def test_invalid_options_are_rejected(options: dict[str, Any]) -> None:
    client, _ = client_of(ok())
    with pytest.raises(TypeError):
        client.with_options(**options)


async def test_error_in_the_block_closes_the_client() -> None:
    client, script = client_of(ok())

    async def fail() -> None:
        async with client as entered:
            assert entered is client
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert script.closed == 1


# ---- Transports


async def test_http_client_is_used_and_left_open() -> None:
    script = Scripted(ok())
    http_client = httpx.AsyncClient(
        transport=script,
        auth=("someone", "else"),
        headers={"X-Team": "a"},
        follow_redirects=True,
        base_url="https://x/",
    )
    async with AsyncClient(KEY, base_url=BASE, http_client=http_client) as client:
        await client.conversations.list()
    assert script.closed == 0
    assert not http_client.is_closed
    request = script.requests[0]
    assert str(request.url) == f"{BASE}/v1/conversations?limit=100&offset=0"
    assert request.headers["authorization"] == f"Bearer {KEY}"

    client = AsyncClient(KEY, base_url=BASE, http_client=http_client)
    script.steps = [httpx.Response(302, headers={"location": f"{BASE}/elsewhere"})]
    with pytest.raises(agentphone.APIStatusError):
        await client.conversations.list()
    assert len(script.requests) == 2  # the redirect is reported, although the http_client would follow it

    await http_client.aclose()
    with pytest.raises(ClientClosedError):
        await client.conversations.list()


def test_only_one_of_transport_http_client_and_sandbox_is_accepted(tmp_path: Path) -> None:
    script = Scripted(ok())
    http_client = httpx.AsyncClient(transport=script)
    with pytest.raises(ConfigurationError, match="transport and http_client"):
        AsyncClient(KEY, transport=script, http_client=http_client)
    for base_url in ("sandbox:", f"sandbox:{tmp_path}/box.db"):
        with pytest.raises(ConfigurationError, match="sandbox:"):
            AsyncClient(base_url=base_url, transport=script)
        with pytest.raises(ConfigurationError, match="sandbox:"):
            AsyncClient(base_url=base_url, http_client=http_client)
    assert not list(tmp_path.iterdir())


async def test_max_connections_limits_requests_in_flight() -> None:
    running = most = 0

    async def slowly(_: httpx.Request) -> httpx.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(0.002)
        running -= 1
        return ok()

    client, script = client_of(slowly, max_connections=3)
    async with anyio.create_task_group() as tasks:
        for number in range(12):
            tasks.start_soon((client if number % 2 else client.with_options(timeout=9)).conversations.list().page)
    assert (most, len(script.requests)) == (3, 12)


# ---- The built-in sandbox


async def test_in_memory_sandbox_needs_no_key_and_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncClient(base_url="sandbox:") as client, AsyncClient(base_url="sandbox:") as other:
        page = await client.conversations.list()
        assert len(page) > 20
        await client.conversations.update(page[0].id, metadata={"seen": True})
        derived = client.with_options(timeout=5)
        assert (await derived.conversations.get(page[0].id)).metadata == {"seen": True}
        assert (await other.conversations.get(page[0].id)).metadata != {"seen": True}
    with pytest.raises(ClientClosedError):
        await client.conversations.list()
    monkeypatch.setenv("AGENTPHONE_BASE_URL", "sandbox:")
    async with AsyncClient() as client:
        assert (await client.conversations.list()).total == page.total


async def test_transport_takes_precedence_over_a_sandbox_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTPHONE_BASE_URL", "sandbox:")
    with Sandbox() as box:
        async with AsyncClient("key", transport=box.transport()) as client:
            assert (await client.conversations.list()).total == 0
        assert box.requests[0].headers["host"] == "api.agentphone.to"


async def test_sandbox_file_keeps_its_data(tmp_path: Path) -> None:
    path = tmp_path / "my box.db"
    async with AsyncClient(base_url=f"sandbox:{path}") as client:
        assert (await client.conversations.list()).total == 0
    with Sandbox(path) as box:
        conversation_id = box.receive_sms(from_number="+1555", to_number="+1556", body="hi")["conversationId"]
    async with AsyncClient(base_url=f"sandbox:{path}") as client:
        await client.conversations.update(conversation_id, metadata={"a": 1})
    async with AsyncClient(base_url=f"sandbox:{path}") as client:
        assert (await client.conversations.get(conversation_id)).metadata == {"a": 1}


def test_invalid_setting_leaves_no_sandbox_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        AsyncClient(base_url=f"sandbox:{tmp_path}/box.db", timeout=-1)
    assert not list(tmp_path.iterdir())


# ---- Real sockets


def local_port(response: httpx.Response) -> int:
    """Return the local port of the connection of a response, which identifies the connection."""
    port: int = response.extensions["network_stream"].get_extra_info("client_addr")[1]
    return port


async def test_derived_clients_share_the_connection(server: Server) -> None:
    ports: list[int] = []
    async with AsyncClient(KEY, base_url=server.url, on_response=lambda r: ports.append(local_port(r))) as client:
        await client.conversations.list()
        async with client.with_options(timeout=5) as derived:
            await derived.conversations.list()
            await derived.with_options(max_retries=0).conversations.list()
        await client.conversations.list()
        async with AsyncClient(KEY, base_url=server.url, on_response=lambda r: ports.append(local_port(r))) as other:
            await other.conversations.list()
    assert len(ports) == 5
    assert len(set(ports[:4])) == 1
    assert ports[4] != ports[0]


async def test_closing_closes_every_socket(server: Server) -> None:
    before = open_sockets()
    async with AsyncClient(KEY, base_url=server.url) as client:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(client.conversations.list().page)
        assert open_sockets() - before
    await anyio.lowlevel.checkpoint()
    assert open_sockets() <= before


def test_dropped_client_leaves_no_socket_open(server: Server) -> None:
    async def main() -> None:
        before = open_sockets()
        client = AsyncClient(KEY, base_url=server.url)
        await client.conversations.list()
        assert open_sockets() - before
        del client
        for _ in range(100):
            gc.collect()
            await asyncio.sleep(0.01)
            if open_sockets() <= before:
                return
        pytest.fail("a socket is still open")

    asyncio.run(main())


def test_client_works_in_successive_event_loops(server: Server) -> None:
    client = AsyncClient(KEY, base_url=server.url, max_retries=0)

    async def use() -> None:
        for _ in range(2):
            await client.conversations.list()

    before = open_sockets()
    for _ in range(3):
        asyncio.run(use())
        assert open_sockets() <= before  # a loop's connections are closed with it
    anyio.run(use, backend="trio")
    asyncio.run(use())
    asyncio.run(client.aclose())
    with pytest.raises(ClientClosedError):
        asyncio.run(use())


@pytest.mark.parametrize("backends", [("asyncio", "asyncio"), ("asyncio", "trio")], ids="+".join)
def test_client_works_in_two_event_loops_at_once(server: Server, backends: tuple[str, str]) -> None:
    client = AsyncClient(KEY, base_url=server.url, max_retries=0)
    meet = threading.Barrier(2, timeout=SECONDS)
    failed: list[BaseException] = []

    async def use() -> None:
        for _ in range(10):
            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(client.conversations.list().page)
        meet.wait()  # both loops have connections now

    def run(backend: str) -> None:
        try:
            anyio.run(use, backend=backend)
        except BaseException as error:  # noqa: BLE001  # checked below
            failed.append(error)

    before = open_sockets()
    threads = [threading.Thread(target=run, args=(backend,)) for backend in backends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed
    assert open_sockets() <= before


async def test_wrong_key_is_an_authentication_error(server: Server) -> None:
    async with AsyncClient("x", base_url=server.url, on_request=lambda r: r.headers.pop("authorization")) as client:
        with pytest.raises(AuthenticationError, match="AGENTPHONE_API_KEY") as caught:
            await client.conversations.list()
    assert caught.value.code == "UNAUTHORIZED"
    assert caught.value.request_id
