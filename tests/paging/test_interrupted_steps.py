"""A step that an exception interrupts never looks like the end of a pager: the next step raises an error."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import pytest

from agentphone import AsyncClient, _streams
from agentphone._paging import base, offset
from agentphone._paging.offset import OffsetPaginator
from tests.support.canned import CannedTransport

pytestmark = pytest.mark.anyio

PEOPLE, PAGE_SIZE = 5, 2


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def items_of(client: AsyncClient) -> Any:
    return aiter(client.conversations.list(page_size=PAGE_SIZE))


def pages_of(client: AsyncClient) -> Any:
    return client.conversations.list(page_size=PAGE_SIZE).pages()


@pytest.mark.parametrize("iterate", [items_of, pages_of])
async def test_interrupted_pager_raises_at_each_further_step(
    iterate: Callable[[AsyncClient], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    async with AsyncClient("key", transport=CannedTransport(PEOPLE, 1)) as client:
        stream = iterate(client)
        await anext(stream)
        with monkeypatch.context() as patched:
            patched.setattr(OffsetPaginator, "_record", interrupt)
            with pytest.raises(KeyboardInterrupt):
                await read(stream)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="Begin a new one"):
                await anext(stream)


class Interrupt:
    """Raises at one line of the pager's own code: the last of the next `after` that run.

    A line that runs for the third time is not counted: it does what it did the second time.
    """

    def __init__(self, after: int) -> None:
        self.left = after
        self.runs: Counter[tuple[CodeType, int]] = Counter()
        self.files = {module.__file__ for module in (_streams, base, offset)}

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        if not self._is_traced(frame.f_code):
            return None
        if event == "line":
            line = frame.f_code, frame.f_lineno
            self.runs[line] += 1
            self.left -= self.runs[line] <= 2
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self

    def _is_traced(self, code: CodeType) -> bool:
        return code.co_filename in self.files


async def read(stream: Any) -> list[Any]:
    return [item async for item in stream]


async def read_on(stream: Any, size: Callable[[Any], int]) -> tuple[int, bool]:
    """Return how many items a stream yields, and whether it raised an error instead of ending."""
    count = 0
    while True:
        try:
            count += size(await anext(stream))
        except KeyboardInterrupt:
            continue
        except StopAsyncIteration:
            return count, False
        except RuntimeError:
            return count, True


@pytest.mark.parametrize(("iterate", "lost", "size"), [(items_of, 1, lambda _: 1), (pages_of, PAGE_SIZE, len)])
async def test_interrupt_at_any_line_ends_no_pager_early(
    iterate: Callable[[AsyncClient], Any], lost: int, size: Callable[[Any], int]
) -> None:
    """At most what the interrupted step was about to return is missing, as with any iterator."""
    async with AsyncClient("key", transport=CannedTransport(PEOPLE, 1)) as client:
        after, errors = 0, 0
        while True:
            after += 1
            interrupt, previous, stream = Interrupt(after), sys.gettrace(), iterate(client)
            sys.settrace(interrupt)
            try:
                count, is_error = await read_on(stream, size)
            finally:
                sys.settrace(previous)
            assert is_error or count >= PEOPLE - lost, after
            errors += is_error
            if interrupt.left > 0:
                break
        assert errors > 10
        assert (count, is_error) == (PEOPLE, False)
