"""Any body is decoded or a decode error, and the fast and the detailed converter agree."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import anyio
import attrs
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentphone import (
    Conversation,
    ConversationDetail,
    Message,
    Page,
    Participant,
    Reaction,
    ReplyTo,
    ResponseDecodeError,
)
from agentphone._decoding import decode, structure_hook
from agentphone._json import DecodeError
from tests.models.cases import (
    CONVERSATION_FIELDS,
    CONVERSATION_OPTIONS,
    MESSAGE_FIELDS,
    MESSAGE_OPTIONS,
    json_objects,
)
from tests.support.helpers import client_of, conversation, message, page, sample
from tests.support.long import count

timestamps = st.datetimes(timezones=st.just(UTC))
optional_text = st.none() | st.text()
KNOWN = {
    *(*CONVERSATION_FIELDS, *CONVERSATION_OPTIONS, *MESSAGE_FIELDS, *MESSAGE_OPTIONS),
    *("mediaUrls", "reactionType", "createdAt", "identifier", "name", "messageId", "message", "messages"),
}
unknown_fields = json_objects.map(lambda extra: {k: v for k, v in extra.items() if k not in KNOWN})
reactions = st.builds(Reaction, reaction_type=optional_text, created_at=st.none() | timestamps, extra=unknown_fields)
participants = st.builds(Participant, identifier=optional_text, name=optional_text, extra=unknown_fields)
replies = st.builds(
    ReplyTo, message_id=optional_text, media_urls=st.lists(st.text(), max_size=2).map(tuple), extra=unknown_fields
)
messages = st.builds(
    Message,
    id=st.text(),
    body=optional_text,
    from_number=st.text(),
    to_number=st.text(),
    direction=optional_text,
    received_at=timestamps,
    channel=optional_text,
    media_urls=st.lists(st.text(), max_size=3).map(tuple),
    status=optional_text,
    reactions=st.lists(reactions, max_size=2).map(tuple),
    reply_to=st.none() | replies,
    sender_identifier=optional_text,
    delivered_at=st.none() | timestamps,
    read_at=st.none() | timestamps,
    error_code=optional_text,
    extra=unknown_fields,
)
conversation_fields: dict[str, Any] = {
    "id": st.text(),
    "agent_id": optional_text,
    "phone_number_id": optional_text,
    "phone_number": st.text(),
    "participant": st.text(),
    "last_message_at": st.none() | timestamps,
    "last_message_preview": optional_text,
    "message_count": st.none() | st.integers(),
    "metadata": st.none() | json_objects,
    "created_at": st.none() | timestamps,
    "channel": optional_text,
    "is_group": st.none() | st.booleans(),
    "group_id": optional_text,
    "group_name": optional_text,
    "participants": st.lists(participants, max_size=2).map(tuple),
    "extra": unknown_fields,
}
conversations = st.builds(Conversation, **conversation_fields)
details = st.builds(ConversationDetail, messages=st.lists(messages, max_size=3).map(tuple), **conversation_fields)
offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


def to_json(model: Any, draw: Any) -> Any:
    """Encode a model as a server may: with or without nulls, timestamps with any offset."""
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
@settings(max_examples=count(12, 1000))
@given(data=st.data())
def test_decoding_reverses_encoding(shape: Any, models: st.SearchStrategy[Any], data: st.DataObject) -> None:
    model = data.draw(models)
    found = decode(json.dumps(to_json(model, data.draw)).encode(), shape)
    assert found == model
    assert decode(json.dumps(found.to_dict()).encode(), shape) == model
    # 1, 1.0 and True are equal to Python; JSON tells them apart.
    for name in ("extra", "metadata"):
        if hasattr(model, name):
            assert json.dumps(getattr(found, name)) == json.dumps(getattr(model, name))


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=8,
)
OPTIONS = {
    "reactions": [{"id": "r1", "createdAt": "2025-06-30T12:00:00Z"}, {"more": 1}],
    "replyTo": {"messageId": "msg_0", "mediaUrls": ["a"]},
    "deliveredAt": "2025-06-30T12:00:00Z",
    "errorCode": None,
}
GROUP = {"isGroup": True, "groupId": None, "participants": [{"identifier": "+1", "name": None}], "channel": "sms"}
GOOD = (
    (Page[Conversation], page(conversation(), conversation(**GROUP), total=2)),
    (Page[Message], page(message(), message(**OPTIONS, more=1))),
    (ConversationDetail, conversation(messages=[message()])),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inside for place in places(item, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    """Return a copy of a JSON value with another value at one path."""
    if not path:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], other)
    return copy


@st.composite
def corrupted_bodies(draw: Any) -> tuple[Any, bytes]:
    """Return a body: noise, any JSON, or a good response with one value or byte changed, or truncated."""
    shape, good = draw(st.sampled_from(GOOD))
    kind = draw(st.sampled_from(["noise", "json", "value", "cut", "byte", "charset"]))
    if kind == "noise":
        return shape, draw(st.binary(max_size=50))
    if kind == "json":
        return shape, json.dumps(draw(any_json)).encode()
    if kind == "value":
        return shape, json.dumps(replaced(good, draw(st.sampled_from(places(good))), draw(any_json))).encode()
    body = bytearray(json.dumps(good).encode())
    if kind == "charset":
        return shape, body.decode().encode(draw(st.sampled_from(["utf-16", "utf-32", "utf-8-sig", "utf-16-be"])))
    index = draw(st.integers(0, len(body) - 1))
    if kind == "cut":
        return shape, bytes(body[:index])
    body[index] = draw(st.integers(0, 255))
    return shape, bytes(body)


@settings(max_examples=count(150, 5000))
@given(corrupted_bodies())
def test_any_body_is_decoded_or_a_decode_error(corrupted: tuple[Any, bytes]) -> None:
    shape, body = corrupted
    try:
        found = decode(body, shape)
    except DecodeError as error:
        found = error
    assert isinstance(found, (DecodeError, getattr(shape, "__origin__", shape)))


@settings(max_examples=count(150, 5000))
@given(st.sampled_from(GOOD), st.data())
def test_fast_and_detailed_converter_agree(shape_and_good: tuple[Any, Any], data: st.DataObject) -> None:
    shape, good = shape_and_good
    place = data.draw(st.sampled_from(places(good)))
    raw = replaced(good, place, data.draw(any_json | st.sampled_from(["2025-06-30", "2025-06-30T12:00:00+02:00"])))
    found = []
    for detailed in (False, True):
        try:
            model = structure_hook(shape, is_state=False, detailed=detailed)(raw, shape)
            found.append(repr(attrs.asdict(model)))  # also equal with nan
        except Exception:  # noqa: BLE001  # whatever it is, `decode` makes a DecodeError of it
            found.append("DecodeError")
    assert found[0] == found[1]


INVALID_JSON = {
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


@pytest.mark.parametrize("body", INVALID_JSON.values(), ids=INVALID_JSON.keys())
def test_invalid_json_is_rejected(body: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(body, Page[Conversation])
    assert caught.value.path == ""


def test_half_a_surrogate_pair_is_accepted() -> None:
    found = decode(json.dumps(message(body="\ud83d")).encode(), Message)
    assert found.body == "\ud83d"


@settings(max_examples=count(40, 1000))
@given(corrupted_bodies())
def test_client_raises_only_response_decode_errors(corrupted: tuple[Any, bytes]) -> None:
    async def main() -> None:
        client, _ = client_of(httpx.Response(200, content=corrupted[1], headers={"x-request-id": "req_1"}))
        for call in (client.conversations.list().page, lambda: client.conversations.get("conv_1")):
            error = None
            try:
                await call()
            except ResponseDecodeError as caught:  # or none: some of these bodies are valid
                error = caught
            if error is not None:
                assert (error.status_code, error.request_id, error.body) == (200, "req_1", corrupted[1][:500])
                assert "GET /v1/conversations" in str(error)

    anyio.run(main)


@pytest.mark.parametrize("body", INVALID_JSON.values(), ids=INVALID_JSON.keys())
def test_client_rejects_invalid_json(body: bytes) -> None:
    async def main() -> None:
        client, _ = client_of(httpx.Response(200, content=body))
        with pytest.raises(ResponseDecodeError) as caught:
            await client.conversations.list().page()
        assert caught.value.body == body[:500]

    anyio.run(main)
