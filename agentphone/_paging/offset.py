"""Page through the list of conversations by offset, while the list moves."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from datetime import datetime
from typing import TypeVar

from attrs import define, field

from agentphone._paging.base import MAX_EMPTY_PAGES, Paginator
from agentphone._paging.requests import MAX_CONVERSATIONS, OffsetRequest
from agentphone.errors import PaginationError
from agentphone.models import Conversation, Page

T = TypeVar("T")

PREFETCH_FACTOR = 8
"""Plan this many times `concurrency` pages per batch, so that batches rarely wait for their slowest page."""
MAX_PASSES = 3
"""How many times a list that moves all the time is read as a whole, at most."""

OffsetSteps = Generator[Sequence[OffsetRequest], Sequence[Page[Conversation]], T]
"""A part of a paginator: it yields requests for conversations, receives their pages, and returns a T."""

Fingerprint = tuple[str, datetime | None, int | None]
"""Identifies a conversation at its present place: id, last message and count. It changes when the place changes."""


@define
class ListPass:
    """What one pass through the list, from its front, has shown."""

    page_size: int
    concurrency: int = 1
    stop_before: datetime | None = None
    """For a pass that reads the front again: it may end at conversations whose last message is older than this."""
    is_overlapping: bool = False
    """True if each page begins with the last item of the page before. Without a total that is always so."""
    began_at: datetime | None = None
    """The newest message's timestamp in the first page: the server's time when the pass began."""
    front: list[Fingerprint] = field(factory=list)
    """The front of the list, as many conversations as a page can hold."""
    requests: int = 0
    has_moved: bool = False
    """True if a page has shown that the list moved during the pass."""
    total: int | None = None
    """The latest total of the API."""
    removed: int = 0
    """The sum of all decreases of the total. Some of the conversations that were read may have been removed."""
    fingerprints: dict[str, Fingerprint] = field(factory=dict)
    """What was read in this pass, by id."""


class OffsetPaginator(Paginator[OffsetRequest, Conversation]):
    """Read the conversations, most recent activity first, each once, while the list moves.

    The problem: an offset counts from the front, and the list is sorted by activity. A message moves its conversation
    to the front, and all those before its old place down by one. A new conversation moves all others down; a removed
    one moves those after it up. A message that is shown late moves its conversation to the middle.

    The idea: each kind of move is handled in its own way.

    - Moves down repeat items. Ids are remembered, and each is released once.
    - Moves up skip items. The total decreases by as much, and the paginator steps back by that. If the API returns no
      total, each page begins with the last item of the page before.
    - Moves to the front are found by reading the front again at the end, down to an unchanged conversation: all that
      moved stand before it. It must also be older than the newest message was when the pass began, because a
      conversation dated in the future stays before those that move. If that takes more than one request, the front is
      read again, until one request suffices.
    - Moves to the middle show indirectly: something was read twice, or the total has changed. If fewer conversations
      are known then than the total counts, or there is no total, the whole list is read again with overlapping pages,
      in up to `MAX_PASSES` passes. The number is limited because a list may never stop moving.

    Assumptions: a conversation that changes its place changes its fingerprint. Fewer of them do so between two
    requests than half a page holds. No conversation moves to the middle, from after the current page to before it, in
    every pass. Where some move to the middle, conversations are either added or removed between the same two
    responses, but not both, because only the total shows that. Without a total, none moves to the middle between two
    responses between which another one is removed.

    Args:
        limit: How many conversations to release; None for all.
        offset: How many to skip.
        page_size: The size of a page.
        concurrency: How many requests may be in flight at once.
        stop_before: End at conversations whose last message is older than this; None to read the whole list.
    """

    def __init__(
        self,
        *,
        limit: int | None,
        offset: int,
        page_size: int,
        concurrency: int = 1,
        stop_before: datetime | None = None,
    ) -> None:
        self._remaining = limit
        self._start = offset
        self._page_size = page_size
        self._concurrency = concurrency
        self._stop_before = stop_before
        self._released_ids: set[str] = set()
        self._unreleased: dict[str, Conversation] = {}
        """Conversations that were read but not released: their page is to be read again."""
        self._largest_page = 0
        self._max_page_size = MAX_CONVERSATIONS
        """The most conversations that this API returns at once, as far as is known."""
        super().__init__()

    def _paginate(self) -> OffsetSteps[None]:
        is_whole_list = self._remaining is None and self._start == 0
        for number in range(MAX_PASSES):
            is_overlapping = number > 0
            list_pass = yield from self._read_pass(
                ListPass(self._page_size, self._concurrency, is_overlapping=is_overlapping)
            )
            if not is_whole_list or list_pass.requests == 1:
                return
            # Concurrent pages are served in any order. They show every move only if they overlap.
            is_reliable = is_overlapping or self._concurrency == 1
            if (yield from self._read_front_again(list_pass, is_reliable=is_reliable)):
                return

    def _read_front_again(self, list_pass: ListPass, *, is_reliable: bool) -> OffsetSteps[bool]:
        """Find what moved to the front during a pass, and return whether nothing can be missing.

        Args:
            list_pass: The pass.
            is_reliable: Whether its pages show every move. If not, nothing is missing only if nothing has moved.
        """
        known = dict(list_pass.fingerprints)
        latest, stalled = list_pass, 0
        while latest is list_pass or (latest.requests > 1 and stalled < MAX_EMPTY_PAGES):
            previous = latest
            latest = ListPass(
                MAX_CONVERSATIONS, stop_before=previous.began_at, total=previous.total, removed=previous.removed
            )
            yield from self._read_pass(latest, front=previous.front, known=known)
            stalled += latest.requests >= previous.requests  # the list moves as fast as it is read
            if not is_reliable:
                return not (list_pass.has_moved or latest.has_moved)
            known |= latest.fingerprints
        if self._stop_before is not None or not list_pass.has_moved:
            return True
        return latest.total is not None and len(known) >= latest.total + latest.removed

    def _read_pass(
        self, list_pass: ListPass, front: list[Fingerprint] | None = None, known: dict[str, Fingerprint] | None = None
    ) -> OffsetSteps[ListPass]:
        """Read the list from its front.

        Args:
            list_pass: The pass, in which the results are recorded.
            front: What the pass before found at the front. If it is still there, one page is enough.
            known: What was read before. The pass ends at a conversation that has not changed since.
        """
        offset = furthest = self._start
        step_back = empty_pages = 0
        while self._remaining != 0:
            requests = self._plan(list_pass, offset, step_back, is_stalled=empty_pages > 0)
            pages = yield requests
            self._unreleased.update((item.id, item) for page in pages for item in page.data)
            empty_before_batch = empty_pages
            for request, page in zip(requests, pages, strict=True):
                is_first = list_pass.requests == 0
                decrease = self._record_total(list_pass, page)
                new = [item for item in page.data if item.id not in list_pass.fingerprints]
                if not new and not step_back and request.offset + request.limit > furthest:
                    # Counted once per batch: when the list moves, several concurrent pages may bring nothing new.
                    empty_pages = min(empty_pages, empty_before_batch) + 1
                    list_pass.page_size = MAX_CONVERSATIONS
                    self._check_progress(request, page, empty_pages)
                is_gap = request.offset > self._start and (
                    decrease > 0 or not _continues(list_pass, request, page, offset)
                )
                if is_gap:
                    # Items have moved up, to before this page: read it again, from further ahead.
                    list_pass.has_moved = True
                    offset, step_back = request.offset, max(decrease, 2 * step_back, 1)
                    break
                step_back = 0
                read_again = max(0, offset - request.offset)
                list_pass.has_moved |= len(new) < len(page.data) - read_again
                self._record(list_pass, page)
                if is_first:
                    list_pass.began_at = max(
                        (item.last_message_at for item in page.data if item.last_message_at), default=None
                    )
                    if front is not None:
                        list_pass.has_moved = list_pass.front != front[: len(list_pass.front)]
                        if not list_pass.has_moved:
                            return list_pass
                offset = request.offset + len(page.data)
                furthest = max(furthest, offset)
                empty_pages = 0 if new else empty_pages
                # If total and hasMore disagree, follow the total as long as that brings something new.
                is_last = not page.has_more and (page.total is None or offset >= page.total or not new)
                if is_last or any(self._ends_at(item, list_pass, known) for item in page.data):
                    return list_pass
                self._largest_page = max(self._largest_page, len(page.data))
                if len(page.data) < request.limit:
                    if page.has_more and page.data:
                        self._max_page_size = self._largest_page
                    break  # shorter than requested: a gap lies before the next pages of the batch
        return list_pass

    def _ends_at(self, item: Conversation, list_pass: ListPass, known: dict[str, Fingerprint] | None) -> bool:
        """Return whether a pass may end at the page that holds a conversation."""
        if known is None or _is_older(item, self._stop_before):
            return _is_older(item, self._stop_before)
        is_old = (
            item.last_message_at is not None
            if list_pass.stop_before is None
            else _is_older(item, list_pass.stop_before)
        )
        return is_old and known.get(item.id) == fingerprint(item)

    def _plan(self, list_pass: ListPass, offset: int, step_back: int, *, is_stalled: bool) -> list[OffsetRequest]:
        """Return the next batch of requests.

        Args:
            list_pass: The pass.
            offset: Where to continue.
            step_back: How many items before the offset the batch must begin.
            is_stalled: Whether the latest pages brought nothing new.
        """
        total = list_pass.total
        overlap = 1 if list_pass.requests > 0 and (total is None or list_pass.is_overlapping) else 0
        requests: list[OffsetRequest] = []
        end = offset
        is_sequential = is_stalled or list_pass.concurrency == 1
        max_requests = list_pass.concurrency * (1 if is_sequential else PREFETCH_FACTOR)
        while not requests or (len(requests) < max_requests and total is not None and end < total):
            wanted = (
                list_pass.page_size
                if self._remaining is None
                else min(list_pass.page_size, self._remaining - (end - offset))
            )
            if wanted <= 0:
                break
            if is_stalled:
                # The few items that `limit` still wants may move down as fast as the offset advances by so few.
                wanted = list_pass.page_size
            begin = max(self._start, end - max(overlap, 0 if requests else step_back))
            size = min(self._max_page_size, wanted + end - begin)
            requests.append(OffsetRequest(limit=size, offset=begin))
            end = begin + size
        return requests

    def _record_total(self, list_pass: ListPass, page: Page[Conversation]) -> int:
        """Record the total of a page, and return by how much it has decreased since the page before."""
        is_first = list_pass.requests == 0
        list_pass.requests += 1
        previous, list_pass.total = list_pass.total, page.total
        decrease = 0 if previous is None or page.total is None else max(0, previous - page.total)
        list_pass.removed += decrease
        list_pass.has_moved |= not is_first and page.total != previous
        return decrease

    def _record(self, list_pass: ListPass, page: Page[Conversation]) -> None:
        """Remember the items of a page, and release those that are new."""
        for item in page.data:
            if item.id not in list_pass.fingerprints and len(list_pass.front) < MAX_CONVERSATIONS:
                list_pass.front.append(fingerprint(item))
            list_pass.fingerprints[item.id] = fingerprint(item)
            self._release(item)

    def _release(self, item: Conversation) -> None:
        self._unreleased.pop(item.id, None)
        if item.id not in self._released_ids and self._remaining != 0:
            self._released_ids.add(item.id)
            self._ready.append(item)
            if self._remaining is not None:
                self._remaining -= 1

    def _check_progress(self, request: OffsetRequest, page: Page[Conversation], empty_pages: int) -> None:
        """Raise if too many pages in a row brought nothing new, and still say hasMore."""
        if empty_pages > MAX_EMPTY_PAGES and page.has_more:
            for item in list(self._unreleased.values()):
                self._release(item)
            raise PaginationError(
                f"The pages of GET /v1/conversations contradict each other: {empty_pages} pages in a row, the last at"
                f" offset {request.offset}, held nothing new and still say hasMore. The API or a proxy is at fault."
            )


def _continues(list_pass: ListPass, request: OffsetRequest, page: Page[Conversation], offset: int) -> bool:
    """Return whether nothing can lie between what a pass has read and a page.

    Two conversations change their order only if one of them gets a message. Therefore, if a page begins with a
    conversation that has been read and has not changed, the same conversations follow it as before.
    """
    if request.offset >= offset:
        return True  # no overlap was requested: only the total can show a gap
    return bool(page.data) and list_pass.fingerprints.get(page.data[0].id) == fingerprint(page.data[0])


def fingerprint(item: Conversation) -> Fingerprint:
    """Return what identifies a conversation at its present place in the list."""
    return item.id, item.last_message_at, item.message_count


def _is_older(item: Conversation, timestamp: datetime | None) -> bool:
    # A conversation without a date does not show where the list is: databases sort nulls first or last.
    return timestamp is not None and item.last_message_at is not None and item.last_message_at < timestamp
