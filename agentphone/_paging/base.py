"""What every paginator shares: a generator of requests that is sent pages and releases items. Pure: no I/O, no clock."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Sequence
from typing import Generic, TypeVar

from agentphone.errors import PaginationError
from agentphone.models import Page

R = TypeVar("R")


T = TypeVar("T")


MAX_EMPTY_PAGES = 5
"""How many times in a row pages may bring nothing, before the walk says that the API goes in circles."""


class Paginator(Generic[R, T]):
    """One pass through a list."""

    def __init__(self) -> None:
        self._ready: list[T] = []
        self._failure: PaginationError | None = None
        self._steps = self._run()
        self._requests: Sequence[R] = next(self._steps)

    @abstractmethod
    def _run(self) -> Generator[Sequence[R], Sequence[Page[T]], None]:
        """Yield requests, be sent their pages, put what may go out into `_ready`."""

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to ask, and nothing wrong to tell."""
        return not self._requests and self._failure is None

    def next_requests(self) -> Sequence[R]:
        """Say what to ask; several may be in flight at once; none when the walk is over. Asking again is harmless.

        Raises:
            PaginationError: The pages contradict each other. Everything that could go out has gone out.
        """
        if self._failure is not None:
            raise self._failure
        return self._requests

    def receive(self, pages: Sequence[Page[T]]) -> Sequence[T]:
        """Take the pages that answer the requests, in their order, and give the items that may go out."""
        self._ready, self._requests = [], ()
        try:
            self._requests = self._steps.send(pages)
        except StopIteration:
            pass
        except PaginationError as error:
            self._failure = error
        return self._ready
