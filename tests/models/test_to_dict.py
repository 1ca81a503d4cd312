"""`to_dict`: every model, event and page as plain data under the API's names; and cursors as text."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentphone import Client, Conversation, ConversationDetail, Cursor, Message, NewMessage, Page
from agentphone._decoding import decode
from agentphone.sandbox import Sandbox
from agentphone.webhooks import Event, Webhook
from tests.support.helpers import conversation, message, page, sample

TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)
TIMESTAMPS = st.datetimes(
    min_value=datetime(2, 1, 1),
    max_value=datetime(9998, 1, 1),
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5))]),
)
WEBHOOK = Webhook("whsec_secret")


def parse(payload: bytes) -> Event:
    return WEBHOOK.parse(payload, WEBHOOK.sign(payload))


@pytest.mark.parametrize(
    ("cls", "raw"),
    [
        (Message, message(reactions=[{"reactionType": "love"}], content={"a": None})),
        (Message, message(replyTo={"messageId": "msg_0", "mediaUrls": ["a"]}, readAt="2025-06-30T12:00:00Z")),
        (Message, message(errorCode=30007, reactions="none", deliveredAt="soon")),
        (Message, message(body=None, mediaUrls=[])),
        (Conversation, conversation(channel="sms", metadata={"a": [1, {"b": None}]})),
        (Conversation, conversation(isGroup=False, groupName="Us", participants=[{"identifier": "+1", "role": 1}])),
        (ConversationDetail, conversation(messages=[message(), message(id="msg_2", extra={"x": 1})])),
        (Page[Conversation], page(conversation(), has_more=True, total=36)),
        (Page[Message], page(message(), total=None)),
    ],
)
def test_to_dict_is_what_the_api_sent(cls: Any, raw: dict[str, Any]) -> None:
    model = decode(json.dumps(raw).encode(), cls)
    assert json.loads(json.dumps(model.to_dict())) == raw
    assert decode(json.dumps(model.to_dict()).encode(), cls) == model


def test_empty_optional_fields_are_left_out() -> None:
    empty: dict[str, Any] = {
        "reactions": [],
        "replyTo": None,
        "senderIdentifier": None,
        "deliveredAt": None,
        "errorCode": None,
    }
    model = decode(json.dumps(message(**empty)).encode(), Message)
    assert (model.to_dict(), model.extra) == (message(), {})


def test_changing_the_dict_does_not_change_the_model() -> None:
    model = decode(json.dumps(conversation(metadata={"a": [1]}, more={"b": [2]})).encode(), Conversation)
    data = model.to_dict()
    data["metadata"]["a"].append(2)
    data["more"]["b"].append(3)
    assert model.metadata == {"a": [1]}
    assert model.extra == {"more": {"b": [2]}}


def test_new_message_is_a_pair_of_dicts() -> None:
    new = NewMessage(
        decode(json.dumps(conversation()).encode(), Conversation), decode(json.dumps(message()).encode(), Message)
    )
    assert new.to_dict() == {"conversation": new.conversation.to_dict(), "message": new.message.to_dict()}


@pytest.mark.parametrize("name", ["webhook_message", "webhook_voice", "webhook_reaction", "webhook_call_ended"])
def test_event_to_dict_is_the_payload(name: str) -> None:
    payload = sample(name)
    event = parse(payload)
    data = event.to_dict()
    raw = json.loads(payload)
    assert {key: value for key, value in data.items() if value not in (None, [])}.keys() == {
        key for key, value in raw.items() if value not in (None, [])
    }
    again = parse(json.dumps(data).encode())
    assert again.to_dict() == data
    assert {**vars_of(again), "delivery_id": None} == {**vars_of(event), "delivery_id": None}


def vars_of(event: Event) -> dict[str, Any]:
    return {each.name: getattr(event, each.name) for each in attrs.fields(type(event))}


@given(TIMESTAMPS, TEXT)
def test_cursor_round_trips_as_one_line(received_at: datetime, message_id: str) -> None:
    cursor = Cursor(received_at, message_id)
    text = str(cursor)
    assert text.isascii()
    assert text.isprintable()
    assert " " not in text
    assert Cursor.parse(text) == Cursor.parse(f" {text}\n") == cursor
    assert cursor.received_at.tzinfo is UTC


@given(st.lists(st.builds(Cursor, TIMESTAMPS, TEXT), max_size=6))
def test_cursors_are_in_the_order_of_messages(cursors: list[Cursor]) -> None:
    assert sorted(cursors) == sorted(cursors, key=lambda cursor: (cursor.received_at, cursor.id))


@pytest.mark.parametrize("text", ["", "/", "msg_1", "2025-06-30T12:00:00Z", "2025-06-30/msg_1", "noon/msg_1"])
def test_invalid_cursor_shows_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="A cursor must look like 2025-01-15T12:00:00Z/msg_001"):
        Cursor.parse(text)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((datetime(2025, 6, 30), "msg_1"), ValueError),
        (("2025-06-30T12:00:00Z", "msg_1"), TypeError),
        ((datetime(2025, 6, 30, tzinfo=UTC), 5), TypeError),
        ((datetime.min.replace(tzinfo=timezone(timedelta(hours=5))), "msg_1"), ValueError),
    ],
)
def test_invalid_fields_of_a_cursor_are_rejected(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Cursor(*arguments)
    with pytest.raises(TypeError):
        Cursor.parse(None)  # type: ignore[arg-type]


def test_cursor_is_a_bound_like_its_message() -> None:
    start = datetime(2025, 6, 30, 12, tzinfo=UTC)
    with Sandbox() as box, Client("key", transport=box.transport()) as client:
        for number in range(7):  # three share a timestamp
            at = start + timedelta(seconds=number // 3)
            sent = box.receive_sms(from_number="+15555550110", to_number="+15555550100", body=str(number), at=at)
        messages = client.conversations.messages
        every = list(messages(sent["conversationId"], order="asc"))
        for index, item in enumerate(every):
            cursor = Cursor.parse(str(item.cursor))
            assert list(messages(sent["conversationId"], order="asc", after=cursor)) == every[index + 1 :]
            assert list(messages(sent["conversationId"], order="asc", before=cursor)) == every[:index]
        client.conversations.follow(sent["conversationId"], after=every[0].cursor).close()
        client.conversations.watch(after=every[0].cursor).close()
