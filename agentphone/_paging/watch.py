"""Watch every conversation: new messages as they arrive, each once."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from attrs import define

from agentphone._paging.base import MAX_EMPTY_PAGES
from agentphone._paging.bounds import MICROSECOND, MILLISECOND, SECOND, TimeBound, clamped_add, sort_key
from agentphone._paging.offset import Fingerprint, OffsetPaginator, OffsetSteps, fingerprint
from agentphone._paging.polling import (
    LOOKBACK,
    MAX_CONCURRENT_READS,
    PAGE_HEADROOM,
    LivePaginator,
    SeenMessages,
    capped_watermark,
    is_truncated,
    lasting_bound,
    page_capacity,
    watermark_below,
)
from agentphone._paging.requests import MAX_CONVERSATIONS, MAX_MESSAGES, MessagesRequest, OffsetRequest
from agentphone.models import Conversation, Message, NewMessage, Page

T = TypeVar("T")

MessagesSteps = Generator[Sequence[MessagesRequest], Sequence[Page[Message]], T]
"""A part of a paginator: it yields requests for messages of many conversations, and returns a T."""
WatchSteps = Generator[Sequence[OffsetRequest | MessagesRequest], Sequence[Page[Conversation] | Page[Message]], T]
"""A part of a paginator that yields either kind of request."""

GONE: Page[Message] = Page(data=(), has_more=False)
"""Replaces a page of messages whose conversation is not found: it may have been deleted since it was listed."""


@define
class _WatchedConversation:
    """A conversation near the front of the list, as the last poll left it."""

    fingerprint: Fingerprint
    """The fingerprint when it was last listed."""
    listed_at: float
    """When it was last listed, on the paginator's clock."""
    seen: SeenMessages | None = None
    """The messages that were read. None if it has not been read."""
    deferred: frozenset[str] = frozenset()
    """The ids of its messages after the poll's high watermark, which the next poll releases."""
    lagging_since: float | None = None
    """Since when its messages have not shown what the list shows. None if they do, or if nothing waits for that."""

    @property
    def last_message_at(self) -> datetime | None:
        """The timestamp of its last message, as listed."""
        return self.fingerprint[1]

    @property
    def is_pending(self) -> bool:
        """True if the next poll must read it even if it has not moved."""
        return bool(self.deferred) or self.lagging_since is not None

    def has_later(self, timestamp: datetime) -> bool:
        """Return whether a message later than a timestamp is known. The list may not have shown it yet."""
        known = [] if self.seen is None else list(self.seen.received_at.values())
        if self.last_message_at is not None:
            known.append(_latest_printed_as(self.last_message_at))
        return any(at > timestamp for at in known)


class WatchPaginator(LivePaginator[OffsetRequest | MessagesRequest, Page[Conversation] | Page[Message], NewMessage]):
    """Read the messages of all conversations as they arrive, oldest first, each once.

    The problem: there is no endpoint for the messages of all conversations. The list shows which conversations have a
    new last message, and each must then be read. Between these requests, more messages arrive.

    The idea: a poll has two parts. It reads the front of the list, down to conversations whose last message is too
    old to matter. Then it reads the conversations that have moved: those that are new there, or whose fingerprint
    differs from the poll before. Three timestamps control that:

    - The low watermark: messages up to it have been shown before, and are not read again. It is the overlap before
      the newest message, or before the server's time if that is earlier, so that a message dated in the future does
      not raise it.
    - The high watermark of a poll: the newest message of the list. What a conversation shows after that waits for the
      next poll. Other conversations may have earlier messages that the list did not show yet; a caller that resumes
      after the later message would lose those.
    - The list watermark: a conversation that appears for the first time has nothing new up to it.

    An empty or truncated list proves nothing, because it may be so for a moment only. The watermarks then stay.
    """

    _is_first: bool
    """True if what the list shows is older than the iteration."""
    _newest_at_start: datetime | None
    """The newest message's timestamp when the iteration began."""
    _watched: dict[str, _WatchedConversation]
    """The conversations near the front of the list, by id."""
    _low_watermark: datetime | None
    """Messages up to here have been shown before."""
    _list_watermark: datetime | None
    """Conversations that appear for the first time have nothing new up to here. None if all of it is new."""
    _stop_before: datetime | None
    """How far down to read the list: to the low watermark, and at least `LOOKBACK` conversations, so that those dated
    in the future do not hide the others. None to read all of a short list."""
    _truncated_since: float | None
    """Since when the list has been truncated, on the paginator's clock. None if it is not."""

    def _paginate(self) -> WatchSteps[None]:
        pages = yield from _widen(self._start())
        while True:
            high_watermark, listed = yield from _widen(self._read_list(pages))
            pages = ()
            new, has_moved = yield from _widen(self._read_moved(listed, high_watermark))
            self._ready.extend(sorted(new, key=lambda item: sort_key(item.message)))
            self.has_new = bool(new) or bool(self._pending())
            if high_watermark is not None:
                is_idle = self._idle_timer.record_poll(has_new=has_moved)
                self._advance_watermarks(listed, high_watermark, is_idle=is_idle)
            self._is_first = self._is_first and high_watermark is None
            yield ()

    def _start(self) -> OffsetSteps[Sequence[Page[Conversation]]]:
        """Read the first page of the list, and set the watermarks from it."""
        request = OffsetRequest(limit=PAGE_HEADROOM, offset=0)
        (page,) = yield (request,)
        for _ in range(MAX_EMPTY_PAGES - 1):
            if page.data or not page.has_more:
                break
            (page,) = yield (request,)
        self._polled_at = self._server_time()
        self._newest_at_start = max(_timestamps_of(page.data), default=None)
        self._is_first = True
        self._watched = {}
        self._low_watermark = watermark_below(
            self._overlap, self._newest_at_start, self._after.timestamp if self._after else None, self._polled_at
        )
        self._list_watermark = self._low_watermark
        self._stop_before = self._low_watermark if page.has_more else None
        self._truncated_since = None
        return (page,)

    def _read_list(
        self, pages: Sequence[Page[Conversation]]
    ) -> OffsetSteps[tuple[datetime | None, list[Conversation]]]:
        """Read the front of the list.

        Args:
            pages: Its first page, if it has been read already.

        Returns:
            The high watermark and the conversations. A truncated list counts as empty: what it did not show would be
            below the watermark at the next poll.
        """
        began = self._clock()
        page_size = min(MAX_CONVERSATIONS, self._count_recent() + PAGE_HEADROOM)
        paginator = OffsetPaginator(limit=None, offset=0, page_size=page_size, stop_before=self._stop_before)
        high_watermark: datetime | None = None
        listed: list[Conversation] = []
        first: list[datetime] | None = None
        last: Page[Conversation] | None = None
        is_list_truncated = False
        self._page_capacity = LOOKBACK
        while requests := paginator.next_requests():
            if not pages:
                pages = yield requests
                if first is None:
                    self._polled_at = self._server_time()
            if first is None:
                first = _timestamps_of(pages[0].data)
                high_watermark = max(first, default=None)
            else:
                self._page_capacity = page_capacity(len(first))
            is_emptied = bool(listed) and requests[0].offset == 0 and not pages[0].data
            is_list_truncated |= is_truncated(last, pages[0]) or is_emptied
            last = pages[0]
            listed.extend(paginator.receive(pages))
            pages = ()
        if not is_list_truncated:
            self._truncated_since = None
        elif self._truncated_since is None:
            self._truncated_since = self._clock()
        if self._truncated_since is not None and began - self._truncated_since <= self._overlap.total_seconds():
            return None, []
        return high_watermark, listed

    def _read_moved(
        self, listed: Sequence[Conversation], high_watermark: datetime | None
    ) -> MessagesSteps[tuple[list[NewMessage], bool]]:
        """Read the conversations that have moved, and return their new messages and whether any has moved."""
        began = self._clock()
        watched: dict[str, _WatchedConversation] = {}
        moved: list[tuple[Conversation, SeenMessages]] = []
        released: frozenset[str] = frozenset()
        for conversation in listed:
            current, known = fingerprint(conversation), self._watched.get(conversation.id)
            seen = self._messages_to_read(conversation, known)
            entry = _WatchedConversation(current, began, known.seen if known else None)
            watched[conversation.id] = entry
            if seen is not None:
                moved.append((conversation, seen))
                if known is not None and known.fingerprint == current:
                    entry.lagging_since = known.lagging_since
                    released |= known.deferred  # deferred once already: the list's timestamps lag
        new: list[NewMessage] = []
        # The first poll reads everything since the start, which may be much.
        headroom = PAGE_HEADROOM if self._watched else MAX_MESSAGES
        for begin in range(0, len(moved), MAX_CONCURRENT_READS):
            batch = moved[begin : begin + MAX_CONCURRENT_READS]
            found, truncated = yield from _read_batch(batch, headroom)
            for conversation, seen in batch:
                items = found[conversation.id]
                entry = watched[conversation.id]
                entry.seen = seen
                is_lagging = conversation.id in truncated or seen.is_lagging(conversation.last_message_at, items)
                if not is_lagging:
                    entry.lagging_since = None
                elif entry.lagging_since is None:
                    entry.lagging_since = self._clock()
                elif began - entry.lagging_since > self._overlap.total_seconds():
                    entry.lagging_since = None  # give up: otherwise each poll would read it, forever
                if high_watermark is not None:
                    later = {item.id for item in items if item.received_at > high_watermark and seen.is_new(item)}
                    entry.deferred = frozenset(later - released)
                    items = [item for item in items if item.id not in entry.deferred]
                new.extend(NewMessage(conversation, item) for item in seen.add_new(items))
                if entry.lagging_since is None:
                    seen.start = lasting_bound(self._after)  # what appears before it from now on is late, and new
        self._watched |= watched
        return new, bool(moved)

    def _messages_to_read(self, conversation: Conversation, known: _WatchedConversation | None) -> SeenMessages | None:
        """Return which messages of a listed conversation to read; None if none of them can be new."""
        last = conversation.last_message_at
        if known is None:
            is_new = self._list_watermark is None or (last is not None and last > self._list_watermark)
            return SeenMessages(self._list_watermark, self._start_in(last)) if is_new else None
        if known.fingerprint == fingerprint(conversation) and not known.is_pending:
            return None
        if known.seen is not None:
            return known.seen
        previous, low_watermark = known.last_message_at, self._low_watermark
        if last is not None and previous is not None and low_watermark is not None and last <= low_watermark:
            low_watermark = previous  # it has moved, although its last message is below the watermark
        start = lasting_bound(self._after)
        if previous is not None and (start is None or start.timestamp < previous):
            start = TimeBound(_latest_printed_as(previous))  # up to here it was listed before, and old
        return SeenMessages(low_watermark, start)

    def _start_in(self, last_message_at: datetime | None) -> TimeBound | None:
        """Return the bound up to which a conversation that appears for the first time has nothing new."""
        if not self._is_first:
            return lasting_bound(self._after)
        if self._after is not None or last_message_at is None or self._newest_at_start is None:
            return self._after
        # The earlier of the two, because either may be dated in the future.
        return TimeBound(_latest_printed_as(min(last_message_at, self._newest_at_start)))

    def _pending(self) -> dict[str, _WatchedConversation]:
        """Return the conversations with messages to come, except those that have not been listed for too long."""
        listed_since = self._clock() - self._overlap.total_seconds()
        return {
            conversation_id: entry
            for conversation_id, entry in self._watched.items()
            if entry.is_pending and entry.listed_at >= listed_since
        }

    def _count_recent(self) -> int:
        """Return how many known conversations the next poll lists even if none has moved."""
        timestamps = _last_messages_of(self._watched.values())
        return sum(self._stop_before is None or timestamp >= self._stop_before for timestamp in timestamps)

    def _advance_watermarks(self, listed: Sequence[Conversation], high_watermark: datetime, *, is_idle: bool) -> None:
        """Raise the watermarks after a poll, and forget what is below them."""
        low_watermark = capped_watermark(clamped_add(high_watermark, -self._overlap), self._polled_at, self._overlap)
        if self._low_watermark is None or low_watermark > self._low_watermark:
            self._low_watermark = low_watermark
        if self._polled_at is not None:
            self._list_watermark = self._low_watermark
        else:
            # Without the server's time, the low watermark may lie in the future. Use what the list has shown.
            timestamps = _timestamps_of(listed)
            is_whole_list = self._stop_before is None or timestamps[0] >= self._stop_before
            self._list_watermark = None if is_whole_list else self._stop_before
        for entry in self._watched.values():
            if entry.seen is not None and entry.seen.received_at and entry.lagging_since is None:
                # Not above its own newest message: the low watermark may lie in the future.
                newest = max(entry.seen.received_at.values())
                entry.seen.raise_watermark(min(self._low_watermark, clamped_add(newest, -self._overlap)))
        if self._list_watermark is not None:
            self._forget(listed, min(self._list_watermark, self._low_watermark))
        self._advance_stop(self._low_watermark, is_idle=is_idle)

    def _forget(self, listed: Sequence[Conversation], known_up_to: datetime) -> None:
        """Forget the conversations that are not listed any more, if all their messages are old.

        One with later messages is kept: it may only be missing for a moment, and must not look new when it is back.
        """
        kept = {conversation.id for conversation in listed} | self._pending().keys()
        self._watched = {
            conversation_id: entry
            for conversation_id, entry in self._watched.items()
            if conversation_id in kept or entry.has_later(known_up_to)
        }

    def _advance_stop(self, low_watermark: datetime, *, is_idle: bool) -> None:
        """Raise the timestamp down to which the next poll reads the list."""
        timestamps = _last_messages_of(self._watched.values())
        stop_before = min(low_watermark, timestamps[-LOOKBACK - 1]) if len(timestamps) > LOOKBACK else None
        if is_idle and self._count_recent() > self._page_capacity:
            # After a burst, each poll would otherwise list the whole burst again, forever.
            oldest_kept = clamped_add(timestamps[-self._page_capacity - 1], MICROSECOND)
            stop_before = capped_watermark(oldest_kept, self._polled_at, self._overlap)
        pending = _last_messages_of(self._pending().values())
        if stop_before is not None and pending:
            stop_before = min(stop_before, pending[0])
        if stop_before is not None and (self._stop_before is None or stop_before > self._stop_before):
            self._stop_before = stop_before


def _widen(steps: Generator[Sequence[Any], Sequence[Any], T]) -> WatchSteps[T]:
    """Return the same steps, typed for both kinds of requests.

    Steps receive only the pages of their own requests, which a union of types cannot express.
    """
    return steps


def _read_batch(
    batch: Sequence[tuple[Conversation, SeenMessages]], headroom: int
) -> MessagesSteps[tuple[dict[str, list[Message]], set[str]]]:
    """Read several conversations at once.

    Returns:
        The messages of each, newest first, and the ids of the conversations whose pages were truncated.
    """
    paginators = {conversation.id: seen.paginator(headroom) for conversation, seen in batch}
    found: dict[str, list[Message]] = {conversation_id: [] for conversation_id in paginators}
    last: dict[str, Page[Message]] = {}
    truncated: set[str] = set()
    while requests := [
        MessagesRequest(conversation_id, request)
        for conversation_id, paginator in paginators.items()
        for request in paginator.next_requests()
    ]:
        pages = yield requests
        for request, page in zip(requests, pages, strict=True):
            conversation_id = request.conversation_id
            if is_truncated(last.get(conversation_id), page):
                truncated.add(conversation_id)
            last[conversation_id] = page
            found[conversation_id].extend(paginators[conversation_id].receive((page,)))
    return found, truncated


def _latest_printed_as(timestamp: datetime) -> datetime:
    """Return the latest timestamp that the list may print like this: it may print fewer digits than the messages."""
    unit = MICROSECOND if timestamp.microsecond % 1000 else MILLISECOND if timestamp.microsecond else SECOND
    return clamped_add(timestamp, unit - MICROSECOND)


def _timestamps_of(conversations: Iterable[Conversation]) -> list[datetime]:
    """Return the timestamps of the conversations' last messages, in order."""
    return sorted(item.last_message_at for item in conversations if item.last_message_at is not None)


def _last_messages_of(watched: Iterable[_WatchedConversation]) -> list[datetime]:
    """Return the timestamps of the last messages, in order."""
    return sorted(entry.last_message_at for entry in watched if entry.last_message_at is not None)
