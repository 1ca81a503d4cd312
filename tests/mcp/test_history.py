"""Messages as language models take them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentphone import AsyncClient, Client, Message
from agentphone.agents import history
from agentphone.sandbox import Sandbox
from agentphone.webhooks import MessageEvent, Webhook
from tests.mcp.conftest import AGENT, PERSON

NOON = datetime(2025, 6, 30, 12, tzinfo=UTC)


def message(number: int, body: str | None = "Hi", direction: str | None = "inbound", **more: Any) -> Message:
    return Message(
        id=f"msg_{number:03}",
        body=body,
        from_number=PERSON,
        to_number=AGENT,
        direction=direction,
        received_at=NOON + timedelta(minutes=number),
        **more,
    )


def test_history_of_a_conversation_in_any_order() -> None:
    with Sandbox() as box, Client("key", transport=box.transport()) as client:
        for number, (send, body) in enumerate(
            [(box.receive_sms, "Where is it?"), (box.receive_sms, "Hello?"), (box.send_sms, "On its way")]
        ):
            ends = (PERSON, AGENT) if send == box.receive_sms else (AGENT, PERSON)
            text = send(from_number=ends[0], to_number=ends[1], body=body, at=NOON + timedelta(minutes=number))
        detail = client.conversations.get(text["conversationId"])
        messages = client.conversations.messages(detail.id)
        expected = [
            {"role": "user", "content": "Where is it?"},
            {"role": "user", "content": "Hello?"},
            {"role": "assistant", "content": "On its way"},
        ]
        assert history(detail.messages) == history(reversed(detail.messages)) == history(messages) == expected


def test_media_are_named_and_nothing_is_empty() -> None:
    urls = ("https://media.example/1.jpg", "https://media.example/2.jpg")
    assert [entry["content"] for entry in history([message(1, "Look", media_urls=urls[:1])])] == [
        "Look\n[media: https://media.example/1.jpg]"
    ]
    for body in (None, ""):
        assert history([message(1, body, media_urls=urls)])[0]["content"] == (
            "[media: https://media.example/1.jpg]\n[media: https://media.example/2.jpg]"
        )
        assert history([message(1, body)]) == [{"role": "user", "content": "[no text]"}]


@pytest.mark.parametrize("direction", ["inbound", None, "sideways"])
def test_only_what_the_agent_sent_has_the_role_of_the_assistant(direction: str | None) -> None:
    assert history([message(1, direction=direction)])[0]["role"] == "user"
    assert history([message(1, direction="outbound")])[0]["role"] == "assistant"


def event(history_ids: bool, **data: Any) -> MessageEvent:
    """Return a webhook's event whose history contains the event itself."""
    items = [
        {"content": "On its way", "direction": "outbound", "channel": "sms", "at": "2025-06-30T11:59:00Z"},
        {"content": "Thanks", "direction": "inbound", "channel": "sms", "at": "2025-06-30T12:00:00Z"},
        {"content": "Where?", "direction": "inbound", "channel": "sms", "at": "2025-06-30T11:58:00Z"},
        {"content": "Where?", "direction": "inbound", "channel": "sms", "at": "2025-06-30T11:58:00Z"},
    ]
    if history_ids:
        items = [item | {"messageId": f"msg_{number}"} for number, item in enumerate(items)]
    payload = {
        "event": "agent.message",
        "channel": "sms",
        "timestamp": "2025-06-30T12:00:01Z",
        "recentHistory": items,
        "data": {
            "conversationId": "conv_1",
            "messageId": "msg_1",
            "from": PERSON,
            "to": AGENT,
            "message": "Thanks",
            "direction": "inbound",
            "receivedAt": "2025-06-30T12:00:00Z",
            **data,
        },
    }
    webhook = Webhook("whsec_x")
    body = json.dumps(payload).encode()
    found = webhook.parse(body, webhook.sign(body))
    assert isinstance(found, MessageEvent)
    return found


@pytest.mark.parametrize("history_ids", [True, False])
def test_history_of_a_webhook_ends_with_its_text_once(history_ids: bool) -> None:
    one = event(history_ids)
    expected = [("user", "Where?"), ("user", "Where?"), ("assistant", "On its way"), ("user", "Thanks")]
    for entries in (history([*one.recent_history, one]), history([one, *one.recent_history])):
        assert [(entry["role"], entry["content"]) for entry in entries] == expected


def test_event_without_a_timestamp_of_its_own_is_the_latest() -> None:
    one = event(history_ids=True, receivedAt=None, messageId=None, mediaUrl="https://media.example/1.jpg")
    assert history([one, *one.recent_history])[-1] == {
        "role": "user",
        "content": "Thanks\n[media: https://media.example/1.jpg]",
    }


@given(st.lists(st.integers(0, 20), max_size=30), st.randoms())
def test_order_of_arrival_does_not_matter(numbers: list[int], random: Any) -> None:
    messages = [message(number, str(number)) for number in numbers]
    random.shuffle(messages)
    assert [entry["content"] for entry in history(messages)] == [str(number) for number in sorted(set(numbers))]


def test_what_is_no_list_of_messages_is_rejected() -> None:
    with Sandbox() as box, Client("key", transport=box.transport()) as client:
        text = box.receive_sms(from_number=PERSON, to_number=AGENT, body="Hi")
        detail: Any = client.conversations.get(text["conversationId"])
        with pytest.raises(TypeError, match="got ConversationDetail: pass its messages"):
            history(detail)
        pager: Any = AsyncClient("key", transport=box.transport()).conversations.messages("conv_1")
        with pytest.raises(TypeError, match=r"got AsyncPager: collect it first, \[message async for"):
            history(pager)
        for wrong in (["Hi"], "Hi", [detail]):
            its: Any = wrong
            with pytest.raises(TypeError, match="messages must contain Message, HistoryItem or MessageEvent objects"):
                history(its)
