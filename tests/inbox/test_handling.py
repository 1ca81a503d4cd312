"""Handling: handlers, state and replies; what fails, is tried again, given up, and retried by hand."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest
from attrs import define

from agentphone import AsyncClient, Client, ConfigurationError
from agentphone.inbox import Inbox, Reply, _steps, _workflow
from agentphone.inbox._listing import list_items, retry_item
from agentphone.sandbox import Sandbox
from agentphone.webhooks import MessageEvent, ReactionEvent
from tests.inbox.deliveries import delivery, of_message
from tests.inbox.world import AGENT, SECRET, person, until, working


@define
class OrderState:
    order_id: str | None = None
    texts: int = 0


class Account:
    """A sandbox without a network, and an inbox for it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.box = Sandbox()
        self.client = AsyncClient("any-key", transport=self.box.transport(), max_retries=0)
        database = f"sqlite:///{folder / 'inbox.db'}"
        self.inbox = Inbox(options.pop("client", self.client), webhook_secret=SECRET, database=database, **options)

    def text(self, body: str = "Hi", *, person_number: int = 0) -> dict[str, Any]:
        """Receive a text, and return it."""
        message = self.box.receive_sms(from_number=person(person_number), to_number=AGENT, body=body)
        assert self.inbox.receive(*of_message(message)) == 202
        return message

    def wait(self, *statuses: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until so many texts have come to one of these ends, and return them, oldest first."""
        until(lambda: len(self.items(*statuses)) >= count)
        return self.items(*statuses)

    def items(self, *statuses: str) -> list[dict[str, Any]]:
        return list_items(self.inbox._database, statuses=statuses)[::-1]

    def retry(self, item_id: str) -> None:
        retry_item(self.inbox._database, item_id)

    def conversation(self, message: dict[str, Any]) -> Any:
        transport = self.box.transport()
        with Client("any-key", transport=transport) as client:
            return client.conversations.get(message["conversationId"], message_limit=100)

    def replies(self, message: dict[str, Any]) -> list[str]:
        messages = sorted(self.conversation(message).messages, key=lambda each: each.received_at)
        return [each.body for each in messages if each.direction == "outbound"]

    def state(self, message: dict[str, Any]) -> Any:
        return self.conversation(message).metadata


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    monkeypatch.setattr(_workflow, "INITIAL_BACKOFF", 0.05)
    monkeypatch.setattr(_steps, "CONFIRM_SECONDS", 0.3)
    account = Account(tmp_path)
    yield account
    account.inbox._database.close()
    account.box.close()


def test_texts_are_answered_with_state(account: Account) -> None:
    @account.inbox.on_message
    async def answer(text: MessageEvent, state: OrderState) -> str | Reply | None:
        state.texts += 1
        match text.text:
            case "silent":
                return None
            case "media":
                return Reply("see", media_urls=("https://media.example/1.jpg",))
        return f"{state.texts}: {text.text}"

    with working(account.inbox):
        texts = [account.text(body) for body in ("one", "silent", "media", "four")]
        items = account.wait("done", count=4)
    assert account.replies(texts[0]) == ["1: one", "see", "4: four"]
    assert account.state(texts[0]) == {"texts": 4}
    assert [item["reply"] for item in items] == ["1: one", None, "see", "4: four"]
    assert {item["attempts"] for item in items} == {1}
    assert [message.media_urls for message in account.conversation(texts[0]).messages if message.body == "see"] == [
        ("https://media.example/1.jpg",)
    ]


def test_conversations_are_handled_at_once_and_each_in_order(account: Account) -> None:
    running: dict[str, int] = {}
    most = 0
    lock = threading.Lock()

    @account.inbox.on_message
    def answer(text: MessageEvent) -> str:
        nonlocal most
        with lock:
            running[text.conversation_id] = running.get(text.conversation_id, 0) + 1
            assert running[text.conversation_id] == 1
            most = max(most, sum(running.values()))
        time.sleep(0.02)
        with lock:
            running[text.conversation_id] -= 1
        return f"re: {text.text}"

    with working(account.inbox):
        texts = [account.text(str(number), person_number=number % 4) for number in range(20)]
        account.wait("done", count=20)
    for number in range(4):
        assert account.replies(texts[number]) == [f"re: {each}" for each in range(number, 20, 4)]
    assert most > 1
    assert account.state(texts[0]) is None


def test_failing_handler_is_tried_again_and_given_up(account: Account, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    @account.inbox.on_message
    async def answer(text: MessageEvent, state: OrderState) -> str:
        calls.append(str(text.text))
        state.texts += 1
        if text.text == "poison" or (text.text == "second time" and calls.count("second time") < 2):
            raise RuntimeError(f"cannot answer {text.text}")
        return "ok"

    with caplog.at_level(logging.INFO, "agentphone.inbox"), working(account.inbox):
        poison = account.text("poison")
        account.text("after the poison")
        other = account.text("second time", person_number=1)
        until(lambda: account.replies(other))
        assert account.items("failed") == [], "the other conversation did not wait"
        account.wait("failed")
        account.wait("done", count=2)
        [failed] = account.items("failed")
        assert (failed["attempts"], failed["reply"]) == (5, None)
        assert failed["error"].startswith("Traceback (most recent call last):\n")
        assert failed["error"].endswith("RuntimeError: cannot answer poison\n")
        assert "_steps.py" not in failed["error"]
        assert calls.count("poison") == 5
        assert calls.index("after the poison") == len(calls) - 1, "in its conversation the next text waited"
        assert account.replies(poison) == ["ok"]
        assert account.state(poison) == {"texts": 1}, "a call that raised has no effect on the state"
        account.retry(failed["id"])
        until(lambda: calls.count("poison") == 10)
        account.wait("failed")
    lines = [record.getMessage() for record in caplog.records if record.name == "agentphone.inbox"]
    assert sum("replied in" in line for line in lines) == 2
    assert sum("failed (RuntimeError) in" in line for line in lines) == 2
    assert "poison" not in caplog.text
    assert person(0) not in caplog.text


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, KeyboardInterrupt, StopIteration])
@pytest.mark.parametrize("is_async", [True, False])
def test_any_exception_is_a_failure_of_that_text(account: Account, error: type[BaseException], is_async: bool) -> None:
    def fail(text: MessageEvent) -> str:
        if text.text == "bad":
            raise error
        return "ok"

    async def fail_async(text: MessageEvent) -> str:
        return fail(text)

    account.inbox._max_attempts = 1
    account.inbox.on_message(fail_async if is_async else fail)
    with working(account.inbox):
        account.text("bad")
        good = account.text("good")
        account.wait("done")
        [failed] = account.items("failed")
    assert account.replies(good) == ["ok"]
    assert error.__name__ in failed["error"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (5, "TypeError: the handler must return None, a str or a Reply, got int"),
        ("", "ValueError: the handler returned an empty string; return None to send no reply"),
        ({"n": object()}, "TypeError: metadata['n'] is a object, which JSON does not have"),
    ],
)
def test_wrong_results_are_failures(account: Account, answer: Any, reason: str) -> None:
    account.inbox._max_attempts = 2

    @account.inbox.on_message
    def handle(text: MessageEvent, state: dict[str, Any]) -> Any:
        if isinstance(answer, dict):
            state.update(answer)
            return "ok"
        return answer

    with working(account.inbox):
        text = account.text()
        [failed] = account.wait("failed")
    assert reason in failed["error"]
    assert failed["attempts"] == 2
    assert account.state(text) is None
    assert account.replies(text) == []


def test_state_that_does_not_fit_fails_at_once(account: Account) -> None:
    calls: list[str] = []

    @account.inbox.on_message
    def answer(text: MessageEvent, state: OrderState) -> str:
        calls.append(str(text.text))
        return "ok"

    text = account.box.receive_sms(from_number=person(0), to_number=AGENT, body="Hi")
    with Client("any-key", transport=account.box.transport()) as client:
        client.conversations.update(text["conversationId"], metadata={"texts": "three"})
    with working(account.inbox):
        account.inbox.receive(*of_message(text))
        [failed] = account.wait("failed")
        assert not calls
        assert "metadata.texts" in failed["error"]
        with Client("any-key", transport=account.box.transport()) as client:
            client.conversations.update(text["conversationId"], metadata={"texts": 3})
        account.retry(failed["id"])
        account.wait("done")
    assert account.replies(text) == ["ok"]


def counting(account: Account) -> list[str]:
    """Register a handler that counts, and return its calls."""
    calls: list[str] = []

    @account.inbox.on_message
    async def answer(text: MessageEvent, state: OrderState) -> str:
        calls.append(str(text.text))
        state.texts += 1
        return "ok"

    return calls


def test_api_that_fails_is_waited_for(account: Account) -> None:
    calls = counting(account)
    account.inbox._max_attempts = 1
    account.box.faults.add(status=503, times=3)
    account.box.faults.add(status=401)
    with working(account.inbox):
        text = account.text()
        account.wait("done")
        account.box.faults.add(status=500, times=2, method="PATCH")
        account.box.faults.add(status=429, times=3, method="POST")
        account.text("two")
        items = account.wait("done", count=2)
    assert calls == ["Hi", "two"]
    assert account.replies(text) == ["ok", "ok"]
    assert account.state(text) == {"texts": 2}
    assert [item["attempts"] for item in items] == [1, 1]


def test_closed_client_gives_no_text_up(account: Account, caplog: pytest.LogCaptureFixture) -> None:
    """As at the end of a worker whose handler takes longer than the worker waits."""
    counting(account)
    asyncio.run(account.client.aclose())
    with working(account.inbox):
        account.text()
        until(lambda: "attempt 1 failed (ClientClosedError)" in caplog.text)
        assert account.items("failed") == []


def test_reply_that_is_refused_fails_and_is_retried_without_the_handler(account: Account) -> None:
    calls = counting(account)
    with working(account.inbox):
        account.box.faults.add(status=403, method="POST")
        text = account.text()
        [failed] = account.wait("failed")
        assert failed["error"].startswith("PermissionDeniedError: POST /v1/messages: 403")
        assert failed["reply"] == "ok"
        assert account.state(text) == {"texts": 1}
        account.text("two")
        until(lambda: account.replies(text) == ["ok"])
        account.retry(failed["id"])
        account.wait("done", count=2)
    assert account.replies(text) == ["ok", "ok"]
    assert calls == ["Hi", "two"]
    assert account.state(text) == {"texts": 2}, "the state of the later text is kept"


def test_unconfirmed_reply_is_not_sent_again_by_itself(account: Account) -> None:
    calls = counting(account)
    with working(account.inbox):
        account.box.faults.add(kind="reset", method="POST")
        text = account.text()
        [open_] = account.wait("unconfirmed")
        assert "may have been sent" in open_["error"]
        assert account.replies(text) == []
        account.text("two")
        until(lambda: account.replies(text) == ["ok"])
        account.retry(open_["id"])
        account.wait("done", count=2)
    assert account.replies(text) == ["ok", "ok"]
    assert calls == ["Hi", "two"]


def test_reply_whose_answer_is_lost_is_found(account: Account) -> None:
    counting(account)
    with working(account.inbox):
        for number in range(3):  # the same words each time
            account.box.faults.add(kind="lost", method="POST")
            text = account.text()
            account.wait("done", count=number + 1)
    assert account.replies(text) == ["ok"] * 3


def test_only_what_failed_is_retried(account: Account) -> None:
    counting(account)
    account.text()
    with pytest.raises(ValueError, match="is pending; only failed and unconfirmed items"):
        account.retry(account.items()[0]["id"])
    with pytest.raises(LookupError, match="There is no item 'msg_nobody'"):
        account.retry("msg_nobody")


@pytest.mark.parametrize("is_sent", [True, False])
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
        account.retry(failed["id"])
        [ended] = account.wait("done", "unconfirmed")
    assert ended["status"] == ("done" if is_sent else "unconfirmed")
    assert account.replies(text) == ["ok"] * is_sent
    assert calls == ["Hi"]


@pytest.mark.parametrize("name", ["Bestellungen in München", "x"])
def test_inbox_of_any_name_works(tmp_path: Path, name: str) -> None:
    account = Account(tmp_path, name=name)
    counting(account)
    with working(account.inbox):
        text = account.text()
        account.wait("done")
    assert account.replies(text) == ["ok"]
    account.inbox._database.close()
    account.box.close()


def test_redelivery_after_the_end_is_not_handled(account: Account) -> None:
    calls = counting(account)
    message = account.box.receive_sms(from_number=person(0), to_number=AGENT, body="Hi")
    with working(account.inbox):
        account.inbox.receive(*of_message(message))
        account.wait("done")
        assert account.inbox.receive(*of_message(message)) == 202
        account.text("another")
        account.wait("done", count=2)
    with working(account.inbox):
        assert account.inbox.receive(*of_message(message)) == 202
        account.text("a third")
        account.wait("done", count=3)
    assert calls == ["Hi", "another", "a third"]


def test_other_events_have_handlers(account: Account) -> None:
    seen: list[Any] = []

    @account.inbox.on_event(ReactionEvent)
    def react(event: ReactionEvent) -> str:
        seen.append(event)
        return "ignored"

    with working(account.inbox):
        account.inbox.receive(*delivery(event="agent.reaction", reactionType="love"))
        [item] = account.wait("done")
    assert isinstance(seen[0], ReactionEvent)
    assert item["reply"] is None
    assert not [request for request in account.box.requests if request.method == "POST"]


def test_text_in_hand_is_finished_when_the_worker_stops(account: Account) -> None:
    started = threading.Event()

    @account.inbox.on_message
    def answer(text: MessageEvent) -> str:
        started.set()
        time.sleep(0.3)
        return "ok"

    with working(account.inbox):
        text = account.text()
        account.text("two")
        assert started.wait(10)
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
    from agentphone.inbox import _worker

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
        assert started.wait(10)
    assert [item["status"] for item in account.items()] == ["running"]
    with working(account.inbox):
        account.wait("done")
    assert calls == ["Hi", "Hi"]
    assert account.replies(text) == ["ok"]


def test_blocking_client_works(tmp_path: Path) -> None:
    box = Sandbox()
    with Client("any-key", transport=box.transport()) as client:
        account = Account(tmp_path, client=client)
        account.box = box
        counting(account)
        with working(account.inbox):
            text = account.text()
            account.wait("done")
        assert account.replies(text) == ["ok"]
        assert account.state(text) == {"texts": 1}
    account.inbox._database.close()
    box.close()


def test_name_of_a_live_worker_is_refused(account: Account) -> None:
    from agentphone.inbox._worker_lock import hold_name

    counting(account)
    with working(account.inbox):
        taken = pytest.raises(ConfigurationError, match="name='main': a worker of this name is running already")
        with taken, hold_name(account.inbox._database, "agentphone-inbox", "main"):
            pass
        with hold_name(account.inbox._database, "agentphone-inbox", "another"):
            pass
        with pytest.raises(ConfigurationError, match="This process runs DBOS already"):
            account.inbox.work("another")
    with hold_name(account.inbox._database, "agentphone-inbox", "main"):
        pass


def test_worker_needs_a_handler_and_a_name(account: Account) -> None:
    with pytest.raises(ConfigurationError, match="no handler"):
        account.inbox.work()
    counting(account)
    with pytest.raises(ConfigurationError, match="name must be a printable string"):
        account.inbox.work("")
    with pytest.raises(ConfigurationError, match="webhook must be HOST:PORT"):
        account.inbox.run("somewhere")


def handlers() -> list[tuple[Callable[..., Any], str]]:
    async def none() -> None: ...
    def three(text: MessageEvent, state: OrderState, more: int) -> None: ...
    def wrong(text: MessageEvent, state: int) -> None: ...
    def keyword(text: MessageEvent, *, state: OrderState) -> None: ...
    def generator(text: MessageEvent) -> Iterator[str]:
        yield "x"

    async def async_generator(text: MessageEvent) -> AsyncIterator[str]:
        yield "x"

    def unknown(text: MessageEvent, state: "Nobody") -> None: ...  # type: ignore[name-defined]  # noqa: F821, UP037

    return [
        (none, "must be a function of (text) or (text, state)"),
        (three, "must be a function of (text) or (text, state)"),
        (keyword, "must be a function of (text) or (text, state)"),
        (generator, "generator must return its reply, not yield it"),
        (async_generator, "async_generator must return its reply, not yield it"),
        (wrong, "wrong: state: cls must be dict or an attrs class"),
        (unknown, "the annotation of state is not known here"),
        (OrderState, "the handler must be a function"),
    ]


@pytest.mark.parametrize(("function", "text"), handlers())
def test_wrong_handlers_are_rejected(function: Callable[..., Any], text: str) -> None:
    with pytest.raises(TypeError, match=text.replace("(", r"\(").replace(")", r"\)")):
        Inbox().on_message(function)


def accepted_handlers() -> list[Callable[..., Any]]:
    """Return functions of several kinds; as this file's annotations are text, so are theirs."""

    class Agent:
        async def __call__(self, text: MessageEvent, state: OrderState) -> str:
            return "ok"

        def answer(self, text: MessageEvent, state: OrderState) -> str:
            return "ok"

    async def typed(text: "OnlyForTypeCheckers", state: OrderState) -> "str | OnlyForTypeCheckers":  # type: ignore[name-defined]  # noqa: F821, UP037
        return "ok"

    def configured(model: str, text: MessageEvent, state: OrderState) -> str:
        return "ok"

    @wraps(typed)
    def decorated(*arguments: Any) -> Any:
        return typed(*arguments)

    return [Agent(), Agent().answer, typed, partial(configured, "a model"), decorated, lambda text, state: "ok"]


@pytest.mark.parametrize("number", range(len(accepted_handlers())))
def test_functions_of_any_kind_are_handlers(account: Account, number: int) -> None:
    function = accepted_handlers()[number]
    account.inbox.on_message(function)
    handler = account.inbox._handlers[MessageEvent]
    assert handler.state_class is (OrderState if number < 5 else dict)
    assert asyncio.run(handler(None, OrderState())) == "ok"  # type: ignore[arg-type]


def test_second_handler_is_rejected() -> None:
    inbox = Inbox()
    inbox.on_message(lambda text: None)
    with pytest.raises(ConfigurationError, match="There is a handler for MessageEvent already"):
        inbox.on_message(lambda text: None)
    with pytest.raises(TypeError, match="see on_message"):
        inbox.on_event(MessageEvent)
    with pytest.raises(TypeError, match="cls must be a class of events"):
        inbox.on_event("reaction")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"body": 5}, TypeError),
        ({}, ValueError),
        ({"media_urls": [5]}, TypeError),
        ({"media_urls": "https://media.example/1.jpg"}, TypeError),
        ({"body": "x", "reply_to": 5}, TypeError),
    ],
)
def test_wrong_replies_are_rejected(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Reply(**arguments)
