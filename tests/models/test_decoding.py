"""JSON to models and metadata to JSON: strict where a mistake would spread, tolerant where the API may grow."""

from __future__ import annotations

import json
import pickle
import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import anyio
import attrs
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentphone import Conversation, ConversationDetail, Message, Page, ResponseDecodeError
from agentphone._decoding import decode, structure_hook
from agentphone._json import DecodeError, encode_json
from tests.support.helpers import client_of, conversation, message, page, sample

NOON = datetime(2025, 6, 30, 12, tzinfo=UTC)

# ---- The answers of the seed


def test_the_sample_list_decodes() -> None:
    assert decode(sample("conversations"), Page[Conversation]) == Page(
        data=(
            Conversation(
                id="conv_def456",
                agent_id="agt_abc123",
                phone_number_id="num_xyz789",
                phone_number="+15551234567",
                participant="+15559876543",
                last_message_at=datetime(2025, 1, 15, 12, tzinfo=UTC),
                last_message_preview="That solved it, cheers",
                message_count=8,
                metadata={"customerName": "Maya", "orderId": "ORD-12345"},
                created_at=datetime(2025, 1, 15, 11, 30, tzinfo=UTC),
            ),
        ),
        has_more=False,
        total=1,
    )


QUESTION = Message(
    id="msg_001",
    body="Hello, a question about my parcel",
    from_number="+15559876543",
    to_number="+15551234567",
    direction="inbound",
    received_at=datetime(2025, 1, 15, 11, 30, tzinfo=UTC),
)


def test_the_sample_messages_decode() -> None:
    assert decode(sample("messages"), Page[Message]) == Page(data=(QUESTION,), has_more=True, total=None)


def test_the_sample_detail_decodes() -> None:
    at = datetime(2025, 1, 15, 12, 0, 0, 250_000, tzinfo=UTC)
    assert decode(sample("conversation"), ConversationDetail) == ConversationDetail(
        id="conv_def456",
        phone_number_id="num_xyz789",
        phone_number="+15551234567",
        participant="+15559876543",
        last_message_at=at,
        message_count=2,
        created_at=datetime(2025, 1, 15, 11, 30, tzinfo=UTC),
        extra={"channel": "mms", "isGroup": False},
        messages=(
            Message(
                id="msg_002",
                from_number="+15551234567",
                to_number="+15559876543",
                direction="outbound",
                received_at=at,
                channel="mms",
                media_urls=("https://media.example/label.png",),
                status="delivered",
                extra={"reactions": [{"kind": "like"}]},
            ),
            QUESTION,
        ),
    )


# ---- What each field refuses

WRONG: dict[str, tuple[Any, ...]] = {
    "string": (5, 1.5, True, [], {}),
    "integer": ("8", 8.0, True, [], {}),
    "boolean": (0, 1, "true", None, [], {}),
    "object": ("", 5, True, []),
    "array": ("oops", "", 5, True, {}),
    "instant": (
        *(5, 1751284800, True, [], {}, "", "yesterday", "1751284800", "12:00:00Z"),
        *("2025-06-30", "20250630", "2025-W27-1", "2025-06-31T12:00:00Z", "2025-06-30T25:00:00Z", "2025-06-30T"),
        *("0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "\ud800"),
    ),
}
# The API's name: its type, and whether it must be there and not null.
CONVERSATION_FIELDS = {
    "id": ("string", True),
    "agentId": ("string", False),
    "phoneNumberId": ("string", False),
    "phoneNumber": ("string", True),
    "participant": ("string", True),
    "lastMessageAt": ("instant", False),
    "lastMessagePreview": ("string", False),
    "messageCount": ("integer", False),
    "metadata": ("object", False),
    "createdAt": ("instant", False),
}
MESSAGE_FIELDS = {
    "id": ("string", True),
    "body": ("string", False),
    "fromNumber": ("string", True),
    "toNumber": ("string", True),
    "direction": ("string", False),
    "receivedAt": ("instant", True),
    "channel": ("string", False),
    "status": ("string", False),
}
CASES = [
    *((Conversation, conversation(), name, *rule) for name, rule in CONVERSATION_FIELDS.items()),
    *((ConversationDetail, conversation(messages=[]), name, *rule) for name, rule in CONVERSATION_FIELDS.items()),
    *((Message, message(), name, *rule) for name, rule in MESSAGE_FIELDS.items()),
]
each_field = pytest.mark.parametrize(
    ("shape", "good", "name", "kind", "required"),
    CASES,
    ids=lambda part: part if isinstance(part, str) else getattr(part, "__name__", ""),
)


def refusal(value: Any, shape: Any) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(json.dumps(value).encode(), shape)
    return caught.value


@each_field
def test_a_field_of_another_type_is_refused_by_name(
    shape: Any, good: dict[str, Any], name: str, kind: str, required: bool
) -> None:
    for wrong in WRONG[kind]:
        assert refusal(good | {name: wrong}, shape).path == name, wrong


@each_field
def test_only_required_fields_must_be_there_and_not_null(
    shape: Any, good: dict[str, Any], name: str, kind: str, required: bool
) -> None:
    without = {key: value for key, value in good.items() if key != name}
    if required:
        assert refusal(good | {name: None}, shape).path == name
        missing = refusal(without, shape)
        assert (missing.path, missing.reason) == (name, "the field is missing")
    else:
        for answer in (without, good | {name: None}):
            model = decode(json.dumps(answer).encode(), shape)
            assert getattr(model, re.sub("([A-Z])", r"_\1", name).lower()) is None


NO_OBJECTS: tuple[Any, ...] = ([], "x", 5, True, None)


def test_media_that_are_null_are_none() -> None:
    assert decode(json.dumps(message(mediaUrls=None)).encode(), Message).media_urls == ()


@pytest.mark.parametrize(
    ("shape", "answer", "path"),
    [
        (Page[Conversation], page(conversation(), conversation(), conversation(), conversation(lastMessageAt="soon")), "data[3].lastMessageAt"),  # noqa: E501
        (Page[Conversation], page(conversation(), conversation(metadata=[])), "data[1].metadata"),
        (Page[Conversation], {**page(), "data": None}, "data"),
        (ConversationDetail, conversation(messages=None), "messages"),
        (Page[Conversation], page(conversation(), 5), "data[1]"),  # type: ignore[arg-type]
        (Page[Conversation], page(conversation(), total="1"), "total"),
        (Page[Conversation], page(conversation(), total=1.0), "total"),
        (Page[Message], page(message(), message(mediaUrls=["a", None])), "data[1].mediaUrls[1]"),
        (Page[Message], page(message(mediaUrls="abc")), "data[0].mediaUrls"),
        (Page[Message], {"data": "abc", "hasMore": False}, "data"),
        (Page[Message], {"data": None, "hasMore": False}, "data"),
        (Page[Message], {"data": {}, "hasMore": False}, "data"),
        (Page[Message], {"hasMore": False}, "data"),
        (Page[Message], {"data": []}, "hasMore"),
        *((Page[Message], {"data": [], "hasMore": wrong}, "hasMore") for wrong in WRONG["boolean"]),
        (ConversationDetail, conversation(messages=[message(), message(mediaUrls=[5])]), "messages[1].mediaUrls[0]"),
        (ConversationDetail, conversation(messages=[message(receivedAt="2025-06-30")]), "messages[0].receivedAt"),
        (ConversationDetail, conversation(messages="oops"), "messages"),
        *((shape, top, "") for shape in (Page[Message], ConversationDetail) for top in NO_OBJECTS),
    ],
)  # fmt: skip
def test_a_refusal_says_where_in_the_answers_own_names(shape: Any, answer: Any, path: str) -> None:
    assert refusal(answer, shape).path == path


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"id": 5}, "expected a string, got a number"),
        ({"id": None}, "expected a string, got null"),
        ({"messageCount": 1.5}, "expected an integer, got a number"),
        ({"messageCount": True}, "expected an integer, got true or false"),
        ({"metadata": "x"}, "expected an object, got a string"),
        ({"createdAt": []}, "expected an ISO 8601 timestamp, got an array"),
    ],
)
def test_a_refusal_says_what_was_wanted_and_what_came(changes: dict[str, Any], what: str) -> None:
    assert refusal(conversation(**changes), Conversation).reason == what


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2025-06-30T12:00:00Z", NOON),
        ("2025-06-30T12:00:00+00:00", NOON),
        ("2025-06-30T14:00:00+02:00", NOON),
        ("2025-06-30T12:00:00", NOON),
        ("2025-06-30 12:00:00Z", NOON),
        ("20250630T120000Z", NOON),
        ("2025-06-30T12:00:00.5Z", NOON + timedelta(milliseconds=500)),
        ("2025-06-30T12:00:00.123Z", NOON + timedelta(microseconds=123_000)),
        ("2025-06-30T12:00:00.123456Z", NOON + timedelta(microseconds=123_456)),
        ("2025-06-30T12:00:00.123456999Z", NOON + timedelta(microseconds=123_456)),
    ],
)
def test_an_instant_is_aware_and_in_utc_whatever_its_form(text: str, instant: datetime) -> None:
    found = decode(json.dumps(message(receivedAt=text)).encode(), Message).received_at
    assert found == instant
    assert found.tzinfo is UTC


# ---- What may grow


def test_unknown_fields_go_to_extra_in_order_and_as_received() -> None:
    unknown = {"zeta": 1, "extra": {"a": None}, "last_message_at": "x", "alpha": [1.5, "2025-06-30T12:00:00Z"]}
    cases: list[tuple[Any, dict[str, Any]]] = [
        (Conversation, conversation()),
        (Message, message()),
        (ConversationDetail, conversation(messages=[])),
    ]
    for shape, good in cases:
        found = decode(json.dumps(unknown | good).encode(), shape)
        assert found.extra == unknown
        assert list(found.extra) == list(unknown)
        assert decode(json.dumps(good).encode(), shape).extra == {}


def test_open_sets_pass_as_they_are() -> None:
    found = decode(json.dumps(message(direction="sideways", channel="pigeon", status="eaten")).encode(), Message)
    assert (found.direction, found.channel, found.status) == ("sideways", "pigeon", "eaten")


def test_a_detail_without_messages_has_none_and_keeps_the_order_of_those_it_has() -> None:
    assert decode(json.dumps(conversation()).encode(), ConversationDetail).messages == ()
    ids = ["b", "c", "a"]
    detail = decode(json.dumps(conversation(messages=[message(id=i) for i in ids])).encode(), ConversationDetail)
    assert [item.id for item in detail.messages] == ids


def test_a_model_is_of_its_class_frozen_and_whole() -> None:
    (made,) = decode(json.dumps(page(conversation())).encode(), Page[Conversation])
    assert type(made) is Conversation
    assert pickle.loads(pickle.dumps(made)) == attrs.evolve(made) == made
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        made.id = "conv_2"  # type: ignore[misc]  # what must not be possible
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        del made.id


@attrs.frozen
class Checked:
    count: int = attrs.field(validator=attrs.validators.ge(1))
    twice: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "twice", 2 * self.count)


def test_what_a_class_does_when_it_is_made_is_done() -> None:
    assert decode(b'{"count": 3}', Checked).twice == 6
    with pytest.raises(DecodeError, match="count"):
        decode(b'{"count": 0}', Checked)


# ---- Laws

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=4)
instants = st.datetimes(timezones=st.just(UTC))
optional_text = st.none() | st.text()
unknown_fields = json_objects.map(
    lambda extra: {k: v for k, v in extra.items() if k not in {*CONVERSATION_FIELDS, *MESSAGE_FIELDS}}
)
messages = st.builds(
    Message,
    id=st.text(),
    body=optional_text,
    from_number=st.text(),
    to_number=st.text(),
    direction=optional_text,
    received_at=instants,
    channel=optional_text,
    media_urls=st.lists(st.text(), max_size=3).map(tuple),
    status=optional_text,
    extra=unknown_fields,
)
conversation_fields: dict[str, Any] = {
    "id": st.text(),
    "agent_id": optional_text,
    "phone_number_id": optional_text,
    "phone_number": st.text(),
    "participant": st.text(),
    "last_message_at": st.none() | instants,
    "last_message_preview": optional_text,
    "message_count": st.none() | st.integers(),
    "metadata": st.none() | json_objects,
    "created_at": st.none() | instants,
    "extra": unknown_fields,
}
conversations = st.builds(Conversation, **conversation_fields)
details = st.builds(ConversationDetail, messages=st.lists(messages, max_size=3).map(tuple), **conversation_fields)
offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


def to_json(model: Any, draw: Any) -> Any:
    """Encode a model as a server may: nulls there or left out, instants with any offset."""
    if isinstance(model, tuple):
        return [to_json(item, draw) for item in model]
    if isinstance(model, datetime):
        try:
            return model.astimezone(draw(offsets)).isoformat()
        except OverflowError:
            return model.isoformat()
    if not attrs.has(type(model)):
        return model
    fields = {}
    for name in (field.name for field in attrs.fields(type(model)) if field.name != "extra"):
        value = getattr(model, name)
        if value is not None or draw(st.booleans()):
            fields[re.sub("_([a-z])", lambda found: found[1].upper(), name)] = to_json(value, draw)
    return fields | dict(getattr(model, "extra", {}))


@pytest.mark.parametrize(
    ("shape", "models"),
    [
        (Message, messages),
        (Conversation, conversations),
        (ConversationDetail, details),
        (Page[Message], st.builds(Page, data=st.lists(messages, max_size=3).map(tuple), has_more=st.booleans())),
        (
            Page[Conversation],
            st.builds(
                Page,
                data=st.lists(conversations, max_size=3).map(tuple),
                has_more=st.booleans(),
                total=st.none() | st.integers(),
            ),
        ),
    ],
    ids=["message", "conversation", "detail", "messages", "conversations"],
)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_decoding_undoes_encoding(shape: Any, models: st.SearchStrategy[Any], data: st.DataObject) -> None:
    model = data.draw(models)
    found = decode(json.dumps(to_json(model, data.draw)).encode(), shape)
    assert found == model
    # 1, 1.0 and True are equal to Python; JSON tells them apart.
    for name in ("extra", "metadata"):
        if hasattr(model, name):
            assert json.dumps(getattr(found, name)) == json.dumps(getattr(model, name))


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=8,
)
GOOD = (
    (Page[Conversation], page(conversation(), conversation(), total=2)),
    (Page[Message], page(message(), message())),
    (ConversationDetail, conversation(messages=[message()])),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Give the path of every value inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inside for place in places(item, (*path, key)))]


def mutated(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    """Give a copy of a JSON value with something else at one place."""
    if not path:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = mutated(value[path[0]], path[1:], other)
    return copy


@st.composite
def spoilt_bodies(draw: Any) -> tuple[Any, bytes]:
    """Make a body: noise, any JSON, or a good answer with one value changed, cut short or with one byte off."""
    shape, good = draw(st.sampled_from(GOOD))
    kind = draw(st.sampled_from(["noise", "json", "value", "cut", "byte", "charset"]))
    if kind == "noise":
        return shape, draw(st.binary(max_size=50))
    if kind == "json":
        return shape, json.dumps(draw(any_json)).encode()
    if kind == "value":
        return shape, json.dumps(mutated(good, draw(st.sampled_from(places(good))), draw(any_json))).encode()
    body = bytearray(json.dumps(good).encode())
    if kind == "charset":
        return shape, body.decode().encode(draw(st.sampled_from(["utf-16", "utf-32", "utf-8-sig", "utf-16-be"])))
    index = draw(st.integers(0, len(body) - 1))
    if kind == "cut":
        return shape, bytes(body[:index])
    body[index] = draw(st.integers(0, 255))
    return shape, bytes(body)


@settings(deadline=None, max_examples=400)
@given(spoilt_bodies())
def test_nothing_but_a_decode_error_comes_out_of_any_body(spoilt: tuple[Any, bytes]) -> None:
    shape, body = spoilt
    try:
        found = decode(body, shape)
    except DecodeError as error:
        found = error
    assert isinstance(found, (DecodeError, getattr(shape, "__origin__", shape)))


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(GOOD), st.data())
def test_the_fast_converter_takes_and_refuses_what_the_detailed_one_does(
    shape_and_good: tuple[Any, Any], data: st.DataObject
) -> None:
    shape, good = shape_and_good
    place = data.draw(st.sampled_from(places(good)))
    raw = mutated(good, place, data.draw(any_json | st.sampled_from(["2025-06-30", "2025-06-30T12:00:00+02:00"])))
    found = []
    for detailed in (False, True):
        try:
            found.append(structure_hook(shape, is_state=False, detailed=detailed)(raw, shape))
        except Exception:  # noqa: BLE001  # whatever it is, `decode` makes a DecodeError of it
            found.append(DecodeError)
    assert repr(found[0]) == repr(found[1])  # also true of nan


HARD = {
    "empty": b"",
    "blank": b" \r\n\t",
    "deep array": b"[" * 100_000,
    "deep and closed": b"[" * 100_000 + b"]" * 100_000,
    "deep object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep metadata": json.dumps(conversation()).encode()[:-1] + b',"metadata":' + b'{"a":' * 50_000 + b"}" * 50_001,
    "huge integer": b'{"data":[],"hasMore":false,"total":' + b"9" * 5000 + b"}",
    "NaN": b'{"data":[],"hasMore":false,"total":NaN}',
    "NaN in metadata": json.dumps(page(conversation(metadata={"a": float("nan")}))).encode(),
    "Infinity in extra": json.dumps(page(conversation(more=float("-inf")))).encode(),
    "too large a number": json.dumps(page(conversation(more=9.5))).encode().replace(b"9.5", b"-1e400"),
    "byte order mark": b"\xef\xbb\xbf" + sample("conversations"),
    "latin-1": json.dumps(page(conversation(id="é")), ensure_ascii=False).encode("latin-1"),
    "utf-16": sample("conversations").decode().encode("utf-16"),
    "raw surrogate": b'{"data":[],"hasMore":false,"x":"\xed\xa0\x80"}',
    "two values": sample("conversations") + sample("conversations"),
    "trailing comma": b'{"data":[],"hasMore":false,}',
    "HTML": b"<!doctype html><title>502</title>",
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("body", HARD.values(), ids=HARD.keys())
def test_a_body_that_is_not_json_is_refused_as_a_whole(body: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(body, Page[Conversation])
    assert caught.value.path == ""


def test_half_a_surrogate_pair_passes_as_json_may_hold_one() -> None:
    found = decode(json.dumps(message(body="\ud83d")).encode(), Message)
    assert found.body == "\ud83d"


@settings(deadline=None, max_examples=80)
@given(spoilt_bodies())
def test_through_the_client_only_a_response_decode_error_comes_out(spoilt: tuple[Any, bytes]) -> None:
    async def main() -> None:
        client, _ = client_of(httpx.Response(200, content=spoilt[1], headers={"x-request-id": "req_1"}))
        for call in (client.conversations.list().page, lambda: client.conversations.get("conv_1")):
            error = None
            try:
                await call()
            except ResponseDecodeError as caught:  # or none: some of these bodies are good
                error = caught
            if error is not None:
                assert (error.status_code, error.request_id, error.body) == (200, "req_1", spoilt[1][:500])
                assert "GET /v1/conversations" in str(error)

    anyio.run(main)


@pytest.mark.parametrize("body", HARD.values(), ids=HARD.keys())
def test_through_the_client_a_hard_body_is_a_response_decode_error(body: bytes) -> None:
    async def main() -> None:
        client, _ = client_of(httpx.Response(200, content=body))
        with pytest.raises(ResponseDecodeError) as caught:
            await client.conversations.list().page()
        assert caught.value.body == body[:500]

    anyio.run(main)


# ---- Metadata


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


CYCLE: dict[str, Any] = {"a": []}
CYCLE["a"].append(CYCLE)


@pytest.mark.parametrize(
    ("value", "error", "place"),
    [
        ({"a": float("nan")}, ValueError, "metadata['a']"),
        ({"a": float("inf")}, ValueError, "metadata['a']"),
        ({"a": float("-inf")}, ValueError, "metadata['a']"),
        ({"a": {"b": [0, {"c": float("nan")}]}}, ValueError, "metadata['a']['b'][1]['c']"),
        ({"a": {1, 2}}, TypeError, "metadata['a'] is a set"),
        ({"a": b"x"}, TypeError, "metadata['a'] is a bytes"),
        ({"a": [NOON]}, TypeError, "metadata['a'][0] is a datetime"),
        ({"a": Decimal(1)}, TypeError, "metadata['a'] is a Decimal"),
        ({"a": object()}, TypeError, "metadata['a'] is a object"),
        ({"a": (1, 2j)}, TypeError, "metadata['a'][1] is a complex"),
        ({"a": (i for i in "x")}, TypeError, "metadata['a'] is a generator"),
        ({1: "a"}, TypeError, "metadata has the key 1"),
        ({"a": {None: 1}}, TypeError, "metadata['a'] has the key None"),
        ({"a": [{True: 1}]}, TypeError, "metadata['a'][0] has the key True"),
        ({"a": "\ud800"}, ValueError, "metadata['a']"),
        ({"a": {"\udfff": 1}}, ValueError, "metadata['a']: the key '\\udfff'"),
        ({"a": [1, 10**5000]}, ValueError, "metadata['a'][1]"),
        (CYCLE, ValueError, "metadata['a'][0]"),
        (nested(100_000), ValueError, "metadata is nested too deeply"),
        ([], TypeError, "metadata must be a dict"),
        ("{}", TypeError, "metadata must be a dict"),
        (5, TypeError, "metadata must be a dict"),
        (True, TypeError, "metadata must be a dict"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_metadata_that_is_not_json_is_refused_by_its_place(value: Any, error: type[Exception], place: str) -> None:
    with pytest.raises(error, match=re.escape(place)):
        encode_json(value, "metadata")


@settings(deadline=None, max_examples=150)
@given(st.none() | json_objects)
def test_metadata_that_is_accepted_comes_back_equal(value: Any) -> None:
    body = encode_json(value, "metadata")
    assert json.dumps(json.loads(body)) == json.dumps(value)
    answer = b'{"id":"c","phoneNumber":"+1","participant":"+2","metadata":' + body + b"}"
    assert decode(answer, Conversation).metadata == value


def test_metadata_may_be_any_mapping_and_hold_tuples_and_the_same_value_twice() -> None:
    shared = [1]
    value = MappingProxyType({"a": shared, "b": shared, "c": (MappingProxyType({"d": None}),)})
    assert encode_json(value, "metadata") == b'{"a":[1],"b":[1],"c":[{"d":null}]}'
