"""Replies: where they go, how one whose outcome is unclear is found, and what deadlines and cancellations do to it."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import httpx
import pytest
from attrs import evolve

from agentphone import (
    APIConnectionError,
    AsyncClient,
    Client,
    ClientClosedError,
    Conversation,
    DeadlineExceededError,
    Message,
    NewMessage,
    SendUnconfirmedError,
)
from agentphone._replies import Address, address_of, find_reply
from agentphone.sandbox import Behavior, Sandbox
from agentphone.webhooks import Webhook
from tests.support.fault_server import Connection, Received
from tests.support.helpers import KEY, client_of, message
from tests.support.send_server import SendServer, send_server

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def a_conversation(**changes: Any) -> Conversation:
    fields: dict[str, Any] = {
        "id": "conv_1",
        "phone_number_id": "num_1",
        "phone_number": "+15555550100",
        "participant": "+15555550110",
    }
    return Conversation(**(fields | changes))


def a_message(**changes: Any) -> Message:
    fields: dict[str, Any] = {
        "id": "msg_1",
        "body": "Hello",
        "from_number": "+15555550100",
        "to_number": "+15555550110",
        "direction": "outbound",
        "received_at": NOW,
    }
    return Message(**(fields | changes))


def an_event(channel: str = "sms", **data: Any) -> Any:
    payload = {
        "event": "agent.message",
        "channel": channel,
        "timestamp": "2026-01-02T03:04:05Z",
        "agentId": "agt_1",
        "data": {
            "conversationId": "conv_1",
            "numberId": "num_1",
            "from": "+15555550110",
            "to": "+15555550100",
            "message": "Hi",
            "direction": "inbound",
            **data,
        },
    }
    body = json.dumps(payload).encode()
    webhook = Webhook("whsec_test")
    return webhook.parse(body, webhook.sign(body))


PERSON = Address("conv_1", to="+15555550110", number_id="num_1")
GROUP = Address("conv_1", to="grp_1", number_id="num_1")
WHATSAPP = Address("conv_1", to="+15555550110", number_id="num_1", channel="whatsapp")
BY_NUMBER = Address("conv_1", to="+15555550110", from_number="+15555550100")

ADDRESSES: dict[str, tuple[Any, Address]] = {
    "conversation": (a_conversation(), PERSON),
    "conversation on SMS": (a_conversation(channel="sms"), PERSON),
    "conversation on iMessage": (
        a_conversation(channel="imessage", participant="a@b.example"),
        Address("conv_1", "a@b.example", number_id="num_1"),
    ),
    "conversation on WhatsApp": (a_conversation(channel="whatsapp"), WHATSAPP),
    "group": (a_conversation(is_group=True, group_id="grp_1", participant="?"), GROUP),
    "group named by its participant": (a_conversation(is_group=True, participant="grp_1"), GROUP),
    "no group": (a_conversation(is_group=False, group_id="grp_1"), PERSON),
    "conversation without the id of its number": (a_conversation(phone_number_id=None), BY_NUMBER),
    "new message": (NewMessage(a_conversation(), a_message(direction="inbound")), evolve(PERSON, answers=NOW)),
    "new message on WhatsApp": (NewMessage(a_conversation(), a_message(channel="whatsapp")), WHATSAPP),
    "event": (an_event(), PERSON),
    "event with the time of the text": (an_event(receivedAt="2026-01-02T03:04:05Z"), evolve(PERSON, answers=NOW)),
    "event on WhatsApp": (an_event("whatsapp"), WHATSAPP),
    "echo of an outbound message": (
        an_event(**{"from": "+15555550100", "to": "+15555550110", "direction": "outbound"}),
        PERSON,
    ),
    "event without the id of the number": (an_event(numberId=None), BY_NUMBER),
    "event of a group": (an_event(group={"isGroup": True, "groupId": "grp_1"}), GROUP),
    "event with an odd group": (an_event(group=["grp_1"]), PERSON),
}


@pytest.mark.parametrize(("target", "expected"), ADDRESSES.values(), ids=ADDRESSES)
def test_address(target: Any, expected: Address) -> None:
    assert address_of(target) == expected


@pytest.mark.parametrize(
    "target", [None, 5, a_message(), ("conv", "msg"), {"id": "conv_1"}], ids=lambda it: type(it).__name__
)
def test_wrong_target_is_rejected(target: Any) -> None:
    with pytest.raises(TypeError, match=r"conversation must be a Conversation, a NewMessage, a MessageEvent or an id"):
        address_of(target)


@pytest.mark.parametrize(
    ("found", "changes"),
    [
        (True, {}),
        (True, {"received_at": NOW - timedelta(seconds=9)}),
        (True, {"received_at": NOW + timedelta(hours=1)}),
        (False, {"received_at": NOW - timedelta(seconds=11)}),
        (False, {"received_at": NOW - timedelta(days=7)}),
        (False, {"body": "hello"}),
        (False, {"body": None}),
        (False, {"direction": "inbound"}),
        (False, {"direction": None}),
        (False, {"media_urls": ("https://media.example/1.jpg",)}),
        (False, {"extra": {"mediaUrl": "https://media.example/1.jpg"}}),
        (True, {"extra": {"mediaUrl": None}}),
        (False, {"id": "msg_known"}),
    ],
    ids=str,
)
def test_which_message_is_the_reply(found: bool, changes: dict[str, Any]) -> None:
    candidate = a_message(**changes)
    others = [a_message(id="msg_2", body="Other"), candidate, a_message(id="msg_3", direction="inbound")]
    result = find_reply(others, "Hello", (), since=NOW, known=["msg_known"])
    assert result == (candidate if found else None)


@pytest.mark.parametrize(("seconds", "found"), [(-5.0, False), (-0.4, True), (0.0, True), (3.0, True)])
def test_reply_is_not_older_than_the_text_that_it_answers(seconds: float, found: bool) -> None:
    """Another worker has sent the same words just before; the history may print whole seconds."""
    text_at = NOW + timedelta(milliseconds=400)
    candidate = a_message(received_at=text_at + timedelta(seconds=seconds))
    result = find_reply([candidate], "Hello", (), since=NOW + timedelta(seconds=2), known=(), answers=text_at)
    assert (result is not None) == found


@pytest.mark.parametrize("field", ["mediaUrls", "mediaUrl"])
def test_message_of_media_alone_is_found(field: str) -> None:
    media = ("https://media.example/1.jpg",)
    given = {"media_urls": media} if field == "mediaUrls" else {"extra": {field: media[0]}}
    candidate = a_message(body=None, **given)
    assert find_reply([candidate], "", media, since=NOW, known=()) == candidate


# Over real sockets


def settings(server: SendServer, **more: Any) -> dict[str, Any]:
    return {"api_key": KEY, "base_url": server.url, "timeout": 5.0} | more


def lose(connection: Connection, post: Received, server: SendServer) -> None:
    """Carry it out, and lose the answer."""
    server.apply(post)
    connection.close()


def lose_unapplied(connection: Connection, _: Received, __: SendServer) -> None:
    connection.close()


@pytest.mark.anyio
@pytest.mark.parametrize("days", [-1, 0, 1])
async def test_server_clock_of_another_day(days: int) -> None:
    """The same words an hour and a week earlier are not the reply, whatever the clocks say."""
    with send_server(SendServer(on_post=lose, clock_offset=timedelta(days=days))) as server:
        for hours in (1, 24 * 7):
            at = (server.now() - timedelta(hours=hours)).isoformat()
            server.history.append(
                message(id=f"old_{hours}", body="Hello", direction="outbound", receivedAt=at, mediaUrls=[])
            )
        async with AsyncClient(**settings(server)) as client:
            # No response has shown the server's clock before.
            sent = await client.conversations.reply(a_conversation(), "Hello")
            assert sent.id == server.history[0]["id"]
            server.on_post = lose_unapplied
            with pytest.raises(SendUnconfirmedError) as caught:
                await client.conversations.reply(a_conversation(), "Hello", confirm=0.2)
            assert abs(caught.value.since - server.now()) < timedelta(seconds=10)
    assert len(server.posts) == 2


@pytest.mark.anyio
async def test_same_words_twice_are_two_messages() -> None:
    with send_server(SendServer()) as server:
        async with AsyncClient(**settings(server)) as client:
            first = await client.conversations.reply(a_conversation(), "Hello")
            server.on_post = lose_unapplied
            with pytest.raises(SendUnconfirmedError, match=r"did not appear in the conversation within 0.3 s"):
                await client.conversations.reply(a_conversation(), "Hello", confirm=0.3)
            server.on_post = lose
            second = await client.conversations.reply(a_conversation(), "Hello")
    assert first.id != second.id
    assert [item["id"] for item in server.history] == [second.id, first.id]


@pytest.mark.anyio
@pytest.mark.parametrize("is_id", [True, False])
async def test_message_that_another_client_sent_before_is_not_the_reply(is_id: bool) -> None:
    with Sandbox() as sandbox:
        sandbox.receive_sms(from_number="+15555550110", to_number="+15555550100", body="Hi")
        settings: dict[str, Any] = {"api_key": KEY, "base_url": "https://sandbox.test"}
        async with (
            AsyncClient(**settings, transport=sandbox.transport()) as one,
            AsyncClient(**settings, transport=sandbox.transport()) as other,
        ):
            (target,) = await one.conversations.list()
            await one.conversations.reply(target, "Hello")
            detail = await other.conversations.get(target.id)
            sandbox.faults.add(kind="reset", method="POST")
            with pytest.raises(SendUnconfirmedError):
                await other.conversations.reply(target.id if is_id else detail, "Hello", confirm=0.3)


@pytest.mark.anyio
async def test_message_that_the_history_shows_late_is_found() -> None:
    def lose_and_apply_late(connection: Connection, post: Received, server: SendServer) -> None:
        connection.close()
        time.sleep(0.8)
        server.apply(post)

    with send_server(SendServer(on_post=lose_and_apply_late)) as server:
        async with AsyncClient(**settings(server)) as client:
            sent = await client.conversations.reply(a_conversation(), "Hello")
    assert sent.id == server.history[0]["id"]
    assert len(server.posts) == 1
    assert 2 <= len(server.gets) <= 6


@pytest.mark.anyio
async def test_errors_while_looking_do_not_hide_the_error() -> None:
    def break_down(connection: Connection, _: SendServer) -> bool:
        connection.read()
        connection.answer(500)
        return True

    def lose_and_break(connection: Connection, _: Received, server: SendServer) -> None:
        server.on_connect = break_down
        connection.close()

    with send_server(SendServer(on_post=lose_and_break)) as server:
        async with AsyncClient(**settings(server)) as client:
            with pytest.raises(SendUnconfirmedError) as caught:
                await client.conversations.reply(a_conversation(), "Hello", confirm=0.5)
    assert isinstance(caught.value.__cause__, APIConnectionError)
    assert caught.value.status_code is None
    assert "could not be read to look for it" in str(caught.value)


@pytest.mark.anyio
async def test_hook_that_raises_while_looking_does_not_hide_the_error() -> None:
    def fail_on_get(response: httpx.Response) -> None:
        if response.request.method == "GET":
            raise ValueError("hook")

    with send_server(SendServer(on_post=lose_unapplied)) as server:
        async with AsyncClient(**settings(server, on_response=fail_on_get)) as client:
            with pytest.raises(SendUnconfirmedError):
                await client.conversations.reply(a_conversation(), "Hello", confirm=0.2)
    assert server.gets


@pytest.mark.anyio
async def test_confirm_of_zero_does_not_look() -> None:
    with send_server(SendServer(on_post=lose)) as server:
        async with AsyncClient(**settings(server)) as client:
            with pytest.raises(SendUnconfirmedError) as caught:
                await client.conversations.reply(a_conversation(), "Hello", confirm=0)
    assert server.gets == []
    assert "did not appear" not in str(caught.value)


@pytest.mark.anyio
async def test_id_takes_one_request_more() -> None:
    with send_server(SendServer()) as server:
        async with AsyncClient(**settings(server)) as client:
            await client.conversations.reply("conv_1", "Hello")
    assert server.gets == ["/v1/conversations/conv_1?message_limit=20"]
    assert json.loads(server.posts[0].body) == {"body": "Hello", "to_number": "+15555550110", "number_id": "num_1"}


def silent(connection: Connection, *_: Any) -> None:
    connection.wait_until_gone()


@pytest.mark.anyio
async def test_deadline_covers_sending_and_looking() -> None:
    with send_server(SendServer(on_post=silent)) as server:
        async with AsyncClient(**settings(server, deadline=0.6)) as client:
            began = time.monotonic()
            with pytest.raises(SendUnconfirmedError) as caught:
                await client.conversations.reply(a_conversation(), "Hello")
            assert time.monotonic() - began < 5
            assert isinstance(caught.value.__cause__, DeadlineExceededError)
            assert "within 10 s" not in str(caught.value)  # there was no time left to look for it
            server.on_post = lose_unapplied
            began = time.monotonic()
            with pytest.raises(SendUnconfirmedError, match=r"did not appear in the conversation within \d(\.\d)? s"):
                await client.conversations.reply(a_conversation(), "Hello")
            assert time.monotonic() - began < 5  # not the 10 s of `confirm`
    assert len(server.posts) == 2


@pytest.mark.anyio
async def test_deadline_before_anything_was_sent() -> None:
    """The only connection is in use until the deadline is over."""
    with send_server(SendServer(on_post=silent)) as server:
        async with AsyncClient(**settings(server, max_connections=1)) as client, anyio.create_task_group() as group:
            group.start_soon(client.conversations.get, "conv_1")

            async def hold() -> None:
                with anyio.move_on_after(1.5):
                    await client.messages.send("Hold", to="+15555550110", number_id="num_1")

            group.start_soon(hold)
            await server.wait_for_post()
            hurried = client.with_options(deadline=0.2)
            with pytest.raises(DeadlineExceededError) as caught:
                await hurried.messages.send("Hello", to="+15555550110", number_id="num_1")
            assert caught.value.is_unsent
            group.cancel_scope.cancel()
    assert len(server.posts) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("body", ["Hello", "Hello" * 10_000], ids=["small", "large"])
async def test_deadline_that_passes_in_a_hook(body: str) -> None:
    """On a connection that is open, nothing else waits before the request is written."""
    pauses = [0.0, 0.1]
    with send_server(SendServer()) as server:
        async with AsyncClient(**settings(server, on_request=lambda _: time.sleep(pauses.pop(0)))) as client:
            await client.messages.send("Hello", to="+15555550110", number_id="num_1")
            with pytest.raises(DeadlineExceededError) as caught:
                await client.with_options(deadline=0.05).messages.send(body, to="+15555550110", number_id="num_1")
    assert caught.value.is_unsent
    assert len(server.posts) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["response without a Date", "client made by with_options"])
async def test_server_clock_that_an_earlier_response_showed(where: str) -> None:
    with send_server(SendServer(clock_offset=timedelta(days=1))) as server:
        async with AsyncClient(**settings(server)) as client:
            await client.conversations.get("conv_1")
            if where == "client made by with_options":
                client, server.on_post = client.with_options(max_retries=0), lose
            else:
                server.on_post = lambda connection, *_: connection.answer(503)
            with pytest.raises(SendUnconfirmedError) as caught:
                await client.messages.send("Hello", to="+15555550110", number_id="num_1")
    assert abs(caught.value.since - server.now()) < timedelta(seconds=10)


@pytest.mark.anyio
async def test_connection_that_the_server_closed_while_idle() -> None:
    def accept_and_close(connection: Connection, post: Received, server: SendServer) -> None:
        server.accept(connection, post)
        connection.close()
        closed.set()

    closed = threading.Event()
    with send_server(SendServer(on_post=accept_and_close)) as server:
        async with AsyncClient(**settings(server)) as client:
            for _ in range(3):
                closed.clear()
                await client.conversations.reply(a_conversation(), "Hello", confirm=0)
                assert await anyio.to_thread.run_sync(closed.wait, 5)
    assert server.connections == len(server.posts) == len(server.history) == 3


@pytest.mark.anyio
async def test_cancelled_send_is_sent_once_and_leaves_nothing() -> None:
    with send_server(SendServer(on_post=silent)) as server:
        async with AsyncClient(**settings(server)) as client:
            async with anyio.create_task_group() as group:
                group.start_soon(client.conversations.reply, a_conversation(), "Hello")
                await server.wait_for_post()
                group.cancel_scope.cancel()
            assert (await client.conversations.get("conv_1")).id == "conv_1"
            pool: Any = await client._connections.pool()
            assert len(pool._connections) == 1  # that of the GET: the one of the send was closed
            assert pool.limiter.value == 20
    assert len(server.posts) == 1
    assert server.gets == ["/v1/conversations/conv_1"]


@pytest.mark.anyio
async def test_client_closed_in_the_middle_is_unconfirmed() -> None:
    with send_server(SendServer(on_post=silent)) as server:
        client = AsyncClient(**settings(server))
        caught: list[Exception] = []

        async def reply() -> None:
            try:
                await client.conversations.reply(a_conversation(), "Hello")
            except Exception as error:  # noqa: BLE001
                caught.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(reply)
            await server.wait_for_post()
            await client.aclose()
    assert isinstance(caught[0], SendUnconfirmedError)
    assert isinstance(caught[0].__cause__, ClientClosedError)
    assert [attempt.outcome for attempt in caught[0].attempts] == ["ClientClosedError"]
    assert len(server.posts) == 1


@pytest.mark.anyio
async def test_connection_that_was_idle_for_long_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with send_server(SendServer()) as server:
        async with AsyncClient(**settings(server)) as client:
            await client.conversations.get("conv_1")
            await client.conversations.reply(a_conversation(), "Hello")
            assert server.connections == 1
            monkeypatch.setattr("agentphone._http.transport.MAX_IDLE_FOR_SENDS", 0.0)
            await anyio.sleep(0.01)
            await client.conversations.reply(a_conversation(), "Hello")
            await client.conversations.get("conv_1")
            assert server.connections == 2


def test_server_that_is_up_a_moment_later_gets_it_once() -> None:
    with send_server(SendServer()) as server:
        port = int(server.url.rpartition(":")[2])
    later = SendServer()
    with_server = send_server(later, port)

    def start(error: Exception, _: float) -> None:
        assert isinstance(error, APIConnectionError)
        assert error.is_unsent
        with_server.__enter__()

    with Client(**settings(server, on_retry=start)) as client:
        sent = client.conversations.reply(a_conversation(), "Hello")
    with_server.__exit__(None, None, None)
    assert [item["id"] for item in later.history] == [sent.id]
    assert len(later.posts) == 1


def test_server_that_is_away_gets_nothing() -> None:
    with send_server(SendServer()) as server:
        pass
    with Client(**settings(server, max_retries=1)) as client, pytest.raises(APIConnectionError) as caught:
        client.conversations.reply(a_conversation(), "Hello")
    assert caught.value.is_unsent
    assert [attempt.outcome for attempt in caught.value.attempts] == ["ConnectError", "ConnectError"]


@pytest.mark.anyio
@pytest.mark.parametrize(("status", "expected"), [(200, True), (400, False)])
async def test_typing(status: int, expected: bool) -> None:
    client, script = client_of(httpx.Response(status, json={"conversationId": "conv_1", "status": "shown"}))
    for target in (a_conversation(), "conv_1", NewMessage(a_conversation(), a_message()), an_event()):
        assert await client.conversations.typing(target) is expected
    assert script.targets == ["/v1/conversations/conv_1/typing"] * 4


@pytest.mark.anyio
async def test_typing_is_tried_once() -> None:
    client, script = client_of(httpx.Response(503))
    with pytest.raises(Exception, match="503"):
        await client.conversations.typing("conv_1")
    assert len(script.requests) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("delay", [0.0, 0.4])
async def test_lost_answer_of_a_sandbox_of_another_year(delay: float) -> None:
    """Its `Date` and its messages follow its own clock, and the history may show the message late."""
    with Sandbox() as sandbox:
        sandbox.clock = lambda: 1_700_000_000.0
        sandbox.behavior = Behavior(sent_message_delay=delay)
        sandbox.receive_sms(from_number="+15555550110", to_number="+15555550100", body="Hi")
        async with AsyncClient(KEY, base_url="https://sandbox.test", transport=sandbox.transport()) as client:
            (target,) = await client.conversations.list()
            sandbox.faults.add(kind="lost", method="POST")
            sent = await client.conversations.reply(target, "Hello")
            sandbox.faults.add(status=409, kind="lost", body={"error": {"code": "DELIVERY_UNCONFIRMED"}}, method="POST")
            again = await client.conversations.reply(target.id, "Hello")
            await anyio.sleep(delay)
            messages = [message async for message in client.conversations.messages(target.id)]
    assert {message.id for message in messages if message.direction == "outbound"} == {sent.id, again.id}
    assert len(messages) == 3
