"""JSON to models: strict types, required fields, and tolerance for unknown fields."""

from __future__ import annotations

import json
import pickle
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

from agentphone import Conversation, ConversationDetail, Message, Page, Participant, Reaction, ReplyTo
from agentphone._decoding import decode
from agentphone._json import DecodeError
from tests.models.cases import CONVERSATION_FIELDS, CONVERSATION_OPTIONS, MESSAGE_FIELDS, MESSAGE_OPTIONS, NOON
from tests.support.helpers import conversation, message, page, sample


def test_sample_list() -> None:
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


def test_sample_messages() -> None:
    assert decode(sample("messages"), Page[Message]) == Page(data=(QUESTION,), has_more=True, total=None)


def test_sample_detail() -> None:
    at = datetime(2025, 1, 15, 12, 0, 0, 250_000, tzinfo=UTC)
    assert decode(sample("conversation"), ConversationDetail) == ConversationDetail(
        id="conv_def456",
        phone_number_id="num_xyz789",
        phone_number="+15551234567",
        participant="+15559876543",
        last_message_at=at,
        message_count=2,
        created_at=datetime(2025, 1, 15, 11, 30, tzinfo=UTC),
        channel="mms",
        is_group=False,
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
                reactions=(Reaction(extra={"kind": "like"}),),
            ),
            QUESTION,
        ),
    )


WRONG_TYPES: dict[str, tuple[Any, ...]] = {
    "string": (5, 1.5, True, [], {}),
    "integer": ("8", 8.0, True, [], {}),
    "boolean": (0, 1, "true", None, [], {}),
    "object": ("", 5, True, []),
    "array": ("oops", "", 5, True, {}),
    "timestamp": (
        *(5, 1751284800, True, [], {}, "", "yesterday", "1751284800", "12:00:00Z"),
        *("2025-06-30", "20250630", "2025-W27-1", "2025-06-31T12:00:00Z", "2025-06-30T25:00:00Z", "2025-06-30T"),
        *("0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "\ud800"),
    ),
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


def decode_error(value: Any, shape: Any) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(json.dumps(value).encode(), shape)
    return caught.value


@each_field
def test_wrong_type_is_rejected_by_name(shape: Any, good: dict[str, Any], name: str, kind: str, required: bool) -> None:
    for wrong in WRONG_TYPES[kind]:
        assert decode_error(good | {name: wrong}, shape).path == name, wrong


@each_field
def test_only_required_fields_must_be_present(
    shape: Any, good: dict[str, Any], name: str, kind: str, required: bool
) -> None:
    without = {key: value for key, value in good.items() if key != name}
    if required:
        assert decode_error(good | {name: None}, shape).path == name
        missing = decode_error(without, shape)
        assert (missing.path, missing.reason) == (name, "the field is missing")
    else:
        for body in (without, good | {name: None}):
            model = decode(json.dumps(body).encode(), shape)
            assert getattr(model, re.sub("([A-Z])", r"_\1", name).lower()) is None


OPTIONS = [
    *((Conversation, conversation(), *rule) for rule in CONVERSATION_OPTIONS.items()),
    *((ConversationDetail, conversation(messages=[]), *rule) for rule in CONVERSATION_OPTIONS.items()),
    *((Message, message(), *rule) for rule in MESSAGE_OPTIONS.items()),
]


@pytest.mark.parametrize(("shape", "good", "name", "kind"), OPTIONS)
def test_optional_field_that_does_not_fit_stays_in_extra(
    shape: Any, good: dict[str, Any], name: str, kind: str
) -> None:
    attribute = re.sub("([A-Z])", r"_\1", name).lower()
    empty = () if kind == "array" else None
    for wrong in WRONG_TYPES[kind]:
        if wrong is None:
            continue
        raw = good | {"more": 1, name: wrong}
        model = decode(json.dumps(raw).encode(), shape)
        assert getattr(model, attribute) == empty
        assert model.extra == {name: wrong, "more": 1}
        assert model.to_dict()[name] == wrong
    for raw in (good, good | {name: None}):
        model = decode(json.dumps(raw).encode(), shape)
        assert (getattr(model, attribute), model.extra) == (empty, {})
        assert name not in model.to_dict()


def test_optional_fields_have_their_types() -> None:
    reaction = {"id": "r1", "reactionType": "love", "fromNumber": "+1", "direction": "inbound"}
    raw = message(
        reactions=[reaction | {"createdAt": "2025-06-30T12:00:00Z"}, {"reactionType": 5}],
        replyTo={"messageId": "msg_0", "message": "Hi", "mediaUrls": None, "more": 1},
        senderIdentifier="a@example.com",
        deliveredAt="2025-06-30T12:00:00Z",
        readAt="2025-06-30T14:00:00+02:00",
        errorCode="30007",
    )
    read = decode(json.dumps(raw).encode(), Message)
    love = Reaction(id="r1", reaction_type="love", from_number="+1", direction="inbound", created_at=NOON)
    assert read.reactions == (love, Reaction(extra={"reactionType": 5}))
    assert read.reply_to == ReplyTo(message_id="msg_0", message="Hi", extra={"more": 1})
    assert (read.sender_identifier, read.delivered_at, read.read_at) == ("a@example.com", NOON, NOON)
    assert (read.error_code, read.extra) == ("30007", {})
    people = [{"identifier": "+1", "name": "Maya"}, {"identifier": "a@example.com"}]
    group = {"channel": "imessage", "isGroup": True, "groupId": "grp_1", "groupName": "Us", "participants": people}
    found = decode(json.dumps(conversation(**group)).encode(), Conversation)
    assert found.participants == (Participant(identifier="+1", name="Maya"), Participant(identifier="a@example.com"))
    assert (found.channel, found.is_group, found.group_id, found.group_name) == ("imessage", True, "grp_1", "Us")
    assert found.extra == {}


@pytest.mark.parametrize("wrong", [["love"], [{"id": "r1"}, None], {"id": "r1"}], ids=str)
def test_list_with_an_item_that_does_not_fit_stays_in_extra_whole(wrong: Any) -> None:
    read = decode(json.dumps(message(reactions=wrong)).encode(), Message)
    assert (read.reactions, read.extra) == ((), {"reactions": wrong})


NOT_OBJECTS: tuple[Any, ...] = ([], "x", 5, True, None)


def test_null_media_is_empty() -> None:
    assert decode(json.dumps(message(mediaUrls=None)).encode(), Message).media_urls == ()


@pytest.mark.parametrize(
    ("shape", "body", "path"),
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
        *((Page[Message], {"data": [], "hasMore": wrong}, "hasMore") for wrong in WRONG_TYPES["boolean"]),
        (ConversationDetail, conversation(messages=[message(), message(mediaUrls=[5])]), "messages[1].mediaUrls[0]"),
        (ConversationDetail, conversation(messages=[message(receivedAt="2025-06-30")]), "messages[0].receivedAt"),
        (ConversationDetail, conversation(messages="oops"), "messages"),
        *((shape, top, "") for shape in (Page[Message], ConversationDetail) for top in NOT_OBJECTS),
    ],
)  # fmt: skip
def test_error_has_the_path(shape: Any, body: Any, path: str) -> None:
    assert decode_error(body, shape).path == path


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
def test_error_names_expected_and_actual_type(changes: dict[str, Any], what: str) -> None:
    assert decode_error(conversation(**changes), Conversation).reason == what


@pytest.mark.parametrize(
    ("text", "timestamp"),
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
def test_timestamp_is_aware_and_in_utc(text: str, timestamp: datetime) -> None:
    found = decode(json.dumps(message(receivedAt=text)).encode(), Message).received_at
    assert found == timestamp
    assert found.tzinfo is UTC


def test_unknown_fields_go_to_extra() -> None:
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


def test_open_sets_are_not_checked() -> None:
    found = decode(json.dumps(message(direction="sideways", channel="pigeon", status="eaten")).encode(), Message)
    assert (found.direction, found.channel, found.status) == ("sideways", "pigeon", "eaten")


def test_detail_keeps_the_order_of_messages() -> None:
    assert decode(json.dumps(conversation()).encode(), ConversationDetail).messages == ()
    ids = ["b", "c", "a"]
    detail = decode(json.dumps(conversation(messages=[message(id=i) for i in ids])).encode(), ConversationDetail)
    assert [item.id for item in detail.messages] == ids


def test_model_is_frozen_and_complete() -> None:
    (made,) = decode(json.dumps(page(conversation())).encode(), Page[Conversation])
    assert type(made) is Conversation
    assert pickle.loads(pickle.dumps(made)) == attrs.evolve(made) == made
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        made.id = "conv_2"  # type: ignore[misc]  # must not be possible
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        del made.id


@attrs.frozen
class Checked:
    count: int = attrs.field(validator=attrs.validators.ge(1))
    twice: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "twice", 2 * self.count)


def test_code_of_the_class_runs() -> None:
    assert decode(b'{"count": 3}', Checked).twice == 6
    with pytest.raises(DecodeError, match="count"):
        decode(b'{"count": 0}', Checked)
