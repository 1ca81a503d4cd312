"""Live walks: read on as messages arrive. Pure state machines like those of `_pagination`, which never end.

Between two polls a live walk asks for nothing: then its driver rests as long as `Pace` says, and goes on with
`receive(())`. What a poll learns is kept at its end, so that whatever fails in the middle loses nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from attrs import define, field, frozen

from agentphone._pagination import (
    MAX_CONVERSATIONS,
    MAX_MESSAGES,
    MILLISECOND,
    PATIENCE,
    SECOND,
    TICK,
    Bound,
    CursorRequest,
    CursorWalk,
    OffsetRequest,
    OffsetWalk,
    Trace,
    Walk,
    key,
    shift,
    trace_of,
)
from agentphone.models import Conversation, Message, NewMessage, Page

REMEMBERED = 20
"""How many of the newest messages are looked at again whatever their age: one whose date lies in the future must not
hide those that come behind it."""
SPARE = 20
"""How many new items one request has room for beside those that it reads again."""
AT_ONCE = 20
"""How many conversations are read at once: as many as a client has connections by default."""

PRINTED = timedelta(seconds=1)
"""How much the printing of an instant may cut off it, and the list otherwise than the messages."""

GONE: Page[Any] = Page(data=(), has_more=False)
"""What stands for the messages of a conversation that is not found: it may have been deleted since it was listed."""

GROWTH = 1.5
JITTER = 0.2


@define
class Pace:
    """How long to rest between two polls: longer and longer while nothing happens."""

    interval: float
    """Seconds after a poll that brought something."""
    longest: float
    """Seconds that no rest exceeds."""
    rand: Callable[[], float] = random.random
    """Gives numbers from 0 to 1."""
    _next: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._next = self.interval

    def rest(self, *, has_news: bool) -> float:
        """Say how many seconds may pass from the beginning of the last poll to that of the next."""
        if has_news:
            self._next = self.interval
        seconds = self._next * (1 - JITTER * self.rand())  # never more than was said, and not all clients at once
        self._next = min(self.longest, self._next * GROWTH)
        return seconds


@define
class _Window:
    """The end of one conversation, which is read again and again: every message later than `floor` that was seen."""

    floor: datetime | None
    """None for the beginning of time."""
    start: Bound | None = None
    """Nothing up to here is new, though it was not seen before."""
    seen: dict[str, datetime] = field(factory=dict)
    """When each was received, by id."""

    def walk(self, room: int = SPARE) -> CursorWalk:
        """Make the walk that reads it, from the newest message down, with room for so many new ones in a page."""
        bound = None if self.floor is None else Bound(self.floor)
        size = min(MAX_MESSAGES, len(self.seen) + room)
        return CursorWalk(limit=None, before=None, after=bound, oldest_first=False, page_size=size)

    def take(self, items: Iterable[Message]) -> list[Message]:
        """Remember messages, and give those that are new, in their order."""
        given = list(items)
        fresh = [item for item in given if self.is_new(item)]
        self.seen.update((item.id, item.received_at) for item in given)
        return fresh

    def is_new(self, item: Message) -> bool:
        """Whether a message was neither seen before, nor there before the start."""
        return item.id not in self.seen and (self.start is None or is_beyond(item, self.start))

    def is_behind(self, last: datetime | None, items: Iterable[Message]) -> bool:
        """Whether the messages do not show yet what the list says was received last."""
        if last is None or (self.floor is not None and last <= self.floor):
            return False
        return not any(item.received_at + PRINTED > last for item in items)

    def raise_floor(self, floor: datetime) -> None:
        """Forget what was received up to an instant."""
        if self.floor is None or floor > self.floor:
            self.floor = floor
            self.seen = {identity: at for identity, at in self.seen.items() if at > floor}


class _Quiet:
    """Knows how long nothing has come: what is longer ago than `overlap` cannot be shown late any more."""

    def __init__(self, overlap: timedelta, clock: Callable[[], float]) -> None:
        self._seconds = overlap.total_seconds()
        self._clock = clock
        self._since = self._noted = math.nan

    def note(self, *, has_news: bool) -> bool:
        """Take the outcome of a poll, and say whether it has been quiet for long enough."""
        asked = self._noted  # the answer may have been long on its way: it tells of no later time than this for sure
        self._noted = self._clock()
        if has_news or math.isnan(self._since):
            self._since = self._noted
        return asked - self._since > self._seconds


class FollowWalk(Walk[CursorRequest, Message]):
    """Read one conversation's messages as they arrive, oldest first, each once.

    A poll reads the newest messages down to a floor: the instant of one of the newest of the poll before, less the
    `overlap`. A message that is shown late, but not later than that after its own instant, lies above the floor of the
    next poll, however long that takes to come. What has been seen above the floor is remembered by id.

    Not the newest one itself, and nothing later than the server's own time: what is dated in the future would hide
    those that come behind it.
    """

    def __init__(
        self,
        *,
        after: Bound | None,
        overlap: timedelta,
        clock: Callable[[], float],
        server_time: Callable[[], datetime | None],
    ) -> None:
        self._after = after
        self._overlap = overlap + PRINTED
        self._clock = clock
        self._server_time = server_time
        self._quiet = _Quiet(self._overlap, clock)
        self._asked_at: datetime | None = None
        """The server's time at the first answer of a poll: what it shows later may be missing there."""
        self._room = REMEMBERED
        """How many messages one request of a poll can read again and see beyond."""
        self.has_news = False
        """Whether the last poll brought anything."""
        super().__init__()

    def _walk(self) -> Generator[Sequence[CursorRequest], Sequence[Page[Message]], None]:
        for _ in range(PATIENCE):
            pages = yield (CursorRequest(limit=REMEMBERED + SPARE),)
            if pages[0].data or not pages[0].has_more:
                break
        self._asked_at = self._server_time()
        newest = sorted(pages[0].data, key=key)
        start, lasting = self._after, lasting_of(self._after)
        broken_off_since: float | None = None
        if newest:
            window = _Window(self._floor([item.received_at for item in newest], has_more=pages[0].has_more))
            window.start = start
            if start is None:
                window.take(newest)  # they were there before
                window.start = Bound(newest[0].received_at)
            if start is not None and window.floor is not None and start.instant <= window.floor:
                yield from self._catch_up(start, window.floor)
                pages = ()
        else:
            # Perhaps only for a moment: what is older than this is not new when it shows.
            window = _Window(floor_below(self._overlap, start.instant if start else None, self._asked_at), start)
        while True:
            began = self._clock()
            found, is_whole = yield from self._read(window.walk(), pages)
            pages = ()
            if is_whole:
                broken_off_since = None
            elif broken_off_since is None:
                broken_off_since = self._clock()
            fresh = window.take(found)
            self._ready.extend(fresh)
            self.has_news = bool(fresh)
            # What shows nothing tells nothing.
            if found and (broken_off_since is None or began - broken_off_since > self._overlap.total_seconds()):
                window.start = lasting  # what else is shown behind it now, is shown late
                is_quiet = self._quiet.note(has_news=self.has_news)
                instants = sorted(window.seen.values())
                floor = self._floor(instants, has_more=False)
                if is_quiet and len(instants) > self._room:
                    # Or each poll would read all of a burst again, for ever.
                    floor = not_beyond(instants[-self._room - 1], self._asked_at, self._overlap)
                if floor is not None:
                    window.raise_floor(floor)
            yield ()

    def _catch_up(
        self, start: Bound, end: datetime
    ) -> Generator[Sequence[CursorRequest], Sequence[Page[Message]], None]:
        """Give what was received between the start and the first poll's floor, in flat memory."""
        walk = CursorWalk(
            limit=None, before=Bound(shift(end, TICK)), after=start, oldest_first=True, page_size=MAX_MESSAGES
        )
        while requests := walk.next_requests():
            items = walk.receive((yield requests))
            self._ready.extend(items)  # not before the yield: each step has a list of its own

    def _read(
        self, walk: CursorWalk, pages: Sequence[Page[Message]]
    ) -> Generator[Sequence[CursorRequest], Sequence[Page[Message]], tuple[list[Message], bool]]:
        """Read to the end of a walk, whose first pages may be there already; oldest first, and whether it is all."""
        found: list[Message] = []
        first: Page[Message] | None = None
        last: Page[Message] | None = None
        is_whole = True
        self._room = REMEMBERED
        while requests := walk.next_requests():
            if not pages:
                pages = yield requests
                if first is None:
                    self._asked_at = self._server_time()
            if first is None:
                first = pages[0]
            else:
                self._room = room_of(len(first.data))
            is_whole = is_whole and not breaks_off(last, pages[0])
            last = pages[0]
            found.extend(walk.receive(pages))
            pages = ()
        return found[::-1], is_whole

    def _floor(self, instants: Sequence[datetime], *, has_more: bool) -> datetime | None:
        """Say down to where the next poll is to read, from the instants of the newest messages, oldest first."""
        if not instants or (len(instants) <= REMEMBERED and not has_more):
            return None
        return floor_below(self._overlap, instants[max(0, len(instants) - REMEMBERED - 1)], self._asked_at)


def room_of(first_page: int) -> int:
    """Say how much of a first page that did not suffice may be read again, so that the next one will."""
    return min(REMEMBERED, max(0, first_page - 1))


def breaks_off(before: Page[Any] | None, page: Page[Any]) -> bool:
    """Whether a page shows nothing, although the one before it said that there is more."""
    return before is not None and before.has_more and not page.data


def floor_below(overlap: timedelta, *instants: datetime | None) -> datetime | None:
    """Say below what nothing is shown for the first time any more, from the times that are known."""
    earliest = min((instant for instant in instants if instant is not None), default=None)
    return None if earliest is None else shift(earliest, -overlap)


def not_beyond(instant: datetime, server_time: datetime | None, overlap: timedelta) -> datetime:
    """Keep an instant from lying where messages may still be dated."""
    return instant if server_time is None else min(instant, shift(server_time, -overlap))


def lasting_of(after: Bound | None) -> Bound | None:
    """Give what holds of a start for good: an instant does, a message only tells what was there when it was handled."""
    return after if after is not None and after.message_id is None else None


def is_beyond(item: Message, start: Bound) -> bool:
    """Whether a message lies strictly behind a bound, in the order of `(received_at, id)`."""
    if start.message_id is None:
        return item.received_at > start.instant
    return key(item) > (start.instant, start.message_id)


def end_of(printed: datetime) -> datetime:
    """Give the last instant that may have been printed so, by a list that prints fewer digits than the messages."""
    unit = TICK if printed.microsecond % 1000 else MILLISECOND if printed.microsecond else SECOND
    return shift(printed, unit - TICK)


@frozen
class MessagesRequest:
    """One page of one conversation's messages."""

    conversation_id: str
    cursor: CursorRequest


@define
class _Thread:
    """One conversation at the head of the list."""

    trace: Trace
    """What it was like when it was listed."""
    listed_at: float
    window: _Window | None = None
    """What was read of it, if its messages are new enough that some may still be shown late."""
    is_held: bool = False
    """Whether it showed messages later than the newest of the list, which the next poll gives."""
    behind_since: float | None = None
    """Since when it has not shown what the list knows of; None when it has, or when that is not waited for any more."""

    def is_later_than(self, instant: datetime) -> bool:
        """Whether it had a message later than that, which the list may not have known of yet."""
        seen = self.window.seen.values() if self.window is not None else ()
        return any(at > instant for at in (self.trace[1], *seen) if at is not None)


WatchSteps = Generator[Sequence[OffsetRequest | MessagesRequest], Sequence[Page[Any]], Any]


class WatchWalk(Walk[Any, Any]):
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
        after: Bound | None,
        overlap: timedelta,
        clock: Callable[[], float],
        server_time: Callable[[], datetime | None],
    ) -> None:
        self._after = after
        self._overlap = overlap + PRINTED
        self._clock = clock
        self._server_time = server_time
        self._quiet = _Quiet(self._overlap, clock)
        self._asked_at: datetime | None = None
        """The server's time at the first answer of a poll: what it shows later may be missing there."""
        self._now: datetime | None = None
        """The newest instant when the watch began."""
        self._is_first = True
        """Whether what the list shows was there before the watch began."""
        self._threads: dict[str, _Thread] = {}
        self._floor: datetime | None = None
        """What was received up to here is not shown any more for the first time."""
        self._head: datetime | None = None
        """Down to where the list is read: to the floor, and to so many conversations that one whose last message is
        dated in the future does not hide the others. None for all of a short list."""
        self._covered: datetime | None = None
        """What a conversation that is not among `_threads` has up to here is not new. None if all of it is."""
        self._broken_off_since: float | None = None
        """Since when the list has ended too early; None when it has not."""
        self._room = REMEMBERED
        """How many conversations one request of a poll can list again and see beyond."""
        self.has_news = False
        """Whether the last poll brought anything, or knows that there is more."""
        super().__init__()

    def _walk(self) -> WatchSteps:
        pages: Sequence[Page[Conversation]] = ()
        for _ in range(PATIENCE):
            pages = yield (OffsetRequest(limit=SPARE, offset=0),)
            if pages[0].data or not pages[0].has_more:
                break
        newest = max(_instants(pages[0].data), default=None)
        self._now = newest
        self._asked_at = self._server_time()
        beginning = self._after.instant if self._after else None
        self._floor = floor_below(self._overlap, newest, beginning, self._asked_at)
        self._covered = self._floor
        self._head = self._floor if pages[0].has_more else None
        while True:
            horizon, listed = yield from self._list(pages)
            pages = ()
            fresh, is_moving = yield from self._read_moved(listed, horizon)
            self._ready.extend(sorted(fresh, key=lambda new: key(new.message)))
            self.has_news = bool(fresh) or bool(self._waiting())
            if horizon is not None:
                self._move_on(listed, horizon, is_quiet=self._quiet.note(has_news=is_moving))
            self._is_first = self._is_first and horizon is None
            yield ()

    def _list(self, pages: Sequence[Page[Conversation]]) -> WatchSteps:
        """Read the head of the list; give the instant of its newest message, and the conversations.

        One that breaks off teaches nothing either, or what it did not show would be too old to be listed again.
        """
        began = self._clock()
        size = min(MAX_CONVERSATIONS, self._recent() + SPARE)
        walk = OffsetWalk(limit=None, offset=0, page_size=size, floor=self._head)
        horizon: datetime | None = None
        listed: list[Conversation] = []
        first: list[datetime] | None = None
        last: Page[Conversation] | None = None
        is_broken_off = False
        self._room = REMEMBERED
        while requests := walk.next_requests():
            if not pages:
                pages = yield requests
                if first is None:
                    self._asked_at = self._server_time()
            if first is None:
                first = _instants(pages[0].data)
                horizon = max(first, default=None)
            else:
                self._room = room_of(len(first))
            if breaks_off(last, pages[0]) or (listed and requests[0].offset == 0 and not pages[0].data):
                is_broken_off = True
            last = pages[0]
            listed.extend(walk.receive(pages))
            pages = ()
        if not is_broken_off:
            self._broken_off_since = None
        elif self._broken_off_since is None:
            self._broken_off_since = self._clock()
        if self._broken_off_since is not None and began - self._broken_off_since <= self._overlap.total_seconds():
            return None, []
        return horizon, listed

    def _read_moved(self, listed: Sequence[Conversation], horizon: datetime | None) -> WatchSteps:
        """Read the conversations that moved; give what is new in them, and whether any did."""
        began = self._clock()
        threads: dict[str, _Thread] = {}
        moved: list[tuple[Conversation, _Window]] = []
        released: set[str] = set()
        for conversation in listed:
            trace, known = trace_of(conversation), self._threads.get(conversation.id)
            window = self._window_of(conversation, known)
            threads[conversation.id] = thread = _Thread(trace, began, known.window if known else None)
            if window is not None:
                moved.append((conversation, window))
                if known is not None and known.trace == trace:
                    thread.behind_since = known.behind_since
                    if known.is_held:
                        released.add(conversation.id)  # the list's clock is behind that of the messages
        fresh: list[NewMessage] = []
        room = SPARE if self._threads else MAX_MESSAGES  # the first poll reads all since the start
        for begin in range(0, len(moved), AT_ONCE):
            batch = moved[begin : begin + AT_ONCE]
            walks = {conversation.id: window.walk(room) for conversation, window in batch}
            found: dict[str, list[Message]] = {name: [] for name in walks}
            last: dict[str, Page[Message]] = {}
            broken_off: set[str] = set()
            while asked := [
                (identity, request) for identity, walk in walks.items() for request in walk.next_requests()
            ]:
                pages = yield tuple(MessagesRequest(name, request) for name, request in asked)
                for (name, _), page in zip(asked, pages, strict=True):
                    if breaks_off(last.get(name), page):
                        broken_off.add(name)
                    last[name] = page
                    found[name].extend(walks[name].receive((page,)))
            for conversation, window in batch:
                items = found[conversation.id]
                thread = threads[conversation.id]
                thread.window = window
                if conversation.id not in broken_off and not window.is_behind(conversation.last_message_at, items):
                    thread.behind_since = None
                elif thread.behind_since is None:
                    thread.behind_since = self._clock()
                elif began - thread.behind_since > self._overlap.total_seconds():
                    thread.behind_since = None  # or each poll would ask for it, for ever
                if horizon is not None and conversation.id not in released:
                    held = {item.id for item in items if item.received_at > horizon and window.is_new(item)}
                    thread.is_held = bool(held)
                    items = [item for item in items if item.id not in held]
                fresh.extend(NewMessage(conversation, item) for item in window.take(items))
                if thread.behind_since is None:
                    window.start = lasting_of(self._after)  # what else is shown behind it now, is shown late
        self._threads |= threads
        return fresh, bool(moved)

    def _window_of(self, conversation: Conversation, known: _Thread | None) -> _Window | None:
        """Say what is to be read of a conversation; None if nothing new can be in it."""
        last = conversation.last_message_at
        if known is None:
            is_new = self._covered is None or (last is not None and last > self._covered)
            return _Window(self._covered, self._start_of(last)) if is_new else None
        if known.trace == trace_of(conversation) and not (known.is_held or known.behind_since is not None):
            return None
        if known.window is not None:
            return known.window
        before = known.trace[1]
        is_dated_back = None not in (last, before, self._floor) and last <= self._floor  # type: ignore[operator]
        return _Window(before if is_dated_back else self._floor, lasting_of(self._after))

    def _start_of(self, last: datetime | None) -> Bound | None:
        """Say up to where a conversation that shows for the first time has nothing new."""
        if not self._is_first:
            return lasting_of(self._after)
        if self._after is not None or last is None or self._now is None:
            return self._after
        return Bound(end_of(min(last, self._now)))  # either may lie in the future

    def _waiting(self) -> dict[str, _Thread]:
        """Give those that have something to show, unless they have not been listed for too long."""
        listed_since = self._clock() - self._overlap.total_seconds()
        return {
            identity: thread
            for identity, thread in self._threads.items()
            if (thread.is_held or thread.behind_since is not None) and thread.listed_at >= listed_since
        }

    def _recent(self) -> int:
        """Count the conversations that the next poll reads whether they moved or not."""
        return sum(self._head is None or last >= self._head for last in self._lasts())

    def _lasts(self) -> list[datetime]:
        """Give when each conversation had its last message, in order."""
        return _lasts_of(self._threads.values())

    def _move_on(self, listed: Sequence[Conversation], horizon: datetime, *, is_quiet: bool) -> None:
        """Move on after a poll, and forget what is too old to matter."""
        instants = _instants(listed)
        floor = shift(horizon if self._asked_at is None else min(horizon, self._asked_at), -self._overlap)
        if self._floor is None or floor > self._floor:
            self._floor = floor
        if self._asked_at is not None:
            self._covered = self._floor
        else:  # the floor may lie in the future
            is_whole = self._head is None or instants[0] >= self._head
            self._covered = None if is_whole else self._head
        for thread in self._threads.values():
            if thread.window is not None and thread.window.seen and thread.behind_since is None:
                # Not beyond what it has itself: the floor may lie in the future.
                newest = max(thread.window.seen.values())
                thread.window.raise_floor(min(self._floor, shift(newest, -self._overlap)))
        if self._covered is not None:
            ids = {conversation.id for conversation in listed} | self._waiting().keys()
            known = min(self._covered, self._floor)
            self._threads = {
                identity: thread
                for identity, thread in self._threads.items()
                if identity in ids or thread.is_later_than(known)  # it has gone, and when it is back it is not new
            }
        lasts = self._lasts()
        head = min(self._floor, lasts[-REMEMBERED - 1]) if len(lasts) > REMEMBERED else None
        if is_quiet and self._recent() > self._room:
            # Or each poll would list all of a burst again, for ever.
            head = not_beyond(shift(lasts[-self._room - 1], TICK), self._asked_at, self._overlap)
        waiting = _lasts_of(self._waiting().values())
        if head is not None and waiting:
            head = min(head, waiting[0])
        if head is not None and (self._head is None or head > self._head):
            self._head = head


def _instants(conversations: Iterable[Conversation]) -> list[datetime]:
    """Give when the conversations had their last messages, in order."""
    return sorted(item.last_message_at for item in conversations if item.last_message_at is not None)


def _lasts_of(threads: Iterable[_Thread]) -> list[datetime]:
    return sorted(thread.trace[1] for thread in threads if thread.trace[1] is not None)
