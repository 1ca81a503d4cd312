"""A sandbox with one conversation, and classes of states."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum, IntEnum, StrEnum
from typing import Annotated, Any, Literal, TypeVar

import anyio
import anyio.lowlevel
import pytest
from attrs import Factory, define, field, frozen

from agentphone import AsyncClient, Client
from agentphone.sandbox import Sandbox
from tests.support.helpers import KEY

T = TypeVar("T")
AGENT, PERSON = "+15555550100", "+15555550110"
NOON = datetime(2025, 6, 30, 12, tzinfo=UTC)
SETTINGS: dict[str, Any] = {"api_key": KEY, "base_url": "https://sandbox.test", "max_retries": 0}


class Mood(StrEnum):
    CALM = "calm"
    ANGRY = "angry"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Answer(Enum):
    YES = True
    NO = False


@define
class Item:
    sku: str
    price: float = 0.0


@define
class OrderState:
    """A typical state."""

    order_id: str = ""
    step: int = 0
    resolved: bool = False
    mood: Mood = Mood.CALM
    delivered_at: datetime | None = None
    item: Item | None = None
    items: list[Item] = Factory(list)
    tags: dict[str, Any] = Factory(dict)


Visit = Callable[..., Any]
ROUTES = ["asyncio", "trio", "blocking"]
on_one_route = pytest.mark.parametrize("world", ["asyncio"], indirect=True)
"""For the many values and classes that `_state` tells apart: other tests show that each route treats them alike."""


def ignore(state: Any) -> None:
    """Change nothing."""


@frozen
class World:
    """A sandbox with one conversation, and a method to enter its state."""

    box: Sandbox
    id: str
    route: str

    def visit(self, change: Callable[[Any], object] = ignore, *cls: Any) -> Any:
        """Enter the state, change it and leave; return the state."""

        async def main() -> Any:
            async with AsyncClient(**SETTINGS, transport=self.box.transport()) as client:
                async with client.conversations.state(self.id, *cls) as state:
                    change(state)
                return state

        if self.route != "blocking":
            return anyio.run(main, backend=self.route)
        with Client(**SETTINGS, transport=self.box.transport()) as client:
            with client.conversations.state(self.id, *cls) as state:
                change(state)
            return state

    def store(self, metadata: dict[str, Any] | None) -> None:
        """Store metadata by another client, and clear the recorded requests."""
        with Client(**SETTINGS, transport=self.box.transport()) as client:
            client.conversations.update(self.id, metadata=metadata)
        self.box.requests.clear()

    @property
    def stored(self) -> Any:
        """The metadata that is stored now."""
        with Client(**SETTINGS, transport=self.box.transport()) as client:
            return client.conversations.get(self.id, message_limit=1).metadata

    @property
    def sent(self) -> list[str]:
        """The methods of the requests since `store`."""
        return [request.method for request in self.box.requests]


@define
class Node:
    name: str
    children: list[Node] = Factory(list)


@define(kw_only=True)
class Everything:
    text: str
    number: int
    fraction: float
    flag: bool
    at: datetime
    mood: Mood
    level: Level
    answer: Answer
    choice: Literal["a", 1, None]
    words: list[str]
    by_name: dict[str, Item]
    pair: tuple[int, str]
    many: tuple[Item, ...]
    bare_list: list  # type: ignore[type-arg]
    bare_dict: dict  # type: ignore[type-arg]
    bare_tuple: tuple  # type: ignore[type-arg]
    anything: Any
    noted: Annotated[int, "a note"]
    node: Node
    maybe: Item | None
    maybe_list: list[int | None] | None
    from_: str
    _hidden: str
    more: str = field(alias="by_another_name")
    with_converter: int = field(converter=int)
    unkept: list[int] = field(init=False, factory=list)


EVERYTHING: dict[str, Any] = {
    "text": "ä\u2028",
    "number": 10**30,
    "fraction": 1.5,
    "flag": True,
    "at": "2025-06-30T12:00:00.000001Z",
    "mood": "angry",
    "level": 2,
    "answer": False,
    "choice": 1,
    "words": ["a", ""],
    "byName": {"x y": {"sku": "A", "price": 0.5}},
    "pair": [1, "a"],
    "many": [{"sku": "A", "price": 1.0}],
    "bareList": [1, {"a": None}],
    "bareDict": {"snake_case": [1]},
    "bareTuple": [1, [2]],
    "anything": {"deep": [None, 1.5]},
    "noted": 5,
    "node": {"name": "a", "children": [{"name": "b", "children": []}]},
    "maybe": None,
    "maybeList": [1, None],
    "from": "x",
    "hidden": "y",
    "more": "z",
    "withConverter": 5,
}
