"""`AsyncClient`: what it accepts, what it shares, what it closes; on one event loop and on several."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import ssl
import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
import trustme

import agentphone
from agentphone import (
    APIConnectionError,
    AsyncClient,
    AuthenticationError,
    Client,
    ClientClosedError,
    ConfigurationError,
)
from agentphone.sandbox import Sandbox
from tests.conftest import Server
from tests.support.fault_server import serving
from tests.support.helpers import BASE, KEY, Scripted, client_of, ok, open_sockets

pytestmark = pytest.mark.anyio

# ---- Key and base URL


async def sent_by(**settings: Any) -> httpx.Request:
    """Give the request that a client with these settings sends for its first page."""
    script = Scripted(ok())
    async with AsyncClient(transport=script, **settings) as client:
        await client.conversations.list()
    return script.requests[0]


async def test_the_environment_gives_key_and_base_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTPHONE_API_KEY", "from_env")
    monkeypatch.setenv("AGENTPHONE_BASE_URL", "https://env.example/")
    request = await sent_by()
    assert request.headers["authorization"] == "Bearer from_env"
    assert str(request.url) == "https://env.example/v1/conversations?limit=100&offset=0"


async def test_an_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTPHONE_API_KEY", "from_env")
    monkeypatch.setenv("AGENTPHONE_BASE_URL", "https://env.example")
    request = await sent_by(api_key=KEY, base_url=BASE)
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.url.host == "api.agentphone.test"


async def test_without_a_base_url_it_is_agentphones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await sent_by(api_key=KEY)).url.host == "api.agentphone.to"
    monkeypatch.setenv("AGENTPHONE_BASE_URL", "")
    assert (await sent_by(api_key=KEY)).url.host == "api.agentphone.to"


@pytest.mark.parametrize("argument", [None, ""])
@pytest.mark.parametrize("variable", [None, ""])
def test_no_key_is_a_configuration_error_that_says_where_to_put_one(
    argument: str | None, variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("AGENTPHONE_API_KEY", variable)
    with pytest.raises(ConfigurationError, match="AGENTPHONE_API_KEY"):
        AsyncClient(argument)


@pytest.mark.parametrize(
    "form", ["{}\n", "\r\n{}", "{} ", " {}", "{}\t", "{}\0", "{}é", "{}\u2028", "{}\x7f", "Bearer {}"]
)
def test_a_key_that_no_header_can_carry_is_refused_without_telling_it(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, variable in ((form.format(KEY), ""), (None, form.format(KEY).replace("\0", "\n"))):
        monkeypatch.setenv("AGENTPHONE_API_KEY", variable)
        with pytest.raises(ConfigurationError) as caught:
            AsyncClient(key)
        assert KEY not in str(caught.value)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize("key", [b"key", 5, ["key"]])
def test_a_key_that_is_no_string_is_a_type_error_without_telling_it(key: Any) -> None:
    with pytest.raises(TypeError, match=f"api_key must be a string, got {type(key).__name__}"):
        AsyncClient(key)


@pytest.mark.parametrize(
    ("base_url", "begins"),
    [
        ("https://api.example", "https://api.example/v1/"),
        ("https://api.example/", "https://api.example/v1/"),
        ("https://api.example///", "https://api.example/v1/"),
        ("https://api.example/proxy/phone", "https://api.example/proxy/phone/v1/"),
        ("https://api.example/proxy/phone/", "https://api.example/proxy/phone/v1/"),
        ("https://api.example:8443", "https://api.example:8443/v1/"),
        ("HTTPS://API.example", "https://api.example/v1/"),
        (httpx.URL("https://api.example/x/"), "https://api.example/x/v1/"),
        ("http://localhost:8765", "http://localhost:8765/v1/"),
        ("http://127.0.0.1:8765/", "http://127.0.0.1:8765/v1/"),
        ("http://127.1.2.3", "http://127.1.2.3/v1/"),
        ("http://[::1]:80", "http://[::1]/v1/"),
        ("http://box.localhost", "http://box.localhost/v1/"),
    ],
    ids=str,
)
async def test_a_base_url_keeps_its_path_and_loses_its_slash(base_url: Any, begins: str) -> None:
    assert str((await sent_by(api_key=KEY, base_url=base_url)).url) == f"{begins}conversations?limit=100&offset=0"


@pytest.mark.parametrize("end", ["/v1", "/v1/", "//v1//"])
@pytest.mark.parametrize("begin", ["https://api.example", "https://api.example/proxy", "HTTPS://api.example"])
async def test_a_base_url_may_end_in_v1(begin: str, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = f"{begin.replace('HTTPS', 'https')}/v1/conversations?limit=100&offset=0"
    assert str((await sent_by(api_key=KEY, base_url=begin + end)).url) == wanted
    assert str((await sent_by(api_key=KEY, base_url=httpx.URL(begin + end))).url) == wanted
    monkeypatch.setenv("AGENTPHONE_BASE_URL", begin + end)
    assert str((await sent_by(api_key=KEY)).url) == wanted


def test_a_base_url_that_only_looks_like_v1_keeps_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert repr(AsyncClient(KEY, base_url="https://api.example/apiv1")) == "<AsyncClient https://api.example/apiv1>"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    Client(base_url="sandbox:data/v1").close()
    assert (tmp_path / "data" / "v1").is_file()


@pytest.mark.parametrize(
    "base_url",
    [
        *(
            "http://api.example",
            "http://10.0.0.1",
            "http://0.0.0.0",
            "http://localhost.example",
            "http://127.0.0.1.example",
        ),
        *("https://user:secret@api.example", "https://user@api.example", "ftp://user:secret@api.example"),
        *("https://api.example?x=1", "https://api.example/?", "https://api.example?", "https://api.example#"),
        *("https://api.example#top", "https://api.example/v?x=1#top"),
        *("", "/", "api.example", "//api.example", "localhost:8765", "https://", "https:///v1", "ftp://api.example"),
        *("https://api.example:port", "https://api.example:99999", "https://api.example\n", "https://[::1", "sandbox"),
        *("https://api example", "https://\0", "unix:///run/x.sock", "file:///etc/passwd"),
    ],
    ids=repr,
)
def test_a_base_url_that_cannot_be_one_is_refused(base_url: str) -> None:
    with pytest.raises(ConfigurationError, match="base_url") as caught:
        AsyncClient(KEY, base_url=base_url)
    assert "secret" not in str(caught.value)


async def test_http_to_another_machine_needs_to_be_allowed() -> None:
    request = await sent_by(api_key=KEY, base_url="http://10.0.0.1:80/x", allow_http=True)
    assert str(request.url).startswith("http://10.0.0.1/x/v1/")


@pytest.mark.parametrize("base_url", [5, b"https://api.example", ["https://api.example"]])
def test_a_base_url_of_another_type_is_a_type_error(base_url: Any) -> None:
    with pytest.raises(TypeError, match="base_url"):
        AsyncClient(KEY, base_url=base_url)


async def test_base_url_scheme_in_capitals_verifies_certificates(
    tls: ssl.SSLContext, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection trusts the default authorities, and only those."""
    with serving(tls=tls) as server:
        url = server.url.replace("https", "HTTPS")
        async with AsyncClient(KEY, base_url=url, max_retries=0) as client:
            with pytest.raises(APIConnectionError, match="certificate"):
                await client.conversations.get("conv_1")
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        async with AsyncClient(KEY, base_url=url, max_retries=0) as client:
            assert (await client.conversations.get("conv_1")).id == "conv_1"


async def test_ssl_context_is_used(tls: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    with serving(tls=tls) as server:
        async with AsyncClient(KEY, base_url=server.url, ssl_context=trusting, max_retries=0) as client:
            assert (await client.conversations.get("conv_1")).id == "conv_1"
        async with AsyncClient(KEY, base_url=server.url, ssl_context=ssl.create_default_context()) as client:
            with pytest.raises(APIConnectionError, match="certificate"):
                await client.conversations.get("conv_1")


# ---- Numbers

NUMBERS: dict[str, tuple[list[Any], list[Any], list[Any]]] = {
    # name: good, out of range, of another type
    "timeout": ([None, 1, 0.001, float("inf"), httpx.Timeout(5)], [0, -1, float("nan"), -0.0], ["5", True, [], b"1"]),
    "deadline": ([None, 1, 0.001, float("inf")], [0, -1, float("nan")], ["5", True, httpx.Timeout(5)]),
    "max_retries": ([0, 1, 100], [-1], [None, 1.0, "1", True]),
    "max_connections": ([1, 1000], [0, -1], [None, 1.0, "1", True]),
    "max_response_bytes": ([1, 2**40], [0, -1], [None, 1.0, "1", True]),
    "max_retry_after": ([0, 0.5, float("inf")], [-1, float("nan")], [None, "1", True]),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_setting_out_of_its_range_or_of_another_type_is_refused_by_name(name: str) -> None:
    good, out_of_range, other_type = NUMBERS[name]
    parent = AsyncClient(KEY)
    makers: list[Any] = [lambda **setting: AsyncClient(KEY, **setting)]
    if name in ("timeout", "deadline", "max_retries"):
        makers.append(parent.with_options)
    for make in makers:
        for value in good:
            make(**{name: value})
        for value in out_of_range:
            with pytest.raises(ConfigurationError, match=name):
                make(**{name: value})
        for value in other_type:
            with pytest.raises(TypeError, match=name):
                make(**{name: value})


@pytest.mark.parametrize("name", ["", "missing/box.db", "text.db", "nul\0.db"])
@pytest.mark.parametrize("client", [AsyncClient, Client])
def test_a_sandbox_file_that_cannot_be_one_is_a_configuration_error(
    client: type[AsyncClient] | type[Client], name: str, tmp_path: Path
) -> None:
    (tmp_path / "text.db").write_text("These are words, and no database at all.")
    with pytest.raises(ConfigurationError, match=r"^base_url='sandbox:.*: "):
        client(base_url=f"sandbox:{tmp_path / name if name else tmp_path}")


def test_a_sandbox_written_as_urls_are_is_no_file_in_the_root_of_the_disk() -> None:
    with pytest.raises(ConfigurationError, match="without //"):
        AsyncClient(base_url="sandbox://box.db")


async def asynchronous(_: object) -> None:
    """Be a hook as httpx's own async client wants it; nobody here would await it."""


@pytest.mark.parametrize("client", [AsyncClient, Client])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("transport", httpx.HTTPTransport()),  # of httpx's blocking half, as a user of `Client` may try
        ("transport", "https://proxy.example"),
        ("http_client", httpx.Client()),  # it would send, block the event loop, and fail afterwards
        ("http_client", httpx.AsyncHTTPTransport()),
        ("ssl_context", True),
        ("ssl_context", "ca.pem"),
        ("allow_http", "no"),  # which is true
        ("allow_http", None),
        ("on_request", "print"),
        ("on_request", asynchronous),
        ("on_response", asynchronous),
        ("on_retry", asynchronous),
    ],
)
def test_what_cannot_send_be_trusted_or_be_called_is_refused_by_name(
    client: type[AsyncClient] | type[Client], name: str, value: Any
) -> None:
    with pytest.raises(TypeError, match=f"^{name} (is|must be) "):
        client(KEY, **{name: value})


def test_settings_are_named() -> None:
    with pytest.raises(TypeError):
        AsyncClient(KEY, BASE)  # type: ignore[call-arg]


@pytest.mark.parametrize("timeout", [30.0, httpx.Timeout(1, connect=2)])
async def test_an_httpx_timeout_goes_to_httpx_and_a_number_is_kept_here(timeout: Any) -> None:  # noqa: ASYNC109
    extensions = (await sent_by(api_key=KEY, timeout=timeout)).extensions
    phases = (
        timeout.as_dict() if isinstance(timeout, httpx.Timeout) else dict.fromkeys(("connect", "read", "write", "pool"))
    )
    assert extensions["timeout"] == phases


# ---- What it shows


@pytest.mark.parametrize("make", [lambda client: client, lambda client: client.with_options(timeout=1)])
def test_the_key_is_in_no_repr(make: Any) -> None:
    client = make(AsyncClient(KEY, base_url=BASE))
    assert repr(client) == f"<AsyncClient {BASE}>"
    for part in (client, client._config, client._conversations, client._conversations._transport.__dict__):
        assert KEY not in repr(part)


COPIES = [copy.copy, copy.deepcopy, pickle.dumps]


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("cls", [AsyncClient, Client])
def test_a_client_cannot_be_copied_or_pickled_and_says_what_to_do_instead(cls: Any, copied: Any) -> None:
    client = cls(KEY)
    for made in (client, client.with_options(timeout=1)):
        with pytest.raises(TypeError, match=r"with_options\(\).*each process makes its own"):
            copied(made)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize("cls", [AsyncClient, Client])
def test_what_a_client_made_cannot_be_pickled_either(cls: Any, copied: Any) -> None:
    conversations = cls(KEY).conversations
    for made in (conversations, conversations.list(), conversations.state("conv_1")):
        with pytest.raises(TypeError, match="A client cannot be copied or pickled"):
            copied(made)


@pytest.mark.parametrize("copied", COPIES)
def test_an_iterator_cannot_be_copied_or_pickled(copied: Any) -> None:
    made: list[Any] = [aiter(AsyncClient(KEY).conversations.list()), AsyncClient(KEY).conversations.follow("conv_1")]
    for iterator in (*made, iter(Client(KEY).conversations.list()), Client(KEY).conversations.list().pages()):
        with pytest.raises(TypeError, match="An iterator cannot be copied or pickled"):
            copied(iterator)


# ---- Lifetime


async def test_after_close_each_call_raises_and_closing_again_does_nothing() -> None:
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


async def test_a_client_that_was_never_used_can_be_closed() -> None:
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


async def test_with_options_changes_what_is_given_and_keeps_the_rest() -> None:
    client, _ = client_of(httpx.Response(503), max_retries=0, timeout=7.0, deadline=9.0)
    derived = client.with_options(max_retries=1).with_options(timeout=None)
    assert (derived._config.timeout, derived._config.deadline, derived._config.max_retries) == (None, 9.0, 1)
    assert (client._config.timeout, client._config.max_retries) == (7.0, 0)
    assert client.with_options()._config == client._config
    with pytest.raises(TypeError):
        client.with_options(api_key="other")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        client.with_options(max_retries=None)  # type: ignore[arg-type]


async def test_leaving_the_block_by_an_error_closes_too() -> None:
    client, script = client_of(ok())

    async def fail() -> None:
        async with client as entered:
            assert entered is client
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert script.closed == 1


# ---- What sends


async def test_a_transport_is_used_and_closed_and_an_http_client_is_used_and_left_open() -> None:
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
    assert len(script.requests) == 2  # the redirect is ours to report, whatever the http client would do

    await http_client.aclose()
    with pytest.raises(ClientClosedError):
        await client.conversations.list()


def test_two_things_that_send_are_refused(tmp_path: Path) -> None:
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


async def test_never_are_more_requests_in_flight_than_max_connections() -> None:
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


# ---- The sandbox in the client


async def test_a_sandbox_in_memory_needs_no_key_and_belongs_to_one_client(monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_a_transport_given_wins_over_a_sandbox_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTPHONE_BASE_URL", "sandbox:")
    with Sandbox() as box:
        async with AsyncClient("key", transport=box.transport()) as client:
            assert (await client.conversations.list()).total == 0
        assert box.requests[0].headers["host"] == "api.agentphone.to"


async def test_a_sandbox_in_a_file_keeps_its_data_from_client_to_client(tmp_path: Path) -> None:
    path = tmp_path / "my box.db"
    async with AsyncClient(base_url=f"sandbox:{path}") as client:
        assert (await client.conversations.list()).total == 0
    with Sandbox(path) as box:
        conversation_id = box.receive_sms(from_number="+1555", to_number="+1556", body="hi")["conversationId"]
    async with AsyncClient(base_url=f"sandbox:{path}") as client:
        await client.conversations.update(conversation_id, metadata={"a": 1})
    async with AsyncClient(base_url=f"sandbox:{path}") as client:
        assert (await client.conversations.get(conversation_id)).metadata == {"a": 1}


def test_a_refused_setting_leaves_no_sandbox_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        AsyncClient(base_url=f"sandbox:{tmp_path}/box.db", timeout=-1)
    assert not list(tmp_path.iterdir())


# ---- Real sockets


def local_port(response: httpx.Response) -> int:
    """Give this end's port of the connection that an answer came on: the connection's identity."""
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


def test_a_client_that_is_dropped_without_close_leaves_no_socket_open(server: Server) -> None:
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


def test_one_client_works_in_one_event_loop_after_the_other(server: Server) -> None:
    client = AsyncClient(KEY, base_url=server.url, max_retries=0)

    async def use() -> None:
        for _ in range(2):
            await client.conversations.list()

    before = open_sockets()
    for _ in range(3):
        asyncio.run(use())
        assert open_sockets() <= before  # what a loop opened is closed with it
    anyio.run(use, backend="trio")
    asyncio.run(use())
    asyncio.run(client.aclose())
    with pytest.raises(ClientClosedError):
        asyncio.run(use())


@pytest.mark.parametrize("backends", [("asyncio", "asyncio"), ("asyncio", "trio")], ids="+".join)
def test_one_client_works_in_two_event_loops_in_two_threads(server: Server, backends: tuple[str, str]) -> None:
    client = AsyncClient(KEY, base_url=server.url, max_retries=0)
    meet = threading.Barrier(2, timeout=30)
    failed: list[BaseException] = []

    async def use() -> None:
        for _ in range(10):
            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(client.conversations.list().page)
        meet.wait()  # both loops have their connections now

    def run(backend: str) -> None:
        try:
            anyio.run(use, backend=backend)
        except BaseException as error:  # noqa: BLE001  # a thread's error is shown by the test
            failed.append(error)

    before = open_sockets()
    threads = [threading.Thread(target=run, args=(backend,)) for backend in backends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed
    assert open_sockets() <= before


async def test_a_wrong_key_is_told_by_the_server(server: Server) -> None:
    async with AsyncClient("x", base_url=server.url, on_request=lambda r: r.headers.pop("authorization")) as client:
        with pytest.raises(AuthenticationError, match="AGENTPHONE_API_KEY") as caught:
            await client.conversations.list()
    assert caught.value.code == "UNAUTHORIZED"
    assert caught.value.request_id
