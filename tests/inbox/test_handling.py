"""Handling: handlers, state and replies; what fails, is tried again, given up, and retried by hand."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import threading
from typing import Any

import pytest

from agentphone import Client
from agentphone.inbox import Reply
from agentphone.webhooks import MessageEvent, ReactionEvent
from tests.inbox.account import Account, OrderState, counting
from tests.inbox.deliveries import delivery, of_message
from tests.inbox.world import AGENT, person, until, working
from tests.support.processes import SECONDS


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
    running: set[str] = set()
    overlaps: list[str] = []
    together = threading.Barrier(4)

    @account.inbox.on_message
    def answer(text: MessageEvent) -> str:
        if text.conversation_id in running:
            overlaps.append(str(text.text))
        running.add(text.conversation_id)
        if str(text.text) in "0123":  # the first of each conversation: each waits for the others
            together.wait(SECONDS)
        running.discard(text.conversation_id)
        return f"re: {text.text}"

    with working(account.inbox):
        texts = [account.text(str(number), person_number=number % 4) for number in range(12)]
        account.wait("done", count=12)
    assert overlaps == []
    for number in range(4):
        assert account.replies(texts[number]) == [f"re: {each}" for each in range(number, 12, 4)]
    assert account.state(texts[0]) is None


def test_failing_handler_is_tried_again_and_given_up(account: Account, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []
    other_is_answered = threading.Event()

    @account.inbox.on_message
    def answer(text: MessageEvent, state: OrderState) -> str:
        calls.append(str(text.text))
        state.texts += 1
        if text.text == "poison" and calls.count("poison") == 5:
            assert other_is_answered.wait(SECONDS), "the other conversation waited"
        if text.text == "poison" or (text.text == "second time" and calls.count("second time") < 2):
            raise RuntimeError(f"cannot answer {text.text}")
        return "ok"

    with caplog.at_level(logging.DEBUG, "agentphone.inbox"), working(account.inbox):
        poison = account.text("poison")
        account.text("after the poison")
        other = account.text("second time", person_number=1)
        until(lambda: account.replies(other))
        other_is_answered.set()
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
    reason = rf"\(RuntimeError: cannot answer \*\*\* \(test_handling\.py, line {raise_line(answer)}\)\)"
    assert sum(bool(re.search(rf"attempt \d failed {reason}; the next one is in", line)) for line in lines) == 9
    advice = f"Fix it, then: agentphone inbox retry {failed['id']}"
    assert sum(bool(re.search(rf": failed {reason} in .* s\. {advice}$", line)) for line in lines) == 2
    tracebacks = [line for line in lines if line.startswith("Traceback (most recent call last):\n")]
    assert len(tracebacks) == 11
    assert tracebacks[0].endswith("RuntimeError: cannot answer ***")
    assert "poison" not in caplog.text
    assert person(0) not in caplog.text


def raise_line(function: Any) -> int:
    """Return the number of the line of a function that raises."""
    lines, first = inspect.getsourcelines(function)
    return first + next(number for number, line in enumerate(lines) if line.strip().startswith("raise "))


ERRORS = {error.__name__: error for error in (asyncio.CancelledError, SystemExit, KeyboardInterrupt, StopIteration)}


@pytest.mark.parametrize("is_async", [True, False])
def test_any_exception_is_a_failure_of_that_text(account: Account, is_async: bool) -> None:
    def fail(text: MessageEvent) -> str:
        if text.text in ERRORS:
            raise ERRORS[text.text]
        return "ok"

    async def fail_async(text: MessageEvent) -> str:
        return fail(text)

    account.inbox._max_attempts = 1
    account.inbox.on_message(fail_async if is_async else fail)
    with working(account.inbox):
        for name in ERRORS:
            account.text(name)
        good = account.text("good")
        account.wait("done")
        failed = account.items("failed")
    assert account.replies(good) == ["ok"]
    assert [item["text"] for item in failed] == [*ERRORS]
    assert [item["text"] for item in failed if item["text"] not in item["error"]] == []


WRONG = {
    "a number": (5, "TypeError: the handler must return None, a str or a Reply, got int"),
    "no text": ("", "ValueError: the handler returned an empty string; return None to send no reply"),
    "a state": ({"n": object()}, "TypeError: metadata['n'] is a object, which JSON does not have"),
}


def test_wrong_results_are_failures(account: Account) -> None:
    account.inbox._max_attempts = 2

    @account.inbox.on_message
    def handle(text: MessageEvent, state: dict[str, Any]) -> Any:
        answer, _ = WRONG[str(text.text)]
        if isinstance(answer, dict):
            state.update(answer)
            return "ok"
        return answer

    with working(account.inbox):
        texts = [account.text(text, person_number=number) for number, text in enumerate(WRONG)]
        failed = account.wait("failed", count=len(WRONG))
    for item in failed:
        assert WRONG[item["text"]][1] in item["error"]
        assert item["attempts"] == 2
    for text in texts:
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


def test_api_that_fails_is_waited_for(account: Account, caplog: pytest.LogCaptureFixture) -> None:
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
    assert caplog.text.count(": the API cannot be used (ServerError 503); trying again in") == 3
    assert "attempt" not in caplog.text


def test_closed_client_gives_no_text_up(account: Account, caplog: pytest.LogCaptureFixture) -> None:
    """As at the end of a worker whose handler takes longer than the worker waits."""
    counting(account)
    asyncio.run(account.client.aclose())
    with working(account.inbox):
        account.text()
        until(lambda: "the API cannot be used (ClientClosedError); trying again in" in caplog.text)
        assert "attempt" not in caplog.text
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


@pytest.mark.usefixtures("briefly_looked_for")
def test_unconfirmed_reply_is_not_sent_again_by_itself(account: Account, caplog: pytest.LogCaptureFixture) -> None:
    calls = counting(account)
    with working(account.inbox):
        account.box.faults.add(kind="reset", method="POST")
        text = account.text()
        [open_] = account.wait("unconfirmed")
        assert "may have been sent" in open_["error"]
        until(lambda: "unconfirmed in" in caplog.text)
        assert f"s. Look at the conversation, then: agentphone inbox retry {open_['id']}" in caplog.text
        assert account.replies(text) == []
        account.text("two")
        until(lambda: account.replies(text) == ["ok"])
        assert account.retry(open_["id"]) == f"The reply to {open_['id']} will be sent again."
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
