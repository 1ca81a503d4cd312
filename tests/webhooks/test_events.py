"""Payloads to events, or a decode error with the path."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime
from typing import Any

import pytest
from attrs import define
from hypothesis import given, settings
from hypothesis import strategies as st

from agentphone import ResponseDecodeError, StateDecodeError, WebhookVerificationError
from agentphone.webhooks import (
    CallEndedEvent,
    Event,
    HistoryItem,
    MessageEvent,
    ReactionEvent,
    UnknownEvent,
    VoiceEvent,
)
from tests.support.helpers import sample
from tests.support.long import count
from tests.webhooks.deliveries import BODY, HEADERS, JSON, NOON, WEBHOOK, assert_pickles, parse, payload, signed


def test_message_event() -> None:
    assert WEBHOOK.parse(BODY, HEADERS) == MessageEvent(
        type="agent.message",
        delivery_id="dlv_1",
        channel="sms",
        timestamp=datetime(2025, 1, 15, 12, 0, 1, tzinfo=UTC),
        agent_id="agt_abc123",
        conversation_state={"customerName": "Maya", "orderId": "ORD-12345"},
        recent_history=(
            HistoryItem(
                content="Hello", direction="outbound", channel="sms", at=datetime(2025, 1, 15, 11, 59, tzinfo=UTC)
            ),
            HistoryItem(
                direction="inbound",
                channel="mms",
                at=datetime(2025, 1, 15, 11, 59, 30, tzinfo=UTC),
                extra={"mediaUrl": "https://media.example/1.jpg"},
            ),
        ),
        conversation_id="conv_def456",
        message_id="msg_003",
        number_id="num_xyz789",
        from_number="+15559876543",
        to_number="+15551234567",
        text="Wo ist mein Päckchen? 📦",
        media_url=None,
        direction="inbound",
        received_at=datetime(2025, 1, 15, 12, 0, 0, 250_000, tzinfo=UTC),
        extra={"test": True, "data": {"segments": 2}},
    )


def test_voice_event() -> None:
    event = parse(sample("webhook_voice"))
    assert event == VoiceEvent(
        type="agent.message",
        delivery_id=event.delivery_id,
        channel="voice",
        timestamp=datetime(2025, 1, 15, 14, 0, 5, tzinfo=UTC),
        agent_id="agt_abc123",
        call_id="call_abc123",
        number_id="num_xyz789",
        from_number="+15559876543",
        to_number="+15551234567",
        status="in-progress",
        transcript="Where is my parcel",
        confidence=0.95,
        direction="inbound",
    )


@pytest.mark.parametrize(
    ("name", "cls", "data"),
    [
        ("reaction", ReactionEvent, {"conversationId": "conv_def456", "reaction": "like"}),
        ("call_ended", CallEndedEvent, {"callId": "call_abc123", "seconds": 175}),
    ],
)
def test_other_events_keep_data_as_received(name: str, cls: type[Event], data: Any) -> None:
    event = parse(sample(f"webhook_{name}"))
    assert type(event) is cls
    assert event.type == f"agent.{name}"
    assert event.extra == {"data": data}
    assert event.recent_history == ()
    odds: list[Any] = [None, [], 5, "text", {"from": 5}]
    for odd in odds:
        assert parse(payload(name) | {"data": odd}).extra == {"data": odd}


def test_unknown_event_keeps_everything() -> None:
    raw = {"event": "agent.levitated", "timestamp": "2025-01-15T12:00:00Z", "data": {"metres": 2}, "new": [1]}
    event = parse(raw)
    assert event == UnknownEvent(
        type="agent.levitated",
        delivery_id=event.delivery_id,
        timestamp=NOON,
        extra={"data": {"metres": 2}, "new": [1]},
    )
    assert type(parse({"event": "agent.levitated", "timestamp": "2025-01-15T12:00:00Z"})) is UnknownEvent


def test_extra_keeps_equal_names_of_both_levels() -> None:
    event = parse(payload("message", {"new": 1, "agentId": 2}, new=3, data2=4))
    assert event.extra == {"test": True, "new": 3, "data2": 4, "data": {"segments": 2, "new": 1, "agentId": 2}}


OPTIONAL = {
    "message": (
        ["channel", "agentId", "conversationState", "recentHistory"],
        ["messageId", "numberId", "message", "mediaUrl", "direction", "receivedAt"],
    ),
    "voice": (
        ["agentId", "conversationState", "recentHistory"],
        ["numberId", "status", "transcript", "confidence", "direction"],
    ),
}
REQUIRED = {
    "message": (["event", "timestamp", "data"], ["conversationId", "from", "to"]),
    "voice": (["event", "timestamp", "data"], ["callId", "from", "to"]),
}


def without(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """Return an object without one of its fields."""
    return {key: value for key, value in raw.items() if key != name}


@pytest.mark.parametrize("kind", OPTIONAL)
def test_optional_fields_may_be_null_or_missing(kind: str) -> None:
    outer, inner = OPTIONAL[kind]
    cls = {"message": MessageEvent, "voice": VoiceEvent}[kind]
    raw = payload(kind)
    for name in outer:
        for changed in (without(raw, name), raw | {name: None}):
            assert type(parse(changed)) is cls
    for name in inner:
        for data in (without(raw["data"], name), raw["data"] | {name: None}):
            assert type(parse(raw | {"data": data})) is cls


@pytest.mark.parametrize("kind", REQUIRED)
def test_missing_required_field_is_named_by_path(kind: str) -> None:
    outer, inner = REQUIRED[kind]
    raw = payload(kind)
    wrong = [(without(raw, name), name) for name in outer]
    wrong += [(raw | {name: None}, name) for name in outer]
    wrong += [(raw | {"data": without(raw["data"], name)}, f"data.{name}") for name in inner]
    wrong += [(raw | {"data": raw["data"] | {name: None}}, f"data.{name}") for name in inner]
    for changed, path in wrong:
        with pytest.raises(ResponseDecodeError) as caught:
            parse(changed)
        assert caught.value.path == path


@pytest.mark.parametrize(
    ("changed", "path"),
    [
        (payload("message", {"from": 5}), "data.from"),
        (payload("message", {"message": ["x"]}), "data.message"),
        (payload("message", {"mediaUrl": {}}), "data.mediaUrl"),
        (payload("message", {"receivedAt": "yesterday"}), "data.receivedAt"),
        (payload("voice", {"confidence": "high"}), "data.confidence"),
        (payload("voice", {"confidence": True}), "data.confidence"),
        (payload("message", agentId=5), "agentId"),
        (payload("message", timestamp=1736942400), "timestamp"),
        (payload("reaction", timestamp="soon"), "timestamp"),
        (payload("message", conversationState="x"), "conversationState"),
        (payload("message", conversationState=[]), "conversationState"),
        (payload("message", recentHistory={}), "recentHistory"),
        (payload("message", recentHistory=[{"at": "2025-01-15T12:00:00Z"}, {"at": 5}]), "recentHistory[1].at"),
        (payload("message", recentHistory=[5]), "recentHistory[0]"),
        (payload("message", channel=5), "channel"),
        (payload("message", event=["agent.message"]), "event"),
        ([], ""),
        (5, ""),
        (None, ""),
    ],
)
def test_wrong_type_is_named_by_path(changed: Any, path: str) -> None:
    with pytest.raises(ResponseDecodeError) as caught:
        parse(changed)
    assert caught.value.path == path


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"NaN",
        b'{"event":NaN}',
        b"\xff",
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"{}{}",
    ],
)
def test_signed_body_that_is_not_json_is_a_decode_error(body: bytes) -> None:
    with pytest.raises(ResponseDecodeError) as caught:
        parse(body)
    assert (caught.value.path, caught.value.body) == ("", body[:500])


def test_deeply_nested_data_is_parsed() -> None:
    deep: Any = None
    for _ in range(300):
        deep = [deep]
    assert parse(payload("message", {"deep": deep})).extra["data"]["deep"] == deep


def test_ten_megabyte_body_is_parsed_or_rejected() -> None:
    body, headers = signed(payload("message", {"message": "x" * 10_000_000}))
    event = WEBHOOK.parse(body, headers)
    assert isinstance(event, MessageEvent)
    assert event.text is not None
    assert len(event.text) == 10_000_000
    with pytest.raises(WebhookVerificationError):
        WEBHOOK.parse(body[:-1] + b" ", headers)
    with pytest.raises(ResponseDecodeError) as caught:
        parse(b"[" + body)
    assert len(pickle.dumps(caught.value)) < 5000


def test_decode_error_names_the_delivery_and_pickles() -> None:
    body, headers = signed(payload("message", {"from": 5}))
    with pytest.raises(ResponseDecodeError) as caught:
        WEBHOOK.parse(body, headers | {"X-Webhook-ID": "dlv_7"})
    error = caught.value
    assert (error.status_code, error.request, error.attempts) == (None, "POST (webhook dlv_7)", ())
    assert str(error).startswith("POST (webhook dlv_7): data.from: expected a string, got a number. The body")
    assert "respond with 200" in error.advice
    assert str(error).endswith(error.advice)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), vars(again)) == (str(error), vars(error))
    del headers["X-Webhook-ID"]
    with pytest.raises(ResponseDecodeError, match=r"^POST \(webhook\): data"):
        WEBHOOK.parse(body, headers)


CORRUPTED = st.sampled_from(["message", "voice", "reaction", "call_ended"]).flatmap(
    lambda name: st.builds(
        lambda outer, inner: {**payload(name, inner), **outer},
        st.dictionaries(st.sampled_from(list(payload("message"))), JSON, max_size=2),
        st.dictionaries(st.sampled_from(list(payload("message")["data"]) + list(payload("voice")["data"])), JSON),
    )
)


@settings(max_examples=count(50, 5000))
@given(JSON | CORRUPTED | st.binary())
def test_any_signed_body_is_an_event_or_a_decode_error(raw: Any) -> None:
    try:
        event = parse(raw)
    except ResponseDecodeError as error:
        assert_pickles(error)
    else:
        assert event.type == raw["event"]
        assert event.timestamp.utcoffset() is not None
        assert pickle.loads(pickle.dumps(event)) == event


def test_events_are_frozen_and_match_by_class() -> None:
    event = WEBHOOK.parse(BODY, HEADERS)
    match event:
        case MessageEvent(conversation_id=conversation_id, text=str(text)):
            assert (conversation_id, text[:2]) == ("conv_def456", "Wo")
        case _:
            pytest.fail("not a MessageEvent")
    with pytest.raises(AttributeError):
        event.channel = "voice"  # type: ignore[misc]
    assert len({event, WEBHOOK.parse(BODY, HEADERS)}) == 1


@define
class OrderState:
    customer_name: str = ""
    order_id: str | None = None
    step: int = 0


def test_state_as_a_class_or_a_dict() -> None:
    event = WEBHOOK.parse(BODY, HEADERS)
    assert event.state(OrderState) == OrderState("Maya", "ORD-12345", 0)
    copy = event.state()
    assert copy == event.conversation_state
    copy["customerName"] = "Mara"
    assert event.state() == event.conversation_state == {"customerName": "Maya", "orderId": "ORD-12345"}
    for raw in (payload("voice"), payload("reaction"), payload("call_ended")):
        assert parse(raw).state(OrderState) == OrderState()
        assert parse(raw).state() == {}


def test_state_that_does_not_fit_is_named_by_path() -> None:
    body, headers = signed(payload("message", conversationState={"orderId": 5}))
    event = WEBHOOK.parse(body, headers | {"X-Webhook-ID": "dlv_7"})
    with pytest.raises(StateDecodeError) as caught:
        event.state(OrderState)
    error = caught.value
    assert error.path == "conversationState.orderId"
    assert str(error).startswith(
        "POST (webhook dlv_7): conversationState.orderId: it does not fit OrderState: expected a string, got a"
        " number. The stored state does not match the class"
    )
    assert_pickles(error)
    with pytest.raises(TypeError, match="cls must be dict or an attrs class"):
        event.state(list)
