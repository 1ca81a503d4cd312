"""The blocking face inside one process: threads, event loops, context, iterators, tracebacks, exceptions from hooks.

What needs a process of its own (exit, fork, signals) is in `test_blocking_processes`.
"""

from __future__ import annotations

import asyncio
import gc
import pickle
import random
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from agentphone import (
    APIStatusError,
    AsyncClient,
    Client,
    ClientClosedError,
    Message,
    NotFoundError,
    Page,
    _portal,
)
from agentphone.sandbox import Sandbox
from tests.conftest import Server
from tests.support.helpers import BASE, KEY, Scripted, conversation, message, ok, page

PERSON = "+15555550110"


def blocking(*steps: Any, **settings: Any) -> tuple[Client, Scripted]:
    """Make a blocking client that talks to a script, and give both."""
    script = Scripted(*steps)
    return Client(KEY, base_url=BASE, transport=script, **settings), script


@pytest.fixture
def crossings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record by name what is run on the portal's thread."""
    seen: list[str] = []
    run = _portal.run

    def recording(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        seen.append(function.__qualname__)
        return run(function, *args, **kwargs)

    monkeypatch.setattr(_portal, "run", recording)
    return seen


# ---- Threads


def test_32_threads_share_one_client_and_no_answer_goes_to_another(server: Server) -> None:
    ids = [
        server.box.receive_sms(from_number=f"+1555000{number:04}", to_number="+15550001111", body=str(number))[
            "conversationId"
        ]
        for number in range(32)
    ]
    wrong: list[str] = []
    start = threading.Barrier(32, timeout=60)

    def work(number: int) -> None:
        source = random.Random(number)
        start.wait()
        for turn in range(157):
            asked = source.randrange(32)
            found = client.conversations.get(ids[asked], message_limit=1)
            if (found.id, found.messages[0].body) != (ids[asked], str(asked)):
                wrong.append(f"thread {number}, turn {turn}: asked for {asked}, got {found}")

    with Client(KEY, base_url=server.url) as client, ThreadPoolExecutor(32) as threads:
        list(threads.map(work, range(32)))
    assert wrong == []


def test_an_iterator_begun_in_one_thread_goes_on_and_is_dropped_in_another() -> None:
    client, script = blocking(listing(3))
    walk = iter(client.conversations.list(page_size=2))
    assert next(walk).id == "conv_0"

    def finish(walk: Iterator[Any]) -> list[str]:
        rest = [next(walk).id, next(walk).id]
        del walk
        return rest

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(finish, walk).result() == ["conv_1", "conv_2"]
        threads.submit(lambda begun: next(begun), iter(client.conversations.list())).result()
    del walk
    gc.collect()  # a generator left half-read would complain here
    assert [request.url.params["offset"] for request in script.requests][:2] == ["0", "2"]


def test_one_async_client_in_many_short_event_loops_of_many_threads(server: Server) -> None:
    # As Django runs async views under a threaded WSGI server: a loop for each request.
    client = AsyncClient(KEY, base_url=server.url)

    async def use() -> None:
        await client.conversations.list(limit=1)

    def work(_: int) -> None:
        for _ in range(30):
            asyncio.run(use())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads meet where they rarely do
    try:
        with ThreadPoolExecutor(12) as threads:
            list(threads.map(work, range(12)))
    finally:
        sys.setswitchinterval(interval)


# ---- What the caller has set is seen


def test_the_callers_context_is_seen_by_transports_and_hooks() -> None:
    tenant: ContextVar[str] = ContextVar("tenant")
    seen: list[str] = []

    async def answer(_: httpx.Request) -> httpx.Response:
        seen.append("transport " + tenant.get())
        return httpx.Response(503) if len(seen) < 4 else ok()

    client, _script = blocking(
        answer,
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


# ---- An event loop runs in this thread

LINE: dict[str, Callable[[Client], object]] = {
    "get": lambda client: client.conversations.get("conv_1"),
    "page": lambda client: client.conversations.list().page(),
    "iterate": lambda client: list(client.conversations.list()),
    "pages": lambda client: next(client.conversations.list().pages()),
    "close": lambda client: client.close(),
}
NAMED = {
    "get": "await AsyncConversations.get ",
    "page": "await AsyncPager.page ",
    "iterate": "`async for`",
    "pages": "`async for`",
    "close": "await AsyncClient.aclose ",
}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("name", LINE)
def test_a_blocking_call_on_a_running_loop_works_and_warns_once_of_its_line(name: str, backend: str) -> None:
    answer = ok(conversation() | {"messages": []}) if name == "get" else ok()

    async def main() -> None:
        client, script = blocking(answer)
        for _ in range(3):
            LINE[name](client)
        assert len(script.requests) == (0 if name == "close" else 3)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        vars(sys.modules[__name__]).pop("__warningregistry__", None)
        anyio.run(main, backend=backend)
    assert [(warning.filename, warning.category) for warning in caught] == [(__file__, RuntimeWarning)]
    assert caught[0].lineno == LINE[name].__code__.co_firstlineno
    assert NAMED[name] in str(caught[0].message)


def test_leaving_the_block_on_a_running_loop_warns_of_that_too() -> None:
    async def main() -> None:
        with blocking(ok())[0]:
            pass

    with pytest.warns(RuntimeWarning, match="use `async with`") as caught:
        anyio.run(main)
    assert [warning.filename for warning in caught] == [__file__]


def test_a_callback_of_the_loop_warns_too() -> None:
    client, script = blocking(ok())

    async def main() -> None:
        asyncio.get_running_loop().call_soon(client.conversations.list().page)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    with pytest.warns(RuntimeWarning, match="await AsyncPager.page"):
        asyncio.run(main())
    assert len(script.requests) == 1


def test_the_warning_is_of_the_users_line_though_his_folder_is_called_nearly_as_ours() -> None:
    package = str(Path(_portal.__file__).parent)
    scope: dict[str, Any] = {"client": blocking(ok())[0]}
    exec(compile("async def main(): client.conversations.list().page()", f"{package}_shop/views.py", "exec"), scope)
    with pytest.warns(RuntimeWarning, match="await AsyncPager.page") as caught:
        asyncio.run(scope["main"]())
    assert [Path(warning.filename).name for warning in caught] == ["views.py"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_no_warning_in_a_worker_thread_of_a_loop(backend: str) -> None:
    client, script = blocking(ok())

    async def main() -> None:
        await anyio.to_thread.run_sync(client.conversations.list().page)

    anyio.run(main, backend=backend)
    assert len(script.requests) == 1


@pytest.mark.parametrize("where", ["on_request", "on_response", "on_retry", "transport"])
@pytest.mark.parametrize("name", ["get", "iterate"])
def test_a_blocking_call_inside_the_own_loop_raises_at_once(where: str, name: str) -> None:
    def hook(*_: Any) -> None:
        LINE[name](client)

    async def send(_: httpx.Request) -> httpx.Response:
        LINE[name](client)
        return ok()

    settings = {} if where == "transport" else {where: hook}
    step: Any = {"transport": send, "on_retry": httpx.Response(503)}.get(where, ok())
    client, _script = blocking(step, **settings)
    with pytest.raises(RuntimeError, match="inside the SDK's own event loop"):
        client.conversations.list().page()
    with pytest.raises(RuntimeError, match=NAMED[name].strip()):
        client.conversations.list().page()


def test_a_blocking_call_in_a_callback_inside_the_own_loop_raises_at_once() -> None:
    raised: list[BaseException] = []

    def callback() -> None:
        try:
            client.conversations.list().page()
        except RuntimeError as error:
            raised.append(error)

    client, _script = blocking(ok(), on_request=lambda _: asyncio.get_running_loop().call_soon(callback))
    client.conversations.list().page()
    blocking(ok())[0].conversations.list().page()  # the callback has run by now
    assert "own event loop" in str(raised[0])


# ---- Exceptions


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SystemExit(3), GeneratorExit, asyncio.CancelledError, ZeroDivisionError, MemoryError]
)
def test_whatever_a_hook_raises_reaches_the_caller_and_the_loop_lives_on(error: Any) -> None:
    raising = [error]
    client, script = blocking(ok(), on_request=lambda _: raise_(raising.pop()) if raising else None)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        client.conversations.list().page()
    assert script.requests == []
    assert len(client.conversations.list().page()) == 1


def raise_(error: Any) -> None:
    raise error


@pytest.mark.parametrize("name", ["get", "page", "iterate", "pages"])
def test_a_traceback_has_three_frames_of_facade_below_the_callers_line_at_most(name: str) -> None:
    client, _script = blocking(httpx.Response(404, json={"detail": "no"}))
    with pytest.raises(NotFoundError) as caught:
        LINE[name](client)
    files = [Path(frame.filename) for frame in traceback.extract_tb(caught.value.__traceback__)]
    while files[0] == Path(__file__):
        del files[0]
    between = Counter(
        "facade"
        if file.name in ("_sync.py", "_portal.py") or {"anyio", "asyncio", "concurrent"} & {*file.parts}
        else ""
        for file in files
    )
    assert between["facade"] <= 3
    assert files[-1].name == "_transport.py" or files[-1].name == "_wire.py"
    assert caught.value.__context__ is None


def test_an_error_of_a_blocking_call_goes_through_pickle() -> None:
    client, _script = blocking(httpx.Response(404, json={"detail": "no"}), max_retries=0)
    with pytest.raises(NotFoundError) as caught:
        client.conversations.get("conv_1")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.attempts) == (NotFoundError, str(caught.value), caught.value.attempts)


def test_an_error_of_a_blocking_call_is_freed_without_the_garbage_collector() -> None:
    freed: list[str] = []

    class Witness:
        def __del__(self) -> None:
            freed.append("freed")

    def fail() -> None:
        client, _script = blocking(httpx.Response(404))
        witness = Witness()  # noqa: F841  # held by the traceback's frame
        with suppress(NotFoundError):
            client.conversations.get("conv_1")

    gc.collect()
    gc.disable()
    try:
        fail()
        end = time.monotonic() + 30  # the other thread may still be letting go of it
        while not freed and time.monotonic() < end:
            time.sleep(0.001)
        assert freed == ["freed"]
    finally:
        gc.enable()


def test_near_the_recursion_limit_a_call_works_or_raises_and_the_next_one_works() -> None:
    client, _script = blocking(ok(conversation() | {"messages": []}))
    outcomes: Counter[str] = Counter()

    def deep(left: int) -> None:
        if left:
            deep(left - 1)
        else:
            client.conversations.get("conv_1")

    frames = 0
    frame = sys._getframe()
    while frame.f_back is not None:
        frames, frame = frames + 1, frame.f_back
    for left in range(sys.getrecursionlimit() - frames - 40, sys.getrecursionlimit() - frames + 2):
        try:
            deep(left)
            outcomes["works"] += 1
        except RecursionError:
            outcomes["raises"] += 1
        assert client.conversations.get("conv_1").id == "conv_1"
    assert set(outcomes) == {"works", "raises"}


# ---- Closing


def test_after_close_each_call_raises_and_closing_again_does_nothing() -> None:
    client, script = blocking(ok())
    pager = client.conversations.list()
    walk = iter(pager)
    pager.page()
    client.close()
    client.close()
    calls: list[Callable[[], object]] = [
        lambda: client.conversations.get("conv_1"),
        lambda: client.conversations.update("conv_1", metadata=None),
        lambda: client.with_options(timeout=1).conversations.get("conv_1"),
        lambda: next(walk),
        pager.page,
    ]
    for call in calls:
        with pytest.raises(ClientClosedError):
            call()
    assert (script.closed, len(script.requests)) == (1, 1)


def test_a_block_closes_also_after_an_error_and_a_derived_client_closes_nothing() -> None:
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


def test_closing_in_one_thread_ends_no_other_threads_client_and_no_call_hangs() -> None:
    began, resume = threading.Event(), threading.Event()

    async def slowly(_: httpx.Request) -> httpx.Response:
        began.set()
        await anyio.to_thread.run_sync(resume.wait, 60)
        return ok()

    client, _script = blocking(slowly)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(client.conversations.list().page)
        assert began.wait(60)
        client.close()
        resume.set()
        assert len(running.result(60)) == 1
    with pytest.raises(ClientClosedError):
        client.conversations.list().page()


# ---- Iterators and pagers


def listing(count: int) -> Callable[[httpx.Request], Awaitable[httpx.Response]]:
    """Give a step that answers as a list of conversations called conv_0, conv_1, ... does."""

    async def answer(request: httpx.Request) -> httpx.Response:
        limit, offset = int(request.url.params["limit"]), int(request.url.params["offset"])
        numbers = range(offset, min(offset + limit, count))
        items = [conversation(id=f"conv_{number}") for number in numbers]
        return ok(page(*items, has_more=offset + limit < count, total=count))

    return answer


def test_an_iterator_crosses_the_threads_once_a_page(crossings: list[str]) -> None:
    client, script = blocking(listing(250))
    assert len(list(client.conversations.list(page_size=50))) == 250
    requests = len(script.requests)
    assert requests <= 6
    assert len(crossings) <= requests + 1  # and once more to learn that it is over

    crossings.clear()
    assert sum(len(found) for found in client.conversations.list(page_size=50).pages()) == 250
    assert len(crossings) <= requests + 1


def test_making_clients_pagers_and_iterators_crosses_nothing(crossings: list[str]) -> None:
    client, _script = blocking(ok())
    iter(client.with_options(timeout=1).conversations.list())
    client.conversations.messages("conv_1").pages()
    assert crossings == []


def test_an_exception_just_after_a_page_has_come_loses_no_item(monkeypatch: pytest.MonkeyPatch) -> None:
    client, script = blocking(listing(4))
    walk = iter(client.conversations.list(page_size=2))
    run = _portal.run

    def interrupted(*args: Any) -> None:
        run(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_portal, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(walk)
    assert [item.id for item in walk] == [f"conv_{number}" for number in range(4)]
    assert len(script.requests) <= 3


def test_threads_that_step_one_iterator_at_once_are_told_and_lose_nothing() -> None:
    client, _script = blocking(listing(500))
    walk = iter(client.conversations.list(page_size=1))
    told: list[str] = []

    def work(_: int) -> list[str]:
        got = []
        while True:
            try:
                got.append(next(walk).id)
            except StopIteration:
                return got
            except RuntimeError as error:
                told.append(str(error))

    with ThreadPoolExecutor(4) as threads:
        got = [name for names in threads.map(work, range(4)) for name in names]
    assert sorted(got) == sorted(f"conv_{number}" for number in range(500))
    assert all("one at a time" in text for text in told)


def test_what_another_thread_has_just_brought_is_not_brushed_aside() -> None:
    client, _script = blocking(listing(4))
    walk: Any = iter(client.conversations.list(page_size=2))
    for _ in range(2):  # both threads have found nothing left, and step one after the other
        _portal.run(walk._advance)
    assert [item.id for item in walk] == [f"conv_{number}" for number in range(4)]


def test_after_an_error_the_next_step_asks_for_the_page_again() -> None:
    client, script = blocking(listing(4), httpx.Response(500), listing(4), max_retries=0)
    walk = iter(client.conversations.list(page_size=2))
    assert [next(walk).id, next(walk).id] == ["conv_0", "conv_1"]
    with pytest.raises(APIStatusError):
        next(walk)
    assert [item.id for item in walk] == ["conv_2", "conv_3"]
    assert script.targets[1] == script.targets[2]
    with pytest.raises(StopIteration):
        next(walk)


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox() as box:
        box.load_demo_data()
        yield box


Walked = tuple[list[Any], list[Page[Any]], Page[Any], list[str]]
"""The items, the pages, the first page, and what was sent for them."""

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
def test_a_pager_gives_and_sends_what_the_async_one_does(kind: str, arguments: dict[str, Any], box: Sandbox) -> None:
    busiest, newest_first = long_conversation(box)
    bounds = {key: newest_first[value] for key, value in arguments.items() if key in ("before", "after")}

    def pager_of(client: Any) -> Any:
        if kind == "list":
            return client.conversations.list(**arguments)
        return client.conversations.messages(busiest, **arguments | bounds)

    async def expected() -> Walked:
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
    """Give the id of the longest conversation, and its messages from the newest to the oldest."""
    with Client(KEY, base_url=BASE, transport=box.transport()) as client:
        busiest = max(client.conversations.list(), key=lambda found: found.message_count or 0)
        return busiest.id, list(client.conversations.messages(busiest.id))


def test_only_batched_iterators_can_be_iterated_from_blocking_code() -> None:
    async def single() -> Any:
        yield 1

    with pytest.raises(TypeError, match="has no batches"):
        _portal.iterate(single())


def test_a_wrong_argument_raises_before_anything_is_sent() -> None:
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
