"""Sends through what users put in place of the connections: transports, httpx clients, mocks and proxies."""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import pytest
import respx

from agentphone import (
    AgentPhoneError,
    APIConnectionError,
    APITimeoutError,
    AsyncClient,
    DeadlineExceededError,
    SendUnconfirmedError,
)
from tests.support.helpers import BASE, KEY, client_of, ok
from tests.support.proxy import proxying
from tests.support.send_server import SendServer, send_server

pytestmark = pytest.mark.anyio

ARGUMENTS: dict[str, Any] = {"to": "+15555550110", "number_id": "num_1"}
SENT = {"id": "msg_9", "status": "sent", "conversation_id": "conv_1", "media_urls": None, "new_field": 1}


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentphone._http.retry.INITIAL_BACKOFF", 0.001)


@pytest.mark.parametrize(
    ("error", "is_repeated"),
    [
        (httpx.ConnectError("refused"), True),
        (httpx.ConnectTimeout("slow"), True),
        (httpx.PoolTimeout("busy"), True),
        (httpx.ProxyError("502 Bad Gateway"), True),
        (httpx.ReadTimeout("slow"), False),
        (httpx.WriteTimeout("slow"), False),
        (httpx.ReadError("reset"), False),
        (httpx.WriteError("broken pipe"), False),
        (httpx.CloseError("?"), False),
        (httpx.RemoteProtocolError("gone"), False),
        (httpx.LocalProtocolError("?"), False),
        (OSError("?"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_error_of_a_transport(error: Exception, is_repeated: bool) -> None:
    client, script = client_of(error, ok(SENT))
    if is_repeated:
        assert (await client.messages.send("Hello", **ARGUMENTS)).id == "msg_9"
    else:
        with pytest.raises(SendUnconfirmedError) as caught:
            await client.messages.send("Hello", **ARGUMENTS)
        assert isinstance(caught.value.__cause__, APIConnectionError)
        assert not caught.value.__cause__.is_unsent
    assert script.targets == ["/v1/messages"] * (1 + is_repeated)


async def hang(request: httpx.Request) -> httpx.Response:
    await anyio.sleep(30)
    raise AssertionError(request)


@pytest.mark.parametrize("settings", [{"timeout": 0.05}, {"deadline": 0.05}], ids=str)
async def test_transport_that_hangs_may_have_sent_it(settings: dict[str, float]) -> None:
    client, script = client_of(hang, **settings)
    with pytest.raises(SendUnconfirmedError) as caught:
        await client.messages.send("Hello", **ARGUMENTS)
    assert isinstance(caught.value.__cause__, APITimeoutError)
    assert len(script.requests) == 1


async def test_respx_that_hangs_may_have_sent_it() -> None:
    """The connection that respx replaces does not say how far it got."""
    calls: list[httpx.Request] = []

    async def count_and_hang(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return await hang(request)

    with respx.mock:
        respx.post(f"{BASE}/v1/messages").mock(side_effect=count_and_hang)
        async with AsyncClient(KEY, base_url=BASE, timeout=0.05) as client:
            with pytest.raises(SendUnconfirmedError):
                await client.messages.send("Hello", **ARGUMENTS)
    assert len(calls) == 1


async def test_httpx_client_that_hangs_may_have_sent_it() -> None:
    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(hang)) as http_client,
        AsyncClient(KEY, base_url=BASE, timeout=0.05, http_client=http_client) as client,
    ):
        with pytest.raises(SendUnconfirmedError):
            await client.messages.send("Hello", **ARGUMENTS)


async def test_host_that_does_not_answer_has_got_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any, **__: Any) -> None:
        await anyio.sleep(30)

    monkeypatch.setattr("agentphone._http.connection._NETWORK.connect_tcp", never)
    async with AsyncClient(KEY, base_url=BASE, timeout=0.02, max_retries=2) as client:
        with pytest.raises(APITimeoutError) as caught:
            await client.messages.send("Hello", **ARGUMENTS)
        assert len(caught.value.attempts) == 3
        hurried = client.with_options(deadline=0.05, timeout=None)
        with pytest.raises(DeadlineExceededError) as late:
            await hurried.messages.send("Hello", **ARGUMENTS)
    assert caught.value.is_unsent
    assert late.value.is_unsent


@pytest.mark.parametrize("scheme", ["tunnel", "forward"])
async def test_send_through_a_proxy(scheme: str, monkeypatch: pytest.MonkeyPatch, tls: Any, trusting: Any) -> None:
    """A proxy that opens no tunnel has sent nothing; a server that is lost behind one may have got it."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "request_method"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    secured = tls if scheme == "tunnel" else None
    with proxying() as proxy, send_server(SendServer(), tls=secured) as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("https_proxy", proxy.url)
        monkeypatch.setattr("agentphone._http.pool.urllib.request.proxy_bypass", lambda _: False)
        settings: dict[str, Any] = {"ssl_context": trusting} if secured else {}
        async with AsyncClient(KEY, base_url=server.url, **settings) as client:
            if secured:
                proxy.refusals.append(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")
            sent = await client.messages.send("Hello", **ARGUMENTS)
            assert [item["id"] for item in server.history] == [sent.id]
            server.on_post = lambda connection, *_: connection.close()
            for _ in range(2):  # over the connection that is kept, and over a new one
                with pytest.raises(SendUnconfirmedError):
                    await client.messages.send("Hello", **ARGUMENTS)
        assert len(server.posts) == 3
        assert len(proxy.lines) == 3 if secured else 2


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({}, ValueError, "to or recipients must be given, and not both"),
        ({"to": "+1", "recipients": ["+1", "+2"]}, ValueError, "to or recipients must be given, and not both"),
        ({"to": ""}, ValueError, "to must not be empty"),
        ({"to": 15555550110}, TypeError, "to must be a string or None, got int"),
        ({"recipients": ["+1"]}, ValueError, "recipients must have 2 to 32 items, got 1; for one, pass to="),
        ({"recipients": ["+1"] * 33}, ValueError, "recipients must have 2 to 32 items, got 33"),
        ({"recipients": "+1"}, TypeError, "recipients must be a list or tuple of strings, got str"),
        ({"recipients": ["+1", None]}, TypeError, "each item of recipients must be a string, got NoneType"),
        ({"to": "+1", "number_id": None}, ValueError, "from_number, number_id or agent_id must be given"),
        ({"to": "+1", "body": ""}, ValueError, 'body must not be "" without media_urls'),
        ({"to": "+1", "body": None}, TypeError, "body must be a string, got NoneType"),
        ({"to": "+1", "body": "\ud800"}, ValueError, "body must be Unicode text"),
        ({"to": "+1", "media_urls": ["http://a.example/1"]}, ValueError, "media_urls must be https:// URLs"),
        ({"to": "+1", "media_urls": ["https://"]}, ValueError, "media_urls must be https:// URLs"),
        ({"to": "+1", "media_urls": "https://a.example/1"}, TypeError, "media_urls must be a list or tuple of strings"),
        ({"to": "+1", "media_urls": {"https://a.example"}}, TypeError, "media_urls must be a list"),
        ({"to": "+1", "media_urls": ["https://a.example/1"] * 21}, ValueError, "media_urls must have at most 20 items"),
        ({"to": "+1", "reply_to": 5}, TypeError, "reply_to must be a Message or the id of one, got int"),
        ({"to": "+1", "reply_to": ""}, ValueError, "reply_to must not be empty"),
        ({"to": "+1", "send_style": " "}, ValueError, "send_style must not be empty"),
        ({"to": "+1", "channel": b"whatsapp"}, TypeError, "channel must be a string or None, got bytes"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
async def test_wrong_argument_sends_nothing(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    client, script = client_of(ok(SENT))
    given = {"body": "Hello", "number_id": "num_1"} | arguments
    with pytest.raises(error, match=f"^{text}"):
        await client.messages.send(given.pop("body"), **given)
    assert script.requests == []


async def test_wrong_argument_of_a_reply_sends_nothing() -> None:
    client, script = client_of(ok(SENT))
    for arguments in (
        {"body": ""},
        {"body": "Hello", "media_urls": ["ftp://a.example"]},
        {"body": "Hi", "confirm": -1},
    ):
        with pytest.raises(ValueError, match=r"body|media_urls|confirm"):
            await client.conversations.reply("conv_1", **arguments)
    with pytest.raises(ValueError, match="conversation_id must not be empty"):
        await client.conversations.reply("", "Hello")
    assert script.requests == []


async def test_body_of_the_request() -> None:
    client, script = client_of(ok(SENT))
    sent = await client.messages.send(
        "  as it is \U0001f600\n",
        recipients=["+15555550110", "a@b.example"],
        agent_id="agt_1",
        media_urls=("HTTPS://media.example/1.jpg",),
        reply_to="msg_1",
        send_style="confetti",
        channel="whatsapp",
    )
    assert script.requests[0].headers["content-type"] == "application/json"
    assert script.requests[0].read().decode() == (
        '{"body":"  as it is \U0001f600\\n","recipients":["+15555550110","a@b.example"],"agent_id":"agt_1",'
        '"send_style":"confetti","channel":"whatsapp","media_urls":["HTTPS://media.example/1.jpg"],'
        '"reply_to_message_id":"msg_1"}'
    )
    assert (sent.id, sent.media_urls, sent.extra) == ("msg_9", (), {"new_field": 1})
    assert sent.to_dict()["conversation_id"] == "conv_1"
    assert sent.to_dict()["new_field"] == 1


async def test_reaction() -> None:
    answer = {"id": "rea_1", "reaction_type": "love", "message_id": "msg/1", "channel": "imessage"}
    client, script = client_of(httpx.ConnectError("refused"), ok(answer), httpx.Response(502))
    reaction = await client.messages.react("msg/1", "love")
    assert (reaction.id, reaction.reaction_type) == ("rea_1", "love")
    with pytest.raises(SendUnconfirmedError):
        await client.messages.react("msg/1", "love")
    assert script.targets == ["/v1/messages/msg%2F1/reactions"] * 3
    assert script.requests[-1].read() == b'{"reaction":"love"}'
    for message, name in ((5, "message"), ("", "message"), ("msg_1", "reaction")):
        with pytest.raises((TypeError, ValueError), match=name):
            await client.messages.react(message, "" if name == "reaction" else "love")  # type: ignore[arg-type]


async def test_error_never_holds_the_key() -> None:
    client, _ = client_of(httpx.Response(500, content=f"{KEY} leaked"))
    with pytest.raises(AgentPhoneError) as caught:
        await client.messages.send("Hello", **ARGUMENTS)
    assert KEY not in f"{caught.value!r} {caught.value} {vars(caught.value)} {vars(caught.value.__cause__)}"
