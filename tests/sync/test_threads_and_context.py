"""Threads share blocking clients; the caller's context reaches hooks; closing ends no other thread's call badly."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import anyio
import httpx
import pytest

from agentphone import AsyncClient, Client, ClientClosedError
from tests.conftest import Server
from tests.support.helpers import KEY, message, ok, page
from tests.support.long import count
from tests.support.processes import SECONDS
from tests.sync.blocking import blocking, listing


def test_threads_sharing_a_client_get_their_own_responses(server: Server) -> None:
    ids = [
        server.box.receive_sms(from_number=f"+1555000{number:04}", to_number="+15550001111", body=str(number))[
            "conversationId"
        ]
        for number in range(32)
    ]
    wrong: list[str] = []
    start = threading.Barrier(32, timeout=SECONDS)

    def work(number: int) -> None:
        source = random.Random(number)
        start.wait()
        for turn in range(count(20, 150)):
            asked = source.randrange(32)
            found = client.conversations.get(ids[asked], message_limit=1)
            if (found.id, found.messages[0].body) != (ids[asked], str(asked)):
                wrong.append(f"thread {number}, turn {turn}: asked for {asked}, got {found}")

    with Client(KEY, base_url=server.url) as client, ThreadPoolExecutor(32) as threads:
        list(threads.map(work, range(32)))
    assert wrong == []


def test_iterator_may_change_threads() -> None:
    client, script = blocking(listing(3))
    items = iter(client.conversations.list(page_size=2))
    assert next(items).id == "conv_0"

    def finish(items: Iterator[Any]) -> list[str]:
        rest = [next(items).id, next(items).id]
        del items
        return rest

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(finish, items).result() == ["conv_1", "conv_2"]
        threads.submit(lambda started: next(started), iter(client.conversations.list())).result()
    del items
    gc.collect()  # a generator that was not read to its end would warn here
    assert [request.url.params["offset"] for request in script.requests][:2] == ["0", "2"]


def test_async_client_in_many_short_event_loops(server: Server) -> None:
    """Django runs async views under a threaded WSGI server like this, with an event loop for each request."""
    client = AsyncClient(KEY, base_url=server.url)

    async def use() -> None:
        await client.conversations.list(limit=1)

    def work(_: int) -> None:
        for _ in range(30):
            asyncio.run(use())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # or the threads would rarely interleave
    try:
        with ThreadPoolExecutor(12) as threads:
            list(threads.map(work, range(12)))
    finally:
        sys.setswitchinterval(interval)


def test_transports_and_hooks_run_in_the_callers_context() -> None:
    tenant: ContextVar[str] = ContextVar("tenant")
    seen: list[str] = []

    async def respond(_: httpx.Request) -> httpx.Response:
        seen.append("transport " + tenant.get())
        return httpx.Response(503) if len(seen) < 4 else ok()

    client, _script = blocking(
        respond,
        on_request=lambda _: seen.append("on_request " + tenant.get()),
        on_response=lambda _: seen.append("on_response " + tenant.get()),
        on_retry=lambda *_: seen.append("on_retry " + tenant.get()),
        max_retries=1,
    )
    tenant.set("a")
    client.conversations.list().page()
    assert seen == ["on_request a", "transport a", "on_response a", "on_retry a", *seen[:3]]
    seen[:] = "...."
    tenant.set("b")
    for _ in client.conversations.list():
        tenant.set("c")
    assert seen[4:] == ["on_request b", "transport b", "on_response b"]
    assert tenant.get() == "c"


def test_calls_after_close_raise() -> None:
    client, script = blocking(ok())
    pager = client.conversations.list()
    items = iter(pager)
    pager.page()
    client.close()
    client.close()
    calls: list[Callable[[], object]] = [
        lambda: client.conversations.get("conv_1"),
        lambda: client.conversations.update("conv_1", metadata=None),
        lambda: client.with_options(timeout=1).conversations.get("conv_1"),
        lambda: next(items),
        pager.page,
    ]
    for call in calls:
        with pytest.raises(ClientClosedError):
            call()
    assert (script.closed, len(script.requests)) == (1, 1)


def test_with_block_closes_unless_the_client_is_derived() -> None:
    client, script = blocking(ok())
    with client.with_options(max_retries=0) as derived:
        derived.conversations.list().page()
    assert script.closed == 0

    def fail() -> None:
        with client as entered:
            assert entered is client
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert script.closed == 1


def test_close_during_a_call_of_another_thread() -> None:
    started, resume = threading.Event(), threading.Event()

    async def slowly(_: httpx.Request) -> httpx.Response:
        started.set()
        await anyio.to_thread.run_sync(resume.wait, 60)
        return ok()

    client, _script = blocking(slowly)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(client.conversations.list().page)
        assert started.wait(60)
        client.close()
        resume.set()
        assert len(running.result(60)) == 1
    with pytest.raises(ClientClosedError):
        client.conversations.list().page()


def test_wrong_argument_raises_before_anything_is_sent() -> None:
    client, script = blocking(ok(page(message())))
    for wrong in (
        lambda: client.conversations.list(limit=0),
        lambda: client.conversations.get(""),
        lambda: client.conversations.messages("conv_1", before="2025-06-30"),
        lambda: client.conversations.update("conv_1", metadata={"a": float("nan")}),
    ):
        with pytest.raises(ValueError, match=r"."):
            wrong()
    assert script.requests == []
