"""Webhook attempts: which responses succeed, how long a retry waits, and what an attempt records."""

import ssl
import time
from collections import Counter
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import trustme

from agentphone.sandbox import Behavior, Sandbox, _deliveries, _dispatcher

from .helpers import ADA, AGENT, statuses
from .receiver import SECRET, Received, Receiver, receiving, until

NOON = datetime(2025, 1, 15, 12, tzinfo=UTC)


def cut(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 O")


def garbage(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\x00\xff no HTTP at all\r\n\r\n")


def endless_head(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        handler.wfile.write(b"X-More: " + b"x" * 1000 + b"\r\n")


def nothing(handler: BaseHTTPRequestHandler) -> None:
    handler.rfile.read(1)  # until the sender disconnects


def slow_head(handler: BaseHTTPRequestHandler) -> None:
    while True:
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("receives", "error"),
    [
        (500, "response status 500"),
        (599, "response status 599"),
        (None, "RemoteProtocolError"),
        (cut, "RemoteProtocolError"),
        (garbage, "RemoteProtocolError"),
        (endless_head, "RemoteProtocolError"),
        (nothing, "no response within 0.3 seconds"),
        (slow_head, "no response within 0.3 seconds"),
    ],
)
def test_failures_are_attempted_six_times(
    receiver: Receiver, receives: Any, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    if callable(receives):
        receiver.write = receives
    else:
        receiver.respond = lambda _: receives
    with Sandbox(retry_scale=0.001) as sandbox:
        sandbox.set_webhook(receiver.url, SECRET, timeout=0.3 if receives in (nothing, slow_head) else 30)
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
        until(lambda: statuses(sandbox) == {"failed": 1})
        [delivery] = sandbox.deliveries()
        assert len(delivery["attempts"]) == 6
        if "no response" not in error:  # a timeout may end an attempt before the receiver reads it
            assert len(receiver.received) == 6
        assert {attempt["status"] for attempt in delivery["attempts"]} == {receives if type(receives) is int else None}
        assert all(attempt["error"].startswith(error) for attempt in delivery["attempts"])
        assert {(received.id, received.body) for received in receiver.received} == {
            (delivery["id"], receiver.received[0].body)
        }
        assert all(received.is_signed() for received in receiver.received)
        assert caplog.messages == [f"webhook delivery {delivery['id']} failed after 6 attempts"]
        # The thread continues.
        receiver.write, receiver.respond = None, lambda _: 200
        sandbox.set_webhook(receiver.url, SECRET)
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi again")
        until(lambda: statuses(sandbox) == {"failed": 1, "delivered": 1})


@pytest.mark.parametrize("status", [302, 400, 401, 404, 408, 410, 429, 499])
def test_responses_below_500_are_final(receiver: Receiver, status: int, caplog: pytest.LogCaptureFixture) -> None:
    receiver.respond = lambda _: status
    with Sandbox(retry_scale=0) as sandbox:
        sandbox.set_webhook(receiver.url, SECRET)
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
        until(lambda: statuses(sandbox) == {"failed": 1})
        [delivery] = sandbox.deliveries()
        [attempt] = delivery["attempts"]
        assert (attempt["status"], attempt["error"]) == (status, f"response status {status}")
        assert caplog.messages == [f"webhook delivery {delivery['id']} failed after 1 attempt"]
        sandbox.behavior = Behavior(webhook_retries="any")
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi again")
        until(lambda: statuses(sandbox) == {"failed": 2})
        assert [len(delivery["attempts"]) for delivery in sandbox.deliveries()] == [6, 1]
        assert len(receiver.received) == 7


def test_4xx_after_a_5xx_ends_the_retries(receiver: Receiver) -> None:
    answers = iter((500, None, 503, 404))
    receiver.respond = lambda _: next(answers)
    with Sandbox(retry_scale=0) as sandbox:
        sandbox.set_webhook(receiver.url, SECRET)
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
        until(lambda: statuses(sandbox) == {"failed": 1})
        assert [attempt["status"] for attempt in sandbox.deliveries()[0]["attempts"]] == [500, None, 503, 404]


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
def test_status_decides_however_the_body_ends(sandbox: Sandbox, receiver: Receiver, writes: Any) -> None:
    receiver.write = writes
    # Only the slow body ends by the timeout. The huge one ends earlier, by its size.
    sandbox.set_webhook(receiver.url, SECRET, timeout=2.0 if writes is slow_body else 1000.0)
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
    until(lambda: statuses(sandbox) == {"delivered": 1})
    assert sandbox.deliveries()[0]["attempts"][-1]["status"] == 201


def test_unreachable_receiver_is_a_failed_attempt(receiver: Receiver) -> None:
    with Sandbox(retry_scale=0.001) as sandbox:
        for url in ("http://127.0.0.1:1/", "https://" + receiver.url.removeprefix("http://")):
            sandbox.set_webhook(url, SECRET)
            sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
            until(lambda: sandbox.deliveries()[0]["status"] == "failed")
            assert {attempt["error"].partition(":")[0] for attempt in sandbox.deliveries()[0]["attempts"]} == {
                "ConnectError"
            }


def test_missing_certificate_file_is_recorded_in_the_attempts(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/at/all.pem")
    _dispatcher._ssl_context.cache_clear()
    with Sandbox(retry_scale=0.001) as sandbox:
        sandbox.set_webhook(receiver.url, SECRET)
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
        until(lambda: statuses(sandbox) == {"failed": 1})
        assert "FileNotFoundError" in sandbox.deliveries()[0]["attempts"][0]["error"]


def test_ssl_cert_file_adds_a_certificate_authority(
    authority: trustme.CA, tls: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deliver() -> dict[str, Any]:
        _dispatcher._ssl_context.cache_clear()
        with Sandbox(retry_scale=0) as sandbox:
            sandbox.set_webhook(tls_receiver.url, SECRET)
            sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
            until(lambda: "pending" not in statuses(sandbox))
            return sandbox.deliveries()[0]

    with receiving(tls) as tls_receiver:
        refused = deliver()
        assert refused["status"] == "failed"
        assert "certificate verify failed" in refused["attempts"][0]["error"]
        assert tls_receiver.received == []
        authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        assert deliver()["status"] == "delivered"
    _dispatcher._ssl_context.cache_clear()


def test_retry_delays_double_and_scale(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    due: list[float] = []
    finish = _deliveries.DeliveryQueue.finish

    def note(queue: _deliveries.DeliveryQueue, delivery: _deliveries.Delivery, **outcome: Any) -> None:
        due.append(outcome["due"] - time.time())
        finish(queue, delivery, **outcome | {"due": time.time()})

    monkeypatch.setattr(_deliveries.DeliveryQueue, "finish", note)
    receiver.respond = lambda _: 503
    with Sandbox(retry_scale=100) as sandbox:
        sandbox.set_webhook(receiver.url, SECRET)
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
        until(lambda: statuses(sandbox) == {"failed": 1})
    assert [round(seconds / 100) for seconds in due[:5]] == [1, 2, 4, 8, 16]


def test_failed_delivery_does_not_delay_others(receiver: Receiver) -> None:
    with Sandbox(retry_scale=1000) as sandbox:
        receiver.respond = lambda received: None if received.text == "bad" else 200
        sandbox.set_webhook(receiver.url, SECRET)
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="bad")
        until(lambda: sandbox.deliveries()[0]["attempts"])
        for _ in range(40):
            sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="good")
        until(lambda: statuses(sandbox) == {"delivered": 40, "pending": 1})


def test_pending_delivery_goes_to_the_new_webhook(sandbox: Sandbox, receiver: Receiver) -> None:
    receiver.respond = lambda _: 500
    sandbox.set_webhook(receiver.url, SECRET)
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
    until(lambda: receiver.received)
    with receiving() as other:
        sandbox.set_webhook(other.url, "another secret")
        until(lambda: statuses(sandbox) == {"delivered": 1})
        [received] = other.received
        assert (received.id, received.body) == (receiver.received[0].id, receiver.received[0].body)
        assert received.is_signed("another secret")


def test_flaky_receiver_gets_every_message_once(receiver: Receiver) -> None:
    attempts: Counter[str] = Counter()

    def respond(received: Received) -> int | None:
        attempts[received.id] += 1
        # By the id and not at random, so that no delivery fails six times.
        return (
            200 if attempts[received.id] > int(received.id[-1], 16) % 6 else (500, 503, None)[attempts[received.id] % 3]
        )

    receiver.respond = respond
    with Sandbox(retry_scale=0.001) as sandbox:
        sandbox.set_webhook(receiver.url, SECRET)
        for index in range(40):
            sandbox.receive_sms(from_number=f"+1555555{index % 20:04d}", to_number=AGENT, body=str(index))
        until(lambda: statuses(sandbox) == {"delivered": 40})
        attempts_by_id = {delivery["id"]: len(delivery["attempts"]) for delivery in sandbox.deliveries(1000)}
    assert sorted(int(received.text) for received in receiver.accepted) == list(range(40))
    assert attempts_by_id == attempts
    assert max(attempts.values()) > 1


def test_proxy_environment_is_ignored(sandbox: Sandbox, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    sandbox.set_webhook(receiver.url, SECRET)
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
    until(lambda: statuses(sandbox) == {"delivered": 1})
    assert len(sandbox.deliveries()[0]["attempts"]) == 1
