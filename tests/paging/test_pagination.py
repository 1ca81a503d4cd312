"""The walks against a model of the API that moves between any two requests: nothing lost, nothing repeated, an end.

The maxima of the API are made small here, so that small examples reach the paths that big groups take; the tables below
run with the real ones.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import Any

import pytest
from attrs import define, field, frozen
from hypothesis import HealthCheck, Phase, example, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from agentphone import Conversation, Message, Page, PaginationError
from agentphone._paging import cursor, offset
from agentphone._paging.base import Paginator
from agentphone._paging.bounds import MICROSECOND, TimeBound
from agentphone._paging.cursor import CursorPaginator, CursorRequest
from agentphone._paging.offset import OffsetPaginator, OffsetRequest
from tests.support.model import START, Behavior, Inbox, Thread, cut, key, micros_of, printed

MANY = settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
UNSHRUNK = settings(MANY, phases=[Phase.generate])
GAP_CHOICES = [0, 0, 0, 1, 1, 2, 999, 1000, 300_000, 1_000_000, 5_000_000]
GAPS = st.sampled_from(GAP_CHOICES)
"""Microseconds between one message and the next: ties, neighbours, and what shows in each number of digits."""
ENDLESS = 1000


def walk_to_the_end(
    paginator: Paginator[Any, Any],
    answer: Callable[[Any], Page[Any]],
    between: Callable[[], None] = lambda: None,
    endless: int = ENDLESS,
) -> tuple[list[Any], PaginationError | None, int]:
    """Drive a walk; give what came out, how it failed, and how many requests it took."""
    out: list[Any] = []
    asked = 0
    try:
        while requests := paginator.next_requests():
            pages = []
            for request in requests:
                pages.append(answer(request))
                asked += 1
                assert asked < endless, "the walk does not end"
                between()
            out += paginator.receive(pages)
    except PaginationError as error:
        return out, error, asked
    assert paginator.is_over
    return out, None, asked


# Messages


@frozen
class History:
    """One case: a conversation as the server has it, what is asked of it, and what comes in meanwhile."""

    state: Thread
    largest: int
    before: TimeBound | None = None
    after: TimeBound | None = None
    oldest_first: bool = False
    page_size: int = 1
    limit: int | None = None
    bursts: Sequence[tuple[int, int]] = ()

    def paginator(self) -> CursorPaginator:
        return CursorPaginator(
            limit=self.limit,
            before=self.before,
            after=self.after,
            oldest_first=self.oldest_first,
            page_size=self.page_size,
        )

    def wanted(self) -> list[Message]:
        """Give what the walk promises, by the definition of the bounds and nothing cleverer."""
        return sorted(filter(self.is_wanted, self.state.all()), key=key, reverse=not self.oldest_first)

    def is_wanted(self, message: Message) -> bool:
        return is_lagging(message, self.after) and is_before(message, self.before)


def is_before(message: Message, bound: TimeBound | None) -> bool:
    if bound is None:
        return True
    if bound.message_id is None:
        return message.received_at < bound.instant
    return key(message) < (bound.instant, bound.message_id)


def is_lagging(message: Message, bound: TimeBound | None) -> bool:
    if bound is None:
        return True
    if bound.message_id is None:
        return message.received_at > bound.instant
    return key(message) > (bound.instant, bound.message_id)


def state(*messages: tuple[int, int], **behavior: Any) -> Thread:
    """Make a thread of so many messages at so many microseconds; ids go up in that order."""
    made = [instant for instant, count in messages for _ in range(count)]
    return Thread(Behavior(**behavior), [(instant, f"msg_{index:03}") for index, instant in enumerate(made)])


@st.composite
def histories(draw: st.DrawFn) -> History:
    behavior = Behavior(
        inclusive=draw(st.booleans() | st.sampled_from(["before", "after"])),
        after_alone=draw(st.sampled_from(["oldest", "newest"])),
        message_order=draw(st.sampled_from(["newest", "oldest"])),
        timestamp_digits=draw(st.sampled_from([0, 3, 6])),
        stored=draw(st.sampled_from([0, 3, 6, 6])),
        read=draw(st.sampled_from([0, 3, 6, 6])),
        shuffled=draw(st.booleans()),
        most=draw(st.sampled_from([1000, 1000, 2, 3])),
    )
    instant = draw(st.integers(0, 2_000_000))
    messages = []
    for number in draw(st.permutations(range(draw(st.integers(0, 25))))):
        instant += draw(GAPS)
        messages.append((instant, f"msg_{number:03}"))
    made = Thread(behavior, messages)

    def bound() -> TimeBound | None:
        kind = draw(st.sampled_from(["none", "none", "message", "instant", "between"]))
        if kind == "none" or not messages:
            return None
        message = draw(st.sampled_from(made.all()))
        if kind == "message":
            return TimeBound(message.received_at, message.id)
        off = 0 if kind == "instant" else draw(st.sampled_from([-1, 1, 500, 400_000]))
        return TimeBound(message.received_at + timedelta(microseconds=off))

    largest = draw(st.integers(2, 6))
    return History(
        made,
        largest,
        before=bound(),
        after=bound(),
        oldest_first=draw(st.booleans()),
        page_size=draw(st.integers(1, largest)),
        limit=draw(st.none() | st.integers(1, 12)),
        bursts=draw(st.lists(st.tuples(st.integers(0, 4), GAPS), max_size=6)),
    )


def cell(behavior: Behavior, at: int) -> int:
    """Tell apart what the server can tell apart by `before`: two messages of one cell have no cursor between them."""
    unit: int = 10 ** (6 - behavior.read)
    at = cut(at, behavior.stored)
    return -(-at // unit) if behavior.inclusive in (True, "before") else at // unit


def closed_cells(state: Thread, largest: int) -> set[int]:
    """Say which cells hold more than a page.

    One that just fills a page is read too, but not for certain where the server cuts cursors, or includes only one end
    of a stretch: then nothing shows whether the page holds all of it.
    """
    behavior = state.behavior
    largest = min(largest, behavior.most)
    if behavior.read < 6 or behavior.inclusive in ("before", "after"):
        largest -= 1
    count = Counter(cell(behavior, at) for at, _ in state.messages)
    return {name for name, held in count.items() if held > largest}


def open_part(history: History, closed: set[int]) -> int:
    """Count the messages wanted that come before the first one printed at an instant that touches a closed cell.

    A closed cell within the second after `before` counts too, where the server cuts cursors or includes one end only:
    what it holds unseen may lie on the one side of the bound or the other.
    """
    server, behavior = history.state, history.state.behavior
    full = {
        printed(cut(at, behavior.stored), behavior.timestamp_digits)
        for at, _ in server.messages
        if cell(behavior, at) in closed
    }
    near = {bound.instant for bound in (history.before, history.after) if bound and bound.message_id}
    if history.before and (behavior.read < 6 or behavior.inclusive in ("before", "after")):
        near |= {at for at in full if timedelta(0) <= at - history.before.instant < timedelta(seconds=2)}
    wanted = 0
    for item in sorted(server.all(), key=key, reverse=not history.oldest_first):
        if item.received_at in full and (history.is_wanted(item) or item.received_at in near):
            break
        wanted += history.is_wanted(item)
    return wanted if history.limit is None else min(wanted, history.limit)


def check_history(
    history: History, make: Callable[[History], Paginator[CursorRequest, Message]] = History.paginator
) -> tuple[PaginationError | None, int]:
    """Walk once, and hold what came out against the promise."""
    server, promised, bursts = history.state, history.wanted(), list(history.bursts)

    def between() -> None:
        if bursts:
            count, gap = bursts.pop()
            for _ in range(count):
                latest = max((instant for instant, _ in server.messages), default=0)
                server.messages.append((latest + gap, f"new_{len(server.messages):03}"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cursor, "MAX_MESSAGES", history.largest)
        paginator = make(history)

        def answer(request: CursorRequest) -> Page[Message]:
            assert 1 <= request.limit <= history.largest
            return server.page(request.limit, request.before, request.after)

        before_the_walk = len(server.messages)
        # Where a tiny page shows others of a group each time, or more than a page comes in at one instant, the way is
        # long, but not endless.
        endless = 5 * ENDLESS if server.behavior.shuffled or history.bursts else ENDLESS
        out, failure, asked = walk_to_the_end(paginator, answer, between, endless)
    keys = list(map(key, out))
    assert keys == sorted(keys, reverse=not history.oldest_first)
    assert len(set(keys)) == len(keys)
    assert all(map(history.is_wanted, out))
    if failure is not None:
        closed = closed_cells(server, history.largest)
        assert closed, failure
        if len(server.messages) == before_the_walk and not server.behavior.shuffled:
            assert len(out) >= open_part(history, closed)
    if history.limit is not None:
        assert len(out) <= history.limit
        if len(server.messages) > before_the_walk:
            return failure, asked
        promised = promised[: history.limit]
    old = [message for message in out if message.id.startswith("msg")]
    assert old == (promised if failure is None else promised[: len(old)])
    return failure, asked


@MANY
@example(History(state((0, 2), (1, 1), after_alone="newest"), 2, oldest_first=True, page_size=2))
@example(History(state((0, 6), (1, 1), after_alone="newest"), 2, TimeBound(START, "msg_001"), oldest_first=True))
@example(History(state((0, 2), after_alone="newest", timestamp_digits=3), 3, oldest_first=True, bursts=[(1, 1000)]))
@example(History(state((0, 1), (1, 1), after_alone="newest", inclusive=True), 2, oldest_first=True))
@example(History(state((0, 5), (1, 2), inclusive=True, timestamp_digits=0), 6))
@example(History(state((0, 3), inclusive="before", timestamp_digits=0), 2, oldest_first=True))
@example(History(state((0, 2), (1, 2), (2, 1), inclusive=True, timestamp_digits=0), 2))
@example(
    History(
        state((0, 5), (1, 2), (2, 1), inclusive=True, after_alone="newest"),
        2,
        TimeBound(START, "msg_001"),
        oldest_first=True,
    )
)  # one case a line
@example(History(state((0, 3), (1, 2), (1000, 2), (1999, 2), (2000, 2), (2999, 2), timestamp_digits=0), 2))
@example(History(state((0, 2), (998, 2), (999, 2), inclusive=True), 2))
@example(History(state((0, 2), timestamp_digits=3), 2, bursts=[(2, 1000)]))
@example(
    History(
        state((0, 1), (10**6, 2), (1_001_000, 1), (1_301_000, 2), (2_301_000, 7), timestamp_digits=3),
        2,
        oldest_first=True,
    )
)
@example(
    History(
        state((0, 3), (2, 8), inclusive=True),
        3,
        TimeBound(START + 2 * MICROSECOND, "msg_004"),
        oldest_first=True,
        page_size=3,
    )
)
@given(histories())
def test_every_message_between_the_bounds_comes_once_and_in_order(history: History) -> None:
    check_history(history)


READS_BOUNDARIES: list[bool | str] = [False, False, True, True, "before", "after"]


def random_history(random: Random) -> History:
    """Make a case from all that a server may do, more often large and busy than `histories` does."""
    behavior = Behavior(
        inclusive=random.choice(READS_BOUNDARIES),
        after_alone=random.choice(["oldest", "newest"]),
        message_order=random.choice(["newest", "oldest"]),
        timestamp_digits=random.choice([0, 3, 6]),
        stored=random.choice([0, 3, 6, 6]),
        read=random.choice([0, 3, 6, 6]),
        shuffled=random.random() < 0.2,
        most=random.choice([1000, 1000, 1000, 2, 3, 5]),
    )
    gaps = random.choice([GAP_CHOICES, [0, 1], [1000, 10**6], [10**6, 10**8, 10**10], [1, 999, 1000, 400_000]])
    largest = random.randint(2, 8)
    messages, instant = [], random.randrange(2_000_000)
    order = list(range(random.randrange(40)))
    random.shuffle(order)
    for number in order:
        instant += random.choice(gaps)
        messages.append((instant, f"msg_{number:03}"))
    server = Thread(behavior, messages)

    def bound() -> TimeBound | None:
        if not messages or random.random() < 0.5:
            return None
        message = random.choice(server.all())
        if random.random() < 0.5:
            return TimeBound(message.received_at, message.id)
        off = random.choice([0, -1, 1, 500, 400_000])
        return TimeBound(message.received_at + timedelta(microseconds=off))

    return History(
        server,
        largest,
        before=bound(),
        after=bound(),
        oldest_first=random.random() < 0.5,
        page_size=random.randint(1, largest),
        limit=random.choice([None, None, random.randint(1, 15)]),
        bursts=[
            (random.randrange(4), random.choice(GAP_CHOICES)) for _ in range(random.choice([0, 0, random.randrange(8)]))
        ],
    )


def test_no_message_is_lost_or_repeated_whatever_the_server_does() -> None:
    """AGENTPHONE_CASES=100000 for a long run, which with -s says what it saw."""
    cases = int(os.environ.get("AGENTPHONE_CASES", "2000"))
    seen: Counter[str] = Counter()
    for seed in range(cases):
        try:
            failure, asked = check_history(random_history(Random(seed)))
        except AssertionError as error:
            error.add_note(f"random_history(Random({seed}))")
            raise
        seen["ended in an error" if failure else "complete"] += 1
        seen["requests"] += asked
        seen["most requests"] = max(seen["most requests"], asked)
    print(dict(seen))  # noqa: T201  # with -s


class NaiveCursorWalk(CursorPaginator):
    """What most SDKs do: the last instant of a page is the cursor of the next."""

    def _run(self) -> Generator[Sequence[CursorRequest], Sequence[Page[Message]], None]:
        before = self._before.instant if self._before else None
        while True:
            (page,) = yield (CursorRequest(limit=self._page_size, before=before),)
            self._ready += page.data
            if not page.has_more or not page.data:
                return
            before = page.data[-1].received_at


def fails(check: Callable[[Any], object]) -> Callable[[Any], bool]:
    def condition(case: Any) -> bool:
        try:
            check(case)
        except AssertionError:
            return True
        return False

    return condition


@pytest.mark.parametrize("behavior", [{}, {"digits": 0}, {"inclusive": True}, {"listed": "oldest"}])
def test_the_properties_bite_a_naive_walk_of_messages(behavior: dict[str, Any]) -> None:
    def naive(history: History) -> Paginator[CursorRequest, Message]:
        return NaiveCursorWalk(limit=None, before=None, after=None, oldest_first=False, page_size=history.page_size)

    states = st.lists(st.tuples(st.sampled_from([0, 1, 500_000, 2_000_000]), st.integers(1, 3)), max_size=5)
    cases = states.map(lambda made: History(state(*sorted(made), **behavior), 3, page_size=2))
    found = find(cases, fails(lambda history: check_history(history, naive)), settings=UNSHRUNK)
    check_history(found)


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("digits", [0, 3, 6])
@pytest.mark.parametrize("after_alone", ["oldest", "newest"])
@pytest.mark.parametrize("page_size", [7, 199, 200])
@pytest.mark.parametrize("pages", [1, 2, 9, 100])
def test_a_history_of_n_pages_costs_at_most_n_and_two_requests(
    pages: int, page_size: int, after_alone: str, digits: int, oldest_first: bool
) -> None:
    server = state(
        *((second * 1_000_000, 1) for second in range(pages * page_size)),
        after_alone=after_alone,
        timestamp_digits=digits,
    )
    paginator = CursorPaginator(limit=None, before=None, after=None, oldest_first=oldest_first, page_size=page_size)
    messages = server.all()
    by_instant = {message.received_at: index for index, message in enumerate(messages)}

    def answer(request: CursorRequest) -> Page[Message]:
        # The model sorts anew for each page; this is its answer for one message a second, found by index.
        end = len(messages) if request.before is None else index_of(request.before)
        start = 0 if request.after is None else index_of(request.after + timedelta(microseconds=1))
        found = messages[start:end]
        takes_oldest = request.after is not None and after_alone == "oldest"
        page = found[: request.limit] if takes_oldest else found[-request.limit :]
        return Page(data=tuple(page), has_more=len(page) < len(found))

    def index_of(instant: datetime) -> int:
        seconds = -((START - instant) // timedelta(seconds=1))
        return min(max(0, seconds), len(by_instant))

    out, failure, asked = walk_to_the_end(paginator, answer)
    assert failure is None
    assert out == (messages if oldest_first else messages[::-1])
    assert asked <= (2 * pages + 4 if oldest_first and after_alone == "newest" else pages + 2)


@pytest.mark.parametrize(("limit", "most"), [(1, 2), (3, 2), (200, 2), (250, 3)])
def test_a_limit_of_messages_asks_for_no_more_than_is_wanted(limit: int, most: int) -> None:
    server = state(*((second * 1_000_000, 1) for second in range(1000)))
    asked: list[int] = []

    def answer(request: CursorRequest) -> Page[Message]:
        asked.append(request.limit)
        return server.page(request.limit, request.before, request.after)

    paginator = CursorPaginator(limit=limit, before=None, after=None, oldest_first=False, page_size=200)
    out, _, requests = walk_to_the_end(paginator, answer)
    assert out == server.all()[::-1][:limit]
    assert requests <= most
    assert asked[0] <= limit
    assert sum(asked) <= limit + 2 * (requests - 1)  # each further request reads one again, and looks one further


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("digits", [0, 6])
def test_an_instant_that_just_fits_a_page_is_given_and_a_fuller_one_is_named(
    digits: int, inclusive: bool, oldest_first: bool
) -> None:
    def paginator(full: int) -> tuple[list[Message], PaginationError | None, int]:
        server = state((0, 3), (5_000_000, full), (9_000_000, 3), timestamp_digits=digits, inclusive=inclusive)
        paginator = CursorPaginator(limit=None, before=None, after=None, oldest_first=oldest_first, page_size=200)
        return walk_to_the_end(paginator, lambda request: server.page(request.limit, request.before, request.after))

    out, failure, _ = paginator(full=200)
    assert (failure, len(out)) == (None, 206)
    out, failure, _ = paginator(full=201)
    assert len(out) == 3
    assert "2025-01-15T12:00:05" in str(failure)


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("after_alone", ["oldest", "newest"])
@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize(("digits", "stored", "read"), [(3, 3, 3), (0, 0, 0), (6, 6, 3), (3, 6, 3), (3, 3, 0)])
def test_more_messages_than_a_page_between_two_cursors_are_named_where_the_server_cuts_cursors(
    digits: int, stored: int, read: int, inclusive: bool, after_alone: str, oldest_first: bool
) -> None:
    def paginator(full: int) -> tuple[list[Message], PaginationError | None, int]:
        server = state(
            (0, 3),
            *((5_000_100 + number, 1) for number in range(full)),
            (9_000_000, 3),
            timestamp_digits=digits,
            stored=stored,
            read=read,
            inclusive=inclusive,
            after_alone=after_alone,
        )
        paginator = CursorPaginator(limit=None, before=None, after=None, oldest_first=oldest_first, page_size=200)
        return walk_to_the_end(paginator, lambda request: server.page(request.limit, request.before, request.after))

    out, failure, _ = paginator(full=199)
    assert (failure, len(out)) == (None, 205)
    out, failure, asked = paginator(full=205)
    assert asked < 100
    if digits == 6 and oldest_first and after_alone == "oldest":
        assert (failure, len(out)) == (None, 211)  # printed apart: what `after` gives and what `before` gives overlap
        return
    assert "2025-01-15T12:00:05" in str(failure)
    assert "no cursor" in str(failure)
    # Newest first, those printed apart go out as well, as far as the one page that can be had of them shows.
    assert len(out) == (3 + 199 if digits == 6 and not oldest_first else 3)


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("after_alone", ["oldest", "newest"])
@pytest.mark.parametrize("inclusive", [False, True, "before", "after"])
@pytest.mark.parametrize("read", [0, 3])
@pytest.mark.parametrize("digits", [0, 3, 6])
def test_a_server_that_cuts_cursors_loses_nothing(
    digits: int, read: int, inclusive: bool | str, after_alone: str, oldest_first: bool
) -> None:
    server = state(
        *((number * 400 + number // 50 * 300_000, 1) for number in range(600)),
        timestamp_digits=digits,
        read=read,
        inclusive=inclusive,
        after_alone=after_alone,
    )
    paginator = CursorPaginator(limit=None, before=None, after=None, oldest_first=oldest_first, page_size=7)
    out, failure, asked = walk_to_the_end(
        paginator, lambda request: server.page(request.limit, request.before, request.after)
    )
    assert failure is None
    assert out == (server.all() if oldest_first else server.all()[::-1])
    assert asked < 700


def old_and_busy() -> list[int]:
    """Give a history that began ten years ago with as much in a day as came in today."""
    day = [number * 1_728_000 for number in range(50_000)]
    return [at - 10 * 365 * 86_400 * 10**6 for at in day] + day


@pytest.mark.parametrize("digits", [0, 6])
@pytest.mark.parametrize(
    ("instants", "most"),
    [
        ([number * 10**6 for number in range(100_000)], 20),
        ([number * 86_400 * 10**6 for number in range(10_000)], 12),
        (list(range(0, 10**9, 10**4)), 22),
        ([number * 10**6 for number in range(500)], 9),
        (old_and_busy(), 30),
    ],
    ids=["100,000 of a day", "10,000 days", "100 a second", "500", "ten years ago and today"],
)
@pytest.mark.parametrize("limit", [1, 5, 150])
def test_the_oldest_messages_are_found_by_halving_the_time_where_after_gives_the_newest(
    limit: int, instants: list[int], most: int, digits: int
) -> None:
    server = Thread(Behavior(timestamp_digits=digits))

    def answer(request: CursorRequest) -> Page[Message]:
        # The model sorts anew for each page; here nothing changes.
        end = len(instants) if request.before is None else bisect_left(instants, micros_of(request.before))
        start = 0 if request.after is None else bisect_right(instants, micros_of(request.after))
        page = range(max(start, end - request.limit), end)
        data = tuple(server.message((instants[index], f"msg_{index:06}")) for index in page)
        return Page(data=data, has_more=len(page) < end - start)

    paginator = CursorPaginator(limit=limit, before=None, after=None, oldest_first=True, page_size=200)
    out, failure, asked = walk_to_the_end(paginator, answer)
    assert failure is None
    assert [message.id for message in out] == [f"msg_{index:06}" for index in range(limit)]
    assert asked <= most


def test_ten_thousand_messages_in_one_printed_second_come_out_whole() -> None:
    server = state(*((index * 97, 1) for index in range(10_000)), timestamp_digits=0)
    paginator = CursorPaginator(limit=None, before=None, after=None, oldest_first=False, page_size=200)
    instants = sorted(server.messages)

    def answer(request: CursorRequest) -> Page[Message]:
        end = START + timedelta(days=1) if request.before is None else request.before
        below = [item for item in instants if START + timedelta(microseconds=item[0]) < end]
        return Page(data=tuple(map(server.message, below[-request.limit :])), has_more=len(below) > request.limit)

    out, failure, asked = walk_to_the_end(paginator, answer)
    assert failure is None
    assert [message.id for message in out] == [
        f"msg_{index:03}" for index in sorted(range(10_000), key=lambda i: f"msg_{i:03}")
    ][::-1]
    assert asked < 3 * 50  # 50 pages hold them


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("page_size", [1, 2, 200])
@pytest.mark.parametrize("after_alone", ["oldest", "newest"])
def test_bounds_at_the_ends_of_the_calendar_are_bounds_like_others(
    page_size: int, oldest_first: bool, after_alone: str
) -> None:
    first, last = micros_of(datetime(1901, 1, 1, tzinfo=UTC)), micros_of(datetime(9999, 12, 31, 23, 59, 58, tzinfo=UTC))
    server = state((first, 2), (0, 1), (last, 2), after_alone=after_alone)
    for bound in (None, TimeBound(datetime.min.replace(tzinfo=UTC)), TimeBound(datetime.max.replace(tzinfo=UTC))):
        for before, after in ((bound, None), (None, bound)):
            history = History(server, 200, before, after, oldest_first=oldest_first, page_size=page_size)
            check_history(history)


# Conversations


Move = tuple[str, int, int]
"""What happens, to which conversation, and above the place of which other one."""
ORDINARY = ("jump", "new", "remove")
WILD = (*ORDINARY, "late", "late", "late new", "ahead", "silent")


@frozen
class List:
    """One case: a list as the server has it, how it is read, and how it moves after each request."""

    inbox: Inbox
    largest: int
    page_size: int
    concurrency: int
    moves: Sequence[Sequence[Move]]
    order: Random

    def paginator(self) -> OffsetPaginator:
        return OffsetPaginator(limit=None, offset=0, page_size=self.page_size, concurrency=self.concurrency)


@st.composite
def lists(draw: st.DrawFn, concurrency: int = 4, kinds: Sequence[str] = ORDINARY) -> List:
    inbox = Inbox(Behavior(timestamp_digits=draw(st.sampled_from([0, 3, 6])), has_total=draw(st.booleans())))
    for _ in range(draw(st.integers(0, 25))):
        inbox.receive(wait=draw(st.sampled_from([1, 1000, 400_000, 3_000_000])))
    # Where more moves between two requests than a page holds, nobody could come to an end.
    largest = draw(st.integers(5, 7))
    moves = st.tuples(st.sampled_from(kinds), st.integers(0, 100), st.integers(0, 100))
    return List(
        inbox,
        largest,
        page_size=draw(st.integers(1, largest)),
        concurrency=draw(st.integers(1, concurrency)),
        moves=draw(st.lists(st.lists(moves, max_size=3), max_size=25)),
        order=draw(st.randoms(use_true_random=False)),
    )


def wild_list(seed: int) -> List:
    """Make a case of everything that a list does, from a number alone: so many of them take no time to find."""
    random = Random(seed)
    inbox = Inbox(
        Behavior(
            timestamp_digits=random.choice([0, 3, 6]),
            has_total=random.random() < 0.7,
            most=random.choice([1000, 1000, 1000, 3, 4, 5]),
            nulls=random.choice(["first", "last"]),
        )
    )
    largest = random.randint(5, 7)
    for _ in range(random.choice([0, 3, 12, 25, 25, 40, 60])):
        inbox.receive(wait=random.choice([1, 1000, 400_000, 3_000_000]))
    for _ in range(random.choice([0, 0, 0, 1, 3, 12])):
        inbox.begin()
    for _ in range(random.choice([0, 0, 1, 1, 3, 9])):
        inbox.receive(late=-random.randint(1, 10) * 10**9)
    kinds = random.choices(WILD, k=random.randint(1, 5))
    most = random.randint(1, 3 if inbox.behavior.most > largest else 1)
    moves = [
        [(random.choice(kinds), random.randrange(100), random.randrange(100)) for _ in range(random.randint(0, most))]
        for _ in range(random.choice([0, 5, 25, 100]))
    ]
    return List(inbox, largest, random.randint(1, largest), random.choice([1, 1, 2, 4, 8]), moves, random)


@define
class Mover:
    """Moves a list, within what the walk's promise assumes.

    Where all is at the front that moves (`ORDINARY`), nothing is assumed but a pace that can be kept up with. Else:

    - A conversation moves past the walk, away from the front, in fewer readings than there are at most. It is away
      from the front where it is shown late, or when others are dated in the future or not at all.
    - Between the same two answers, or while the same pages are in flight, conversations begin or disappear, not both:
      the total alone tells of them. Without a total, nothing else moves where one disappears.
    - Fewer begin or disappear meanwhile than half a page holds.
    """

    case: List
    removed: set[str] = field(factory=set)
    passed: Counter[str] = field(factory=Counter)
    meanwhile: list[str] = field(factory=list)
    """What has happened since the last answers."""

    def is_ordinary(self) -> bool:
        undated = None in self.case.inbox.last.values()
        return (
            not undated and self.ahead() == 0 and all(kind in ORDINARY for few in self.case.moves for kind, *_ in few)
        )

    def ahead(self) -> int:
        return sum(last is not None and last > self.case.inbox.now for last in self.case.inbox.last.values())

    def may(self, what: str, chosen: str | None) -> bool:
        inbox = self.case.inbox
        if self.is_ordinary():
            return True
        ends = self.meanwhile.count("remove")
        begins = sum(kind in ("new", "late new", "silent") for kind in self.meanwhile)
        if what == "remove":
            others = begins if inbox.behavior.has_total else len(self.meanwhile) - ends
            return not others and ends < 2
        if ends and not (inbox.behavior.has_total and chosen is not None):
            return False
        if chosen is None:
            return begins < 2
        # The first reading with pages in flight at once finds out no more than whether anything moves.
        sure = offset.READINGS - (1 if self.case.concurrency > 1 else 0)
        return self.passed[chosen] < sure - 1

    def move(self, what: str, which: int, where: int) -> None:
        inbox = self.case.inbox
        ids = list(inbox.last)
        is_new = what in ("new", "late new", "silent") or not ids
        chosen = None if is_new else ids[which % len(ids)]
        if is_new and what not in ("late new", "silent"):
            what = "new"
        if not self.may(what, chosen):
            return
        self.meanwhile.append(what)
        above = inbox.last[ids[where % len(ids)]] if ids else None
        late = 0 if above is None else max(0, inbox.now - above)
        wait = 1 + which % 3
        if what == "silent":
            inbox.begin()
        elif what == "remove":
            assert chosen is not None
            self.removed.add(chosen)
            inbox.remove(chosen)
        elif what in ("late", "late new"):
            inbox.receive(chosen, wait=1, late=late)
        else:
            inbox.receive(chosen, wait=wait, late=-(10**9) * (1 + where) if what == "ahead" else 0)
        if chosen is not None and (what == "late" or self.ahead() > 1 or None in inbox.last.values()):
            self.passed[chosen] += 1


def check_list(case: List, make: Callable[[List], Paginator[OffsetRequest, Conversation]] = List.paginator) -> None:
    """Walk once while the list moves, with the pages in flight answered in any order."""
    inbox, moves, mover = case.inbox, list(case.moves), Mover(case)
    there = set(inbox.last)
    out: list[Conversation] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offset, "MAX_CONVERSATIONS", case.largest)
        paginator = make(case)
        while requests := paginator.next_requests():
            assert inbox.requests < ENDLESS, "the walk does not end"
            assert len(requests) <= (1 if case.concurrency == 1 else offset.PREFETCH_FACTOR * case.concurrency)
            pages: dict[int, Page[Conversation]] = {}
            mover.meanwhile.clear()
            for index in case.order.sample(range(len(requests)), len(requests)):
                assert 1 <= requests[index].limit <= case.largest
                pages[index] = inbox.page(requests[index].limit, requests[index].offset)
                for move in moves.pop() if moves else ():
                    mover.move(*move)
            out += paginator.receive([pages[index] for index in range(len(requests))])
    ids = [conversation.id for conversation in out]
    assert len(set(ids)) == len(ids), "repeated"
    assert there - mover.removed <= set(ids), "lost"


@pytest.mark.parametrize("part", range(10))
def test_every_conversation_comes_once_whatever_a_list_does(part: int) -> None:
    """`AGENTPHONE_CASES=100000` makes a long run of it."""
    cases = int(os.environ.get("AGENTPHONE_CASES", "2000")) // 10
    for seed in range(part * cases, (part + 1) * cases):
        try:
            check_list(wild_list(seed))
        except (AssertionError, PaginationError) as error:
            raise AssertionError(f"wild_list({seed}): {error}") from error


@settings(MANY, max_examples=800)
@given(lists())
def test_every_conversation_comes_once_while_the_list_moves(case: List) -> None:
    check_list(case)


@pytest.mark.parametrize("concurrency", [1, 4, 8])
@pytest.mark.parametrize("seed", range(12))
def test_a_long_list_with_many_pages_in_flight_gives_everybody_once(seed: int, concurrency: int) -> None:
    """What was read in an earlier sweep says nothing about the place of a page in this one."""
    random = Random(seed)
    inbox = Inbox()
    for _ in range(260):
        inbox.receive()
    moves = [[("jump", random.randrange(260), 0), ("jump", random.randrange(260), 0)] for _ in range(60)]
    check_list(List(inbox, 20, 20, concurrency, moves, random))


def numbered(count: int, **behavior: Any) -> Inbox:
    """Make a list of so many conversations, a second apart."""
    inbox = Inbox(Behavior(**behavior))
    for _ in range(count):
        inbox.receive(wait=1_000_000)
    return inbox


def read_while_it_moves(
    inbox: Inbox, moves: Mapping[int, Callable[[], Any]], *, page_size: int = 100, concurrency: int = 1
) -> tuple[set[str], int]:
    """Read a list of which something moves after the requests of those numbers; give who came, and the requests."""
    paginator = OffsetPaginator(limit=None, offset=0, page_size=page_size, concurrency=concurrency)
    answered = iter(range(1, ENDLESS + 1))
    out, failure, asked = walk_to_the_end(
        paginator,
        lambda request: inbox.page(request.limit, request.offset),
        lambda: moves.get(next(answered), lambda: None)(),
    )
    assert failure is None
    ids = [item.id for item in out]
    assert len(set(ids)) == len(ids)
    return set(ids), asked


@pytest.mark.parametrize("has_total", [True, False])
@pytest.mark.parametrize("ahead", [1, 2, 30])
def test_conversations_dated_in_the_future_hide_none_that_jump_to_the_front(ahead: int, has_total: bool) -> None:
    inbox = numbered(2000, has_total=has_total)
    for number in range(ahead):
        inbox.receive(f"conv_{1000 + number}", late=-(10**12))

    def jump(count: int) -> None:
        for _ in range(count):  # those that have been silent longest
            inbox.receive(min(inbox.last, key=lambda name: inbox.last[name] or 0), wait=1_000_000)

    ids, asked = read_while_it_moves(inbox, {number: lambda: jump(16) for number in range(1, 11)})
    assert ids == set(inbox.last)
    assert asked <= (20 + 5 if ahead == 1 and has_total else 3 * 22 + 5)


@pytest.mark.parametrize("has_total", [True, False])
@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("after", [1, 3, 7])
def test_a_conversation_that_a_late_text_moves_to_the_middle_comes(
    after: int, concurrency: int, has_total: bool
) -> None:
    inbox = numbered(1000, has_total=has_total)
    place = inbox.last[f"conv_{1000 - 50 * after}"]
    assert place is not None
    late = inbox.now + 1 - place - 1  # right above the one at 50 places for each page read
    ids, asked = read_while_it_moves(
        inbox, {after: lambda: inbox.receive("conv_20", late=late)}, concurrency=concurrency
    )
    assert ids == set(inbox.last)
    assert asked <= 2 * (11 + 1)


def test_a_late_text_is_noticed_although_others_jump_to_the_front_meanwhile() -> None:
    inbox = numbered(1000)
    place = inbox.last["conv_850"]
    assert place is not None

    def move() -> None:
        inbox.receive("conv_10", wait=1_000_000)
        inbox.receive("conv_20", late=inbox.now + 1 - place - 1)

    ids, _ = read_while_it_moves(inbox, {3: move, 5: lambda: inbox.receive("conv_30"), 6: lambda: inbox.receive()})
    assert {f"conv_{number}" for number in range(1000)} <= ids


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("count", [1, 40])
def test_a_list_that_is_never_still_is_read_about_once(count: int, concurrency: int) -> None:
    """What jumps to the front is accounted for by the total: no reason to read all of the list again."""
    inbox, random = numbered(2000), Random(1)

    def move() -> None:
        for _ in range(count):
            inbox.receive(f"conv_{random.randrange(2000)}", wait=1000)

    moves = dict.fromkeys(range(1, ENDLESS), move)
    ids, asked = read_while_it_moves(inbox, moves, concurrency=concurrency)
    assert ids == set(inbox.last)
    # With pages in flight at once it is read twice, and the second time they overlap.
    assert asked <= (20 if concurrency == 1 else 20 + 22 + 2) * (1 if count == 1 else 1.7) + 6


@pytest.mark.parametrize("has_total", [True, False])
def test_a_list_in_which_late_texts_never_cease_comes_to_an_end(has_total: bool) -> None:
    inbox, random = numbered(1000, has_total=has_total), Random(1)

    def move() -> None:
        inbox.receive(f"conv_{random.randrange(1000)}", wait=1000, late=random.randrange(1000) * 1_000_000)
        inbox.receive(f"conv_{random.randrange(1000)}", wait=1000)

    ids, asked = read_while_it_moves(inbox, dict.fromkeys(range(1, ENDLESS), move))
    assert ids == set(inbox.last)
    assert asked <= 3 * (12 + 2)


class NaiveOffsetWalk(OffsetPaginator):
    """What most SDKs do: the offset goes up by what a page held."""

    def _run(self) -> Generator[Sequence[OffsetRequest], Sequence[Page[Conversation]], None]:
        offset = 0
        while True:
            (page,) = yield (OffsetRequest(limit=self._page_size, offset=offset),)
            self._ready += page.data
            offset += len(page.data)
            if not page.has_more:
                return


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("has_total", [True, False])
@pytest.mark.parametrize(("limit", "jumps"), [(101, 1), (105, 2), (105, 5), (250, 20)])
def test_a_limit_just_over_a_page_is_reached_in_a_busy_list(
    limit: int, jumps: int, has_total: bool, concurrency: int
) -> None:
    """What is left to ask for is less than what comes in meanwhile: that is no circle."""
    inbox = Inbox(Behavior(has_total=has_total))
    for _ in range(400):
        inbox.receive()
    paginator = OffsetPaginator(limit=limit, offset=0, page_size=100, concurrency=concurrency)

    def move() -> None:
        for _ in range(jumps):
            inbox.receive(min(inbox.last, key=lambda name: inbox.last[name] or 0))

    out, failure, asked = walk_to_the_end(paginator, lambda request: inbox.page(request.limit, request.offset), move)
    assert failure is None
    assert len({item.id for item in out}) == len(out) == limit
    assert asked <= 10


@pytest.mark.parametrize("what", ["jump", "new", "remove"])
def test_the_properties_bite_a_naive_walk_of_the_list(what: str) -> None:
    def naive(case: List) -> Paginator[OffsetRequest, Conversation]:
        return NaiveOffsetWalk(limit=None, offset=0, page_size=case.page_size)

    find(lists(concurrency=1, kinds=[what]), fails(lambda case: check_list(case, naive)), settings=UNSHRUNK)


def test_the_search_for_what_bites_finds_nothing_in_a_list_that_stands_still() -> None:
    still = lists(concurrency=1).map(lambda case: List(case.inbox, case.largest, case.page_size, 1, (), case.order))
    with pytest.raises(NoSuchExample):
        find(still, fails(check_list), settings=settings(UNSHRUNK, max_examples=100))


@pytest.mark.parametrize("digits", [0, 6])
@pytest.mark.parametrize("concurrency", [1, 3, 8])
@pytest.mark.parametrize("page_size", [7, 100])
@pytest.mark.parametrize("pages", [0, 1, 2, 3, 10, 30])
def test_a_list_of_n_pages_that_stands_still_costs_at_most_n_and_one_requests(
    pages: int, page_size: int, concurrency: int, digits: int
) -> None:
    inbox = Inbox(Behavior(timestamp_digits=digits))
    for _ in range(pages * page_size):
        inbox.receive()
    whole = inbox.page(10**6, 0).data
    paginator = OffsetPaginator(limit=None, offset=0, page_size=page_size, concurrency=concurrency)

    def answer(request: OffsetRequest) -> Page[Conversation]:
        data = whole[request.offset : request.offset + request.limit]
        return Page(data=data, has_more=request.offset + len(data) < len(whole), total=len(whole))

    out, failure, asked = walk_to_the_end(paginator, answer)
    assert failure is None
    assert tuple(out) == whole
    assert asked <= max(1, pages) + 1


@pytest.mark.parametrize(("most", "has_total", "asked_at_most"), [(50, True, 40 + 2), (50, False, 41 + 2)])
@pytest.mark.parametrize("concurrency", [1, 8])
def test_pages_smaller_than_asked_for_cost_no_more_for_being_in_flight_at_once(
    concurrency: int, most: int, has_total: bool, asked_at_most: int
) -> None:
    inbox = numbered(2000, most=most, has_total=has_total)
    ids, asked = read_while_it_moves(inbox, {}, concurrency=concurrency)
    assert ids == set(inbox.last)
    assert asked <= asked_at_most


def conversation(number: int) -> Conversation:
    return Conversation(id=f"conv_{number}", phone_number="+1", participant="+1", last_message_at=START)


SAME_PAGE = tuple(conversation(number) for number in range(100))


@pytest.mark.parametrize("total", [None, 100, 10_000])
@pytest.mark.parametrize(
    "page",
    [
        lambda request: (),
        lambda request: SAME_PAGE[: request.limit],
        lambda request: SAME_PAGE[request.offset : request.offset + request.limit],
        lambda request: tuple(reversed(SAME_PAGE[: request.limit])),
    ],
    ids=["empty", "the same", "empty at the end", "the same, backwards"],
)
@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_list_that_says_has_more_for_ever_ends_in_an_error(
    page: Callable[[OffsetRequest], tuple[Conversation, ...]], total: int | None, concurrency: int
) -> None:
    paginator = OffsetPaginator(limit=None, offset=0, page_size=50, concurrency=concurrency)
    out, failure, asked = walk_to_the_end(
        paginator, lambda request: Page(data=page(request), has_more=True, total=total)
    )
    assert "circles" in str(failure)
    assert asked < 60
    assert len({item.id for item in out}) == len(out)


def test_what_was_read_goes_out_before_the_error_about_contradictory_pages() -> None:
    """Pages in flight at once: the first six of them are empty, and those behind them are not."""
    whole = [conversation(number) for number in range(1000)]
    paginator = OffsetPaginator(limit=None, offset=0, page_size=50, concurrency=8)

    def answer(request: OffsetRequest) -> Page[Conversation]:
        is_gap = 50 <= request.offset < 400
        data = () if is_gap else tuple(whole[request.offset : request.offset + request.limit])
        return Page(data=data, has_more=True, total=1000)

    out, failure, _ = walk_to_the_end(paginator, answer)
    assert "circles" in str(failure)
    assert out == whole[:50] + whole[400:]


@pytest.mark.parametrize("concurrency", [4, 8])
def test_small_pages_in_flight_that_bring_nothing_are_no_circle(concurrency: int) -> None:
    """More has jumped to the front while they were in flight than six of them hold."""
    inbox = numbered(100)
    jumps = {10 + number: partial(inbox.receive, f"conv_{number}") for number in range(12)}
    ids, _ = read_while_it_moves(inbox, jumps, page_size=1, concurrency=concurrency)
    assert ids == set(inbox.last)


def test_a_total_without_end_is_followed_only_while_it_brings_something() -> None:
    paginator = OffsetPaginator(limit=None, offset=0, page_size=50)
    page = Page(data=SAME_PAGE[:50], has_more=False, total=10**9)
    out, failure, asked = walk_to_the_end(paginator, lambda _: page)
    assert (len(out), failure) == (50, None)
    assert asked <= 3 * 3  # what comes twice might be a list that moves


def test_a_page_cut_short_in_spite_of_its_total_is_followed() -> None:
    whole = [conversation(number) for number in range(120)]
    paginator = OffsetPaginator(limit=None, offset=0, page_size=50)

    def answer(request: OffsetRequest) -> Page[Conversation]:
        return Page(data=tuple(whole[request.offset : request.offset + 30]), has_more=False, total=120)

    out, failure, _ = walk_to_the_end(paginator, answer)
    assert (out, failure) == (whole, None)


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("messages", [0, 1, 200])
def test_messages_that_say_has_more_for_ever_end_in_an_error_after_what_was_read(
    messages: int, oldest_first: bool
) -> None:
    """The API ignores every cursor."""
    whole = [state((0, 1)).message((second * 10**6, f"m{second:03}")) for second in range(messages)]
    page = Page(data=tuple(whole), has_more=True)
    paginator = CursorPaginator(limit=None, before=None, after=None, oldest_first=oldest_first, page_size=200)
    out, failure, asked = walk_to_the_end(paginator, lambda _: page)
    assert "circles" in str(failure)
    assert asked < 60
    assert out == (whole if oldest_first else whole[::-1])


@pytest.mark.parametrize("then", ["empty", "first", "last"])
@pytest.mark.parametrize("limit", [None, 300])
@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("digits", [0, 6])
@pytest.mark.parametrize("after_alone", ["oldest", "newest"])
@pytest.mark.parametrize("page_size", [7, 200])
def test_messages_that_go_in_circles_at_their_end_all_come_before_the_error(
    page_size: int, after_alone: str, digits: int, oldest_first: bool, limit: int | None, then: str
) -> None:
    """Where there is nothing more, the API gives an empty page, or the first or last one again, and says hasMore."""
    server = state(
        *((second * 1_000_000, 1) for second in range(250)), after_alone=after_alone, timestamp_digits=digits
    )

    def answer(request: CursorRequest) -> Page[Message]:
        page = server.page(request.limit, request.before, request.after)
        if not page.data and then == "first":
            page = server.page(request.limit, None, None)
        elif not page.data and then == "last":
            page = Page(data=tuple(map(server.message, server.messages[: request.limit])), has_more=True)
        return Page(data=page.data, has_more=True)

    paginator = CursorPaginator(limit=limit, before=None, after=None, oldest_first=oldest_first, page_size=page_size)
    out, failure, asked = walk_to_the_end(paginator, answer)
    assert "circles" in str(failure)
    assert out == (server.all() if oldest_first else server.all()[::-1])
    assert asked < 2 * 250 / page_size + 60
