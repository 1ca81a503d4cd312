"""`follow` and `watch` while requests fail: temporary errors are retried, permanent ones raised."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import httpx
import pytest

from agentphone import (
    AuthenticationError,
    NotFoundError,
    RateLimitError,
    ResponseDecodeError,
)
from agentphone.sandbox import Sandbox
from tests.live.support import (
    Phone,
    bodies,
    client_for,
    faulty_client,
    fill,
    newest_of,
    not_found,
    nth_list,
)
from tests.support.helpers import client_of

pytestmark = pytest.mark.anyio


async def test_server_errors_are_retried_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    reported: list[tuple[str, float]] = []
    with Sandbox() as sandbox:
        phone = Phone(sandbox)
        conversation = phone.text("old")
        async with client_for(
            sandbox, max_retries=0, on_retry=lambda error, delay: reported.append((type(error).__name__, delay))
        ) as client:
            stream = client.conversations.follow(conversation, after=phone.now)
            sandbox.faults.add(status=503, times=20)
            phone.text("new")
            with caplog.at_level(logging.WARNING, "agentphone"):
                assert await bodies(stream, 1) == ["new"]
    assert [name for name, _ in reported] == ["ServerError"] * 20
    assert reported[0][1] <= 2.0
    assert all(delay <= 30.0 for _, delay in reported)
    assert reported[-1][1] >= 20.0
    assert sum("503; trying again in" in record.getMessage() for record in caplog.records) == 20


async def test_connection_failures_are_retried_for_ten_minutes() -> None:
    back_at = anyio.current_time() + 600.0
    with Sandbox() as sandbox:
        phone = Phone(sandbox)
        conversation = phone.text("old")
        inner = sandbox.transport()

        async def respond(request: httpx.Request) -> httpx.Response:
            if anyio.current_time() < back_at:
                raise httpx.ConnectError("refused")
            return await inner.handle_async_request(request)

        client, script = client_of(respond)
        phone.text("new")
        async with client:
            assert await bodies(client.conversations.follow(conversation, after="2025-06-30T12:00:01Z"), 1) == ["new"]
        assert anyio.current_time() < back_at + 60
        assert len(script.requests) < 200


@pytest.mark.parametrize("retry_after", [45, 600])
async def test_long_retry_after_is_respected(retry_after: int) -> None:
    with Sandbox() as sandbox:
        phone = Phone(sandbox)
        conversation = phone.text("old")
        async with client_for(sandbox, max_retries=0) as client:
            stream = client.conversations.follow(conversation, after=phone.now)
            phone.text("new")
            sandbox.faults.add(status=429, retry_after=retry_after)
            began = anyio.current_time()
            assert await bodies(stream, 1) == ["new"]
            assert retry_after - 1e-6 <= anyio.current_time() - began <= retry_after + 5
            sandbox.faults.add(status=429, retry_after=10**6)
            with pytest.raises(RateLimitError):
                await anext(stream)


async def test_permanent_errors_are_raised_and_the_next_step_tries_again() -> None:
    with Sandbox() as sandbox:
        phone = Phone(sandbox)
        conversation = phone.text("old")
        async with client_for(sandbox) as client:
            with pytest.raises(NotFoundError):
                await anext(client.conversations.follow("conv_nobody"))
            for stream in (
                client.conversations.follow(conversation, after=phone.now),
                client.conversations.watch(after=phone.now),
            ):
                sandbox.faults.add(status=401)
                with pytest.raises(AuthenticationError):
                    await anext(stream)
                sandbox.faults.add(status=200, body="<html>not JSON</html>")
                with pytest.raises(ResponseDecodeError):
                    await anext(stream)
                phone.text("new")
                assert "new" in repr(await anext(stream))


async def test_step_after_an_error_in_a_hook_still_waits() -> None:
    class EnoughError(Exception):
        """What the hook raises."""

    def stop(error: Exception, delay: float) -> None:
        raise EnoughError

    with Sandbox() as sandbox:
        phone = Phone(sandbox)
        conversation = phone.text("old")
        async with client_for(sandbox, max_retries=0, on_retry=stop) as client:
            stream = client.conversations.follow(conversation, after=phone.now)
            sandbox.faults.add(status=503)
            with pytest.raises(EnoughError):
                await anext(stream)
            phone.text("new")
            began = anyio.current_time()
            assert await bodies(stream, 1) == ["new"]
            assert anyio.current_time() - began > 1


async def test_watch_raises_when_the_list_is_not_found() -> None:
    """A wrong base URL must not look like an account without conversations."""

    async def respond(request: httpx.Request) -> httpx.Response:
        return not_found(request)

    client, script = client_of(respond)
    async with client:
        stream = client.conversations.watch()
        for _ in range(2):
            with pytest.raises(NotFoundError) as raised:
                await anext(stream)
            assert str(raised.value).startswith("GET /v1/conversations?")
    assert len(script.requests) == 2


@pytest.mark.parametrize("start", ["now", "message", "timestamp"])
@pytest.mark.parametrize("number", [1, 2])
async def test_watch_continues_after_the_list_was_not_found(start: str, number: int) -> None:
    with Sandbox() as sandbox:
        phone = fill(sandbox)
        async with faulty_client(sandbox, nth_list(not_found, number)) as client:
            after: Any = {"now": None, "timestamp": phone.now, "message": await newest_of(sandbox)}[start]
            stream = client.conversations.watch(after=after)
            with pytest.raises(NotFoundError):
                await anext(stream)
            with anyio.move_on_after(100):
                await anext(stream)
            phone.text("new", wait=100)
            assert (await anext(stream)).message.body == "new"
