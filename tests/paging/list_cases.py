"""Random cases for the list paginator, and the check that its results keep the promise.

The promise: every conversation that is in the list from the start of the iteration to its end is returned once,
however the list moves meanwhile, within the assumptions that `Mover` states.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

from attrs import define, field, frozen
from hypothesis import strategies as st

from agentphone import Conversation, Page
from agentphone._paging import offset
from agentphone._paging.base import Paginator
from agentphone._paging.offset import OffsetPaginator
from agentphone._paging.requests import OffsetRequest
from tests.paging.support import MAX_REQUESTS
from tests.support.model import FakeList, ServerBehavior, small_limits

Move = tuple[str, int, int]
"""What happens, to which conversation, and before the place of which other one."""
FRONT_MOVES = ("jump", "new", "remove")
"""Moves that change the list at its front, or remove from it."""
ALL_MOVES = (*FRONT_MOVES, "late", "late", "late new", "future", "empty")


@frozen
class ListCase:
    """One case: a list as the server has it, how it is read, and how it moves after each request."""

    server: FakeList
    max_conversations: int
    """The largest page that the API allows."""
    page_size: int
    concurrency: int
    moves: Sequence[Sequence[Move]]
    """The moves after each request. The last ones come first."""
    order: Random
    """Decides in which order concurrent requests are served."""

    def paginator(self) -> OffsetPaginator:
        """Create the paginator of this case."""
        return OffsetPaginator(limit=None, offset=0, page_size=self.page_size, concurrency=self.concurrency)


@st.composite
def lists(draw: st.DrawFn, concurrency: int = 4, kinds: Sequence[str] = FRONT_MOVES) -> ListCase:
    """Draw a case. Hypothesis reduces a failing one to a small example."""
    server = FakeList(ServerBehavior(timestamp_digits=draw(st.sampled_from([0, 3, 6])), has_total=draw(st.booleans())))
    for _ in range(draw(st.integers(0, 25))):
        server.receive(wait=draw(st.sampled_from([1, 1000, 400_000, 3_000_000])))
    # If more moved between two requests than a page holds, no paginator could end.
    max_conversations = draw(st.integers(5, 7))
    moves = st.tuples(st.sampled_from(kinds), st.integers(0, 100), st.integers(0, 100))
    return ListCase(
        server,
        max_conversations,
        page_size=draw(st.integers(1, max_conversations)),
        concurrency=draw(st.integers(1, concurrency)),
        moves=draw(st.lists(st.lists(moves, max_size=3), max_size=25)),
        order=draw(st.randoms(use_true_random=False)),
    )


def random_list(seed: int) -> ListCase:
    """Create a case with all kinds of moves from a seed alone. It takes no time to draw."""
    random = Random(seed)
    server = FakeList(
        ServerBehavior(
            timestamp_digits=random.choice([0, 3, 6]),
            has_total=random.random() < 0.7,
            max_page_size=random.choice([1000, 1000, 1000, 3, 4, 5]),
            nulls=random.choice(["first", "last"]),
        )
    )
    max_conversations = random.randint(5, 7)
    for _ in range(random.choice([0, 3, 12, 25, 25, 40, 60])):
        server.receive(wait=random.choice([1, 1000, 400_000, 3_000_000]))
    for _ in range(random.choice([0, 0, 0, 1, 3, 12])):
        server.add_empty()
    for _ in range(random.choice([0, 0, 1, 1, 3, 9])):
        server.receive(late=-random.randint(1, 10) * 10**9)
    kinds = random.choices(ALL_MOVES, k=random.randint(1, 5))
    most = random.randint(1, 3 if server.behavior.max_page_size > max_conversations else 1)
    moves = [
        [(random.choice(kinds), random.randrange(100), random.randrange(100)) for _ in range(random.randint(0, most))]
        for _ in range(random.choice([0, 5, 25, 100]))
    ]
    return ListCase(
        server, max_conversations, random.randint(1, max_conversations), random.choice([1, 1, 2, 4, 8]), moves, random
    )


@define
class Mover:
    """Moves a list, within what the paginator assumes.

    If the list only moves at its front (`FRONT_MOVES`), nothing is assumed but a pace that can be kept up with. Else:

    - A conversation moves past the current page, away from the front, in fewer passes than there are at most. It is
      away from the front if its message is shown late, or if others are dated in the future or not at all.
    - Between the same two responses, or while the same pages are in flight, conversations are either added or removed,
      but not both, because only the total shows that. Without a total, nothing else moves when one is removed.
    - Fewer are added or removed meanwhile than half a page holds.
    """

    case: ListCase
    removed: set[str] = field(factory=set)
    passed: Counter[str] = field(factory=Counter)
    """How often each conversation has moved past the current page."""
    meanwhile: list[str] = field(factory=list)
    """What has happened since the last responses."""

    def is_front_only(self) -> bool:
        undated = None in self.case.server.last.values()
        kinds = {kind for moves in self.case.moves for kind, *_ in moves}
        return not undated and self.count_future() == 0 and kinds <= set(FRONT_MOVES)

    def count_future(self) -> int:
        return sum(last is not None and last > self.case.server.now for last in self.case.server.last.values())

    def is_allowed(self, kind: str, chosen: str | None) -> bool:
        """Return whether a move keeps the assumptions. `chosen`: which conversation moves; None for a new one."""
        has_total = self.case.server.behavior.has_total
        if self.is_front_only():
            return True
        removed = self.meanwhile.count("remove")
        added = sum(kind in ("new", "late new", "empty") for kind in self.meanwhile)
        if kind == "remove":
            others = added if has_total else len(self.meanwhile) - removed
            return not others and removed < 2
        if removed and not (has_total and chosen is not None):
            return False
        if chosen is None:
            return added < 2
        # The first pass with concurrent pages shows only whether anything moves.
        reliable = offset.MAX_PASSES - (1 if self.case.concurrency > 1 else 0)
        return self.passed[chosen] < reliable - 1

    def move(self, kind: str, which: int, where: int) -> None:
        """Move the list, if that is allowed."""
        server = self.case.server
        ids = list(server.last)
        is_new = kind in ("new", "late new", "empty") or not ids
        chosen = None if is_new else ids[which % len(ids)]
        if is_new and kind not in ("late new", "empty"):
            kind = "new"
        if not self.is_allowed(kind, chosen):
            return
        self.meanwhile.append(kind)
        place = server.last[ids[where % len(ids)]] if ids else None
        late = 0 if place is None else max(0, server.now - place)
        if kind == "empty":
            server.add_empty()
        elif kind == "remove":
            assert chosen is not None
            self.removed.add(chosen)
            server.remove(chosen)
        elif kind in ("late", "late new"):
            server.receive(chosen, wait=1, late=late)
        else:
            server.receive(chosen, wait=1 + which % 3, late=-(10**9) * (1 + where) if kind == "future" else 0)
        if chosen is not None and (kind == "late" or self.count_future() > 1 or None in server.last.values()):
            self.passed[chosen] += 1


def check_list(
    case: ListCase, make: Callable[[ListCase], Paginator[OffsetRequest, Conversation]] = ListCase.paginator
) -> None:
    """Run the paginator of a case while the list moves, with concurrent requests served in any order."""
    server, moves, mover = case.server, list(case.moves), Mover(case)
    at_start = set(server.last)
    items: list[Conversation] = []
    with small_limits(MAX_CONVERSATIONS=case.max_conversations):
        paginator = make(case)
        while requests := paginator.next_requests():
            assert server.requests < MAX_REQUESTS, "the paginator does not end"
            assert len(requests) <= (1 if case.concurrency == 1 else offset.PREFETCH_FACTOR * case.concurrency)
            pages: dict[int, Page[Conversation]] = {}
            mover.meanwhile.clear()
            for index in case.order.sample(range(len(requests)), len(requests)):
                assert 1 <= requests[index].limit <= case.max_conversations
                pages[index] = server.page(requests[index].limit, requests[index].offset)
                for move in moves.pop() if moves else ():
                    mover.move(*move)
            items += paginator.receive([pages[index] for index in range(len(requests))])
    ids = [conversation.id for conversation in items]
    assert len(set(ids)) == len(ids), "repeated"
    assert at_start - mover.removed <= set(ids), "lost"
