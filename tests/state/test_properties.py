"""Any JSON object as a state."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from datetime import UTC, timedelta, timezone
from typing import Any

import attrs
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentphone import Client
from agentphone._decoding import structure_hook
from agentphone._json import DecodeError
from agentphone._state import LoadedState, read_state
from agentphone.sandbox import Sandbox
from tests.state.world import (
    AGENT,
    EVERYTHING,
    NOON,
    PERSON,
    SETTINGS,
    Answer,
    Everything,
    Item,
    Level,
    Mood,
    OrderState,
)
from tests.support.long import count

LETTERS = st.characters(exclude_categories=["Cs"])
TEXT, KEYS = st.text(LETTERS), st.text(LETTERS, max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
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
NAMES = {"orderId", "step", "resolved", "mood", "deliveredAt", "item", "items", "tags"}
THEIRS = st.dictionaries(KEYS.filter(lambda key: key not in NAMES), JSON, max_size=4)
OBJECTS = st.builds(lambda theirs, known: {**theirs, **known}, THEIRS, KNOWN)


def to_text(raw: Any) -> str:
    """Return JSON as it would be sent."""
    return json.dumps(raw, ensure_ascii=False)


@given(OBJECTS)
def test_unchanged_object_is_not_written(raw: dict[str, Any]) -> None:
    text = to_text(raw)
    assert LoadedState(raw, OrderState, "metadata").diff() is None
    loaded = LoadedState(raw, dict, "metadata")
    assert to_text(loaded.value) == text
    assert loaded.diff() is None
    assert to_text(raw) == text


@given(OBJECTS, st.integers(), TEXT, JSON)
def test_change_of_one_key_leaves_the_others(raw: dict[str, Any], step: int, sku: str, value: Any) -> None:
    def others(made: dict[str, Any], key: str) -> str:
        return to_text({one: made[one] for one in made if one != key})

    def change_step(state: OrderState) -> None:
        state.step = step

    def change_item(state: OrderState) -> None:
        if state.item:
            state.item.sku = sku

    def change_tags(state: OrderState) -> None:
        state.tags["new"] = value

    before = to_text(raw)
    changes: dict[str, Callable[[OrderState], None]] = {"step": change_step, "item": change_item, "tags": change_tags}
    for key, change in changes.items():
        loaded = LoadedState(raw, OrderState, "metadata")
        change(loaded.value)
        changed = loaded.diff()
        assert to_text(raw) == before
        if changed is None:
            continue
        assert others(changed, key) == others(raw, key)
        if key == "item":
            assert others(changed[key], "sku") == others(raw[key], "sku")
        assert read_state(changed, OrderState, "metadata") == loaded.value

    mine = LoadedState(raw, dict, "metadata")
    mine.value["new key"] = value
    changed = mine.diff()
    if changed is not None:
        assert to_text(changed) == to_text({**raw, "new key": value})


@settings(max_examples=count(10, 200))
@given(OBJECTS)
def test_any_object_survives_the_api(raw: dict[str, Any]) -> None:
    with Sandbox() as box, Client(**SETTINGS, transport=box.transport()) as client:
        cid = box.receive_sms(from_number=PERSON, to_number=AGENT, body="?")["conversationId"]
        client.conversations.update(cid, metadata=raw)
        box.requests.clear()
        for cls in (dict, OrderState):
            with client.conversations.state(cid, cls):
                pass
        assert [request.method for request in box.requests] == ["GET", "GET"]
        numbers = itertools.count(5)
        with client.conversations.state(cid, OrderState) as state:
            while state.step in raw.values():
                state.step = next(numbers)
            state.step += 1
        stored = client.conversations.get(cid).metadata
        assert stored is not None
        stored.pop("step")
        assert stored == {key: value for key, value in raw.items() if key != "step"}


@given(st.dictionaries(st.sampled_from([*EVERYTHING, "theirs"]), JSON).map(lambda some: {**EVERYTHING, **some}))
def test_any_object_is_read_or_a_decode_error(raw: dict[str, Any]) -> None:
    try:
        loaded = LoadedState(raw, Everything, "metadata")
    except DecodeError as error:
        path = error.path
    else:
        assert loaded.diff() is None
        return
    assert path.startswith("metadata.")


@example(EVERYTHING)
@settings(max_examples=count(50, 2000))
@given(st.dictionaries(st.sampled_from([*EVERYTHING, "theirs"]), JSON).map(lambda some: {**EVERYTHING, **some}))
def test_fast_and_detailed_converter_agree(raw: dict[str, Any]) -> None:
    found = []
    for detailed in (False, True):
        hook = structure_hook(Everything, is_state=True, detailed=detailed)
        try:
            found.append(repr(hook(raw, Everything)))
        except Exception:  # noqa: BLE001  # whatever it is, `read_state` raises a DecodeError for it
            found.append("error")
    assert found[0] == found[1]
    assert "error" not in found or raw != EVERYTHING


VALUES = (
    JSON
    | st.datetimes(timezones=st.none() | st.just(UTC) | st.just(timezone(timedelta(hours=-9))))
    | st.sampled_from([Mood.ANGRY, Level.HIGH, Answer.NO, Item("A"), Item("B", 2), [Item("C", 1.5)], (1,), {1}, b"x"])
    | st.dictionaries(KEYS, st.sampled_from([Mood.CALM, NOON, Item("A"), (1, 2)]))
)


@settings(max_examples=count(60, 3000))
@given(OBJECTS, st.sampled_from([one.name for one in attrs.fields(OrderState)]), VALUES)
def test_any_value_is_rejected_or_read_back(raw: dict[str, Any], name: str, value: Any) -> None:
    loaded = LoadedState(raw, OrderState, "metadata")
    setattr(loaded.value, name, value)
    try:
        changed = loaded.diff()
    except (TypeError, ValueError):
        assert raw == LoadedState(raw, dict, "metadata").value
        return
    if changed is None:  # the same JSON as before
        return
    again = LoadedState(changed, OrderState, "metadata")
    read_back = getattr(again.value, name)
    if isinstance(value, list | tuple):
        assert list(read_back) == list(value) or name == "items"
    elif not isinstance(value, dict):
        assert read_back == value
    assert again.diff() is None
