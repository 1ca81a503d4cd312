"""What a caller iterates over by `async for`: send the requests of a paginator, and yield its items."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Generic, Self, TypeVar

import anyio

from agentphone._hints import AsyncPagerHints
from agentphone._http.requests import RequestSpec
from agentphone._http.retry import min_poll_delay
from agentphone._http.transport import NO_COPY, Transport
from agentphone._paging.base import Paginator
from agentphone._paging.polling import LivePaginator, PollBackoff
from agentphone.errors import APIConnectionError, APIStatusError
from agentphone.models import Page

R = TypeVar("R")
T = TypeVar("T")
PageT = TypeVar("PageT")

STREAM_NO_COPY = (
    "An iterator cannot be copied or pickled: the copy and the original would take each other's items. Create a new"
    " one, which starts from the beginning, or pass the last message as `after` to continue from there."
)
INTERRUPTED = (
    "An exception (Ctrl-C, or one that a signal handler raised) interrupted this iteration in the middle of a step."
    " Some of its items may be lost. Begin a new one, for messages with after= the message that was handled last."
)


class AsyncStream(AsyncIterator[T]):
    """An async iterator that can be closed. It need not be: nothing runs between two steps.

    A class and not a generator, because a generator that is abandoned would need closing. The items come in batches,
    so that blocking code changes threads once a batch.
    """

    origin = ""
    """The method of `conversations` that created it; for warnings."""

    def __init__(self) -> None:
        self._items: Iterator[T] = iter(())
        self._scope: anyio.CancelScope | None = None
        """The step that is running."""
        self._is_closed = False
        self._is_receiving = False
        """True if a paginator has been given pages, and their items are not stored yet."""

    @abstractmethod
    async def _next_batch(self, store: Callable[[Iterable[T]], object]) -> None:
        """Store the next items, possibly none; raise StopAsyncIteration at the end."""

    async def next_batch(self, store: Callable[[Iterable[T]], object]) -> None:
        """Wait for the next items, and store all that have come.

        Args:
            store: Keeps the items. It is called before the step counts as complete: an exception in between would
                otherwise lose a batch, and the next step would continue after it or look like the end.

        Raises:
            StopAsyncIteration: The iteration has ended, or was closed.
            RuntimeError: Another task or thread is already waiting for them, or an exception interrupted a step.
        """
        if self._is_closed:
            raise StopAsyncIteration
        if self._scope is not None:  # a paginator would take two responses to one request for those to two
            raise RuntimeError(
                "This iterator is already waiting for a page, for another task or thread. Step it from one at a time,"
                " or create an iterator for each."
            )
        if self._is_receiving:
            raise RuntimeError(INTERRUPTED)
        try:
            with anyio.CancelScope() as self._scope:
                return await self._next_batch(store)
        finally:
            self._scope = None
        raise StopAsyncIteration  # closed meanwhile

    def __reduce__(self) -> str:
        raise TypeError(STREAM_NO_COPY)

    async def aclose(self) -> None:
        """End the iteration, also for a task that is waiting for its next item. Closing again does nothing."""
        self._is_closed = True
        self._items = iter(())
        if self._scope is not None:
            self._scope.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while True:
            for item in self._items:
                return item
            await self.next_batch(self._store)

    def _store(self, items: Iterable[T]) -> None:
        self._items = iter(items)


class AsyncPager(AsyncPagerHints, Generic[T]):
    """A list that is read on demand: iterate over its items or its pages, or await its first page.

    Creating one sends nothing. Each `async for` starts again at the beginning, and requests pages as it needs them.
    """

    def __init__(
        self, origin: str, first: Callable[[], Awaitable[Page[T]]], pages: Callable[[], AsyncStream[Page[T]]]
    ) -> None:
        self._origin = origin
        self._first = first
        self._pages = pages

    def __reduce__(self) -> str:
        raise TypeError(NO_COPY)

    def __aiter__(self) -> AsyncIterator[T]:
        """Iterate over the items, each once.

        Raises:
            PaginationError: The pages contradict each other, or more messages share one timestamp than fit in a page.
            AgentPhoneError: A page could not be read. The next step of the same iterator requests it again.
            ClientClosedError: The client was closed.
            RuntimeError: Two tasks or threads stepped the same iterator at once, which loses no item; or an exception
                interrupted a step.
        """
        stream = _ItemStream(self._pages())
        stream.origin = self._origin
        return stream

    def pages(self) -> AsyncIterator[Page[T]]:
        """Iterate over the items a page at a time.

        Returns:
            An iterator of pages that together hold each item once. Such a page may hold other items than the server's
            page did; its `has_more` is False for the last one.

        Raises:
            PaginationError: The pages contradict each other, or more messages share one timestamp than fit in a page.
            AgentPhoneError: A page could not be read. The next step of the same iterator requests it again.
            ClientClosedError: The client was closed.
            RuntimeError: Two tasks or threads stepped the same iterator at once, which loses no item; or an exception
                interrupted a step.
        """
        stream = self._pages()
        stream.origin = self._origin
        return stream

    async def page(self) -> Page[T]:
        """Read the server's first page, with one request.

        Returns:
            The page, in the server's order.

        Raises:
            APIConnectionError: No complete response was received.
            APIStatusError: The API returned an error status.
            ResponseDecodeError: The response does not match the API's schema.
            ClientClosedError: The client was closed, before or during the call.
        """
        return await self._first()

    def __await__(self) -> Generator[Any, Any, Page[T]]:
        return self.page().__await__()


class PageStream(AsyncStream[Page[T]], Generic[R, T]):
    """Send the requests of a paginator, and yield its items in pages."""

    def __init__(
        self,
        paginator: Paginator[R, T],
        spec: Callable[[R], RequestSpec[Page[T]]],
        transport: Transport,
        *,
        max_concurrency: int = 1,
    ) -> None:
        super().__init__()
        self._paginator = paginator
        self._spec = spec
        self._transport = transport
        self._max_concurrency = max_concurrency

    async def _next_batch(self, store: Callable[[Iterable[Page[T]]], object]) -> None:
        while requests := self._paginator.next_requests():
            specs = [self._spec(request) for request in requests]
            pages = await self._transport.send_all(specs, max_concurrency=self._max_concurrency)
            self._is_receiving = True
            items = tuple(self._paginator.receive(pages))
            is_over = self._paginator.is_over
            if items or is_over:
                store((Page(data=items, has_more=not is_over, total=pages[-1].total),))
            self._is_receiving = False
            if items or is_over:
                return
        raise StopAsyncIteration


class _ItemStream(AsyncStream[T]):
    """Yield the items of pages one by one."""

    def __init__(self, pages: AsyncStream[Page[T]]) -> None:
        super().__init__()
        self._pages = pages

    async def _next_batch(self, store: Callable[[Iterable[T]], object]) -> None:
        await self._pages.next_batch(lambda pages: store([item for page in pages for item in page]))


class PollingStream(AsyncStream[T], Generic[R, PageT, T]):
    """Send the requests of a live paginator, with delays between its polls, and retry what will clear by itself.

    Args:
        origin: The method of `conversations` that created it; for warnings.
        paginator: What to request.
        spec: Returns the call for a request.
        transport: Sends the calls.
        backoff: The delays between polls.
        default_on_not_found: Returns the page that replaces a 404 to a request; None raises the error.
    """

    def __init__(
        self,
        origin: str,
        paginator: LivePaginator[R, PageT, T],
        spec: Callable[[R], RequestSpec[PageT]],
        transport: Transport,
        backoff: PollBackoff,
        *,
        default_on_not_found: Callable[[R], PageT | None] = lambda _: None,
    ) -> None:
        super().__init__()
        self.origin = origin
        self._paginator = paginator
        self._spec = spec
        self._transport = transport
        self._backoff = backoff
        self._default_on_not_found = default_on_not_found
        self._poll_started_at: float | None = None
        self._resume_at = -math.inf
        """Nothing is sent before this time."""

    async def _next_batch(self, store: Callable[[Iterable[T]], object]) -> None:
        while True:
            requests = self._paginator.next_requests()
            if requests:
                await self._transport.sleep_until(self._resume_at)
                if self._poll_started_at is None:
                    self._poll_started_at = self._transport.clock()
                pages = await self._send(requests)
                self._is_receiving = True
                items = self._paginator.receive(pages)
                store(items)
                self._is_receiving = False
                if items:
                    return
            else:
                delay = self._backoff.next_delay(has_new=self._paginator.has_new)
                self._resume_at = (self._poll_started_at or 0.0) + delay
                self._poll_started_at = None
                self._is_receiving = True
                self._paginator.receive(())
                self._is_receiving = False

    async def _send(self, requests: Sequence[R]) -> Sequence[PageT]:
        specs = [self._spec(request) for request in requests]
        default = self._default_on_not_found(requests[0])
        while True:
            try:
                return await self._transport.send_all(specs, default_on_not_found=default)
            except (APIConnectionError, APIStatusError) as error:
                min_delay = min_poll_delay(error)
                if min_delay is None:
                    raise
                delay = max(min_delay, self._backoff.next_delay(has_new=False))
                self._resume_at = self._transport.clock() + delay
                self._transport.notify_retry(error, delay)
                await self._transport.sleep_until(self._resume_at)
