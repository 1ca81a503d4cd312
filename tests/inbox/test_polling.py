"""Polling: from now on at first, from where it was stopped later, and beside webhooks without handling a text twice."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from agentphone import AsyncClient, AuthenticationError, Client
from agentphone.inbox import _polling
from agentphone.sandbox import Sandbox
from agentphone.webhooks import MessageEvent
from tests.inbox.account import Account
from tests.inbox.deliveries import of_message
from tests.inbox.world import AGENT, person, until, working

OPTIONS: dict[str, Any] = {"poll_interval": 0.05}


@pytest.fixture(params=["async", "blocking"])
def account(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    box = Sandbox()
    kind = AsyncClient if request.param == "async" else Client
    # What fails is tried again by the inbox; the client's own pauses before are longer.
    client = kind("any-key", transport=box.transport(), max_retries=0)
    with closing(Account(tmp_path, client=client, box=box)) as account:
        yield account


def answering(account: Account) -> list[MessageEvent]:
    """Register a handler, and return the texts that it has handled."""
    texts: list[MessageEvent] = []

    @account.inbox.on_message
    def answer(text: MessageEvent) -> str:
        texts.append(text)
        return f"re: {text.text}"

    return texts


def receive(account: Account, body: str, *, number: int = 0, **options: Any) -> dict[str, Any]:
    return account.box.receive_sms(from_number=person(number), to_number=AGENT, body=body, **options)


def test_first_start_begins_now_and_a_later_one_where_it_was(account: Account) -> None:
    texts = answering(account)
    receive(account, "before the first start")
    with working(account.inbox, **OPTIONS):
        until(lambda: account.inbox._database.get("start"))
        receive(account, "one")
        account.wait("done")
    receive(account, "while it is down")
    first = account.inbox._database.get("cursor")
    with working(account.inbox, **OPTIONS):
        last = receive(account, "later")
        account.wait("done", count=3)
    assert account.inbox._database.get("cursor") != first
    assert [text.text for text in texts] == ["one", "while it is down", "later"]
    assert account.replies(last) == ["re: one", "re: while it is down", "re: later"]


def test_conversation_without_messages_does_not_begin_in_the_past(account: Account) -> None:
    """The list may begin with one: in PostgreSQL's descending order null comes first."""
    texts = answering(account)
    old = receive(account, "old")
    empty = receive(account, "deleted", number=1)
    messages = f"/v1/conversations/{empty['conversationId']}/messages"
    account.box.faults.add(status=200, body={"data": [], "hasMore": False}, path=messages, times=1000)
    with working(account.inbox, **OPTIONS):
        until(lambda: account.inbox._database.get("start"))
        receive(account, "new")
        account.wait("done")
    assert [text.text for text in texts] == ["new"]
    assert account.replies(old) == ["re: new"]


def test_polling_outlasts_a_database_that_fails(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_polling, "ERROR_PAUSE", 0.05)
    texts = answering(account)
    database = account.inbox._database
    add, failures = database.add, iter(range(2))

    def failing(*arguments: Any, **options: Any) -> None:
        if next(failures, None) is not None:
            raise OperationalError("INSERT", {}, Exception("the server is restarting"))
        add(*arguments, **options)

    with working(account.inbox, **OPTIONS):
        until(lambda: database.get("start"))
        monkeypatch.setattr(database, "add", failing)
        receive(account, "one")
        receive(account, "two")
        account.wait("done", count=2)
    assert [text.text for text in texts] == ["one", "two"]


def test_polled_text_is_like_one_of_a_webhook(account: Account) -> None:
    texts = answering(account)
    with Client("any-key", transport=account.box.transport()) as client:
        receive(account, "before")
        [conversation] = client.conversations.list()
        client.conversations.update(conversation.id, metadata={"topic": "order"})
    with working(account.inbox, **OPTIONS):
        until(lambda: account.inbox._database.get("start"))
        sent = receive(account, "Hi", media_urls=["https://media.example/1.jpg"])
        account.wait("done")
    [text] = texts
    assert (text.message_id, text.conversation_id) == (sent["id"], sent["conversationId"])
    assert (text.from_number, text.to_number, text.direction) == (person(0), AGENT, "inbound")
    assert text.media_url == "https://media.example/1.jpg"
    assert text.conversation_state == {"topic": "order"}
    assert text.channel == "mms"


def test_webhook_and_polling_together_handle_once(account: Account) -> None:
    texts = answering(account)
    with working(account.inbox, **OPTIONS):
        until(lambda: account.inbox._database.get("start"))
        for number in range(5):
            account.inbox.receive(*of_message(receive(account, str(number))))
        until(lambda: account.inbox._database.get("cursor"))
        account.wait("done", count=5)
        last = receive(account, "the end")
        account.wait("done", count=6)
    assert [text.text for text in texts] == ["0", "1", "2", "3", "4", "the end"]
    assert len(account.replies(last)) == 6


def test_polling_outlasts_errors_once_it_has_begun(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_polling, "ERROR_PAUSE", 0.05)
    answering(account)
    account.box.faults.add(status=503, times=8)  # also at the start
    with working(account.inbox, **OPTIONS):
        until(lambda: account.inbox._database.get("start"))
        account.box.faults.add(status=401, times=2, path="/v1/conversations")
        receive(account, "Hi")
        account.wait("done")


def test_wrong_key_ends_the_start(account: Account) -> None:
    answering(account)
    account.box.faults.add(status=401)
    with pytest.raises(AuthenticationError), working(account.inbox, **OPTIONS):
        until(lambda: not account.inbox._stop)
