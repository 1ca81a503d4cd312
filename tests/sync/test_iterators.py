"""Blocking iterators and pagers: they send and return what the async ones do, and lose no item."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from agentphone import APIStatusError, AsyncClient, Client, Message, Page, _portal
from agentphone.sandbox import Sandbox
from tests.support.helpers import BASE, KEY, ok
from tests.support.processes import SECONDS
from tests.sync.blocking import blocking, listing


@pytest.fixture
def crossings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of the functions that run on the portal's thread."""
    seen: list[str] = []
    run = _portal.run

    def recording(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        seen.append(function.__qualname__)
        return run(function, *args, **kwargs)

    monkeypatch.setattr(_portal, "run", recording)
    return seen


def test_iterator_changes_threads_once_a_page(crossings: list[str]) -> None:
    client, script = blocking(listing(250))
    assert len(list(client.conversations.list(page_size=50))) == 250
    requests = len(script.requests)
    assert requests <= 6
    assert len(crossings) <= requests + 1  # and once more for the end

    crossings.clear()
    assert sum(len(found) for found in client.conversations.list(page_size=50).pages()) == 250
    assert len(crossings) <= requests + 1


def test_creating_pagers_and_iterators_changes_no_thread(crossings: list[str]) -> None:
    client, _script = blocking(ok())
    iter(client.with_options(timeout=1).conversations.list())
    client.conversations.messages("conv_1").pages()
    assert crossings == []


def test_exception_just_after_a_page_loses_no_item(monkeypatch: pytest.MonkeyPatch) -> None:
    client, script = blocking(listing(4))
    items = iter(client.conversations.list(page_size=2))
    run = _portal.run

    def interrupted(*args: Any) -> None:
        run(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_portal, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(items)
    assert [item.id for item in items] == [f"conv_{number}" for number in range(4)]
    assert len(script.requests) <= 3


def test_threads_stepping_one_iterator_lose_nothing() -> None:
    client, _script = blocking(listing(500))
    items = iter(client.conversations.list(page_size=1))
    refused: list[str] = []

    def work(_: int) -> list[str]:
        got = []
        while True:
            try:
                got.append(next(items).id)
            except StopIteration:
                return got
            except RuntimeError as error:
                refused.append(str(error))

    with ThreadPoolExecutor(4) as threads:
        got = [name for names in threads.map(work, range(4)) for name in names]
    assert sorted(got) == sorted(f"conv_{number}" for number in range(500))
    assert all("one at a time" in text for text in refused)


def test_page_read_by_another_thread_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both threads find no item left, and then read one after the other."""
    client, _script = blocking(listing(4))
    items = iter(client.conversations.list(page_size=2))
    run, lock, meet = _portal.run, threading.Lock(), threading.Barrier(2, timeout=SECONDS)

    def run_in_turn(*args: Any) -> None:
        meet.wait()
        with lock:
            run(*args)
        meet.wait()

    with monkeypatch.context() as patched, ThreadPoolExecutor(2) as threads:
        patched.setattr(_portal, "run", run_in_turn)
        first = [item.id for item in threads.map(next, [items, items])]
    assert sorted(first) == ["conv_0", "conv_1"]
    assert [item.id for item in items] == ["conv_2", "conv_3"]


def test_step_after_an_error_requests_the_page_again() -> None:
    client, script = blocking(listing(4), httpx.Response(500), listing(4), max_retries=0)
    items = iter(client.conversations.list(page_size=2))
    assert [next(items).id, next(items).id] == ["conv_0", "conv_1"]
    with pytest.raises(APIStatusError):
        next(items)
    assert [item.id for item in items] == ["conv_2", "conv_3"]
    assert script.targets[1] == script.targets[2]
    with pytest.raises(StopIteration):
        next(items)


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox() as box:
        box.load_demo_data()
        yield box


Outcome = tuple[list[Any], list[Page[Any]], Page[Any], list[str]]
"""The items, the pages, the first page, and the requests that were sent for them."""


LISTS: list[dict[str, Any]] = [
    {},
    {"page_size": 7},
    {"limit": 5},
    {"limit": 20, "page_size": 6},
    {"offset": 30},
    {"offset": 1000},
    {"limit": 9, "offset": 9, "page_size": 4},
]


MESSAGES: list[dict[str, Any]] = [  # a bound is the number of a message, counted from the newest
    {},
    {"page_size": 90},
    {"order": "asc"},
    {"order": "asc", "page_size": 100, "limit": 320},
    {"limit": 250},
    {"before": 300},
    {"after": 300},
    {"before": 100, "after": 400, "order": "asc"},
]


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [*(("list", arguments) for arguments in LISTS), *(("messages", arguments) for arguments in MESSAGES)],
    ids=repr,
)
def test_pager_matches_the_async_pager(kind: str, arguments: dict[str, Any], box: Sandbox) -> None:
    busiest, newest_first = long_conversation(box)
    bounds = {key: newest_first[value] for key, value in arguments.items() if key in ("before", "after")}

    def pager_of(client: Any) -> Any:
        if kind == "list":
            return client.conversations.list(**arguments)
        return client.conversations.messages(busiest, **arguments | bounds)

    async def expected() -> Outcome:
        sent: list[str] = []
        client = AsyncClient(
            KEY, base_url=BASE, transport=box.transport(), on_request=lambda r: sent.append(str(r.url))
        )
        pager = pager_of(client)
        items, pages = [item async for item in pager], [found async for found in pager.pages()]
        return items, pages, await pager.page(), sent

    sent: list[str] = []
    client = Client(KEY, base_url=BASE, transport=box.transport(), on_request=lambda r: sent.append(str(r.url)))
    pager = pager_of(client)
    assert (list(pager), list(pager.pages()), pager.page(), sent) == asyncio.run(expected())


def long_conversation(box: Sandbox) -> tuple[str, list[Message]]:
    """Return the id of the longest conversation, and its messages, newest first."""
    with Client(KEY, base_url=BASE, transport=box.transport()) as client:
        busiest = max(client.conversations.list(), key=lambda found: found.message_count or 0)
        return busiest.id, list(client.conversations.messages(busiest.id))


def test_iterating_over_an_async_generator_is_a_type_error() -> None:
    async def single() -> Any:
        yield 1

    with pytest.raises(TypeError, match="has no batches"):
        _portal.iterate(single())
