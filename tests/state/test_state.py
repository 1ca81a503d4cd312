"""Typed state: read strictly, written only when it changed, and nothing lost that the class does not know."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from functools import partial
from itertools import count
from typing import Annotated, Any, Literal, TypeVar

import anyio
import anyio.lowlevel
import attrs
import httpx
import pytest
from attrs import Factory, define, field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from agentphone import AsyncClient, Client, NotFoundError, ResponseDecodeError, ServerError, StateDecodeError
from agentphone._json import DecodeError
from agentphone._state import LoadedState, read_state
from agentphone.sandbox import Sandbox
from tests.support.helpers import KEY, conversation

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
    """A state as a program would have it."""

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


def ignore(state: Any) -> None:
    """Change nothing."""


@frozen
class World:
    """A sandbox with one conversation, and a way to enter its state."""

    box: Sandbox
    id: str
    route: str

    def visit(self, change: Callable[[Any], object] = ignore, *cls: Any) -> Any:
        """Enter the state, change it, leave; give what was entered."""

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
        """Store metadata from elsewhere, and forget the requests so far."""
        with Client(**SETTINGS, transport=self.box.transport()) as client:
            client.conversations.update(self.id, metadata=metadata)
        self.box.requests.clear()

    @property
    def stored(self) -> Any:
        """What is stored now."""
        with Client(**SETTINGS, transport=self.box.transport()) as client:
            return client.conversations.get(self.id, message_limit=1).metadata

    @property
    def sent(self) -> list[str]:
        """The methods of the requests since `store`."""
        return [request.method for request in self.box.requests]


@pytest.fixture(params=ROUTES)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with Sandbox() as box:
        said = box.receive_sms(from_number=PERSON, to_number=AGENT, body="Where is it?")
        yield World(box, said["conversationId"], request.param)


# ---- Reading and writing


def test_without_metadata_a_state_has_the_defaults_of_its_class_and_leaving_it_writes_nothing(world: World) -> None:
    assert world.visit(ignore, OrderState) == OrderState()
    assert world.visit() == {}
    assert world.sent == ["GET", "GET"]
    assert world.box.requests[0].query == {"message_limit": "1"}


def test_what_changed_is_written_under_the_apis_names_and_read_back(world: World) -> None:
    def change(state: OrderState) -> None:
        state.order_id = "ORD-5"
        state.mood = Mood.ANGRY
        state.delivered_at = datetime(2025, 6, 30, 14, tzinfo=timezone(timedelta(hours=2)))
        state.items.append(Item("A1", 9.5))

    left = world.visit(change, OrderState)
    assert world.sent == ["GET", "PATCH"]
    assert world.stored == {
        "orderId": "ORD-5",
        "mood": "angry",
        "deliveredAt": "2025-06-30T12:00:00Z",
        "items": [{"sku": "A1", "price": 9.5}],
    }
    assert world.visit(ignore, OrderState) == left


def test_a_dict_is_the_callers_own_and_what_it_becomes_is_stored(world: World) -> None:
    world.store({"keep": [1, {"a": None}], "drop": 1, "change": {"deep": [1, 2]}})

    def change(state: dict[str, Any]) -> None:
        del state["drop"]
        state["change"]["deep"].append(3)
        state["new"] = (True, 1.5)

    world.visit(change)
    assert world.stored == {"keep": [1, {"a": None}], "change": {"deep": [1, 2, 3]}, "new": [True, 1.5]}
    world.visit(lambda state: state.clear(), dict)
    assert world.stored == {}


def test_keys_that_the_class_does_not_know_survive_inside_nested_classes_too(world: World) -> None:
    world.store({"orderId": "ORD-1", "theirs": {"a": [1]}, "item": {"sku": "A1", "theirs": 1}, "items": [{"sku": "B"}]})
    world.visit(lambda state: setattr(state.item, "price", 2.5), OrderState)
    assert world.stored == {
        "orderId": "ORD-1",
        "theirs": {"a": [1]},
        "item": {"sku": "A1", "theirs": 1, "price": 2.5},
        "items": [{"sku": "B"}],
    }
    world.visit(lambda state: state.tags.update(a={"b": 1}), OrderState)
    world.visit(lambda state: state.tags["a"].update(c=2), OrderState)
    world.visit(lambda state: state.tags["a"].pop("b"), OrderState)
    assert world.stored["tags"] == {"a": {"c": 2}}
    world.visit(lambda state: setattr(state, "item", None), OrderState)
    assert world.stored["item"] is None
    assert world.stored["theirs"] == {"a": [1]}


@define
class Address:
    street: str
    country: str = "US"


@define
class Customer:
    home: Address | None = None
    work: Address | None = None
    others: list[Address] = Factory(list)
    named: dict[str, Address] = Factory(dict)


HOME, WORK, OTHER = (
    {"street": "Home St", "postcode": "1"},
    {"street": "Work St", "postcode": "2", "country": "CA"},
    {"street": "Other St", "postcode": "3"},
)


def test_two_objects_that_are_swapped_take_the_keys_that_the_class_does_not_know_along(world: World) -> None:
    world.store({"home": HOME, "work": WORK, "others": [OTHER]})

    def swap(state: Customer) -> None:
        state.home, state.work = state.work, state.home

    world.visit(swap, Customer)
    assert world.stored == {"home": WORK, "work": HOME, "others": [OTHER]}


def test_an_object_takes_its_unknown_keys_into_a_list_and_a_dict(world: World) -> None:
    world.store({"home": HOME, "others": [OTHER, WORK], "named": {"a": OTHER}, "theirs": 1})

    def move(state: Customer) -> None:
        assert state.home is not None
        state.others.insert(0, state.home)
        state.others[1].street = "Changed St"
        state.named["b"] = state.others.pop()
        state.home = None

    world.visit(move, Customer)
    changed = OTHER | {"street": "Changed St"}
    assert world.stored == {"home": None, "others": [HOME, changed], "named": {"a": OTHER, "b": WORK}, "theirs": 1}


def test_a_new_object_takes_over_no_unknown_keys_of_the_one_that_it_replaces(world: World) -> None:
    world.store({"home": HOME, "work": WORK, "others": [OTHER], "named": {"a": OTHER}})

    def replace(state: Customer) -> None:
        assert state.work is not None
        state.home = Address("New St")
        state.work = attrs.evolve(state.work, street="New St")
        state.others[0] = Address("New St")
        state.named["a"] = Address("New St")

    world.visit(replace, Customer)
    new = {"street": "New St", "country": "US"}
    assert world.stored == {"home": new, "work": new | {"country": "CA"}, "others": [new], "named": {"a": new}}


@pytest.mark.parametrize(
    ("before", "after"),
    [(1, True), (True, 1), (1, 1.0), (1.0, 1), (0, False), (0, ""), (None, False), ([], {}), ([1], [True]), ("1", 1)],
)
def test_what_python_calls_equal_and_json_does_not_is_a_change(world: World, before: Any, after: Any) -> None:
    world.store({"value": before})
    world.visit(lambda state: state.update(value=after))
    assert world.sent == ["GET", "PATCH"]
    assert repr(world.stored) == repr({"value": after})


def test_what_is_sent_alike_is_no_change(world: World) -> None:
    world.store({"at": "2025-06-30T14:00:00+02:00", "items": [], "mood": "calm", "tags": {"a": 1, "b": [1]}})

    def change(state: OrderState) -> None:
        state.tags = dict(reversed(state.tags.items())) | {"b": (1,)}
        state.mood = "calm"  # type: ignore[assignment]
        state.items = ()  # type: ignore[assignment]
        state.order_id = ""

    world.visit(change, OrderState)
    assert world.sent == ["GET"]


# ---- Nothing is written


class _Stop(BaseException):
    """What no `except Exception` sees."""


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, _Stop])
@pytest.mark.parametrize("cls", [dict, OrderState])
def test_after_an_exception_nothing_is_written_and_it_goes_on(
    world: World, error: type[BaseException], cls: Any
) -> None:
    def change(state: Any) -> None:
        (state.update if cls is dict else lambda **given: setattr(state, "order_id", given["order_id"]))(order_id="x")
        raise error

    with pytest.raises(error):
        world.visit(change, cls)
    assert world.sent == ["GET"]
    assert world.stored is None


@pytest.mark.anyio
async def test_after_a_cancellation_nothing_is_written() -> None:
    with Sandbox() as box:
        cid = box.receive_sms(from_number=PERSON, to_number=AGENT, body="?")["conversationId"]
        async with AsyncClient(**SETTINGS, transport=box.transport()) as client:
            with anyio.CancelScope() as scope:
                async with client.conversations.state(cid) as state:
                    state["a"] = 1
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()
            assert scope.cancelled_caught
            assert [request.method for request in box.requests] == ["GET"]


MISFITS: list[tuple[dict[str, Any], str, str]] = [
    ({"orderId": 5}, "metadata.orderId", "expected a string, got a number"),
    ({"orderId": None}, "metadata.orderId", "expected a string, got null"),
    ({"step": "5"}, "metadata.step", "expected an integer, got a string"),
    ({"step": 5.0}, "metadata.step", "expected an integer, got a number"),
    ({"step": True}, "metadata.step", "expected an integer, got true or false"),
    ({"resolved": "false"}, "metadata.resolved", "expected true or false, got a string"),
    ({"resolved": 0}, "metadata.resolved", "expected true or false, got a number"),
    ({"mood": "glad"}, "metadata.mood", "expected one of 'calm', 'angry'"),
    ({"mood": 5}, "metadata.mood", "one of"),
    ({"deliveredAt": "soon"}, "metadata.deliveredAt", "soon"),
    ({"deliveredAt": 1751284800}, "metadata.deliveredAt", "expected an ISO 8601 timestamp"),
    ({"item": []}, "metadata.item", "expected an object, got an array"),
    ({"item": {}}, "metadata.item.sku", "the field is missing"),
    ({"item": {"sku": "A", "price": "1"}}, "metadata.item.price", "expected a number"),
    ({"item": {"sku": "A", "price": 10**400}}, "metadata.item.price", "too large"),
    ({"items": "ab"}, "metadata.items", "expected an array"),
    ({"items": [{"sku": "A"}, {"sku": 5}]}, "metadata.items[1].sku", "expected a string"),
    ({"tags": []}, "metadata.tags", "expected an object"),
]


@pytest.mark.parametrize(("metadata", "path", "what"), MISFITS, ids=lambda value: str(value)[:40])
def test_a_state_that_does_not_fit_is_refused_by_its_path_and_left_alone(
    world: World, metadata: dict[str, Any], path: str, what: str
) -> None:
    world.store(metadata)
    entered: list[Any] = []
    with pytest.raises(StateDecodeError) as caught:
        world.visit(entered.append, OrderState)
    error = caught.value
    assert entered == []
    assert error.path == path
    assert what in str(error)
    assert "OrderState" in str(error)
    assert (error.status_code, error.body) == (None, b"")
    assert error.request == f"GET /v1/conversations/{world.id}?message_limit=1"
    assert str(error).endswith(error.advice)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert isinstance(error, ResponseDecodeError)
    assert world.sent == ["GET"]
    assert world.stored == metadata


UNFIT: list[tuple[str, Any, type[Exception], str]] = [
    ("order_id", 5, TypeError, "metadata.orderId: expected a string"),
    ("step", "5", TypeError, "metadata.step: expected an integer"),
    ("step", True, TypeError, "metadata.step: expected an integer"),
    ("resolved", 1, TypeError, "metadata.resolved: expected true or false"),
    ("mood", "glad", TypeError, "metadata.mood: expected one of"),
    ("delivered_at", "soon", TypeError, "metadata.deliveredAt: "),
    ("delivered_at", datetime(2025, 6, 30), ValueError, "metadata.deliveredAt is a datetime without"),
    ("delivered_at", datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))), ValueError, "outside the years 1 to 9999"),
    ("items", "ab", TypeError, "metadata.items: expected an array"),
    ("items", [Item("A"), Item(5)], TypeError, r"metadata.items\[1\].sku: expected a string"),  # type: ignore[arg-type]
    ("item", {"price": 5}, TypeError, "metadata.item.sku: the field is missing"),
    ("item", OrderState(), TypeError, "metadata.item.sku: the field is missing"),
    ("tags", {"a": {1}}, TypeError, r"metadata\['tags'\]\['a'\] is a set, which JSON does not have"),
    ("tags", {1: "a"}, TypeError, r"metadata\['tags'\] has the key 1"),
    ("tags", {"a": float("nan")}, ValueError, r"metadata\['tags'\]\['a'\] is nan"),
    ("tags", {"a": "\ud800"}, ValueError, "surrogate"),
    ("tags", {"a": Decimal(1)}, TypeError, "Decimal"),
    ("tags", {"a": NOON}, TypeError, "metadata.tags.a is a datetime, which OrderState would read back as something"),
    ("tags", {"a": Mood.CALM}, TypeError, "metadata.tags.a is a Mood"),
    ("tags", {"a": [Item("A")]}, TypeError, r"metadata.tags.a\[0\] is a Item"),
    ("tags", None, TypeError, "metadata.tags: expected an object, got null"),
]


@pytest.mark.parametrize(("name", "value", "error", "what"), UNFIT, ids=lambda value: str(value)[:40])
def test_a_value_that_could_not_be_read_back_is_refused_and_nothing_written(
    world: World, name: str, value: Any, error: type[Exception], what: str
) -> None:
    world.store({"orderId": "ORD-1", "theirs": 1})
    with pytest.raises((TypeError, ValueError), match=what) as caught:
        world.visit(lambda state: setattr(state, name, value), OrderState)
    assert isinstance(caught.value, error)
    assert world.sent == ["GET"]
    assert world.stored == {"orderId": "ORD-1", "theirs": 1}


def test_a_subclass_with_more_fields_would_not_come_back_and_is_refused(world: World) -> None:
    @define
    class Special(Item):
        more: int = 1

    with pytest.raises(TypeError, match=r"metadata\.item is a Special, which OrderState would read back"):
        world.visit(lambda state: setattr(state, "item", Special("A")), OrderState)
    assert world.sent == ["GET"]


def on_tags(change: Callable[[Any], object], state: OrderState) -> None:
    """Change the tags of a state."""
    change(state.tags)


def test_what_contains_itself_or_is_too_deep_is_a_value_error(world: World) -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    round_and_round: list[Any] = []
    round_and_round.append(round_and_round)
    for value in (deep, round_and_round):
        put = partial(dict[str, Any].update, a=value)
        with pytest.raises(ValueError, match="metadata"):
            world.visit(put)
        with pytest.raises(ValueError, match="metadata"):
            world.visit(partial(on_tags, put), OrderState)
    assert "PATCH" not in world.sent


# ---- Classes


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


def test_every_type_that_a_state_can_hold_is_read_and_written_as_it_was(world: World) -> None:
    world.store(EVERYTHING)
    state = world.visit(ignore, Everything)
    assert world.sent == ["GET"]
    assert (state.at, state.mood, state.level) == (NOON + timedelta(microseconds=1), Mood.ANGRY, Level.HIGH)
    assert (state.answer, type(state.level), state.pair) == (Answer.NO, Level, (1, "a"))
    assert (state.many, state.node.children) == ((Item("A", 1.0),), [Node("b")])
    assert state.by_name == {"x y": Item("A", 0.5)}
    assert state.bare_tuple == (1, [2])

    def change(state: Everything) -> None:
        fresh = read_state(EVERYTHING | {"text": "new", "theirs": 1}, Everything, "metadata")
        for one in attrs.fields(Everything):
            setattr(state, one.name, getattr(fresh, one.name))
        state.by_name["x y"].price = 1  # an int is fine for a float
        state.unkept.append(5)

    world.visit(change, Everything)
    assert world.stored == EVERYTHING | {"text": "new", "byName": {"x y": {"sku": "A", "price": 1}}}


STRICT: list[tuple[str, Any]] = [
    ("level", True),
    ("level", 2.0),
    ("level", 3),
    ("answer", 0),
    ("choice", True),
    ("choice", 1.0),
    ("choice", "b"),
    ("words", [1]),
    ("pair", [1]),
    ("pair", [1, "a", 2]),
    ("pair", ["a", 1]),
    ("pair", {}),
    ("byName", []),
    ("bareTuple", "ab"),
    ("maybeList", [True]),
    ("node", {"name": "a", "children": [{}]}),
]


@pytest.mark.parametrize(("key", "value"), STRICT, ids=str)
def test_no_value_is_bent_to_fit(key: str, value: Any) -> None:
    with pytest.raises(DecodeError) as caught:
        read_state(EVERYTHING | {key: value}, Everything, "metadata")
    assert caught.value.path.startswith(f"metadata.{key}")


@define
class Checked:
    count: int = field(default=0, validator=attrs.validators.le(5))


def test_a_validator_of_the_class_refuses_what_is_stored(world: World) -> None:
    world.store({"count": 6})
    with pytest.raises(StateDecodeError, match=r"metadata: it does not fit Checked: .*must be <= 5"):
        world.visit(ignore, Checked)
    assert world.stored == {"count": 6}


COLOURS = {"r": "red"}


def _per_step(steps: int) -> int:
    return 100 // steps


def _colour(letter: str) -> str:
    return COLOURS[letter]


def _colour_of_self(letter: str, _: object) -> str:
    return COLOURS[letter]


@define
class Converted:
    before: int = field(default=0, converter=int)
    steps: int = field(default=1, converter=_per_step)
    colour: str = field(default="r", converter=_colour)
    shade: str = field(default="", converter=attrs.converters.pipe(str.strip, str.upper))  # type: ignore[misc]  # mypy's plugin knows functions only
    last: str = field(default="r", converter=attrs.Converter(_colour_of_self, takes_self=True))  # type: ignore[misc]  # the same
    even: int = field(default=0)
    of_whole: int = field(default=0)

    @even.validator
    def _is_even(self, _: Any, value: int) -> None:
        assert value % 2 == 0

    @of_whole.validator
    def _is_of_whole(self, _: Any, value: int) -> None:
        if value > self.even:
            raise LookupError(f"of_whole is {value}")


@pytest.mark.parametrize(
    ("raw", "path", "what"),
    [
        ({"before": 5, "steps": 0}, "state.steps", "ZeroDivisionError: "),
        ({"before": 5, "steps": 5, "colour": "x"}, "state.colour", "KeyError: 'x'"),
        ({"before": 5, "last": "x"}, "state", "KeyError: 'x'"),
        ({"even": 1}, "state", "AssertionError"),
        ({"ofWhole": 1}, "state", "LookupError: of_whole is 1"),
    ],
)
def test_whatever_a_class_of_the_callers_raises_is_a_misfit_and_a_converters_is_named_by_its_path(
    raw: dict[str, Any], path: str, what: str
) -> None:
    assert read_state({"shade": " a "}, Converted, "state") == Converted(shade="A")
    with pytest.raises(DecodeError) as caught:
        read_state(raw, Converted, "state")
    assert caught.value.path == path
    assert what in caught.value.reason


def test_reading_a_class_leaves_the_annotations_that_others_look_at_and_may_come_after_them() -> None:
    @define
    class Noted:
        number: Annotated[int, "a note"] = 0
        numbers: list[Annotated[int, "each"]] = Factory(list)

    attrs.resolve_types(Noted, localns=locals())  # as cattrs does for one
    assert read_state({"number": 1, "numbers": [2]}, Noted, "state") == Noted(1, [2])
    assert read_state(EVERYTHING, Everything, "state").noted == 5
    kept: Any = attrs.fields(Everything).noted.type
    assert kept == Annotated[int, "a note"]


def test_classes_that_are_local_to_a_function_can_be_states_once_their_annotations_are_resolved() -> None:
    @define
    class Inner:
        number: int = 0

    @define
    class Outer:
        inner: Inner | None = None

    with pytest.raises(TypeError, match=r"name 'Inner' is not defined.*attrs\.resolve_types\(Outer, localns=locals"):
        read_state({}, Outer, "state")
    attrs.resolve_types(Outer, localns=locals())
    assert read_state({"inner": {"number": 5}}, Outer, "state") == Outer(Inner(5))


def test_any_depth_is_read_or_a_decode_error() -> None:
    raw: dict[str, Any] = {"name": ""}
    for _ in range(100):
        raw = {"name": "", "children": [raw]}
    outcomes: list[str] = []
    while len(outcomes) < 20 or outcomes[-20] == "read":  # also where reading is just possible and writing is not
        raw = {"name": "", "children": [raw]}
        try:
            LoadedState(raw, Node, "metadata")
        except DecodeError as error:
            outcomes.append(error.reason)
        else:
            outcomes.append("read")
    assert outcomes[0] == "read"
    assert "nested too deeply" in outcomes[-1]


def holding(annotation: Any) -> Any:
    """Make a class with one field of this type."""
    return attrs.make_class("Held", {"value": attrs.field(type=annotation)})


@define
class Twice:
    order_id: str
    orderId: str  # noqa: N815


@define
class Unresolvable:
    value: Nowhere  # type: ignore[name-defined]  # noqa: F821


@define
class Elsewhere:
    value: json.Nowhere  # type: ignore[name-defined]


class Plain:
    pass


@pytest.mark.parametrize(
    ("cls", "what"),
    [
        (holding(set[str]), r"Held\.value: the type set"),
        (holding(frozenset[str]), "the type frozenset"),
        (holding(bytes), "the type bytes"),
        (holding(Decimal), "the type Decimal"),
        (holding(complex), "the type complex"),
        (holding(int | str), r"the type int \| str"),
        (holding(dict[int, str]), r"the type dict\[int, str\]"),
        (holding(list[bytes]), "the type bytes"),
        (holding(list[set[int]] | None), "the type set"),
        (holding(tuple[int, bytes]), "the type bytes"),
        (holding(Plain), "the type Plain"),
        (holding(holding(bytes)), r"Held\.value: Held\.value: the type bytes"),
        (Twice, "two fields of Twice have the same key"),
        (Unresolvable, "annotation that cannot be resolved: name 'Nowhere'"),
        (Elsewhere, "Elsewhere has an annotation that cannot be resolved: module 'json' has no attribute"),
        (Plain, "cls must be dict or an attrs class"),
        (list, "cls must be dict or an attrs class"),
        (str, "cls must be dict or an attrs class"),
        (None, "cls must be dict or an attrs class"),
        (OrderState(), "cls must be dict or an attrs class"),
        (dict[str, int], "cls must be dict or an attrs class"),
        ({}, "cls must be dict or an attrs class"),
    ],
)
def test_a_class_that_json_cannot_hold_is_refused_before_anything_is_sent(world: World, cls: Any, what: str) -> None:
    for _ in range(2):
        with pytest.raises(TypeError, match=what):
            world.visit(ignore, cls)
    assert world.sent == []


@pytest.mark.parametrize("cid", ["", None, 5])
def test_an_id_that_is_none_is_refused_before_anything_is_sent(world: World, cid: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="conversation_id"):
        attrs.evolve(world, id=cid).visit()
    assert world.sent == []


# ---- The block


@pytest.mark.anyio
async def test_an_object_cannot_be_open_twice_and_reads_afresh_when_used_again() -> None:
    with Sandbox() as box:
        cid = box.receive_sms(from_number=PERSON, to_number=AGENT, body="?")["conversationId"]
        async with AsyncClient(**SETTINGS, transport=box.transport()) as client:
            opening = client.conversations.state(cid)
            async with opening as state:
                state["a"] = 1
                with pytest.raises(RuntimeError, match="open already"):
                    async with opening:
                        pass
            await client.conversations.update(cid, metadata={"b": 2})
            async with opening as again:
                assert again == {"b": 2}
                again["c"] = {1}
                with pytest.raises(RuntimeError, match="open already"):
                    await opening.__aenter__()
                del again["c"]
            box.faults.add(status=500)
            with pytest.raises(ServerError):
                await opening.__aenter__()
            async with opening as third:
                assert third == {"b": 2}


def test_a_block_that_fails_leaves_the_object_usable() -> None:
    with Sandbox() as box, Client(**SETTINGS, transport=box.transport()) as client:
        cid = box.receive_sms(from_number=PERSON, to_number=AGENT, body="?")["conversationId"]
        opening = client.conversations.state(cid, OrderState)
        with pytest.raises(RuntimeError, match="mine"), opening:
            raise RuntimeError("mine")
        with pytest.raises(TypeError), opening as state:
            state.step = "x"  # type: ignore[assignment]
        box.faults.add(status=500, times=1)
        with pytest.raises(ServerError), opening:
            pass
        client.conversations.update(cid, metadata={"step": "x"})
        with pytest.raises(StateDecodeError), opening:
            pass
        client.conversations.update(cid, metadata={})
        with opening as state, pytest.raises(RuntimeError, match="open already"), opening:
            pass
        with opening as state:
            state.step = 7
        assert client.conversations.get(cid).metadata == {"step": 7}


def test_a_conversation_that_is_not_there_is_an_error_of_its_own(world: World) -> None:
    with pytest.raises(NotFoundError):
        attrs.evolve(world, id="conv_nobody").visit()


def test_of_two_writers_at_once_the_later_wins_whole_as_the_docstring_says() -> None:
    with Sandbox() as box, Client(**SETTINGS, transport=box.transport()) as client:
        cid = box.receive_sms(from_number=PERSON, to_number=AGENT, body="?")["conversationId"]
        with client.conversations.state(cid) as outer:
            outer["outer"] = 1
            with client.conversations.state(cid) as inner:
                inner["inner"] = 1
        assert client.conversations.get(cid).metadata == {"outer": 1}


@pytest.mark.anyio
async def test_the_write_carries_the_whole_object_and_is_retried_like_an_update() -> None:
    with Sandbox() as box:
        cid = box.receive_sms(from_number=PERSON, to_number=AGENT, body="?")["conversationId"]
        async with AsyncClient(**SETTINGS | {"max_retries": 1}, transport=box.transport()) as client:
            await client.conversations.update(cid, metadata={"theirs": 1})
            async with client.conversations.state(cid, OrderState) as state:
                state.step = 1
                box.faults.add(status=503, retry_after=0)
            assert (await client.conversations.get(cid)).metadata == {"theirs": 1, "step": 1}
        assert [request.method for request in box.requests] == ["PATCH", "GET", "PATCH", "PATCH", "GET"]
        assert box.requests[2].body == box.requests[3].body


def test_what_could_not_be_written_back_is_refused_when_it_is_read() -> None:
    answer = json.dumps(conversation(metadata={"theirs": "\ud800"}))
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=answer))
    with Client(**SETTINGS, transport=transport) as client, pytest.raises(StateDecodeError, match="surrogate"):
        client.conversations.state("conv_1", OrderState).__enter__()


# ---- Any object

LETTERS = st.characters(exclude_categories=["Cs"])
TEXT, KEYS = st.text(LETTERS), st.text(LETTERS, max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=15,
)
ITEMS = st.fixed_dictionaries({"sku": st.just("A"), "theirs": JSON}, optional={"price": st.floats(0, 9)})
KNOWN = st.fixed_dictionaries(
    {},
    optional={
        "orderId": TEXT,
        "step": st.integers(),
        "mood": st.sampled_from(["calm", "angry"]),
        "item": st.none() | ITEMS,
        "items": st.lists(ITEMS, max_size=2),
        "tags": st.dictionaries(KEYS, JSON, max_size=3),
    },
)
OBJECTS = st.builds(lambda theirs, known: {**theirs, **known}, st.dictionaries(KEYS, JSON, max_size=4), KNOWN)


def text_of(raw: Any) -> str:
    """Give JSON as it would be sent."""
    return json.dumps(raw, ensure_ascii=False)


@settings(deadline=None, max_examples=100)
@given(OBJECTS)
def test_any_object_is_left_as_it_was_when_nothing_changed(raw: dict[str, Any]) -> None:
    text = text_of(raw)
    assert LoadedState(raw, OrderState, "metadata").diff() is None
    opened = LoadedState(raw, dict, "metadata")
    assert text_of(opened.value) == text
    assert opened.diff() is None
    assert text_of(raw) == text


@settings(deadline=None, max_examples=100)
@given(OBJECTS, st.integers(), TEXT, JSON)
def test_a_change_to_one_key_leaves_every_other_as_it_was(raw: dict[str, Any], step: int, sku: str, value: Any) -> None:
    def others(made: dict[str, Any], key: str) -> str:
        return text_of({one: made[one] for one in made if one != key})

    def change_step(state: OrderState) -> None:
        state.step = step

    def change_item(state: OrderState) -> None:
        if state.item:
            state.item.sku = sku

    def change_tags(state: OrderState) -> None:
        state.tags["new"] = value

    before = text_of(raw)
    changes: dict[str, Callable[[OrderState], None]] = {"step": change_step, "item": change_item, "tags": change_tags}
    for key, change in changes.items():
        opened = LoadedState(raw, OrderState, "metadata")
        change(opened.value)
        changed = opened.diff()
        assert text_of(raw) == before
        if changed is None:
            continue
        assert others(changed, key) == others(raw, key)
        if key == "item":
            assert others(changed[key], "sku") == others(raw[key], "sku")
        assert read_state(changed, OrderState, "metadata") == opened.value

    mine = LoadedState(raw, dict, "metadata")
    mine.value["new key"] = value
    changed = mine.diff()
    if changed is not None:
        assert text_of(changed) == text_of({**raw, "new key": value})


@settings(deadline=None, max_examples=25)
@given(OBJECTS)
def test_any_object_goes_through_the_api_unharmed(raw: dict[str, Any]) -> None:
    with Sandbox() as box, Client(**SETTINGS, transport=box.transport()) as client:
        cid = box.receive_sms(from_number=PERSON, to_number=AGENT, body="?")["conversationId"]
        client.conversations.update(cid, metadata=raw)
        box.requests.clear()
        for cls in (dict, OrderState):
            with client.conversations.state(cid, cls):
                pass
        assert [request.method for request in box.requests] == ["GET", "GET"]
        numbers = count(5)
        with client.conversations.state(cid, OrderState) as state:
            while state.step in raw.values():
                state.step = next(numbers)
            state.step += 1
        stored = client.conversations.get(cid).metadata
        assert stored is not None
        stored.pop("step")
        assert stored == {key: value for key, value in raw.items() if key != "step"}


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from([*EVERYTHING, "theirs"]), JSON).map(lambda some: {**EVERYTHING, **some}))
def test_nothing_but_a_decode_error_comes_out_of_any_object(raw: dict[str, Any]) -> None:
    try:
        opened = LoadedState(raw, Everything, "metadata")
    except DecodeError as error:
        path = error.path
    else:
        assert opened.diff() is None
        return
    assert path.startswith("metadata.")


VALUES = (
    JSON
    | st.datetimes(timezones=st.none() | st.just(UTC) | st.just(timezone(timedelta(hours=-9))))
    | st.sampled_from([Mood.ANGRY, Level.HIGH, Answer.NO, Item("A"), Item("B", 2), [Item("C", 1.5)], (1,), {1}, b"x"])
    | st.dictionaries(KEYS, st.sampled_from([Mood.CALM, NOON, Item("A"), (1, 2)]))
)


@settings(deadline=None, max_examples=300)
@given(OBJECTS, st.sampled_from([one.name for one in attrs.fields(OrderState)]), VALUES)
def test_whatever_is_put_into_a_field_is_refused_or_reads_back_as_it_was(
    raw: dict[str, Any], name: str, value: Any
) -> None:
    opened = LoadedState(raw, OrderState, "metadata")
    setattr(opened.value, name, value)
    try:
        changed = opened.diff()
    except (TypeError, ValueError):
        assert raw == LoadedState(raw, dict, "metadata").value
        return
    if changed is None:  # it would be sent as what is there already
        return
    again = LoadedState(changed, OrderState, "metadata")
    read_back = getattr(again.value, name)
    if isinstance(value, list | tuple):
        assert list(read_back) == list(value) or name == "items"
    elif not isinstance(value, dict):
        assert read_back == value
    assert again.diff() is None
