"""Page through the list of conversations by offset while the list moves."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from datetime import datetime
from typing import TypeVar

from attrs import define, field, frozen

from agentphone._paging.base import MAX_EMPTY_PAGES, Paginator
from agentphone.errors import PaginationError
from agentphone.models import Conversation, Page

R = TypeVar("R")


T = TypeVar("T")


MAX_CONVERSATIONS = 100


PREFETCH_FACTOR = 8
"""How many times as many pages are planned at a time as may be in flight at once. So the next one goes out as soon as
one is there, and all of them wait for the slowest more seldom."""


READINGS = 3
"""How many times a list that moves all the time is read as a whole, at most."""


@frozen(kw_only=True)
class OffsetRequest:
    """One page of a list that is read by offset."""

    limit: int
    offset: int


OffsetSteps = Generator[Sequence[OffsetRequest], Sequence[Page[Conversation]], T]


Fingerprint = tuple[str, datetime | None, int | None]


@define
class ListPass:
    """What one way through the list, from its front, has shown."""

    size: int
    concurrency: int = 1
    low_watermark: datetime | None = None
    """Where a second look at the front may end: at conversations whose last message is older."""
    is_overlapping: bool = False
    """Whether each page begins with the last item of the one before, also where a total would show deletions."""
    began_at: datetime | None = None
    """The server's time when it began: that of the newest message then."""
    front: list[Fingerprint] = field(factory=list)
    """What stood at the front of the list, as many as a page can hold."""
    requests: int = 0
    has_moved: bool = False
    total: int | None = None
    """How many conversations the API counted last."""
    gone: int = 0
    """By how much that has fallen in all: some of those that were read may have disappeared."""
    fingerprints: dict[str, Fingerprint] = field(factory=dict)
    """What it has read, as it was then, by id."""


class OffsetPaginator(Paginator[OffsetRequest, Conversation]):
    """Walk the conversations, most recent activity first, while the list moves.

    What moves: a message brings its conversation to the front, and those above its old place down by one; a new
    conversation does that to all; one that disappears brings those below it up. A message that is shown late brings
    its conversation to a place in the middle. So:

    - What moves down is read twice, and goes out once: ids are remembered.
    - What moves up could be missed: `total` falls by as much, and the walk steps back by that. Where the API gives no
      total, each page begins with the last item of the one before.
    - What jumps to the front unseen is found by reading the front again, down to a conversation that is as it was: all
      that jumped stand above it. It must also be older than the newest message was when the walk began: one that is
      dated in the future stays above those that jump. When that takes more than one request it is itself a walk, and
      is done again.
    - What moves to the middle unseen leaves a trace: something was read twice, or `total` has changed. If fewer
      conversations are known after that than `total` counts, or there is no total, the list is read again as a whole,
      with pages that overlap: up to `READINGS` times, for a list that never stands still must come to an end.

    What this assumes: a conversation that changes its place changes its date or its count of messages. Fewer of them
    do so between two requests than half a page holds. None moves to the middle, past the walk, in every reading. And
    where some do: between the same two answers conversations begin or disappear, not both, for only the total tells of
    them; without a total, nothing moves to the middle between two answers in which another disappears.

    With a `floor` it ends at conversations whose last message is older than that.
    """

    def __init__(
        self,
        *,
        limit: int | None,
        offset: int,
        page_size: int,
        concurrency: int = 1,
        low_watermark: datetime | None = None,
    ) -> None:
        self._left = limit
        self._start = offset
        self._page_size = page_size
        self._concurrency = concurrency
        self._low_watermark = low_watermark
        self._given: set[str] = set()
        self._held: dict[str, Conversation] = {}
        """What was read on a page that is to be read again, and has not gone out yet."""
        self._largest = 0
        """How many the largest page held."""
        self._most = MAX_CONVERSATIONS
        """How many the API gives at once."""
        super().__init__()

    def _run(self) -> OffsetSteps[None]:
        is_promised = self._left is None and self._start == 0
        for behavior in range(READINGS):
            is_again = behavior > 0
            list_pass = yield from self._list_pass(
                ListPass(self._page_size, self._concurrency, is_overlapping=is_again)
            )
            if not is_promised or list_pass.requests == 1:
                return
            # Pages in flight at once are read in any order: only when they overlap do they show all that moves.
            if (yield from self._look_again(list_pass, is_sure=is_again or self._concurrency == 1)):
                return

    def _look_again(self, list_pass: ListPass, *, is_sure: bool) -> OffsetSteps[bool]:
        """Find at the front of the list what has jumped there; say whether nothing can be missing then."""
        known = dict(list_pass.fingerprints)
        head, stalled = list_pass, 0
        while head is list_pass or (head.requests > 1 and stalled < MAX_EMPTY_PAGES):
            before = head
            head = ListPass(MAX_CONVERSATIONS, low_watermark=before.began_at, total=before.total, gone=before.gone)
            yield from self._list_pass(head, front=before.front, known=known)
            # A list this busy may never be caught up with.
            stalled += head.requests >= before.requests
            if not is_sure:
                return not (list_pass.has_moved or head.has_moved)
            known |= head.fingerprints
        if self._low_watermark is not None or not list_pass.has_moved:
            return True
        return head.total is not None and len(known) >= head.total + head.gone

    def _list_pass(
        self, list_pass: ListPass, front: list[Fingerprint] | None = None, known: dict[str, Fingerprint] | None = None
    ) -> OffsetSteps[ListPass]:
        """Go through the list from its front; stop at once where the front is still `front`.

        With `known`, which is what was read before, it ends only at a conversation that has not changed since.
        """
        offset = reached = self._start
        back = idle = 0
        while self._left != 0:
            requests = self._plan(list_pass, offset, back, idle)
            pages = yield requests
            self._held.update((item.id, item) for page in pages for item in page.data)
            idle_before = idle
            for request, page in zip(requests, pages, strict=True):
                is_first = list_pass.requests == 0
                list_pass.requests += 1
                total, list_pass.total = list_pass.total, page.total
                fallen = 0 if total is None or page.total is None else max(0, total - page.total)
                list_pass.gone += fallen
                list_pass.has_moved |= not is_first and page.total != total
                fresh = [item for item in page.data if item.id not in list_pass.fingerprints]
                if not fresh and not back and request.offset + request.limit > reached:
                    # Once for all that were in flight at once: when the list moves, several of them bring nothing.
                    idle, list_pass.size = min(idle, idle_before) + 1, MAX_CONVERSATIONS
                    self._check_progress(request, page, idle)
                if request.offset > self._start and (fallen or not _continues(list_pass, request, page, offset)):
                    # Items have moved up behind the walk's back: read this page again, from further ahead.
                    list_pass.has_moved = True
                    offset, back = request.offset, max(fallen, 2 * back, 1)
                    break
                back = 0
                asked_again = max(0, offset - request.offset)
                list_pass.has_moved |= len(fresh) < len(page.data) - asked_again
                self._take(list_pass, page)
                if is_first:
                    list_pass.began_at = max(
                        (item.last_message_at for item in page.data if item.last_message_at), default=None
                    )
                    if front is not None:
                        list_pass.has_moved = list_pass.front != front[: len(list_pass.front)]
                        if not list_pass.has_moved:
                            return list_pass
                offset = request.offset + len(page.data)
                reached = max(reached, offset)
                idle = 0 if fresh else idle
                # A total that says more than hasMore is followed as long as that brings anything.
                is_last = not page.has_more and (page.total is None or offset >= page.total or not fresh)
                if is_last or any(self._ends_at(item, list_pass, known) for item in page.data):
                    return list_pass
                self._largest = max(self._largest, len(page.data))
                if len(page.data) < request.limit:
                    if page.has_more and page.data:
                        self._most = self._largest
                    break  # shorter than asked for: the pages behind it, asked for at once, would leave a gap
        return list_pass

    def _ends_at(self, item: Conversation, list_pass: ListPass, known: dict[str, Fingerprint] | None) -> bool:
        """Whether a sweep may end at the page that holds this conversation."""
        if known is None or _is_older(item, self._low_watermark):
            return _is_older(item, self._low_watermark)
        is_old = (
            item.last_message_at is not None
            if list_pass.low_watermark is None
            else _is_older(item, list_pass.low_watermark)
        )
        return is_old and known.get(item.id) == fingerprint(item)

    def _plan(self, list_pass: ListPass, offset: int, back: int, idle: int) -> list[OffsetRequest]:
        """Say what to ask from `offset` on, or from `back` before it."""
        total = list_pass.total
        overlap = 1 if list_pass.requests > 0 and (total is None or list_pass.is_overlapping) else 0
        requests: list[OffsetRequest] = []
        end = offset
        most = list_pass.concurrency * (1 if idle or list_pass.concurrency == 1 else PREFETCH_FACTOR)
        while not requests or (len(requests) < most and total is not None and end < total):
            wanted = list_pass.size if self._left is None else min(list_pass.size, self._left - (end - offset))
            if wanted <= 0:
                break
            if idle:
                wanted = list_pass.size  # the few that `limit` wants may move away as fast as the walk comes after them
            begin = max(self._start, end - max(overlap, 0 if requests else back))
            limit = min(self._most, wanted + end - begin)
            requests.append(OffsetRequest(limit=limit, offset=begin))
            end = begin + limit
        return requests

    def _take(self, list_pass: ListPass, page: Page[Conversation]) -> None:
        """Remember the page's items, and let out those that were not read before."""
        for item in page.data:
            if item.id not in list_pass.fingerprints and len(list_pass.front) < MAX_CONVERSATIONS:
                list_pass.front.append(fingerprint(item))
            list_pass.fingerprints[item.id] = fingerprint(item)
            self._emit(item)

    def _emit(self, item: Conversation) -> None:
        self._held.pop(item.id, None)
        if item.id not in self._given and self._left != 0:
            self._given.add(item.id)
            self._ready.append(item)
            if self._left is not None:
                self._left -= 1

    def _check_progress(self, request: OffsetRequest, page: Page[Conversation], idle: int) -> None:
        if idle > MAX_EMPTY_PAGES and page.has_more:
            for item in list(self._held.values()):
                self._emit(item)
            raise PaginationError(
                f"GET /v1/conversations goes in circles: {idle} pages, the last at offset {request.offset}, held"
                " nothing that was not read before, and still say hasMore. The API or a proxy is at fault."
            )


def _continues(list_pass: ListPass, request: OffsetRequest, page: Page[Conversation], offset: int) -> bool:
    """Whether nothing can lie between what a sweep has read and this page.

    Two conversations change their order only when one of them gets a message. So a page that begins with one that was
    read, and is as it was then, has behind it what was behind it then.
    """
    if request.offset >= offset:
        return True  # asked for where the page before it ended: `total` alone tells
    return bool(page.data) and list_pass.fingerprints.get(page.data[0].id) == fingerprint(page.data[0])


def fingerprint(item: Conversation) -> Fingerprint:
    """Give what tells a conversation, and changes whenever it moves."""
    return item.id, item.last_message_at, item.message_count


def _is_older(item: Conversation, low_watermark: datetime | None) -> bool:
    # One without a date says nothing of where in the list it stands: databases sort those to either end.
    return low_watermark is not None and item.last_message_at is not None and item.last_message_at < low_watermark
