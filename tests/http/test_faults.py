"""Real faults: each fault of a network or server, on each call, with each client.

The retry rules are in `test_retried_calls.py`, on clocks that jump. Nothing here is timed except to catch hangs, so a
slow machine only makes these tests slower.
"""

from __future__ import annotations

import itertools
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from agentphone import (
    AgentPhoneError,
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncClient,
    Client,
    DeadlineExceededError,
    ResponseDecodeError,
    ServerError,
)
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
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentphone._http.retry.INITIAL_BACKOFF", 0.001)


CALLS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], bool]]] = {
    # The call on either face, and whether its answer is the right one.
    "list": (lambda c: c.list().page(), lambda page: ([c.id for c in page], page.total) == (["conv_1"], 1)),
    "get": (lambda c: c.get("conv_1"), lambda found: [m.id for m in found.messages] == ["msg_1"]),
    "update": (lambda c: c.update("conv_1", metadata={"a": [1]}), lambda found: bool(found.metadata == {"a": [1]})),
    "messages": (lambda c: c.messages("conv_1").page(), lambda page: [m.id for m in page] == ["msg_1"]),
}


def meet(kind: str, fault: Fault, times: float, **settings: Any) -> dict[str, tuple[Any, FaultServer]]:
    """Make each call against its own fault, all at once; return the results or errors."""
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
def test_temporary_fault_is_followed_by_the_right_result(kind: str, name: str) -> None:
    # Where a timeout is needed, a slow machine may need more attempts than two.
    settings = {"timeout": 0.05, "max_retries": 100} if name in SLOW else {"max_retries": 1}
    for call, (answer, server) in meet(kind, PASSING[name], 1, **settings).items():
        assert not isinstance(answer, Exception), call
        assert CALLS[call][1](answer), call
        if name not in SLOW:
            assert len(server.requests) == 1


@each_client
@pytest.mark.parametrize("name", LOST)
def test_incomplete_response_is_a_connection_error(kind: str, name: str) -> None:
    for error, server in meet(kind, LOST[name], ALWAYS, max_retries=1).values():
        assert type(error) is APIConnectionError
        assert len(error.attempts) == 2
        assert server.connections == 2
        assert outcomes(error)[0].endswith("Error")
        assert error.args[0].partition(": ")[2]  # it says more than the class


@each_client
@pytest.mark.parametrize("name", SLOW)
def test_slow_response_is_a_timeout(kind: str, name: str) -> None:
    for error, server in meet(kind, SLOW[name], ALWAYS, timeout=0.03, max_retries=1).values():
        assert type(error) is APITimeoutError
        assert outcomes(error) == ["APITimeoutError"] * 2
        assert server.connections <= 2


@each_client
@pytest.mark.parametrize("name", REFUSED)
def test_permanent_status_is_its_error_whatever_the_body(kind: str, name: str) -> None:
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
def test_unreadable_response_is_a_decode_error_at_once(kind: str, name: str) -> None:
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
def test_connection_that_dies_between_calls_is_replaced(kind: str) -> None:
    with serving(after_request(reset_after), times=3) as server:
        if kind == "blocking":
            with Client(KEY, base_url=server.url) as client:
                assert [client.conversations.get("conv_1").id for _ in range(5)] == ["conv_1"] * 5
            return

        async def main() -> None:
            async with AsyncClient(KEY, base_url=server.url) as client:
                assert [(await client.conversations.get("conv_1")).id for _ in range(5)] == ["conv_1"] * 5

        anyio.run(main, backend=kind)


async def test_rest_of_a_response_is_not_the_next_response() -> None:
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


async def test_invalid_tls_record_is_a_connection_error(tls: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    def garble(connection: Connection) -> None:
        connection.read()
        connection.send(OK_HEAD + b"content-length: 100\r\n\r\n{")
        connection.send_beneath_tls(b"this is no TLS record, whatever it is\r\n" * 9)

    with serving(garble, times=ALWAYS, tls=tls) as server:
        async with AsyncClient(KEY, base_url=server.url, ssl_context=trusting, max_retries=1) as client:
            with pytest.raises(APIConnectionError, match="WRONG_VERSION_NUMBER") as caught:
                await client.conversations.list()
    assert len(caught.value.attempts) == 2


@each_client
@pytest.mark.parametrize("settings", [{"timeout": 60}, {"timeout": None}, {"timeout": httpx.Timeout(60)}], ids=str)
def test_deadline_holds_on_a_real_clock(kind: str, settings: dict[str, Any]) -> None:
    began = time.monotonic()
    for error, _ in meet(kind, SLOW["one byte at a time of body"], ALWAYS, deadline=0.1, **settings).values():
        assert type(error) is DeadlineExceededError
        assert outcomes(error) == ["DeadlineExceededError"]
    assert 0.09 <= time.monotonic() - began < 30


@each_client
def test_retry_is_not_earlier_than_retry_after(kind: str) -> None:
    seen: list[float] = []

    def later(connection: Connection) -> None:
        connection.read()
        seen.append(time.monotonic())
        connection.answer(429, retry_after="0.1")

    with serving(later, times=2) as server:
        times: list[float] = seen
        if kind == "blocking":
            with Client(KEY, base_url=server.url) as client:
                client.conversations.get("conv_1")
        else:
            anyio.run(_get_one, server.url, backend=kind)
        times.append(time.monotonic())
    assert all(after - before >= 0.1 for before, after in itertools.pairwise(times))


async def _get_one(url: str) -> None:
    async with AsyncClient(KEY, base_url=url) as client:
        await client.conversations.get("conv_1")
