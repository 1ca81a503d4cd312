"""Pagers and streams: drive a paginator with requests, for iteration by `async for`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

# Now and not with asyncio: it registers with fork, and one that is under way would end in a complaint.
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar

import anyio

if TYPE_CHECKING:
    pass  # at run time with the first call: it takes as long to import as half of this package
import math
from collections.abc import Generator, Sequence

from agentphone._http.requests import RequestSpec
from agentphone._http.retry import is_retryable
from agentphone._http.transport import NO_COPY, Transport
from agentphone._paging.base import Paginator
from agentphone._paging.follow import FollowPaginator
from agentphone._paging.polling import PollBackoff
from agentphone._paging.requests import MessagesRequest
from agentphone._paging.watch import GONE, WatchPaginator
from agentphone.errors import APIConnectionError, APIStatusError, DeadlineExceededError
from agentphone.models import Page

P = ParamSpec("P")


T = TypeVar("T")


_NO_COPY = (
    "An iterator cannot be copied or pickled: the copy and the original would take each other's items. Make a new one,"
    " which starts from the beginning, or with `after` from where this one was."
)


class AsyncStream(AsyncIterator[T]):
    """An async iterator that can be closed, and need not be: between two steps nothing runs.

    Its items come in batches, so that the blocking face changes threads once a batch. A class and not a generator: a
    generator that is dropped half-way would need closing.
    """

    def __init__(self) -> None:
        self._items: Iterator[T] = iter(())
        self._at_work: anyio.CancelScope | None = None
        self._is_closed = False

    @abstractmethod
    async def _next_batch(self) -> Iterable[T]:
        """Give the next items, which may be none; raise StopAsyncIteration at the end."""

    async def next_batch(self) -> Iterable[T]:
        """Wait for the next items and give all that have come.

        Raises:
            StopAsyncIteration: The iteration has ended, or was closed.
            RuntimeError: Another task or thread waits for them already.
        """
        if self._is_closed:
            raise StopAsyncIteration
        if self._at_work is not None:  # two answers to one request would pass for the answers to two
            raise RuntimeError(
                "This iterator is waiting for a page already, for another task or thread. Step it from one at a time,"
                " or give each an iterator of its own."
            )
        try:
            with anyio.CancelScope() as self._at_work:
                return await self._next_batch()
        finally:
            self._at_work = None
        raise StopAsyncIteration  # it was closed meanwhile

    def __reduce__(self) -> str:
        raise TypeError(_NO_COPY)

    async def aclose(self) -> None:
        """End the iteration, also for a task that waits for its next item. Closing again does nothing."""
        self._is_closed = True
        self._items = iter(())
        if self._at_work is not None:
            self._at_work.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while True:
            for item in self._items:
                return item
            self._items = iter(await self.next_batch())


R = TypeVar("R")


INTERRUPTED = (
    "An exception (Ctrl-C, or one of a debugger's) broke this iteration off in the middle of a step. Begin a new one"
    " with after= the message that was handled last."
)


MAX_POLL_RETRY_AFTER = 3600.0
"""The longest `Retry-After`, in seconds, that a live iteration waits for; it has nothing better to do."""


class AsyncPager(Generic[T]):
    """A list that has not been read yet: iterate over its items or its pages, or await its first page.

    Making one sends nothing. Each `async for` is a new walk from the start, and asks for a page when it needs it.
    """

    def __init__(self, first: Callable[[], Awaitable[Page[T]]], paginator: Callable[[], AsyncStream[Page[T]]]) -> None:
        self._first = first
        self._run = paginator

    def __reduce__(self) -> str:
        raise TypeError(NO_COPY)

    def __aiter__(self) -> AsyncIterator[T]:
        """Iterate over the items, each once.

        Raises:
            PaginationError: The pages contradict each other, or one instant holds more messages than a page can.
            AgentPhoneError: A page could not be read; the next step of the same iterator asks for it again.
            RuntimeError: Two tasks or threads stepped the same iterator at once; nothing is lost by it.
        """
        return _ItemStream(self._run())

    def pages(self) -> AsyncIterator[Page[T]]:
        """Iterate over the items a page at a time.

        Returns:
            An iterator of pages as the walk hands them out, each item once. Such a page may hold other items than the
            server's page did; `has_more` says whether the walk goes on.

        Raises:
            PaginationError: The pages contradict each other, or one instant holds more messages than a page can.
            AgentPhoneError: A page could not be read; the next step of the same iterator asks for it again.
            RuntimeError: Two tasks or threads stepped the same iterator at once; nothing is lost by it.
        """
        return self._run()

    async def page(self) -> Page[T]:
        """Read the first page as the server gives it, with one request.

        Returns:
            The page, in the server's order.

        Raises:
            APIConnectionError: No whole answer came.
            APIStatusError: The API said no.
            ResponseDecodeError: The answer is not what the API promises.
        """
        return await self._first()

    def __await__(self) -> Generator[Any, Any, Page[T]]:
        return self.page().__await__()


class _PageStream(AsyncStream[Page[T]]):
    """Drive one walk: ask for what it wants, hand it the answers. Nothing runs between two steps."""

    def __init__(
        self,
        paginator: Paginator[R, T],
        spec: Callable[[R], RequestSpec[Page[T]]],
        transport: Transport,
        *,
        max_concurrency: int = 1,
    ) -> None:
        super().__init__()
        self._run = paginator
        self._call = spec
        self._transport = transport
        self._at_once = max_concurrency

    async def _next_batch(self) -> tuple[Page[T]]:
        while requests := self._run.next_requests():
            specs = [self._call(request) for request in requests]
            pages = await self._transport.send_all(specs, max_concurrency=self._at_once)
            items = tuple(self._run.receive(pages))
            if items or self._run.is_over:
                return (Page(data=items, has_more=not self._run.is_over, total=pages[-1].total),)
        raise StopAsyncIteration


class _ItemStream(AsyncStream[T]):
    """Give the items of the pages one by one."""

    def __init__(self, pages: AsyncStream[Page[T]]) -> None:
        super().__init__()
        self._pages = pages

    async def _next_batch(self) -> list[T]:
        return [item for page in await self._pages.next_batch() for item in page]


class _PollingStream(AsyncStream[T]):
    """Drive a live walk: as `_Pages` does, with rests between its polls, and outlasting what passes."""

    def __init__(
        self,
        paginator: FollowPaginator | WatchPaginator,
        spec: Callable[[Any], RequestSpec[Page[Any]]],
        transport: Transport,
        backoff: PollBackoff,
    ) -> None:
        super().__init__()
        self._run = paginator
        self._call = spec
        self._transport = transport
        self._poll_backoff = backoff
        self._began_at: float | None = None
        """When the poll began that is under way."""
        self._resume_at = -math.inf
        """Before this nothing is sent."""

    async def _next_batch(self) -> Sequence[T]:
        while True:
            requests: Sequence[Any] = self._run.next_requests()
            if requests:
                await self._transport.sleep_until(self._resume_at)
                if self._began_at is None:
                    self._began_at = self._transport.clock()
                items: Sequence[Any] = self._run.receive(await self._ask(requests))
                if items:
                    return items
            else:
                next_delay = self._poll_backoff.next_delay(has_new=self._run.has_new)
                self._resume_at = (self._began_at or 0.0) + next_delay
                self._began_at = None
                self._run.receive(())
                if not self._run.next_requests():
                    raise RuntimeError(INTERRUPTED)

    async def _ask(self, requests: Sequence[Any]) -> Sequence[Page[Any]]:
        # A conversation may have gone since the list showed it. Only then: where the list itself is not found, the
        # base URL is wrong, or the API is at fault.
        default_on_not_found = GONE if isinstance(requests[0], MessagesRequest) else None
        while True:
            try:
                return await self._transport.send_all(
                    list(map(self._call, requests)), default_on_not_found=default_on_not_found
                )
            except (APIConnectionError, APIStatusError) as error:
                retry_after = getattr(error, "retry_after", None) or 0.0
                is_passing = is_retryable(error) or isinstance(error, DeadlineExceededError)
                if not is_passing or retry_after > MAX_POLL_RETRY_AFTER:
                    raise
                delay = max(retry_after, self._poll_backoff.next_delay(has_new=False))
                self._resume_at = self._transport.clock() + delay
                self._transport.notify_retry(error, delay)
                await self._transport.sleep_until(self._resume_at)
