"""Webhook deliveries: their payload, the webhook's settings, and the queue."""

import logging
import re
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agentphone.sandbox import Behavior, Sandbox, _deliveries, _dispatcher, _messages, _store
from agentphone.sandbox._behavior import Settings
from tests.support.processes import SECONDS

from .helpers import ADA, AGENT, BEN, call, statuses, webhook_threads
from .receiver import SECRET, Receiver, until

NOON = datetime(2025, 1, 15, 12, tzinfo=UTC)


def test_inbound_message_is_delivered_with_state_and_history(sandbox: Sandbox, receiver: Receiver) -> None:
    earlier = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hello", at=NOON)
    reply = sandbox.send_sms(from_number=AGENT, to_number=ADA, body="Hi, Ada", at=NOON + timedelta(seconds=1))
    sandbox.receive_sms(from_number=BEN, to_number=AGENT, body="of another person", at=NOON)
    path = f"/v1/conversations/{earlier['conversationId']}"
    state = {"orderId": "ORD-1", "odd": "ü\ud800", "deep": [1.5, None]}
    call(sandbox, "PATCH", path, {"metadata": state})
    conversation = call(sandbox, "GET", path).json()

    sandbox.set_webhook(receiver.url, SECRET)
    message = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Where is it? ✓", at=NOON + timedelta(hours=1))
    until(lambda: statuses(sandbox) == {"delivered": 1})
    call(sandbox, "PATCH", path, {"metadata": None})
    [received] = receiver.received
    assert received.path == "/hook"
    assert received.headers["content-type"] == "application/json"
    assert received.headers["x-webhook-event"] == "agent.message"
    assert received.is_signed()
    assert not received.is_signed("another")
    assert abs(int(received.headers["x-webhook-timestamp"]) - time.time()) < 300
    assert received.payload == {
        "event": "agent.message",
        "channel": "sms",
        "timestamp": "2025-01-15T13:00:00.000000Z",
        "agentId": conversation["agentId"],
        "data": {
            "conversationId": conversation["id"],
            "messageId": message["id"],
            "numberId": conversation["phoneNumberId"],
            "from": ADA,
            "to": AGENT,
            "message": "Where is it? ✓",
            "mediaUrl": None,
            "direction": "inbound",
            "receivedAt": "2025-01-15T13:00:00.000000Z",
        },
        "conversationState": state,
        "recentHistory": [
            {
                "content": "Hello",
                "direction": "inbound",
                "channel": "sms",
                "at": "2025-01-15T12:00:00.000000Z",
                "messageId": earlier["id"],
            },
            {
                "content": "Hi, Ada",
                "direction": "outbound",
                "channel": "sms",
                "at": "2025-01-15T12:00:01.000000Z",
                "messageId": reply["id"],
            },
        ],
    }
    [delivery] = sandbox.deliveries()
    assert (delivery["id"], delivery["messageId"]) == (received.id, message["id"])
    assert (delivery["conversationId"], delivery["event"]) == (conversation["id"], "agent.message")
    [attempt] = delivery["attempts"]
    assert (attempt["status"], attempt["error"]) == (200, None)
    assert attempt["seconds"] >= 0
    assert datetime.fromisoformat(delivery["createdAt"]) <= datetime.fromisoformat(attempt["at"])
    page = call(sandbox, "GET", "/sandbox/deliveries").json()
    assert page == {"data": [delivery], "hasMore": False}


@pytest.mark.parametrize(("context_limit", "expected"), [(0, 0), (1, 1), (50, 50), (None, 10)])
def test_context_limit_bounds_the_history(
    sandbox: Sandbox, receiver: Receiver, context_limit: int | None, expected: int
) -> None:
    for index in range(60):  # equal timestamps are ordered by arrival
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body=f"text {index}", at=NOON)
    body = {"url": receiver.url, "secret": SECRET} | ({} if context_limit is None else {"contextLimit": context_limit})
    response = call(sandbox, "PUT", "/sandbox/webhook", body)
    assert response.status_code == 200
    assert response.json() == {"url": receiver.url, "contextLimit": expected, "timeout": 30.0}
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="new", at=NOON)
    until(lambda: receiver.received)
    history = receiver.received[0].payload["recentHistory"]
    assert [item["content"] for item in history] == [f"text {index}" for index in range(60 - expected, 60)]
    assert receiver.received[0].payload["conversationState"] is None


def test_backdated_message_has_only_earlier_history(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.behavior = Behavior(timestamp_digits=0)
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="before", at=NOON)
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="after", at=NOON + timedelta(hours=2))
    sandbox.set_webhook(receiver.url, SECRET)
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="between", at=NOON + timedelta(hours=1))
    until(lambda: receiver.received)
    [item] = receiver.received[0].payload["recentHistory"]
    assert (item["content"], item["at"]) == ("before", "2025-01-15T12:00:00Z")


def test_only_inbound_messages_after_set_webhook_are_delivered(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="too early")
    assert webhook_threads() == []
    sandbox.set_webhook(receiver.url, SECRET)
    sandbox.send_sms(from_number=AGENT, to_number=ADA, body="outbound")
    body = {"direction": "outbound", "from": AGENT, "to": ADA, "body": "outbound"}
    assert call(sandbox, "POST", "/sandbox/messages", body).status_code == 201
    body = {"direction": "inbound", "from": ADA, "to": AGENT, "body": "by HTTP"}
    assert call(sandbox, "POST", "/sandbox/messages", body).status_code == 201
    until(lambda: statuses(sandbox) == {"delivered": 1})
    assert [received.text for received in receiver.received] == ["by HTTP"]


def test_reaction_of_a_person_is_delivered(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.clock = lambda: NOON.timestamp() + 3600
    picture = "https://media.example/1.jpg"
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi", at=NOON, channel="imessage")
    message = sandbox.send_sms(from_number=AGENT, to_number=ADA, body="Done", at=NOON, media_urls=[picture])
    path = f"/v1/conversations/{message['conversationId']}"
    call(sandbox, "PATCH", path, {"metadata": {"orderId": "ORD-1"}})
    conversation = call(sandbox, "GET", path).json()
    sandbox.set_webhook(receiver.url, SECRET, 1)
    reaction = sandbox.receive_reaction(message["id"], "love")
    assert call(sandbox, "POST", f"/v1/messages/{message['id']}/reactions", {"reaction": "like"}).status_code == 200
    until(lambda: statuses(sandbox) == {"delivered": 1})
    [received] = receiver.received
    assert received.headers["x-webhook-event"] == "agent.reaction"
    assert received.is_signed()
    assert received.payload == {
        "event": "agent.reaction",
        "channel": "imessage",
        "timestamp": "2025-01-15T13:00:00.000000Z",
        "agentId": conversation["agentId"],
        "data": {
            "conversationId": conversation["id"],
            "numberId": conversation["phoneNumberId"],
            "reactionType": "love",
            "fromNumber": ADA,
            "direction": "inbound",
            "messageId": message["id"],
            "messageBody": "Done",
            "messageMediaUrls": [picture],
            "createdAt": "2025-01-15T13:00:00.000000Z",
        },
        "conversationState": {"orderId": "ORD-1"},
        "recentHistory": [
            {
                "content": "Done",
                "direction": "outbound",
                "channel": "imessage",
                "at": "2025-01-15T12:00:00.000000Z",
                "messageId": message["id"],
            }
        ],
    }
    [delivery] = sandbox.deliveries()
    assert (delivery["event"], delivery["messageId"]) == ("agent.reaction", message["id"])
    assert reaction["conversationId"] == delivery["conversationId"] == conversation["id"]


def test_media_and_group_are_delivered(sandbox: Sandbox, receiver: Receiver) -> None:
    urls = ["https://media.example/1.jpg", "https://media.example/2.jpg"]
    body = {"from_number": AGENT, "recipients": [ADA, BEN], "body": "Hi"}
    group = call(sandbox, "POST", "/v1/messages", body).json()["to_number"]
    sandbox.set_webhook(receiver.url, SECRET)
    sandbox.receive_sms(from_number=BEN, to_number=AGENT, body="", group=group, media_urls=urls)
    until(lambda: statuses(sandbox) == {"delivered": 1})
    [received] = receiver.received
    assert received.payload["channel"] == "mms"
    data = received.payload["data"]
    assert (data["from"], data["to"], data["senderIdentifier"]) == (BEN, AGENT, BEN)
    assert (data["message"], data["mediaUrl"], data["mediaUrls"]) == ("", urls[0], urls)
    members = [{"identifier": ADA}, {"identifier": BEN}]
    assert data["group"] == {"isGroup": True, "groupId": group, "groupName": None, "participants": members}


@pytest.mark.parametrize("delay", [0, 1000])
def test_outbound_messages_are_echoed_if_asked_for(sandbox: Sandbox, receiver: Receiver, delay: float) -> None:
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
    sandbox.set_webhook(receiver.url, SECRET, 1)
    send = {"from_number": AGENT, "to_number": ADA, "body": "not echoed"}
    assert call(sandbox, "POST", "/v1/messages", send).status_code == 200
    sandbox.behavior = Behavior(echo_outbound=True, sent_message_delay=delay)
    sent = call(sandbox, "POST", "/v1/messages", send | {"body": "echoed"}).json()
    until(lambda: statuses(sandbox) == {"delivered": 1})
    [received] = receiver.received
    data = received.payload["data"]
    assert (data["messageId"], data["direction"], data["message"]) == (sent["id"], "outbound", "echoed")
    assert (data["from"], data["to"]) == (AGENT, ADA)
    assert [item["content"] for item in received.payload["recentHistory"]] == ["not echoed"]


def test_demo_data_is_not_delivered(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.set_webhook(receiver.url, SECRET)
    sandbox.load_demo_data()
    assert sandbox.deliveries() == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"url": "ftp://127.0.0.1/"}, "url"),
        ({"url": "127.0.0.1:80"}, "url"),
        ({"url": "http://"}, "url"),
        ({"url": "http://h:99999/"}, "url"),
        ({"url": "http://h/\n"}, "url"),
        ({"url": "http://xn--/"}, "url"),
        ({"url": ""}, "url"),
        ({"url": None}, "url"),
        ({"secret": ""}, "secret"),
        ({"secret": 5}, "secret"),
        ({"secret": "\ud800"}, "secret"),
        ({"contextLimit": -1}, "contextLimit"),
        ({"contextLimit": 51}, "contextLimit"),
        ({"contextLimit": True}, "contextLimit"),
        ({"contextLimit": "5"}, "contextLimit"),
        ({"contextLimit": None}, "contextLimit"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1.5}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"timeout": "30"}, "timeout"),
        ({"timeout": None}, "timeout"),
    ],
)
def test_invalid_webhook_is_rejected(sandbox: Sandbox, change: dict[str, Any], field: str) -> None:
    body: dict[str, Any] = {"url": "http://127.0.0.1:1/", "secret": SECRET, "contextLimit": 5, "timeout": 30} | change
    response = call(sandbox, "PUT", "/sandbox/webhook", body)
    assert response.status_code == 422
    assert response.json()["error"]["details"][0]["field"] == field
    with pytest.raises(ValueError, match=field) as caught:
        sandbox.set_webhook(body["url"], body["secret"], body["contextLimit"], timeout=body["timeout"])
    assert SECRET not in response.text + str(caught.value)
    assert sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
    assert sandbox.deliveries() == []


def test_deliveries_have_a_limit(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.set_webhook(receiver.url, SECRET)
    sent = [sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")["id"] for _ in range(103)]
    page = call(sandbox, "GET", "/sandbox/deliveries").json()
    assert [delivery["messageId"] for delivery in page["data"]] == sent[:2:-1]
    assert page["hasMore"]
    assert len(call(sandbox, "GET", "/sandbox/deliveries?limit=1000").json()["data"]) == 103
    assert [delivery["messageId"] for delivery in sandbox.deliveries(2)] == sent[:-3:-1]
    for limit in (0, 1001):
        assert call(sandbox, "GET", f"/sandbox/deliveries?limit={limit}").status_code == 422
        with pytest.raises(ValueError, match="limit"):
            sandbox.deliveries(limit)


@pytest.mark.parametrize("path", ["/sandbox/webhook", "/%73andbox/webhook"])
def test_secret_is_never_shown(
    sandbox: Sandbox, receiver: Receiver, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.respond = lambda received: 500 if received.text == "bad" else 200
    shown = [call(sandbox, "PUT", path, {"url": receiver.url, "secret": SECRET}).text]
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="good")
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="bad")
    until(lambda: len(receiver.received) >= 2)
    shown += [call(sandbox, "GET", "/sandbox/deliveries").text, repr(sandbox.requests), caplog.text, repr(sandbox)]
    shown += [request.body.decode() for request in sandbox.requests]
    shown += [repr(_deliveries.WebhookConfig(receiver.url, SECRET, 5))]
    assert sandbox.requests[0].body == b"***"
    assert SECRET not in "".join(shown)


@pytest.mark.parametrize("factor", [-0.1, float("nan"), float("inf")])
def test_invalid_retry_scale_is_rejected(factor: float) -> None:
    with pytest.raises(ValueError, match="retry_scale"):
        Sandbox(retry_scale=factor)


def test_concurrent_messages_arrive_once_each(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.set_webhook(receiver.url, SECRET)
    start = threading.Barrier(10)

    def text(person: int) -> None:
        start.wait(SECONDS)
        for index in range(10):
            sandbox.receive_sms(from_number=f"+1555555{person:04d}", to_number=AGENT, body=f"{person} {index}")

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(text, range(10)))
    until(lambda: statuses(sandbox) == {"delivered": 100})
    texts = [received.text for received in receiver.received]
    assert sorted(texts) == sorted(f"{person} {index}" for person in range(10) for index in range(10))
    assert len({received.id for received in receiver.received}) == 100
    assert all(received.is_signed() for received in receiver.received)
    assert webhook_threads() == ["agentphone webhooks"]


def test_close_cancels_attempts_and_keeps_them_pending(receiver: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    receiver.write = lambda handler: handler.rfile.read(1)
    with Sandbox(path) as sandbox:
        sandbox.set_webhook(receiver.url, SECRET)
        for _ in range(20):
            sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
        until(lambda: len(receiver.received) == 16)
        assert webhook_threads() == ["agentphone webhooks"]
    assert webhook_threads() == []
    with sqlite3.connect(path) as connection:
        [(latest,)] = connection.execute("SELECT max(due) FROM deliveries").fetchall()
    connection.close()
    assert latest <= time.time(), "a claim was kept"
    receiver.write = None
    with Sandbox(path) as sandbox:
        until(lambda: statuses(sandbox) == {"delivered": 20})
        assert {len(delivery["attempts"]) for delivery in sandbox.deliveries()} == {1}
        sandbox.close()
        sandbox.close()
        with pytest.raises(RuntimeError, match="closed"):
            sandbox.set_webhook(receiver.url, SECRET)
    assert webhook_threads() == []


def test_no_thread_without_a_webhook(tmp_path: Path) -> None:
    with Sandbox(tmp_path / "box.db") as sandbox, Sandbox() as other:
        for box in (sandbox, other):
            box.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
            box.load_demo_data()
        assert webhook_threads() == []


def test_database_errors_are_logged_and_retried(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_dispatcher, "POLL_SECONDS", 0.01)
    broken = threading.Event()
    next_due, finish = _deliveries.DeliveryQueue.next_due, _deliveries.DeliveryQueue.finish

    def sometimes(queue: _deliveries.DeliveryQueue) -> float | None:
        if broken.is_set():
            raise sqlite3.OperationalError("disk I/O error")
        return next_due(queue)

    monkeypatch.setattr(_deliveries.DeliveryQueue, "next_due", sometimes)
    with Sandbox() as sandbox:
        broken.set()
        sandbox.set_webhook(receiver.url, SECRET)
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
        until(lambda: "disk I/O error" in caplog.text)
        broken.clear()
        until(lambda: statuses(sandbox) == {"delivered": 1})

        def fail(*_: object, **__: object) -> None:
            raise sqlite3.OperationalError("database is full")

        monkeypatch.setattr(_dispatcher, "CLAIM_MARGIN", -28.0)  # claims of 2 seconds
        monkeypatch.setattr(_deliveries.DeliveryQueue, "finish", fail)
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="twice")
        until(lambda: "database is full" in caplog.text)
        monkeypatch.setattr(_deliveries.DeliveryQueue, "finish", finish)
        until(lambda: statuses(sandbox) == {"delivered": 2})
        assert [received.text for received in receiver.received][:3] == ["Hi", "twice", "twice"]


def test_expired_claim_cannot_finish_a_delivery() -> None:
    store = _store.Store(None, Settings())
    store.queue.set_webhook(_deliveries.WebhookConfig("http://127.0.0.1:1/", SECRET, 0))
    store.add(_messages.MessageInput("inbound", AGENT, ADA, "Hi", 0))
    now = time.time()
    [late] = store.queue.claim(now=now + 1, margin=5, limit=16)
    assert store.queue.claim(now=now + 2, margin=5, limit=16) == []
    [owner] = store.queue.claim(now=now + 40, margin=5, limit=16)
    for delivery, status, then in ((late, "failed", "pending"), (owner, "delivered", "delivered")):
        store.queue.finish(delivery, status=status, attempts=[], due=now)
        assert store.queue.page(limit=1)["data"][0]["status"] == then
    store.close()


@pytest.mark.parametrize(
    "statement", [_deliveries.NEXT_DUE, _deliveries.CLAIM, _deliveries.LIST_DELIVERIES, _deliveries.FINISH]
)
def test_queue_statements_read_through_an_index(statement: str) -> None:
    values = dict.fromkeys(re.findall(r":(\w+)", statement), 0) or (0,) * statement.count("?")
    with Sandbox() as sandbox, sandbox._store._database.transaction("BEGIN") as connection:
        plan = [row["detail"] for row in connection.execute("EXPLAIN QUERY PLAN " + statement, values)]
    assert not [step for step in plan if "TEMP B-TREE" in step]
    scans = [step for step in plan if step.startswith("SCAN") and "USING" not in step]
    # The list reads backwards along the table's own key, up to its limit.
    assert scans == (["SCAN deliveries"] if statement == _deliveries.LIST_DELIVERIES else [])
