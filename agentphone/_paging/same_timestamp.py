"""Read all messages with one printed timestamp, when they fill more than the largest page.

The problem: a cursor is a timestamp, so messages that are printed alike have the same cursor and cannot be split by
their own timestamps. The way out: a server that prints 12:00:05 for every message of that second still compares
microseconds, so a cursor inside the second splits the group. The functions here search for
such cursors. Only messages that the server itself stores under one timestamp cannot be split; if these fill more
than a page, the API has no way to return them, and the caller gets an error that names the timestamp.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from attrs import frozen

from agentphone._paging.bounds import MICROSECOND, MILLISECOND, SECOND, TimeRange, clamped_add, sort_key
from agentphone._paging.pages import CursorSteps, MessagePage, MessageReader
from agentphone._paging.requests import MAX_MESSAGES
from agentphone.errors import PaginationError
from agentphone.models import Message

MAX_FRUITLESS_PROBES = 64
"""How many pages in a row may show no new message of a group before the group is considered unreadable.

A binary search from one second down to a microsecond takes 20 probes, so this allows three searches. Without the
limit, an API that shuffles the messages of one timestamp for each page would keep the search going forever.
"""


@frozen
class Group:
    """All messages with one printed timestamp, and where to continue."""

    items: list[Message]
    """In the order of `sort_key`."""
    next_page: MessagePage
    """The page that continues with what is older."""
    error: PaginationError | None
    """Set if some messages of the group cannot be read."""


def read_same_timestamp(reader: MessageReader, wanted: TimeRange, known_part: list[Message]) -> CursorSteps[Group]:
    """Read every message with the timestamp of those in `known_part`.

    It reads pages that end at ever earlier cursors inside the printed unit. Consecutive pages must share a message:
    then no message lies between them. Where two neighboring cursors, a microsecond apart, share none, more messages
    than a page may lie between them (`_fits_one_page`).

    Args:
        reader: Reads the pages.
        wanted: The caller's bounds. Messages out of them may remain unread.
        known_part: Some messages of the group.
    """
    timestamp = known_part[0].received_at
    error: PaginationError | None = None
    found: dict[str, Message] = {}
    seen: set[str] = set()
    fruitless = 0
    step = reader.resolution / 2
    page = yield from reader.read_from_group(known_part, MAX_MESSAGES)
    before = page.before or timestamp
    while True:
        while reader.cursor_after(timestamp, reader.cursor_margin) < before:
            # The pages have shown finer digits, so the group is narrower than assumed.
            page = yield from reader.read_from_group(known_part, MAX_MESSAGES)
            before = page.before or timestamp
        start = clamped_add(timestamp, -MICROSECOND) if reader.includes_before else timestamp
        found.update((item.id, item) for item in page.at(timestamp))
        if not page.has_more or page.oldest < timestamp or before <= start:
            if page.has_more and page.oldest >= timestamp:
                page = reader.record_contradiction(before)
            return Group(sorted(found.values(), key=sort_key), page, error)
        above = page
        if not above.ids() <= seen:
            fruitless = 0
        seen |= above.ids()
        # Search downwards from `before` for the earliest cursor whose page still shares a message with `above`.
        lower, guess = start, before - step
        while before - lower > MICROSECOND and fruitless < MAX_FRUITLESS_PROBES:
            if not lower < guess < before:
                guess = lower + (before - lower) // 2
            page = yield from reader.read(MAX_MESSAGES, before=guess)
            ids = page.ids()
            fruitless += 1
            if not ids & above.ids():
                lower = guess
            elif page.has_more and page.oldest >= timestamp and ids <= seen:
                before, step, above = guess, min(2 * step, reader.resolution), page
            else:
                step, before = before - guess, guess
                break
        else:
            # `lower` and `before` are neighbors: no cursor lies between them.
            page = yield from reader.read(MAX_MESSAGES, before=lower)
            is_unwanted = above.oldest > timestamp or wanted.is_past_upper(above.items[0])
            is_connected = error is not None or page.is_contradictory or page.ids() & above.ids()
            if fruitless < MAX_FRUITLESS_PROBES and (
                is_connected or (yield from _fits_one_page(reader, above, before, is_unwanted=is_unwanted))
            ):
                before = lower
                continue
            page = yield from reader.read(MAX_MESSAGES, before=before)
            # Unless more new messages than a page holds have arrived meanwhile, the group cannot be read.
            if page.ids() <= seen or fruitless >= MAX_FRUITLESS_PROBES:
                error = PaginationError(
                    f"{len(above.items)} or more messages were received at {timestamp.isoformat()}: as many as a page"
                    " can hold, and the API has no cursor between them. All messages that come before them in this"
                    " order were returned. To continue with those after them, pass that timestamp as before= or after=."
                )
                before = lower if fruitless < MAX_FRUITLESS_PROBES else start
                page = yield from reader.read(MAX_MESSAGES, before=before)


def _fits_one_page(
    reader: MessageReader, above: MessagePage, before: datetime, *, is_unwanted: bool
) -> CursorSteps[bool]:
    """Return whether one page holds all messages between a cursor and the cursor a microsecond earlier.

    The interval is requested with both `before` and `after`. How the API treats the two ends is not known, so several
    intervals are tried until one shows all of `above`. That one must not say hasMore.

    Args:
        reader: Reads the pages.
        above: The page that ended at `before`.
        before: The later cursor.
        is_unwanted: Whether the messages are out of the caller's bounds. Their number does not matter then, but they
            must all have one timestamp.
    """
    finest = MICROSECOND if before.microsecond % 1000 else MILLISECOND if before.microsecond else SECOND
    if is_unwanted and not reader.includes_before and reader.resolution >= finest:
        return True

    is_clear = True  # each interval has shown all of `above` or nothing of it

    def probe(width: timedelta) -> CursorSteps[MessagePage | None]:
        nonlocal is_clear
        page = yield from reader.read(MAX_MESSAGES, before=before, after=clamped_add(before, -width))
        shown = len(above.ids() & page.ids())
        is_clear = is_clear and shown in (0, len(above.items))
        return page if shown == len(above.items) else None

    page = yield from probe(MICROSECOND)
    if page is None:
        # The API includes neither end of an interval. Try wider ones; it may also truncate cursors.
        for width in (2 * MICROSECOND, MILLISECOND + MICROSECOND, SECOND + MICROSECOND):
            page = yield from probe(width)
            if page is not None:
                break
    elif (single_timestamp := (yield from probe(timedelta(0)))) is not None:
        # The API includes both ends. If it truncates cursors as well, the first interval began early enough.
        page = page if (yield from probe(-MICROSECOND)) is not None else single_timestamp
    elif before.microsecond % 1000 == 0:
        return False  # The API includes one end, or truncates cursors; the pages do not show which.
    return page is not None and is_clear and (is_unwanted or not page.has_more)
