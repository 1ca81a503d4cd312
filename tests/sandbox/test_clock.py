"""The sandbox's clock: it dates messages and signs webhooks, while delays follow real time."""

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from agentphone.sandbox import Sandbox
from agentphone.sandbox.server import running

from .helpers import ADA, AGENT, call, statuses
from .receiver import SECRET, receiving, until

NOON = datetime(2025, 1, 15, 12, 0, 0, 123456, tzinfo=UTC)


def test_messages_are_dated_by_the_clock(sandbox: Sandbox) -> None:
    sandbox.clock = NOON.timestamp
    assert sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="")["receivedAt"] == "2025-01-15T12:00:00.123456Z"
    sandbox.clock = (NOON + timedelta(hours=1)).timestamp
    assert sandbox.send_sms(from_number=AGENT, to_number=ADA, body="")["receivedAt"] == "2025-01-15T13:00:00.123456Z"
    body = {"direction": "inbound", "from": ADA, "to": AGENT, "body": "", "at": None}
    assert call(sandbox, "POST", "/sandbox/messages", body).json()["receivedAt"] == "2025-01-15T13:00:00.123456Z"
    at = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="", at="2020-01-01T00:00:00Z")["receivedAt"]
    assert at == "2020-01-01T00:00:00.000000Z"


def broken() -> float:
    raise OverflowError("no such time")


CLOCKS: dict[Callable[[], float], str] = {
    broken: "OverflowError: no such time",
    lambda: 1e15: "OverflowError",  # no such year
    lambda: -1e15: "OverflowError",
    lambda: float("nan"): "ValueError",
}


@pytest.mark.parametrize("clock", CLOCKS)
def test_failing_clock_is_recorded_in_the_attempts(clock: Callable[[], float]) -> None:
    with Sandbox(retry_scale=0.001) as sandbox, receiving() as receiver:

        def respond(_: object) -> int:
            sandbox.clock = clock
            return 500

        receiver.respond = respond
        sandbox.set_webhook(receiver.url, SECRET)
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
        until(lambda: statuses(sandbox) == {"failed": 1})
        assert sandbox.deliveries()[0]["attempts"][-1]["error"].startswith(CLOCKS[clock])
        sandbox.clock = time.time
        receiver.respond = lambda _: 200
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi again")
        until(lambda: statuses(sandbox) == {"failed": 1, "delivered": 1})


def test_each_attempt_is_signed_with_the_current_time() -> None:
    with Sandbox(retry_scale=0.001) as sandbox, receiving() as receiver:
        moment = NOON
        sandbox.clock = lambda: moment.timestamp()

        def respond(_: object) -> int:
            nonlocal moment
            moment += timedelta(minutes=1)
            return 200 if len(receiver.received) == 3 else 500

        receiver.respond = respond
        sandbox.set_webhook(receiver.url, SECRET)
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
        until(lambda: statuses(sandbox) == {"delivered": 1})
        assert all(received.is_signed() for received in receiver.received)
        stamps = [int(received.headers["x-webhook-timestamp"]) for received in receiver.received]
        assert stamps == [int(NOON.timestamp()) + 60 * index for index in range(3)]
        assert len({received.headers["x-webhook-signature"] for received in receiver.received}) == 3
        assert len({(received.id, received.body) for received in receiver.received}) == 1
        [delivery] = sandbox.deliveries()
        assert delivery["createdAt"] == "2025-01-15T12:00:00.123456Z"
        assert [attempt["at"] for attempt in delivery["attempts"]] == [
            "2025-01-15T12:00:00.123456Z",
            "2025-01-15T12:01:00.123456Z",
            "2025-01-15T12:02:00.123456Z",
        ]


def test_message_is_dated_inside_its_transaction(tmp_path: Path) -> None:
    path = tmp_path / "box.db"

    def clock() -> float:
        other = sqlite3.connect(path, timeout=0)
        with closing(other), pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        return 1736942400.0

    with Sandbox(path) as box:
        box.clock = clock
        text = box.receive_sms(from_number="+15555550110", to_number="+15555550100", body="Hi")
    assert text["receivedAt"] == "2025-01-15T12:00:00.000000Z"


def test_responses_are_dated_by_the_clock(sandbox: Sandbox) -> None:
    sandbox.clock = NOON.timestamp
    assert call(sandbox, "GET", "/v1/conversations").headers["date"] == "Wed, 15 Jan 2025 12:00:00 GMT"
    sandbox.clock = broken
    assert str(datetime.now(UTC).year) in call(sandbox, "GET", "/v1/conversations").headers["date"]
    with running(sandbox) as url:
        sandbox.clock = NOON.timestamp
        dates = httpx.get(f"{url}/v1/conversations", headers={"Authorization": "Bearer key"}).headers.get_list("date")
    assert dates == ["Wed, 15 Jan 2025 12:00:00 GMT"]


def test_clock_set_back_keeps_the_order_of_messages() -> None:
    with Sandbox() as box:
        times = iter([10.0, 5.0, 7.0, 12.0])
        box.clock = lambda: next(times)

        def received_at() -> str:
            return str(box.receive_sms(from_number="+15555550110", to_number="+15555550100", body="Hi")["receivedAt"])

        assert [received_at()[17:19] for _ in range(4)] == ["10", "10", "10", "12"]
        box.clock = lambda: 3.0
        assert received_at()[17:19] == "03"
