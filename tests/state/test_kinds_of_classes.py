"""Dataclasses, TypedDicts and pydantic models as states: as strict as attrs classes, merged and written alike."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, NotRequired
from typing import TypedDict as PlainTypedDict

import attrs
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic.alias_generators import to_pascal
from typing_extensions import TypedDict

from agentphone import StateDecodeError
from agentphone._json import DecodeError
from agentphone._state import LoadedState, check_class, read_state
from agentphone.sandbox import Sandbox
from agentphone.webhooks import MessageEvent, Webhook
from tests.state.world import AGENT, NOON, PERSON, Mood, World, ignore, on_one_route


@attrs.define
class AttrsItem:
    unit_price: float
    sku: str = ""


@attrs.define
class AttrsState:
    order_id: str | None = None
    mood: Mood = Mood.CALM
    delivered_at: datetime | None = None
    main_item: AttrsItem | None = None
    items: list[AttrsItem] = attrs.Factory(list)
    by_name: dict[str, AttrsItem] = attrs.Factory(dict)
    pair: tuple[int, bool] = (0, False)


@dataclass
class DataItem:
    unit_price: float
    sku: str = ""


@dataclass(slots=True)
class DataState:
    order_id: str | None = None
    mood: Mood = Mood.CALM
    delivered_at: datetime | None = None
    main_item: DataItem | None = None
    items: list[DataItem] = field(default_factory=list)
    by_name: dict[str, DataItem] = field(default_factory=dict)
    pair: tuple[int, bool] = (0, False)
    unkept: list[int] = field(init=False, default_factory=list)


class PydanticItem(pydantic.BaseModel):
    unit_price: float
    sku: str = ""


class PydanticState(pydantic.BaseModel):
    order_id: str | None = None
    mood: Mood = Mood.CALM
    delivered_at: datetime | None = None
    main_item: PydanticItem | None = None
    items: list[PydanticItem] = []
    by_name: dict[str, PydanticItem] = {}
    pair: tuple[int, bool] = (0, False)


class DictItem(TypedDict):
    unit_price: float
    sku: NotRequired[str]


class DictState(PlainTypedDict, total=False):
    order_id: str | None
    mood: Mood
    delivered_at: datetime | None
    main_item: DictItem | None
    items: list[DictItem]
    by_name: dict[str, DictItem]
    pair: tuple[int, bool]


KINDS: list[tuple[Any, Any]] = [
    (AttrsState, AttrsItem),
    (DataState, DataItem),
    (PydanticState, PydanticItem),
    (DictState, DictItem),
]
CLASSES = [state for state, _ in KINDS]
kinds = pytest.mark.parametrize(("cls", "item"), KINDS, ids=["attrs", "dataclass", "pydantic", "TypedDict"])
classes = pytest.mark.parametrize("cls", CLASSES, ids=["attrs", "dataclass", "pydantic", "TypedDict"])

STORED: dict[str, Any] = {
    "orderId": "ORD-1",
    "mood": "angry",
    "deliveredAt": "2025-06-30T12:00:00Z",
    "mainItem": {"unitPrice": 1.5, "sku": "A", "theirs": 1},
    "items": [{"unitPrice": 2.5, "sku": "B", "theirs": 2}, {"unitPrice": 3.5, "sku": "C", "theirs": 3}],
    "byName": {"order_id": {"unitPrice": 4.5, "sku": "D", "theirs": 4}},
    "pair": [1, True],
    "order_id": "not a field",
    "theirs": {"snake_case": [1]},
}


def get(state: Any, name: str) -> Any:
    return state[name] if isinstance(state, dict) else getattr(state, name)


def put(state: Any, name: str, value: Any) -> None:
    if isinstance(state, dict):
        state[name] = value
    else:
        setattr(state, name, value)


@kinds
def test_state_is_read_typed_and_written_with_what_the_class_does_not_know(world: World, cls: Any, item: Any) -> None:
    world.store(STORED)
    state = world.visit(ignore, cls)
    assert world.sent == ["GET"]
    assert (get(state, "order_id"), get(state, "mood"), get(state, "delivered_at")) == ("ORD-1", Mood.ANGRY, NOON)
    assert type(get(state, "mood")) is Mood
    assert get(state, "items")[0] == item(unit_price=2.5, sku="B")
    assert get(state, "by_name")["order_id"] == item(unit_price=4.5, sku="D")
    assert get(state, "pair") == (1, True)

    def change(state: Any) -> None:
        put(state, "order_id", None)
        put(state, "delivered_at", datetime(2025, 7, 1, tzinfo=UTC))
        put(get(state, "main_item"), "sku", "Z")
        items = get(state, "items")
        items.reverse()
        put(items[0], "unit_price", 7)
        items.append(item(unit_price=9.5, sku="N"))
        get(state, "by_name")["new"] = item(unit_price=1.0, sku="M")

    world.visit(change, cls)
    assert world.stored == STORED | {
        "orderId": None,
        "deliveredAt": "2025-07-01T00:00:00Z",
        "mainItem": {"unitPrice": 1.5, "sku": "Z", "theirs": 1},
        "items": [
            {"unitPrice": 7, "sku": "C", "theirs": 3},
            {"unitPrice": 2.5, "sku": "B", "theirs": 2},
            {"unitPrice": 9.5, "sku": "N"},
        ],
        "byName": STORED["byName"] | {"new": {"unitPrice": 1.0, "sku": "M"}},
    }


@kinds
def test_moved_objects_keep_their_unknown_keys_and_new_ones_have_none(world: World, cls: Any, item: Any) -> None:
    world.store(STORED)

    def change(state: Any) -> None:
        main, (first, second) = get(state, "main_item"), get(state, "items")
        put(state, "main_item", second)
        put(state, "items", [item(unit_price=2.5, sku="B"), main])
        get(state, "by_name")["first"] = first

    world.visit(change, cls)
    main, (first, second) = STORED["mainItem"], STORED["items"]
    new = {"unitPrice": 2.5, "sku": "B"}
    by_name = STORED["byName"] | {"first": first}
    assert world.stored == STORED | {"mainItem": second, "items": [new, main], "byName": by_name}


@classes
def test_nothing_is_written_for_defaults(world: World, cls: Any) -> None:
    world.visit(ignore, cls)
    assert world.sent == ["GET"]
    world.visit(lambda state: put(state, "order_id", "ORD-2"), cls)
    assert world.stored == {"orderId": "ORD-2"}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"orderId": 5}, "metadata.orderId"),
    ({"mood": "furious"}, "metadata.mood"),
    ({"mood": None}, "metadata.mood"),
    ({"deliveredAt": "2025-06-30"}, "metadata.deliveredAt"),
    ({"deliveredAt": 5}, "metadata.deliveredAt"),
    ({"mainItem": {}}, "metadata.mainItem.unitPrice"),
    ({"mainItem": {"unit_price": 1.0}}, "metadata.mainItem.unitPrice"),
    ({"mainItem": {"unitPrice": "1"}}, "metadata.mainItem.unitPrice"),
    ({"mainItem": {"unitPrice": True}}, "metadata.mainItem.unitPrice"),
    ({"mainItem": []}, "metadata.mainItem"),
    ({"items": {}}, "metadata.items"),
    ({"items": [{"unitPrice": 1}, {"unitPrice": 1, "sku": 5}]}, "metadata.items[1].sku"),
    ({"byName": {"unit_price": {"unitPrice": None}}}, "metadata.byName.unit_price.unitPrice"),
    ({"byName": {"a": 1}}, "metadata.byName.a"),
    ({"pair": [1.0, True]}, "metadata.pair[0]"),
    ({"pair": [1, 1]}, "metadata.pair[1]"),
    ({"pair": [1]}, "metadata.pair"),
]


@classes
@pytest.mark.parametrize(("stored", "path"), WRONG, ids=str)
def test_nothing_is_coerced_and_the_error_has_the_path(cls: Any, stored: dict[str, Any], path: str) -> None:
    with pytest.raises(DecodeError) as caught:
        read_state(STORED | stored, cls, "metadata")
    is_tuple = cls is PydanticState and path == "metadata.pair"
    assert caught.value.path == ("metadata.pair[1]" if is_tuple else path)  # pydantic names the missing item
    if path.endswith("mainItem.unitPrice") and stored["mainItem"].keys() <= {"unit_price"}:
        assert caught.value.reason == "the field is missing"


@classes
def test_state_that_does_not_fit_is_a_state_decode_error_and_stays(world: World, cls: Any) -> None:
    world.store({"items": [{"unitPrice": "1"}]})
    with pytest.raises(StateDecodeError, match=rf"metadata\.items\[0\]\.unitPrice: it does not fit {cls.__name__}: "):
        world.visit(ignore, cls)
    assert world.stored == {"items": [{"unitPrice": "1"}]}


@on_one_route
@kinds
@pytest.mark.parametrize(
    ("name", "value", "raised"),
    [
        ("order_id", 5, TypeError),
        ("order_id", NOON, TypeError),
        ("mood", "furious", TypeError),
        ("order_id", ..., TypeError),  # not object(): its repr, the id of the test, differs between processes
        ("pair", (1, 2), TypeError),
        ("order_id", "\ud800", ValueError),
    ],
    ids=repr,
)
def test_what_could_not_be_read_back_is_not_written(
    world: World, cls: Any, item: Any, name: str, value: Any, raised: type[Exception]
) -> None:
    world.store(STORED)
    with pytest.raises((raised, TypeError)):
        world.visit(lambda state: put(state, name, value), cls)
    with pytest.raises(TypeError):
        world.visit(lambda state: get(state, "items").append(object()), cls)
    assert world.stored == STORED


json_items = st.fixed_dictionaries(
    {"unitPrice": st.floats(allow_nan=False, allow_infinity=False)},
    optional={"sku": st.text(max_size=3), "unit_price": st.integers(), "other": st.integers()},
)
json_states = st.fixed_dictionaries(
    {},
    optional={
        "orderId": st.none() | st.text(max_size=3),
        "mood": st.sampled_from(["calm", "angry"]),
        "mainItem": st.none() | json_items,
        "items": st.lists(json_items, max_size=3),
        "byName": st.dictionaries(st.text(max_size=3), json_items, max_size=2),
        "pair": st.tuples(st.integers(-9, 9), st.booleans()).map(list),
        "theirs": st.integers(),
    },
)


@given(json_states, st.data())
def test_every_kind_of_class_writes_what_attrs_writes(stored: dict[str, Any], data: st.DataObject) -> None:
    order_id, sku, reverse = data.draw(st.text(max_size=3)), data.draw(st.text(max_size=3)), data.draw(st.booleans())
    written = []
    for cls, item in KINDS:
        loaded: LoadedState[Any] = LoadedState(stored, cls, "metadata")
        assert loaded.diff() is None
        state = loaded.value
        put(state, "order_id", order_id)
        items = get(state, "items") if not isinstance(state, dict) else state.setdefault("items", [])
        if reverse:
            items.reverse()
        items.insert(0, item(unit_price=1.0, sku=sku))
        written.append(loaded.diff())
    assert written == [written[0]] * len(KINDS)


class Customer(pydantic.BaseModel):
    """What pydantic can and attrs classes cannot."""

    model_config = pydantic.ConfigDict(extra="allow")

    order_id: str = pydantic.Field(alias="OrderID", default="none")
    balance: Decimal = Decimal(0)
    tags: set[str] = set()
    last: PydanticItem | DataItem | None = None
    notes: dict[int, DictItem] = {}
    secret: str = pydantic.Field(default="", exclude=True)

    @pydantic.field_validator("balance")
    @classmethod
    def _is_positive(cls, value: Decimal) -> Decimal:
        if value < 0:
            raise ValueError("balance is negative")
        return value

    @pydantic.computed_field  # type: ignore[prop-decorator]  # mypy does not know properties under decorators
    @property
    def doubled(self) -> Decimal:
        return self.balance * 2


def test_pydantic_validates_and_serializes_itself(world: World) -> None:
    world.store({"OrderID": "x", "balance": "1.50", "tags": ["a"], "notes": {"1": {"unitPrice": 1.0}}, "other_key": 1})

    def change(state: Customer) -> None:
        assert (state.order_id, state.balance, state.tags) == ("x", Decimal("1.50"), {"a"})
        assert state.notes == {1: {"unit_price": 1.0}}
        state.balance += 1
        state.notes[2] = {"unit_price": 2.0}
        state.last = PydanticItem(unit_price=3.0)
        state.other_key = 2  # type: ignore[attr-defined]

    world.visit(change, Customer)
    assert world.stored == {
        "OrderID": "x",
        "balance": "2.50",
        "tags": ["a"],
        "notes": {"1": {"unitPrice": 1.0}, "2": {"unitPrice": 2.0}},
        "last": {"unitPrice": 3.0, "sku": ""},
        "other_key": 2,
    }
    with pytest.raises(DecodeError) as caught:
        read_state({"balance": "-1"}, Customer, "metadata")
    assert (caught.value.path, caught.value.reason) == ("metadata.balance", "Value error, balance is negative")
    with pytest.raises(TypeError, match="Customer could not read it back"):
        world.visit(lambda state: setattr(state, "balance", Decimal(-1)), Customer)


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    order_id: str = ""
    inner_ones: list[Strict] = []


class WithSecret(pydantic.BaseModel):
    code: pydantic.SecretStr = pydantic.SecretStr("")
    codes: list[pydantic.SecretStr] = []


def test_forbidden_key_is_named() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"theirs": 1}, "theirs"),
        ({"innerOnes": [{}, {"their_key": 1}]}, "innerOnes[1].their_key"),
    ]
    for stored, path in cases:
        with pytest.raises(DecodeError) as caught:
            read_state(stored, Strict, "metadata")
        assert (caught.value.path, caught.value.reason) == (f"metadata.{path}", "Extra inputs are not permitted")


@pytest.mark.parametrize("stored", [{}, {"code": "1234"}], ids=str)
def test_secret_that_pydantic_masks_is_not_written(world: World, stored: dict[str, Any]) -> None:
    world.store(stored)
    with pytest.raises(TypeError, match=r"metadata\.codes?(\[0\])? is a SecretStr, which pydantic writes as '\*+'"):
        world.visit(lambda state: state.codes.append(pydantic.SecretStr("5678")), WithSecret)
    assert world.stored == stored


class Wrapped(pydantic.RootModel[dict[str, int]]):
    """A model around a single value."""


class WithAliases(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(alias_generator=to_pascal)

    order_id: str = ""
    counts: Wrapped = Wrapped({})


def test_aliases_of_pydantic_are_the_keys(world: World) -> None:
    world.store({"OrderId": "a", "orderId": "b", "Counts": {"order_id": 1}, "order_id": "c"})

    def change(state: WithAliases) -> None:
        assert state == WithAliases(OrderId="a", Counts=Wrapped({"order_id": 1}))  # type: ignore[call-arg]  # mypy does not know the generator
        state.order_id = "d"
        state.counts.root["other"] = 2

    world.visit(change, WithAliases)
    assert world.stored == {
        "OrderId": "d",
        "orderId": "b",
        "Counts": {"order_id": 1, "other": 2},
        "order_id": "c",
    }


@dataclass
class Outer:
    """A class of each kind inside another."""

    attrs_item: AttrsItem
    pydantic_item: PydanticItem
    dict_item: DictItem
    node: Outer | None = None

    def __post_init__(self) -> None:
        if self.attrs_item.unit_price < 0:
            raise KeyError("unit_price")


def test_kinds_can_be_nested(world: World) -> None:
    one = {"unitPrice": 1.0, "sku": "A", "theirs": 1}
    outer = {"attrsItem": one, "pydanticItem": one, "dictItem": one}
    world.store(outer | {"node": outer})

    def change(state: Outer) -> None:
        assert state.node is not None
        state.node.pydantic_item.sku = state.node.attrs_item.sku = state.node.dict_item["sku"] = "Z"

    world.visit(change, Outer)
    changed = one | {"sku": "Z"}
    assert world.stored == outer | {"node": {"attrsItem": changed, "pydanticItem": changed, "dictItem": changed}}
    wrong = {"unitPrice": "1"}
    for key in outer:
        with pytest.raises(DecodeError) as caught:
            read_state(outer | {"node": outer | {key: wrong}}, Outer, "metadata")
        assert caught.value.path == f"metadata.node.{key}.unitPrice"
    with pytest.raises(DecodeError, match=r"KeyError: 'unit_price'"):
        read_state(outer | {"node": outer | {"attrsItem": {"unitPrice": -1.0}}}, Outer, "metadata")


def test_removed_key_of_a_typed_dict_is_removed_and_an_undeclared_one_is_rejected(world: World) -> None:
    world.store(STORED)
    world.visit(lambda state: state.pop("order_id"), DictState)
    assert world.stored == {key: value for key, value in STORED.items() if key != "orderId"}
    with pytest.raises(TypeError, match="metadata has the key 'colour', which DictState does not declare"):
        world.visit(lambda state: state.update(colour="red"), DictState)


@dataclass
class WithSet:
    tags: set[str]


@dataclass
class WithDate:
    day: date | None


class DictWithBytes(PlainTypedDict):
    data: bytes


class Aliased(pydantic.BaseModel):
    order_id: str = pydantic.Field(validation_alias=pydantic.AliasPath("order", "id"))


class Twice(PlainTypedDict):
    order_id: str
    orderId: str  # the same key in JSON


@dataclass
class Unresolvable:
    value: Nowhere  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("cls", "what"),
    [
        (WithSet, r"WithSet\.tags: the type set\[str\] is not supported"),
        (WithDate, r"WithDate\.day: the type date is not supported; store its isoformat\(\) as a str"),
        (DictWithBytes, r"DictWithBytes\.data: the type bytes is not supported"),
        (Aliased, r"Aliased\.order_id: its alias must be a string"),
        (Wrapped, "cls must be dict or an attrs class, dataclass, TypedDict or pydantic model"),
        (Twice, "two fields of Twice have the same key"),
        (Unresolvable, "Unresolvable has an annotation that cannot be resolved: name 'Nowhere'"),
        (DataItem(1.0), "cls must be dict or an attrs class, dataclass, TypedDict or pydantic model"),
    ],
)
def test_unsupported_class_is_rejected(cls: Any, what: str) -> None:
    with pytest.raises(TypeError, match=what):
        check_class(cls)


@classes
def test_event_has_its_state_as_the_class(cls: Any) -> None:
    webhook, sent = Webhook("whsec_x"), []
    with Sandbox() as box:
        sent.append(box.receive_sms(from_number=PERSON, to_number=AGENT, body="Hi"))
    body = (
        b'{"event": "agent.message", "channel": "sms", "timestamp": "2025-06-30T12:00:00Z", "agentId": "agt_1",'
        b' "data": {"conversationId": "conv_1", "numberId": "num_1", "from": "+1", "to": "+2", "message": "Hi",'
        b' "direction": "inbound", "receivedAt": "2025-06-30T12:00:00Z"}, "conversationState": {"orderId": "ORD-1"}}'
    )
    event = webhook.parse(body, webhook.sign(body))
    assert isinstance(event, MessageEvent)
    assert get(event.state(cls), "order_id") == "ORD-1"


def test_pydantic_is_not_imported_for_other_classes() -> None:
    code = """
import sys
from dataclasses import dataclass
from agentphone._state import LoadedState
@dataclass
class State:
    step: int = 0
loaded = LoadedState({"step": 1}, State, "metadata")
loaded.value.step = 2
assert loaded.diff() == {"step": 2}
print("pydantic" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")
