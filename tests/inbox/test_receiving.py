"""Receiving: what is answered, and what is stored before; in threads, after forks, and with a database that is new."""

from __future__ import annotations

import logging
import os
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from agentphone import ConfigurationError
from agentphone.inbox import Inbox
from agentphone.inbox._listing import list_items
from agentphone.webhooks import ReactionEvent
from tests.inbox import processes
from tests.inbox.deliveries import Delivery, delivery, sign
from tests.inbox.world import SECRET, create_sqlite
from tests.support.processes import SECONDS


@pytest.fixture
def inbox(tmp_path: Path) -> Any:
    inbox = Inbox(webhook_secret=SECRET, database=create_sqlite(tmp_path))
    inbox.on_message(lambda text: None)
    yield inbox
    inbox._database.close()


def items(inbox: Inbox) -> list[dict[str, Any]]:
    return list_items(inbox._database)


def without(name: str) -> Delivery:
    body, headers = delivery()
    del headers[name]
    return body, headers


def with_header(name: str, value: str) -> Delivery:
    body, headers = delivery()
    return body, headers | {name: value}


REACTION: dict[str, Any] = {"conversationId": "conv_1", "messageId": "msg_1", "reactionType": "love"}


@pytest.mark.parametrize(
    ("delivery", "status", "stored"),
    [
        (delivery(), 202, 1),
        (delivery(messageId=None), 202, 1),
        (delivery(direction=None), 202, 1),
        (delivery(direction="outbound"), 202, 0),
        (delivery(event="agent.reaction", **REACTION), 202, 0),
        (delivery(event="agent.something_new"), 202, 0),
        (without("X-Webhook-Signature"), 400, 0),
        (without("X-Webhook-Timestamp"), 400, 0),
        (with_header("X-Webhook-Signature", "sha256=short"), 400, 0),
        (with_header("X-Webhook-Timestamp", "yesterday"), 400, 0),
        (with_header("X-Webhook-ID", "one, two"), 400, 0),
        (sign(b"not JSON"), 400, 0),
        (sign(b'{"event": "agent.message", "channel": "sms"}'), 400, 0),
        (delivery(secret="whsec_of_another"), 503, 0),
        (delivery(timestamp=time.time() - 3600), 503, 0),
        (delivery(timestamp=time.time() + 3600), 503, 0),
        (delivery(message="x" * 1024 * 1024), 413, 0),
        (sign(b"x" * (1024 * 1024 + 1), secret="whsec_of_another"), 413, 0),
    ],
)
def test_status_of_a_delivery(inbox: Inbox, delivery: Delivery, status: int, stored: int) -> None:
    assert inbox.receive(*delivery) == status
    assert len(items(inbox)) == stored


def test_stored_text(inbox: Inbox) -> None:
    inbox.receive(*delivery(message="Wo? \U0001f4e6 \u0000", conversationId="conv_ü\u0000", messageId="msg_\u0000"))
    [item] = items(inbox)
    assert item == item | {
        "conversationId": "conv_ü\u0000",
        "messageId": "msg_\u0000",
        "status": "pending",
        "attempts": 0,
        "text": "Wo? \U0001f4e6 \u0000",
        "reply": None,
        "error": None,
    }
    assert item.keys() == {
        *("id", "conversationId", "messageId", "status", "attempts", "createdAt", "updatedAt", "text", "reply", "error")
    }


def test_text_of_any_characters_is_stored(database: str) -> None:
    inbox = Inbox(webhook_secret=SECRET, database=database)
    for number, text in enumerate(["\u0000", "\ud800", "\U0001f4e6", "'; DROP TABLE dbos.workflow_status; --"]):
        odd = delivery(message=text, messageId=f"msg_{number}{text}", conversationId=f"conv_{text}")
        assert inbox.receive(*odd) == 202
    assert len({item["text"] for item in items(inbox)}) == 4
    inbox._database.close()


@pytest.mark.parametrize("body", [None, "text", {"event": "agent.message"}])
def test_body_that_is_not_bytes(inbox: Inbox, body: Any) -> None:
    with pytest.raises(TypeError, match=r"body must be the raw bytes of the request, got .*request\.body"):
        inbox.receive(body, {})


def test_repeated_delivery_is_stored_once(inbox: Inbox) -> None:
    repeated = delivery()
    assert [inbox.receive(*repeated) for _ in range(3)] == [202] * 3
    assert inbox.receive(*delivery()) == 202, "another delivery of the same message"
    assert inbox.receive(*delivery(messageId="msg_2")) == 202
    assert {item["id"] for item in items(inbox)} == {"msg_1", "msg_2"}


def test_text_without_an_id_is_known_by_its_delivery(inbox: Inbox) -> None:
    body, headers = delivery(messageId=None)
    for _ in range(2):
        inbox.receive(body, headers)
    [item] = items(inbox)
    assert item["id"] == headers["X-Webhook-ID"]
    del headers["X-Webhook-ID"]
    for _ in range(2):
        inbox.receive(body, headers)
    assert len(items(inbox)) == 2


def test_event_with_a_handler_is_stored(inbox: Inbox) -> None:
    inbox.on_event(ReactionEvent)(lambda event: None)
    inbox.receive(*delivery(event="agent.reaction", **REACTION))
    [item] = items(inbox)
    assert item["conversationId"] == "conv_1"
    assert item["id"] != "msg_1", "the id of the message that it is about"


def test_texts_are_stored_where_no_handler_is_known(tmp_path: Path) -> None:
    inbox = Inbox(webhook_secret=SECRET, database=f"sqlite:///{tmp_path / 'inbox.db'}")
    assert inbox.receive(*delivery()) == 202
    assert len(items(inbox)) == 1
    inbox._database.close()


def test_rejections_are_logged_without_texts(inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "agentphone"):
        inbox.receive(*delivery(secret="whsec_of_another", message="a secret"))
        inbox.receive(*sign(b'{"event": "agent.message", "channel": "sms", "data": {"message": "a secret"}}'))
    first, second = (record.getMessage() for record in caplog.records if record.name == "agentphone.inbox")
    assert "503" in first
    assert "signature matches none of the secrets" in first
    assert "signed delivery cannot be read" in second
    assert "a secret" not in caplog.text


def test_unusable_database_is_503(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "inbox.db").write_bytes(b"no database" * 1000)
    inbox = Inbox(webhook_secret=SECRET, database=f"sqlite:///{tmp_path / 'inbox.db'}")
    assert inbox.receive(*delivery()) == 503
    assert "database cannot be used" in caplog.text
    inbox = Inbox(webhook_secret=SECRET, database="postgresql://nobody@127.0.0.1:1/nothing")
    assert inbox.receive(*delivery()) == 503


def test_secrets_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = Inbox(database=f"sqlite:///{tmp_path / 'inbox.db'}")
    monkeypatch.delenv("AGENTPHONE_WEBHOOK_SECRET", raising=False)
    with pytest.raises(ConfigurationError, match="No webhook secret"):
        inbox.receive(*delivery())
    monkeypatch.setenv("AGENTPHONE_WEBHOOK_SECRET", f"whsec_new {SECRET}\n")
    assert inbox.receive(*delivery()) == 202
    assert inbox.receive(*delivery(secret="whsec_new", messageId="msg_2")) == 202
    inbox._database.close()


def test_creating_an_inbox_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    threads = threading.active_count()
    inbox = Inbox()
    assert not list(tmp_path.iterdir())
    assert threading.active_count() == threads
    assert inbox._database.url == f"sqlite:///{tmp_path / 'agentphone-inbox.db'}"
    monkeypatch.setenv("AGENTPHONE_INBOX_DATABASE", "postgres://host/name")
    assert Inbox()._database.url == "postgresql://host/name"
    assert Inbox(database="sqlite:///other.db")._database.url == f"sqlite:///{tmp_path / 'other.db'}"


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"client": "key"}, TypeError, "client must be an AsyncClient or a Client, got str"),
        ({"database": "mysql://host/name"}, ConfigurationError, "database must be sqlite:///FILE or postgresql://"),
        ({"database": "sqlite://"}, ConfigurationError, "database must be sqlite:///FILE or postgresql://"),
        ({"database": "sqlite:///:memory:"}, ConfigurationError, "database must be sqlite:///FILE or postgresql://"),
        ({"database": 5}, TypeError, "database must be a URL, got int"),
        ({"name": ""}, ConfigurationError, "name must be printable"),
        ({"name": 5}, TypeError, "name must be a string, got int"),
        ({"concurrency": 0}, ConfigurationError, "concurrency must be at least 1, got 0"),
        ({"max_attempts": 0}, ConfigurationError, "max_attempts must be at least 1, got 0"),
        ({"webhook_secret": ""}, ConfigurationError, "secret_or_secrets has an empty secret"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Inbox(**options)


def test_password_of_a_database_is_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Inbox(database="mysql://user:hidden@host/name")
    assert "hidden" not in str(caught.value)


def test_threads_receive_at_once(database: str) -> None:
    inbox = Inbox(webhook_secret=SECRET, database=database)
    statuses: list[int] = []

    def receive(thread: int) -> None:
        statuses.extend(inbox.receive(*delivery(messageId=f"msg_{thread}_{number}")) for number in range(5))

    threads = [threading.Thread(target=receive, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [202] * 30
    assert len(items(inbox)) == 30
    inbox._database.close()


def test_order_of_arrival_is_stored(database: str) -> None:
    inbox = Inbox(webhook_secret=SECRET, database=database)
    ids = [f"msg_{number}" for number in (5, 1, 4, 2, 3, 9, 0)]
    for message_id in ids:
        inbox.receive(*delivery(messageId=message_id))
    assert [item["id"] for item in reversed(items(inbox))] == ids
    inbox._database.close()


def receive_in_children(database: str, is_used: bool) -> None:
    """Fork four times and receive in each process; with `is_used` also before, and in a thread meanwhile."""
    inbox = Inbox(webhook_secret=SECRET, database=database)
    stopping = threading.Event()

    def keep_receiving() -> None:
        for number in count():
            if stopping.is_set():
                break
            inbox.receive(*delivery(messageId=f"msg_of_a_thread_{number}"))

    thread = threading.Thread(target=keep_receiving)
    if is_used:
        assert inbox.receive(*delivery(messageId="msg_of_the_parent")) == 202
        thread.start()
    children = []
    for child in range(4):
        pid = os.fork()
        if not pid:
            ok = all(inbox.receive(*delivery(messageId=f"msg_{child}_{number}")) == 202 for number in range(3))
            os._exit(0 if ok else 1)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    stopping.set()
    if is_used:
        thread.join()
    assert inbox.receive(*delivery(messageId="msg_at_the_end")) == 202
    stored = [item["id"] for item in items(inbox) if "thread" not in item["id"]]
    assert len(stored) == 13 + is_used, stored
    inbox._database.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
@pytest.mark.parametrize("is_used", [False, True])
def test_forked_processes_receive(new_database: str, tmp_path: Path, is_used: bool) -> None:
    """Also the first use of a new database by four processes at once."""
    process = processes.start(receive_in_children, new_database, is_used, log=tmp_path / "log")
    process.join(SECONDS)
    assert (process.exitcode, (tmp_path / "log").read_text()) == (0, "")


@pytest.mark.anyio
async def test_receiving_in_async_code(inbox: Inbox) -> None:
    assert await inbox.areceive(*delivery()) == 202
    assert await inbox.areceive(*delivery(secret="whsec_of_another")) == 503


def test_inboxes_of_two_names_share_a_database(database: str) -> None:
    for name in ("one", "two"):
        inbox = Inbox(webhook_secret=SECRET, database=database, name=name)
        assert inbox.receive(*delivery()) == 202
        assert [item["id"] for item in items(inbox)] == ["msg_1"]
        inbox._database.close()
