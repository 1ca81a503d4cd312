"""The classes that a state can be read as."""

from __future__ import annotations

import itertools
import json
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any

import attrs
import pytest
from attrs import Factory, define, field

from agentphone import Message, StateDecodeError
from agentphone._json import DecodeError
from agentphone._state import LoadedState, read_state
from tests.state.world import (
    EVERYTHING,
    NOON,
    Answer,
    Everything,
    Item,
    Level,
    Mood,
    Node,
    OrderState,
    World,
    ignore,
    on_one_route,
)


def test_every_supported_type_is_read_and_written(world: World) -> None:
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
def test_nothing_is_coerced(key: str, value: Any) -> None:
    with pytest.raises(DecodeError) as caught:
        read_state(EVERYTHING | {key: value}, Everything, "metadata")
    assert caught.value.path.startswith(f"metadata.{key}")


@define
class Checked:
    count: int = field(default=0, validator=attrs.validators.le(5))


def test_validator_rejects_stored_value(world: World) -> None:
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
def test_error_of_the_class_is_a_decode_error(raw: dict[str, Any], path: str, what: str) -> None:
    assert read_state({"shade": " a "}, Converted, "state") == Converted(shade="A")
    with pytest.raises(DecodeError) as caught:
        read_state(raw, Converted, "state")
    assert caught.value.path == path
    assert what in caught.value.reason


def test_annotations_of_the_class_stay_unchanged() -> None:
    @define
    class Noted:
        number: Annotated[int, "a note"] = 0
        numbers: list[Annotated[int, "each"]] = Factory(list)

    attrs.resolve_types(Noted, localns=locals())  # as cattrs does for one
    assert read_state({"number": 1, "numbers": [2]}, Noted, "state") == Noted(1, [2])
    assert read_state(EVERYTHING, Everything, "state").noted == 5
    kept: Any = attrs.fields(Everything).noted.type
    assert kept == Annotated[int, "a note"]


def test_local_class_needs_resolved_types() -> None:
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


@define
class Awkward:
    """Names and annotations that must not confuse the code that is generated for the class."""

    cl: int
    converter: Annotated[str, {"unhashable": []}]
    attrs: list[Annotated[Mood, []]]
    res: dict[str, Annotated[Level, []]] = Factory(dict)
    errors: Awkward | None = None


def test_names_and_annotations_do_not_matter() -> None:
    raw = {"cl": 1, "converter": "a", "attrs": ["calm"], "res": {"a": 2}}
    inner = Awkward(1, "a", [Mood.CALM], {"a": Level.HIGH})
    assert read_state(raw | {"errors": raw}, Awkward, "state") == attrs.evolve(inner, errors=inner)
    with pytest.raises(DecodeError) as caught:
        read_state(raw | {"errors": raw | {"res": {"a": True}}}, Awkward, "state")
    assert (caught.value.path, caught.value.reason) == ("state.errors.res.a", "expected one of 1, 2")


def test_field_names_of_models_have_no_special_meaning() -> None:
    @define
    class Lookalike:
        extra: dict[str, Any] = Factory(dict)
        media_urls: tuple[str, ...] = ()

    attrs.resolve_types(Lookalike, localns=locals())
    raw = {"extra": {"a": 1}, "unknown": 2, "mediaUrls": ["b"]}
    assert read_state(raw, Lookalike, "state") == Lookalike({"a": 1}, ("b",))
    with pytest.raises(DecodeError, match="expected an array, got null"):
        read_state({"mediaUrls": None}, Lookalike, "state")


def test_any_depth_is_read_or_a_decode_error() -> None:
    def outcome(depth: int) -> str:
        raw: dict[str, Any] = {"name": ""}
        for _ in range(depth):
            raw = {"name": "", "children": [raw]}
        try:
            LoadedState(raw, Node, "metadata")
        except DecodeError as error:
            return f"{error.path}: {error.reason}"
        return "read"

    limit = next(depth for depth in itertools.count(100, 20) if outcome(depth) != "read")
    outcomes = list(map(outcome, range(limit - 40, limit + 20)))  # also where reading just succeeds and writing fails
    assert outcomes[0] == "read"
    assert set(outcomes) == {"read", "metadata: it is nested too deeply"}


def holding(annotation: Any) -> Any:
    """Create a class with one field of this type."""
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


@define
class First:
    second: Second | None = None


@define
class Second:
    first: First | None
    data: bytes


class Pathlike(str):
    """A subclass of a type that is supported."""


class Plain:
    pass


@on_one_route
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
        (holding(tuple[Node, bytes]), "the type bytes"),
        (holding(Message), "the type .*Mapping"),
        (First, r"First\.second: Second\.data: the type bytes"),
        (holding(list[Pathlike]), "the type Pathlike"),
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
def test_unsupported_class_is_rejected(world: World, cls: Any, what: str) -> None:
    for _ in range(2):
        with pytest.raises(TypeError, match=what):
            world.visit(ignore, cls)
    assert world.sent == []


def test_unsupported_class_is_rejected_before_any_request(world: World) -> None:
    with pytest.raises(TypeError, match="the type bytes"):
        world.visit(ignore, holding(bytes))
    assert world.sent == []
