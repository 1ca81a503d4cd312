"""Exceptions of blocking calls: what hooks raise, tracebacks, pickling, no reference cycles, the recursion limit."""

from __future__ import annotations

import asyncio
import gc
import pickle
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentphone import Client, NotFoundError
from tests.support.helpers import conversation, ok
from tests.sync.blocking import blocking

CALLS: dict[str, Callable[[Client], object]] = {
    "get": lambda client: client.conversations.get("conv_1"),
    "page": lambda client: client.conversations.list().page(),
    "iterate": lambda client: list(client.conversations.list()),
    "pages": lambda client: next(client.conversations.list().pages()),
    "close": lambda client: client.close(),
}


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SystemExit(3), GeneratorExit, asyncio.CancelledError, ZeroDivisionError, MemoryError]
)
def test_exception_of_a_hook_reaches_the_caller(error: Any) -> None:
    raising = [error]
    client, script = blocking(ok(), on_request=lambda _: raise_(raising.pop()) if raising else None)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        client.conversations.list().page()
    assert script.requests == []
    assert len(client.conversations.list().page()) == 1


def raise_(error: Any) -> None:
    raise error


@pytest.mark.parametrize("name", ["get", "page", "iterate", "pages"])
def test_traceback_has_at_most_three_frames_of_the_facade(name: str) -> None:
    client, _script = blocking(httpx.Response(404, json={"detail": "no"}))
    with pytest.raises(NotFoundError) as caught:
        CALLS[name](client)
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
    assert files[-1].name in ("transport.py", "responses.py")
    assert caught.value.__context__ is None


def test_error_of_a_blocking_call_can_be_pickled() -> None:
    client, _script = blocking(httpx.Response(404, json={"detail": "no"}), max_retries=0)
    with pytest.raises(NotFoundError) as caught:
        client.conversations.get("conv_1")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.attempts) == (NotFoundError, str(caught.value), caught.value.attempts)


def test_error_of_a_blocking_call_makes_no_reference_cycle() -> None:
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
        end = time.monotonic() + 30  # the other thread may still refer to it for a moment
        while not freed and time.monotonic() < end:
            time.sleep(0.001)
        assert freed == ["freed"]
    finally:
        gc.enable()


def test_call_near_the_recursion_limit() -> None:
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
