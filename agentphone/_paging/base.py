"""What all paginators share: a generator that yields requests, receives their pages, and releases items.

Pure: no I/O and no clock. The code that sends the requests is in `_streams`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Sequence
from typing import Generic, TypeVar

from agentphone.errors import PaginationError
from agentphone.models import Page

R = TypeVar("R")
P = TypeVar("P")
T = TypeVar("T")

MAX_EMPTY_PAGES = 5
"""How many pages in a row may bring nothing new. After that, the API is considered to repeat itself."""


class BasePaginator(Generic[R, P, T]):
    """A state machine that reads a list. Its parameters: the type of the requests, of their pages, of the items."""

    def __init__(self) -> None:
        self._ready: list[T] = []
        self._error: PaginationError | None = None
        self._generator = self._paginate()
        self._requests: Sequence[R] = next(self._generator)

    @abstractmethod
    def _paginate(self) -> Generator[Sequence[R], Sequence[P], None]:
        """Yield requests, receive their pages, and append the items that are complete to `_ready`."""

    def next_requests(self) -> Sequence[R]:
        """Return the requests to send next. Calling it again returns the same requests.

        Raises:
            PaginationError: The pages contradict each other. All items that could be released were returned before.
        """
        if self._error is not None:
            raise self._error
        return self._requests

    def receive(self, pages: Sequence[P]) -> Sequence[T]:
        """Process the pages of the requests, in the order of the requests.

        Returns:
            The items that are ready, which may be none.
        """
        self._ready, self._requests = [], ()
        try:
            self._requests = self._generator.send(pages)
        except StopIteration:
            pass
        except PaginationError as error:
            self._error = error
        return self._ready


class Paginator(BasePaginator[R, Page[T], T]):
    """A paginator that ends: it reads a list once. Without requests it is over."""

    @property
    def is_over(self) -> bool:
        """True if there is nothing left to request, and no error to raise."""
        return not self._requests and self._error is None
