"""Registering handlers: which functions are accepted, and what the others are told; and replies that are wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial, wraps
from typing import Any

import pytest

from agentphone import ConfigurationError
from agentphone.inbox import Inbox, Reply
from agentphone.webhooks import MessageEvent
from tests.inbox.account import Account, OrderState, counting


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


def test_worker_needs_a_handler_and_a_name(account: Account) -> None:
    with pytest.raises(ConfigurationError, match="no handler"):
        account.inbox.work()
    counting(account)
    with pytest.raises(ConfigurationError, match="name must be a printable string"):
        account.inbox.work("")
    with pytest.raises(ConfigurationError, match="webhook must be HOST:PORT"):
        account.inbox.run("somewhere")
