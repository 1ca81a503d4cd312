"""Every inbound message goes out to the webhook: signed, with its state and history, again until it is taken."""

import asyncio
import json
import logging
import re
import sqlite3
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from agentphone.sandbox import Behavior, Sandbox, _delivery, _store

from .conftest import ADA, AGENT, BEN
from .receiver import SECRET, Received, Receiver, receiving, until

NOON = datetime(2025, 1, 15, 12, tzinfo=UTC)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def call(sandbox: Sandbox, method: str, path: str, body: object = None) -> httpx.Response:
    async def send() -> httpx.Response:
        headers = {"Authorization": "Bearer any"}
        async with httpx.AsyncClient(transport=sandbox.transport(), base_url="http://s", headers=headers) as client:
            return await client.request(method, path, content=None if body is None else json.dumps(body))

    return asyncio.run(send())


def statuses(sandbox: Sandbox) -> Counter[str]:
    return Counter(delivery["status"] for delivery in sandbox.deliveries(1000))


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("agentphone webhooks")]


def test_an_inbound_message_is_delivered_signed_with_state_and_history(sandbox: Sandbox, receiver: Receiver) -> None:
    earlier = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hello", at=NOON)
    sandbox.send_sms(from_number=AGENT, to_number=ADA, body="Hi, Ada", at=NOON + timedelta(seconds=1))
    sandbox.receive_sms(from_number=BEN, to_number=AGENT, body="of somebody else", at=NOON)
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
            {"content": "Hello", "direction": "inbound", "channel": "sms", "at": "2025-01-15T12:00:00.000000Z"},
            {"content": "Hi, Ada", "direction": "outbound", "channel": "sms", "at": "2025-01-15T12:00:01.000000Z"},
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
def test_as_much_history_comes_along_as_was_asked_for_oldest_first_without_the_message_itself(
    sandbox: Sandbox, receiver: Receiver, context_limit: int | None, expected: int
) -> None:
    for index in range(60):  # All at one instant: their order is that in which they came.
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body=f"text {index}", at=NOON)
    body = {"url": receiver.url, "secret": SECRET} | ({} if context_limit is None else {"contextLimit": context_limit})
    answer = call(sandbox, "PUT", "/sandbox/webhook", body)
    assert (answer.status_code, answer.json()) == (200, {"url": receiver.url, "contextLimit": expected})
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="new", at=NOON)
    until(lambda: receiver.received)
    history = receiver.received[0].payload["recentHistory"]
    assert [item["content"] for item in history] == [f"text {index}" for index in range(60 - expected, 60)]
    assert receiver.received[0].payload["conversationState"] is None


def test_the_history_of_a_message_dated_back_is_what_came_before_that_date(
    sandbox: Sandbox, receiver: Receiver
) -> None:
    sandbox.behavior = Behavior(timestamp_digits=0)
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="before", at=NOON)
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="after", at=NOON + timedelta(hours=2))
    sandbox.set_webhook(receiver.url, SECRET)
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="between", at=NOON + timedelta(hours=1))
    until(lambda: receiver.received)
    [item] = receiver.received[0].payload["recentHistory"]
    assert (item["content"], item["at"]) == ("before", "2025-01-15T12:00:00Z")


def test_only_what_is_received_while_there_is_a_webhook_is_delivered(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="too early")
    assert threads() == []
    sandbox.set_webhook(receiver.url, SECRET)
    sandbox.send_sms(from_number=AGENT, to_number=ADA, body="outbound")
    body = {"direction": "outbound", "from": AGENT, "to": ADA, "body": "outbound"}
    assert call(sandbox, "POST", "/sandbox/messages", body).status_code == 201
    body = {"direction": "inbound", "from": ADA, "to": AGENT, "body": "by HTTP"}
    assert call(sandbox, "POST", "/sandbox/messages", body).status_code == 201
    until(lambda: statuses(sandbox) == {"delivered": 1})
    assert [received.text for received in receiver.received] == ["by HTTP"]


def test_the_demonstration_is_not_delivered(sandbox: Sandbox, receiver: Receiver) -> None:
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
    ],
)
def test_a_webhook_that_cannot_be_is_refused(sandbox: Sandbox, change: dict[str, Any], field: str) -> None:
    body: dict[str, Any] = {"url": "http://127.0.0.1:1/", "secret": SECRET, "contextLimit": 5} | change
    answer = call(sandbox, "PUT", "/sandbox/webhook", body)
    assert answer.status_code == 422
    assert answer.json()["error"]["details"][0]["field"] == field
    with pytest.raises(ValueError, match=field) as caught:
        sandbox.set_webhook(body["url"], body["secret"], body["contextLimit"])
    assert SECRET not in answer.text + str(caught.value)
    assert sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
    assert sandbox.deliveries() == []


def test_the_list_of_deliveries_has_a_limit(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.set_webhook(receiver.url, SECRET)
    sent = [sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")["id"] for _ in range(103)]
    message_order = call(sandbox, "GET", "/sandbox/deliveries").json()
    assert [delivery["messageId"] for delivery in message_order["data"]] == sent[:2:-1]
    assert message_order["hasMore"]
    assert len(call(sandbox, "GET", "/sandbox/deliveries?limit=1000").json()["data"]) == 103
    assert [delivery["messageId"] for delivery in sandbox.deliveries(2)] == sent[:-3:-1]
    for limit in (0, 1001):
        assert call(sandbox, "GET", f"/sandbox/deliveries?limit={limit}").status_code == 422
        with pytest.raises(ValueError, match="limit"):
            sandbox.deliveries(limit)


@pytest.mark.parametrize("path", ["/sandbox/webhook", "/%73andbox/webhook"])
def test_the_secret_is_not_shown(
    sandbox: Sandbox, receiver: Receiver, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.answer = lambda received: 500 if received.text == "bad" else 200
    shown = [call(sandbox, "PUT", path, {"url": receiver.url, "secret": SECRET}).text]
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="good")
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="bad")
    until(lambda: len(receiver.received) >= 2)
    shown += [call(sandbox, "GET", "/sandbox/deliveries").text, repr(sandbox.requests), caplog.text, repr(sandbox)]
    shown += [request.body.decode() for request in sandbox.requests]
    shown += [repr(_store.Webhook(receiver.url, SECRET, 5))]
    assert sandbox.requests[0].body == b"***"
    assert SECRET not in "".join(shown)


@pytest.mark.parametrize("factor", [-0.1, float("nan"), float("inf")])
def test_a_factor_that_cannot_be_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="retry_scale"):
        Sandbox(retry_scale=factor)


def cut(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 O")


def garbage(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\x00\xff no HTTP at all\r\n\r\n")


def endless_head(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        handler.wfile.write(b"X-More: " + b"x" * 1000 + b"\r\n")


def nothing(handler: BaseHTTPRequestHandler) -> None:
    handler.rfile.read(1)  # Until the sender has gone.


def slow_head(handler: BaseHTTPRequestHandler) -> None:
    while True:
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("receives", "error"),
    [
        (500, "answered 500"),
        (404, "answered 404"),
        (302, "answered 302"),
        (None, "RemoteProtocolError"),
        (cut, "RemoteProtocolError"),
        (garbage, "RemoteProtocolError"),
        (endless_head, "RemoteProtocolError"),
        (nothing, "no answer within 0.3 seconds"),
        (slow_head, "no answer within 0.3 seconds"),
    ],
)
def test_what_is_no_success_is_tried_six_times_with_the_same_id_and_body(
    receiver: Receiver, receives: Any, error: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if receives in (nothing, slow_head):
        monkeypatch.setattr(_delivery, "ANSWER_SECONDS", 0.3)
    if callable(receives):
        receiver.write = receives
    else:
        receiver.answer = lambda _: receives
    with Sandbox(retry_scale=0.001) as sandbox:
        sandbox.set_webhook(receiver.url, SECRET)
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
        until(lambda: statuses(sandbox) == {"failed": 1})
        [delivery] = sandbox.deliveries()
        assert len(delivery["attempts"]) == 6
        if "no answer" not in error:  # Then one may be given up before the receiver has come to see it.
            assert len(receiver.received) == 6
        assert {attempt["status"] for attempt in delivery["attempts"]} == {receives if type(receives) is int else None}
        assert all(attempt["error"].startswith(error) for attempt in delivery["attempts"])
        assert {(received.id, received.body) for received in receiver.received} == {
            (delivery["id"], receiver.received[0].body)
        }
        assert all(received.is_signed() for received in receiver.received)
        assert caplog.messages == [f"webhook delivery {delivery['id']} given up after 6 attempts"]
        # And the thread has lived through it.
        receiver.write, receiver.answer = None, lambda _: 200
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi again")
        until(lambda: statuses(sandbox) == {"failed": 1, "delivered": 1})


def huge_body(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 201 Created\r\nContent-Length: 1000000000000\r\n\r\n")
    while True:
        handler.wfile.write(b"x" * 100_000)


def slow_body(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 201 Created\r\n\r\n")
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.05)


def cut_body(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\nx")


def false_gzip(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 201 Created\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx")


@pytest.mark.parametrize("writes", [huge_body, slow_body, cut_body, false_gzip])
def test_the_status_decides_whatever_becomes_of_the_body(
    sandbox: Sandbox, receiver: Receiver, writes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the slow one is ended by time: the huge one by its size, long before.
    monkeypatch.setattr(_delivery, "ANSWER_SECONDS", 2.0 if writes is slow_body else 1000.0)
    receiver.write = writes
    sandbox.set_webhook(receiver.url, SECRET)
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
    until(lambda: statuses(sandbox) == {"delivered": 1})
    assert sandbox.deliveries()[0]["attempts"][-1]["status"] == 201


def test_nobody_at_the_url_is_an_attempt_that_failed(receiver: Receiver) -> None:
    with Sandbox(retry_scale=0.001) as sandbox:
        for url in ("http://127.0.0.1:1/", "https://" + receiver.url.removeprefix("http://")):
            sandbox.set_webhook(url, SECRET)
            sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
            until(lambda: sandbox.deliveries()[0]["status"] == "failed")
            assert {attempt["error"].partition(":")[0] for attempt in sandbox.deliveries()[0]["attempts"]} == {
                "ConnectError"
            }


def test_a_certificate_file_that_is_missing_is_told_in_the_attempts(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/at/all.pem")
    _delivery._ssl_context.cache_clear()
    with Sandbox(retry_scale=0.001) as sandbox:
        sandbox.set_webhook(receiver.url, SECRET)
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
        until(lambda: statuses(sandbox) == {"failed": 1})
        assert "FileNotFoundError" in sandbox.deliveries()[0]["attempts"][0]["error"]


def test_a_certificate_of_an_unknown_authority_fails_until_the_environment_names_the_authority(
    authority: trustme.CA, tls: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deliver() -> dict[str, Any]:
        _delivery._ssl_context.cache_clear()
        with Sandbox(retry_scale=0) as sandbox:
            sandbox.set_webhook(behind_tls.url, SECRET)
            sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
            until(lambda: "pending" not in statuses(sandbox))
            return sandbox.deliveries()[0]

    with receiving(tls) as behind_tls:
        refused = deliver()
        assert refused["status"] == "failed"
        assert "certificate verify failed" in refused["attempts"][0]["error"]
        assert behind_tls.received == []
        authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        assert deliver()["status"] == "delivered"
    _delivery._ssl_context.cache_clear()


def test_the_pauses_grow_by_doubling_times_the_factor(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    due: list[float] = []
    finish = _store.Store.finish

    def note(store: _store.Store, delivery: _store.Delivery, **outcome: Any) -> None:
        due.append(outcome["due"] - time.time())
        finish(store, delivery, **outcome | {"due": time.time()})

    monkeypatch.setattr(_store.Store, "finish", note)
    receiver.answer = lambda _: 503
    with Sandbox(retry_scale=100) as sandbox:
        sandbox.set_webhook(receiver.url, SECRET)
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
        until(lambda: statuses(sandbox) == {"failed": 1})
    assert [round(seconds / 100) for seconds in due[:5]] == [1, 2, 4, 8, 16]


def test_one_that_fails_holds_up_no_other(receiver: Receiver) -> None:
    with Sandbox(retry_scale=1000) as sandbox:
        receiver.answer = lambda received: None if received.text == "bad" else 200
        sandbox.set_webhook(receiver.url, SECRET)
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="bad")
        until(lambda: sandbox.deliveries()[0]["attempts"])
        for _ in range(40):
            sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="good")
        until(lambda: statuses(sandbox) == {"delivered": 40, "pending": 1})


def test_what_is_pending_goes_where_the_webhook_is_by_then(sandbox: Sandbox, receiver: Receiver) -> None:
    receiver.answer = lambda _: 500
    sandbox.set_webhook(receiver.url, SECRET)
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
    until(lambda: receiver.received)
    with receiving() as other:
        sandbox.set_webhook(other.url, "another secret")
        until(lambda: statuses(sandbox) == {"delivered": 1})
        [received] = other.received
        assert (received.id, received.body) == (receiver.received[0].id, receiver.received[0].body)
        assert received.is_signed("another secret")


def test_two_hundred_messages_of_twenty_people_at_once_arrive_once_each(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.set_webhook(receiver.url, SECRET)
    start = threading.Barrier(20)

    def text(person: int) -> None:
        start.wait(30)
        for index in range(10):
            sandbox.receive_sms(from_number=f"+1555555{person:04d}", to_number=AGENT, body=f"{person} {index}")

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(text, range(20)))
    until(lambda: statuses(sandbox) == {"delivered": 200})
    texts = [received.text for received in receiver.received]
    assert sorted(texts) == sorted(f"{person} {index}" for person in range(20) for index in range(10))
    assert len({received.id for received in receiver.received}) == 200
    assert all(received.is_signed() for received in receiver.received)
    assert threads() == ["agentphone webhooks"]


def test_a_receiver_that_fails_now_and_then_gets_everything(receiver: Receiver) -> None:
    attempts: Counter[str] = Counter()

    def answer(received: Received) -> int | None:
        attempts[received.id] += 1
        # By the id and not by chance, so that none fails six times.
        return (
            200 if attempts[received.id] > int(received.id[-1], 16) % 6 else (500, 302, None)[attempts[received.id] % 3]
        )

    receiver.answer = answer
    with Sandbox(retry_scale=0.001) as sandbox:
        sandbox.set_webhook(receiver.url, SECRET)
        for index in range(100):
            sandbox.receive_sms(from_number=f"+1555555{index % 20:04d}", to_number=AGENT, body=str(index))
        until(lambda: statuses(sandbox) == {"delivered": 100})
        message_order = {delivery["id"]: len(delivery["attempts"]) for delivery in sandbox.deliveries(1000)}
    assert sorted(int(received.text) for received in receiver.accepted) == list(range(100))
    assert message_order == attempts
    assert max(attempts.values()) > 1


def test_a_proxy_in_the_environment_is_not_used(
    sandbox: Sandbox, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    sandbox.set_webhook(receiver.url, SECRET)
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
    until(lambda: statuses(sandbox) == {"delivered": 1})
    assert len(sandbox.deliveries()[0]["attempts"]) == 1


def test_closing_ends_the_thread_in_the_middle_of_attempts_and_leaves_them_to_the_next(
    receiver: Receiver, tmp_path: Path
) -> None:
    path = tmp_path / "box.db"
    receiver.write = nothing
    with Sandbox(path) as sandbox:
        sandbox.set_webhook(receiver.url, SECRET)
        for _ in range(20):
            sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
        until(lambda: len(receiver.received) == 16)
        assert threads() == ["agentphone webhooks"]
    assert threads() == []
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
    assert threads() == []


def test_without_a_webhook_there_is_no_thread(tmp_path: Path) -> None:
    with Sandbox(tmp_path / "box.db") as sandbox, Sandbox() as other:
        for box in (sandbox, other):
            box.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
            box.load_demo_data()
        assert threads() == []


def test_a_file_that_cannot_be_read_for_a_while_is_said_and_survived(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_delivery, "POLL_SECONDS", 0.01)
    broken = threading.Event()
    next_due, finish = _store.Store.next_due, _store.Store.finish

    def sometimes(store: _store.Store) -> float | None:
        if broken.is_set():
            raise sqlite3.OperationalError("disk I/O error")
        return next_due(store)

    monkeypatch.setattr(_store.Store, "next_due", sometimes)
    with Sandbox() as sandbox:
        broken.set()
        sandbox.set_webhook(receiver.url, SECRET)
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
        until(lambda: "disk I/O error" in caplog.text)
        broken.clear()
        until(lambda: statuses(sandbox) == {"delivered": 1})

        def fail(*_: object, **__: object) -> None:
            raise sqlite3.OperationalError("database is full")

        monkeypatch.setattr(_delivery, "CLAIM_SECONDS", 2.0)
        monkeypatch.setattr(_store.Store, "finish", fail)
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="twice")
        until(lambda: "database is full" in caplog.text)
        monkeypatch.setattr(_store.Store, "finish", finish)
        until(lambda: statuses(sandbox) == {"delivered": 2})
        assert [received.text for received in receiver.received][:3] == ["Hi", "twice", "twice"]


def test_who_lost_its_claim_by_being_late_has_no_say_any_more() -> None:
    store = _store.Store(None)
    store.set_webhook(_store.Webhook("http://127.0.0.1:1/", SECRET, 0))
    store.add(_store.NewMessage("inbound", AGENT, ADA, "Hi", 0))
    now = time.time()
    [late] = store.claim(now=now + 1, seconds=15, limit=16)
    assert store.claim(now=now + 2, seconds=15, limit=16) == []
    [owner] = store.claim(now=now + 20, seconds=15, limit=16)
    for delivery, status, then in ((late, "failed", "pending"), (owner, "delivered", "delivered")):
        store.finish(delivery, status=status, attempts=[], due=now)
        assert store.deliveries(limit=1)["data"][0]["status"] == then
    store.close()


@pytest.mark.parametrize("statement", [_store.DUE, _store.CLAIM, _store.DELIVERIES, _store.FINISH])
def test_nothing_that_is_done_all_the_time_reads_all_deliveries(statement: str) -> None:
    values = dict.fromkeys(re.findall(r":(\w+)", statement), 0) or (0,) * statement.count("?")
    with Sandbox() as sandbox, sandbox._store._transaction("BEGIN") as connection:
        plan = [row["detail"] for row in connection.execute("EXPLAIN QUERY PLAN " + statement, values)]
    assert not [step for step in plan if "TEMP B-TREE" in step]
    scans = [step for step in plan if step.startswith("SCAN") and "USING" not in step]
    # The newest first is a walk backwards along the table's own key, ended by its limit.
    assert scans == (["SCAN deliveries"] if statement == _store.DELIVERIES else [])
