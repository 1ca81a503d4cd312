"""Watch every conversation: new messages as they arrive, each once."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from attrs import define, frozen

from agentphone._paging.base import MAX_EMPTY_PAGES, Paginator
from agentphone._paging.bounds import MICROSECOND, MILLISECOND, SECOND, TimeBound, clamped_add, key
from agentphone._paging.cursor import MAX_MESSAGES, CursorRequest
from agentphone._paging.offset import MAX_CONVERSATIONS, Fingerprint, OffsetPaginator, OffsetRequest, fingerprint
from agentphone._paging.polling import (
    LOOKBACK,
    MAX_CONCURRENT_READS,
    PAGE_HEADROOM,
    TIMESTAMP_RESOLUTION,
    IdleTimer,
    SeenMessages,
    page_capacity,
)
from agentphone.models import Conversation, Message, NewMessage, Page

GONE: Page[Any] = Page(data=(), has_more=False)
"""What stands for the messages of a conversation that is not found: it may have been deleted since it was listed."""


def breaks_off(before: Page[Any] | None, page: Page[Any]) -> bool:
    """Whether a page shows nothing, although the one before it said that there is more."""
    return before is not None and before.has_more and not page.data


def floor_below(overlap: timedelta, *instants: datetime | None) -> datetime | None:
    """Say below what nothing is shown for the first time any more, from the times that are known."""
    earliest = min((instant for instant in instants if instant is not None), default=None)
    return None if earliest is None else clamped_add(earliest, -overlap)


def not_beyond(instant: datetime, server_time: datetime | None, overlap: timedelta) -> datetime:
    """Keep an instant from lying where messages may still be dated."""
    return instant if server_time is None else min(instant, clamped_add(server_time, -overlap))


def lasting_of(after: TimeBound | None) -> TimeBound | None:
    """Give what holds of a start for good: an instant does, a message only tells what was there when it was handled."""
    return after if after is not None and after.message_id is None else None


def end_of(printed: datetime) -> datetime:
    """Give the last instant that may have been printed so, by a list that prints fewer digits than the messages."""
    unit = MICROSECOND if printed.microsecond % 1000 else MILLISECOND if printed.microsecond else SECOND
    return clamped_add(printed, unit - MICROSECOND)


@frozen
class MessagesRequest:
    """One page of one conversation's messages."""

    conversation_id: str
    cursor: CursorRequest


@define
class _ConversationState:
    """One conversation at the head of the list."""

    fingerprint_: Fingerprint
    """What it was like when it was listed."""
    listed_at: float
    window: SeenMessages | None = None
    """What was read of it, if its messages are new enough that some may still be shown late."""
    has_deferred: bool = False
    """Whether it showed messages later than the newest of the list, which the next poll gives."""
    behind_since: float | None = None
    """Since when it has not shown what the list knows of; None when it has, or when that is not waited for any more."""

    def is_later_than(self, instant: datetime) -> bool:
        """Whether it had a message later than that, which the list may not have known of yet."""
        seen = self.window.seen.values() if self.window is not None else ()
        return any(at > instant for at in (self.fingerprint_[1], *seen) if at is not None)


WatchSteps = Generator[Sequence[OffsetRequest | MessagesRequest], Sequence[Page[Any]], Any]


class WatchPaginator(Paginator[Any, Any]):
    """Read the messages of all conversations as they arrive, oldest first, each once.

    A poll reads the head of the list, down to conversations whose last message is older than the floor: that of the
    newest message of the poll before, or of the server's own time if that is earlier, less the `overlap`. Then it reads
    those that moved: that are new there, or whose last message or count differs from the poll before.

    A list that is empty teaches nothing: it may be so for a moment only, and what was there before it is not new.

    What came in after the list was read waits for the next poll: messages of other conversations between the two are
    not known yet, and whoever begins again behind the one would lose the others.
    """

    def __init__(
        self,
        *,
        after: TimeBound | None,
        overlap: timedelta,
        clock: Callable[[], float],
        server_time: Callable[[], datetime | None],
    ) -> None:
        self._after = after
        self._overlap = overlap + TIMESTAMP_RESOLUTION
        self._clock = clock
        self._server_time = server_time
        self._quiet = IdleTimer(self._overlap, clock)
        self._asked_at: datetime | None = None
        """The server's time at the first answer of a poll: what it shows later may be missing there."""
        self._now: datetime | None = None
        """The newest instant when the watch began."""
        self._is_first = True
        """Whether what the list shows was there before the watch began."""
        self._states: dict[str, _ConversationState] = {}
        self._low_watermark: datetime | None = None
        """What was received up to here is not shown any more for the first time."""
        self._head: datetime | None = None
        """Down to where the list is read: to the floor, and to so many conversations that one whose last message is
        dated in the future does not hide the others. None for all of a short list."""
        self._list_watermark: datetime | None = None
        """What a conversation that is not among `_threads` has up to here is not new. None if all of it is."""
        self._broken_off_since: float | None = None
        """Since when the list has ended too early; None when it has not."""
        self._page_capacity = LOOKBACK
        """How many conversations one request of a poll can list again and see beyond."""
        self.has_new = False
        """Whether the last poll brought anything, or knows that there is more."""
        super().__init__()

    def _run(self) -> WatchSteps:
        pages: Sequence[Page[Conversation]] = ()
        for _ in range(MAX_EMPTY_PAGES):
            pages = yield (OffsetRequest(limit=PAGE_HEADROOM, offset=0),)
            if pages[0].data or not pages[0].has_more:
                break
        newest = max(_instants(pages[0].data), default=None)
        self._now = newest
        self._asked_at = self._server_time()
        beginning = self._after.instant if self._after else None
        self._low_watermark = floor_below(self._overlap, newest, beginning, self._asked_at)
        self._list_watermark = self._low_watermark
        self._head = self._low_watermark if pages[0].has_more else None
        while True:
            high_watermark, listed = yield from self._list(pages)
            pages = ()
            fresh, is_moving = yield from self._read_moved(listed, high_watermark)
            self._ready.extend(sorted(fresh, key=lambda new: key(new.message)))
            self.has_new = bool(fresh) or bool(self._waiting())
            if high_watermark is not None:
                self._advance_watermarks(listed, high_watermark, is_quiet=self._quiet.note(has_new=is_moving))
            self._is_first = self._is_first and high_watermark is None
            yield ()

    def _list(self, pages: Sequence[Page[Conversation]]) -> WatchSteps:
        """Read the head of the list; give the instant of its newest message, and the conversations.

        One that breaks off teaches nothing either, or what it did not show would be too old to be listed again.
        """
        began = self._clock()
        size = min(MAX_CONVERSATIONS, self._recent() + PAGE_HEADROOM)
        paginator = OffsetPaginator(limit=None, offset=0, page_size=size, low_watermark=self._head)
        high_watermark: datetime | None = None
        listed: list[Conversation] = []
        first: list[datetime] | None = None
        last: Page[Conversation] | None = None
        is_broken_off = False
        self._page_capacity = LOOKBACK
        while requests := paginator.next_requests():
            if not pages:
                pages = yield requests
                if first is None:
                    self._asked_at = self._server_time()
            if first is None:
                first = _instants(pages[0].data)
                high_watermark = max(first, default=None)
            else:
                self._page_capacity = page_capacity(len(first))
            if breaks_off(last, pages[0]) or (listed and requests[0].offset == 0 and not pages[0].data):
                is_broken_off = True
            last = pages[0]
            listed.extend(paginator.receive(pages))
            pages = ()
        if not is_broken_off:
            self._broken_off_since = None
        elif self._broken_off_since is None:
            self._broken_off_since = self._clock()
        if self._broken_off_since is not None and began - self._broken_off_since <= self._overlap.total_seconds():
            return None, []
        return high_watermark, listed

    def _read_moved(self, listed: Sequence[Conversation], high_watermark: datetime | None) -> WatchSteps:
        """Read the conversations that moved; give what is new in them, and whether any did."""
        began = self._clock()
        states: dict[str, _ConversationState] = {}
        moved: list[tuple[Conversation, SeenMessages]] = []
        released: set[str] = set()
        for conversation in listed:
            fingerprint_, known = fingerprint(conversation), self._states.get(conversation.id)
            window = self._window_of(conversation, known)
            states[conversation.id] = state = _ConversationState(fingerprint_, began, known.window if known else None)
            if window is not None:
                moved.append((conversation, window))
                if known is not None and known.fingerprint_ == fingerprint_:
                    state.behind_since = known.behind_since
                    if known.has_deferred:
                        released.add(conversation.id)  # the list's clock is behind that of the messages
        fresh: list[NewMessage] = []
        room = PAGE_HEADROOM if self._states else MAX_MESSAGES  # the first poll reads all since the start
        for begin in range(0, len(moved), MAX_CONCURRENT_READS):
            batch = moved[begin : begin + MAX_CONCURRENT_READS]
            paginators = {conversation.id: window.paginator(room) for conversation, window in batch}
            found: dict[str, list[Message]] = {name: [] for name in paginators}
            last: dict[str, Page[Message]] = {}
            broken_off: set[str] = set()
            while asked := [
                (identity, request)
                for identity, paginator in paginators.items()
                for request in paginator.next_requests()
            ]:
                pages = yield tuple(MessagesRequest(name, request) for name, request in asked)
                for (name, _), page in zip(asked, pages, strict=True):
                    if breaks_off(last.get(name), page):
                        broken_off.add(name)
                    last[name] = page
                    found[name].extend(paginators[name].receive((page,)))
            for conversation, window in batch:
                items = found[conversation.id]
                state = states[conversation.id]
                state.window = window
                if conversation.id not in broken_off and not window.is_lagging(conversation.last_message_at, items):
                    state.behind_since = None
                elif state.behind_since is None:
                    state.behind_since = self._clock()
                elif began - state.behind_since > self._overlap.total_seconds():
                    state.behind_since = None  # or each poll would ask for it, for ever
                if high_watermark is not None and conversation.id not in released:
                    held = {item.id for item in items if item.received_at > high_watermark and window.is_new(item)}
                    state.has_deferred = bool(held)
                    items = [item for item in items if item.id not in held]
                fresh.extend(NewMessage(conversation, item) for item in window.take(items))
                if state.behind_since is None:
                    window.start = lasting_of(self._after)  # what else is shown behind it now, is shown late
        self._states |= states
        return fresh, bool(moved)

    def _window_of(self, conversation: Conversation, known: _ConversationState | None) -> SeenMessages | None:
        """Say what is to be read of a conversation; None if nothing new can be in it."""
        last = conversation.last_message_at
        if known is None:
            is_new = self._list_watermark is None or (last is not None and last > self._list_watermark)
            return SeenMessages(self._list_watermark, self._start_of(last)) if is_new else None
        if known.fingerprint_ == fingerprint(conversation) and not (
            known.has_deferred or known.behind_since is not None
        ):
            return None
        if known.window is not None:
            return known.window
        before = known.fingerprint_[1]
        is_dated_back = None not in (last, before, self._low_watermark) and last <= self._low_watermark  # type: ignore[operator]
        return SeenMessages(before if is_dated_back else self._low_watermark, lasting_of(self._after))

    def _start_of(self, last: datetime | None) -> TimeBound | None:
        """Say up to where a conversation that shows for the first time has nothing new."""
        if not self._is_first:
            return lasting_of(self._after)
        if self._after is not None or last is None or self._now is None:
            return self._after
        return TimeBound(end_of(min(last, self._now)))  # either may lie in the future

    def _waiting(self) -> dict[str, _ConversationState]:
        """Give those that have something to show, unless they have not been listed for too long."""
        listed_since = self._clock() - self._overlap.total_seconds()
        return {
            identity: state
            for identity, state in self._states.items()
            if (state.has_deferred or state.behind_since is not None) and state.listed_at >= listed_since
        }

    def _recent(self) -> int:
        """Count the conversations that the next poll reads whether they moved or not."""
        return sum(self._head is None or last >= self._head for last in self._lasts())

    def _lasts(self) -> list[datetime]:
        """Give when each conversation had its last message, in order."""
        return _lasts_of(self._states.values())

    def _advance_watermarks(self, listed: Sequence[Conversation], high_watermark: datetime, *, is_quiet: bool) -> None:
        """Move on after a poll, and forget what is too old to matter."""
        instants = _instants(listed)
        low_watermark = clamped_add(
            high_watermark if self._asked_at is None else min(high_watermark, self._asked_at), -self._overlap
        )
        if self._low_watermark is None or low_watermark > self._low_watermark:
            self._low_watermark = low_watermark
        if self._asked_at is not None:
            self._list_watermark = self._low_watermark
        else:  # the floor may lie in the future
            is_whole = self._head is None or instants[0] >= self._head
            self._list_watermark = None if is_whole else self._head
        for state in self._states.values():
            if state.window is not None and state.window.seen and state.behind_since is None:
                # Not beyond what it has itself: the floor may lie in the future.
                newest = max(state.window.seen.values())
                state.window.raise_watermark(min(self._low_watermark, clamped_add(newest, -self._overlap)))
        if self._list_watermark is not None:
            ids = {conversation.id for conversation in listed} | self._waiting().keys()
            known = min(self._list_watermark, self._low_watermark)
            self._states = {
                identity: state
                for identity, state in self._states.items()
                if identity in ids or state.is_later_than(known)  # it has gone, and when it is back it is not new
            }
        lasts = self._lasts()
        head = min(self._low_watermark, lasts[-LOOKBACK - 1]) if len(lasts) > LOOKBACK else None
        if is_quiet and self._recent() > self._page_capacity:
            # Or each poll would list all of a burst again, for ever.
            head = not_beyond(clamped_add(lasts[-self._page_capacity - 1], MICROSECOND), self._asked_at, self._overlap)
        waiting = _lasts_of(self._waiting().values())
        if head is not None and waiting:
            head = min(head, waiting[0])
        if head is not None and (self._head is None or head > self._head):
            self._head = head


def _instants(conversations: Iterable[Conversation]) -> list[datetime]:
    """Give when the conversations had their last messages, in order."""
    return sorted(item.last_message_at for item in conversations if item.last_message_at is not None)


def _lasts_of(states: Iterable[_ConversationState]) -> list[datetime]:
    return sorted(state.fingerprint_[1] for state in states if state.fingerprint_[1] is not None)
