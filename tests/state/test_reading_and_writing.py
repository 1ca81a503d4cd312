"""States are read strictly, written only if they changed, and lose no unknown keys."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from typing import Any

import attrs
import pytest
from attrs import Factory, define

from agentphone import ResponseDecodeError, StateDecodeError
from tests.state.world import NOON, Item, Mood, OrderState, World, ignore, on_one_route


def test_state_without_metadata_has_defaults_and_is_not_written(world: World) -> None:
    assert world.visit(ignore, OrderState) == OrderState()
    assert world.visit() == {}
    assert world.sent == ["GET", "GET"]
    assert world.box.requests[0].query == {"message_limit": "1"}


def test_changes_are_written_under_api_names(world: World) -> None:
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


def test_dict_is_stored_as_changed(world: World) -> None:
    world.store({"keep": [1, {"a": None}], "drop": 1, "change": {"deep": [1, 2]}})

    def change(state: dict[str, Any]) -> None:
        del state["drop"]
        state["change"]["deep"].append(3)
        state["new"] = (True, 1.5)

    world.visit(change)
    assert world.stored == {"keep": [1, {"a": None}], "change": {"deep": [1, 2, 3]}, "new": [True, 1.5]}
    world.visit(lambda state: state.clear(), dict)
    assert world.stored == {}


def test_unknown_keys_survive_in_nested_classes(world: World) -> None:
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


def test_swapped_objects_keep_their_unknown_keys(world: World) -> None:
    world.store({"home": HOME, "work": WORK, "others": [OTHER]})

    def swap(state: Customer) -> None:
        state.home, state.work = state.work, state.home

    world.visit(swap, Customer)
    assert world.stored == {"home": WORK, "work": HOME, "others": [OTHER]}


def test_moved_object_keeps_its_unknown_keys(world: World) -> None:
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


def test_new_object_inherits_no_unknown_keys(world: World) -> None:
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


def test_objects_with_equal_fields_are_not_the_same_object(world: World) -> None:
    twin = HOME | {"postcode": "9"}
    world.store({"home": HOME, "work": twin, "others": [HOME, twin], "named": {"a": HOME, "b": twin}})

    def swap(state: Customer) -> None:
        state.home, state.work = state.work, state.home
        state.others.reverse()
        state.named["a"], state.named["b"] = state.named["b"], state.named["a"]

    world.visit(swap, Customer)
    assert world.stored == {"home": twin, "work": HOME, "others": [twin, HOME], "named": {"a": twin, "b": HOME}}
    world.visit(lambda state: setattr(state, "home", Address("Home St")), Customer)
    assert world.stored["home"] == {"street": "Home St", "country": "US"}
    sent = len(world.sent)
    world.visit(ignore, Customer)
    assert world.sent[sent:] == ["GET"]


@define
class Profile:
    address: Address = Factory(lambda: Address("Default St", "DE"))
    visits: int = 0


def test_default_object_is_written_whole_once_it_changes(world: World) -> None:
    world.visit(lambda state: setattr(state, "visits", 1), Profile)
    assert world.stored == {"visits": 1}
    left = world.visit(lambda state: setattr(state.address, "country", "CA"), Profile)
    assert world.stored == {"visits": 1, "address": {"street": "Default St", "country": "CA"}}
    assert world.visit(ignore, Profile) == left


@on_one_route
@pytest.mark.parametrize(
    ("before", "after"),
    [(1, True), (True, 1), (1, 1.0), (1.0, 1), (0, False), (0, ""), (None, False), ([], {}), ([1], [True]), ("1", 1)],
)
def test_other_json_type_is_a_change(world: World, before: Any, after: Any) -> None:
    world.store({"value": before})
    world.visit(lambda state: state.update(value=after))
    assert world.sent == ["GET", "PATCH"]
    assert repr(world.stored) == repr({"value": after})


def test_equal_json_is_no_change(world: World) -> None:
    world.store({"at": "2025-06-30T14:00:00+02:00", "items": [], "mood": "calm", "tags": {"a": 1, "b": [1]}})

    def change(state: OrderState) -> None:
        state.tags = dict(reversed(state.tags.items())) | {"b": (1,)}
        state.mood = "calm"  # type: ignore[assignment]
        state.items = ()  # type: ignore[assignment]
        state.order_id = ""

    world.visit(change, OrderState)
    assert world.sent == ["GET"]


BAD_METADATA: list[tuple[dict[str, Any], str, str]] = [
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


@on_one_route
@pytest.mark.parametrize(("metadata", "path", "what"), BAD_METADATA, ids=lambda value: str(value)[:40])
def test_state_that_does_not_fit_is_rejected_with_its_path(
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


BAD_VALUES: list[tuple[str, Any, type[Exception], str]] = [
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


@on_one_route
@pytest.mark.parametrize(("name", "value", "error", "what"), BAD_VALUES, ids=lambda value: str(value)[:40])
def test_value_that_cannot_be_read_back_is_rejected(
    world: World, name: str, value: Any, error: type[Exception], what: str
) -> None:
    world.store({"orderId": "ORD-1", "theirs": 1})
    with pytest.raises((TypeError, ValueError), match=what) as caught:
        world.visit(lambda state: setattr(state, name, value), OrderState)
    assert isinstance(caught.value, error)
    assert world.sent == ["GET"]
    assert world.stored == {"orderId": "ORD-1", "theirs": 1}


def test_subclass_with_more_fields_is_rejected(world: World) -> None:
    @define
    class Special(Item):
        more: int = 1

    with pytest.raises(TypeError, match=r"metadata\.item is a Special, which OrderState would read back"):
        world.visit(lambda state: setattr(state, "item", Special("A")), OrderState)
    assert world.sent == ["GET"]


def on_tags(change: Callable[[Any], object], state: OrderState) -> None:
    """Change the tags of a state."""
    change(state.tags)


def test_cycle_or_excessive_depth_is_a_value_error(world: World) -> None:
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
