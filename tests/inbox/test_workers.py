"""Workers: how they stop, what the next one continues, and their names."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from agentphone import Client, ConfigurationError
from agentphone.inbox import _worker, _workflow
from agentphone.inbox._slots import Slots
from agentphone.inbox._worker_lock import hold_name
from agentphone.sandbox import Sandbox
from agentphone.webhooks import MessageEvent
from tests.inbox.account import Account, OrderState, counting
from tests.inbox.deliveries import of_message
from tests.inbox.world import AGENT, person, until, working
from tests.support.processes import SECONDS


def test_text_in_hand_is_finished_when_the_worker_stops(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    started = threading.Event()
    slots: list[Slots] = []

    def create_slots(count: int) -> Slots:
        slots.append(Slots(count))
        return slots[-1]

    monkeypatch.setattr(_worker, "Slots", create_slots)

    @account.inbox.on_message
    def answer(text: MessageEvent) -> str:
        started.set()
        until(lambda: slots[0].is_stopping)
        return "ok"

    with working(account.inbox):
        text = account.text()
        account.text("two")
        assert started.wait(SECONDS)
    assert account.replies(text) == ["ok"]
    first, second = (item["status"] for item in account.items())
    assert first == "done"
    assert second in ("pending", "running"), "taken from the queue, but not begun"
    with working(account.inbox):
        account.wait("done", count=2)
    assert account.replies(text) == ["ok", "ok"]


def test_stop_in_a_pause_is_quiet(
    account: Account, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_workflow, "INITIAL_BACKOFF", 60)
    account.inbox.on_message(lambda text: 1 / 0)
    with working(account.inbox):
        account.text()
        until(lambda: "attempt 1 failed" in caplog.text)
    assert [record for record in caplog.records if record.name == "dbos"] == []


def test_text_that_takes_too_long_at_the_stop_is_handled_again(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_worker, "GRACE_SECONDS", 0.1)
    calls: list[str] = []
    started = threading.Event()

    @account.inbox.on_message
    async def answer(text: MessageEvent) -> str:
        calls.append(str(text.text))
        started.set()
        if len(calls) == 1:
            await asyncio.sleep(60)
        return "ok"

    with working(account.inbox):
        text = account.text()
        assert started.wait(SECONDS)
    assert [item["status"] for item in account.items()] == ["running"]
    with working(account.inbox):
        account.wait("done")
    assert calls == ["Hi", "Hi"]
    assert account.replies(text) == ["ok"]


def test_restart_logs_no_attempt_again(
    account: Account, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_workflow, "INITIAL_BACKOFF", 0.3)
    monkeypatch.setattr(_worker, "GRACE_SECONDS", 0.1)
    started = threading.Event()
    calls: list[str] = []

    @account.inbox.on_message
    async def answer(text: MessageEvent, state: OrderState) -> str:
        calls.append(str(text.text))
        if len(calls) == 1:
            raise RuntimeError("not yet")
        if len(calls) == 2:
            started.set()
            await asyncio.sleep(60)
        return "ok"

    began_at = time.monotonic()
    with caplog.at_level(logging.INFO, "agentphone.inbox"):
        with working(account.inbox):
            account.box.faults.add(status=503)
            account.text()
            assert started.wait(SECONDS)
        with working(account.inbox):
            account.wait("done")
    assert caplog.text.count("attempt 1 failed") == 1
    assert caplog.text.count("the API cannot be used") == 1
    [seconds] = re.findall(r"replied in ([\d.]+) s", caplog.text)
    assert 0.48 < float(seconds) < time.monotonic() - began_at + 0.1, "two pauses, both before the restart"


def test_blocking_client_works(tmp_path: Path) -> None:
    box = Sandbox()
    with (
        Client("any-key", transport=box.transport()) as client,
        closing(Account(tmp_path, client=client, box=box)) as account,
    ):
        counting(account)
        with working(account.inbox):
            text = account.text()
            account.wait("done")
        assert account.replies(text) == ["ok"]
        assert account.state(text) == {"texts": 1}


def test_name_of_a_live_worker_is_refused(account: Account) -> None:
    counting(account)
    with working(account.inbox):
        taken = pytest.raises(ConfigurationError, match="name='main': a worker of this name is running already")
        with taken, hold_name(account.inbox._database, "agentphone-inbox", "main", patience=0):
            pass
        with hold_name(account.inbox._database, "agentphone-inbox", "another"):
            pass
        with pytest.raises(ConfigurationError, match="This process runs DBOS already"):
            account.inbox.work("another")
    with hold_name(account.inbox._database, "agentphone-inbox", "main"):
        pass


@pytest.mark.parametrize("is_sent", [True, False])
@pytest.mark.usefixtures("briefly_looked_for")
def test_text_that_killed_its_workers_is_listed_and_goes_on(account: Account, is_sent: bool) -> None:
    """It continues where it was, so its handler does not run again, and its reply is looked for."""
    calls = counting(account)
    database = account.inbox._database
    text = account.box.receive_sms(from_number=person(0), to_number=AGENT, body="Hi")
    messages = f"/v1/conversations/{text['conversationId']}/messages"
    with working(account.inbox):
        account.box.faults.add(kind="lost" if is_sent else "reset", method="POST")
        account.box.faults.add(status=500, times=1000, path=messages)  # so that the reply is not found
        account.inbox.receive(*of_message(text))
        account.wait("unconfirmed")
    # As kills leave it: the note is there, the result of the step is not, and the last attempt has been used up.
    with database.connect() as connection, connection.begin():
        connection.exec_driver_sql(
            "UPDATE workflow_status SET status = 'ENQUEUED', queue_name = 'agentphone-inbox', recovery_attempts = 999"
        )
        connection.exec_driver_sql("DELETE FROM operation_outputs WHERE function_name = 'send'")
        connection.exec_driver_sql("DELETE FROM workflow_output")
    with working(account.inbox):
        [failed] = account.wait("failed")
        assert "process ended each time" in failed["error"]
        account.box.faults.clear()
        assert account.retry(failed["id"]) == f"{failed['id']} will be continued."
        [ended] = account.wait("done", "unconfirmed")
    assert ended["status"] == ("done" if is_sent else "unconfirmed")
    assert account.replies(text) == ["ok"] * is_sent
    assert calls == ["Hi"]


@pytest.mark.parametrize("name", ["Bestellungen in München", "x"])
def test_inbox_of_any_name_works(tmp_path: Path, name: str) -> None:
    with closing(Account(tmp_path, name=name)) as account:
        counting(account)
        with working(account.inbox):
            text = account.text()
            account.wait("done")
        assert account.replies(text) == ["ok"]
