"""The API key is only in its header, and no argument or response sends a request elsewhere."""

from __future__ import annotations

import gzip
import json
import logging
import pickle
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote

import anyio
import httpx
import pytest

from agentphone import (
    AgentPhoneError,
    APIConnectionError,
    APIStatusError,
    AsyncClient,
    AuthenticationError,
    Client,
    ConfigurationError,
    ResponseDecodeError,
)
from agentphone._secret import Secret
from agentphone.sandbox import Sandbox
from tests.support.fault_server import (
    LOST,
    OK_HEAD,
    SLOW,
    UNREADABLE,
    Connection,
    Fault,
    after_request,
    answering,
    raw,
    serving,
)
from tests.support.helpers import client_of, conversation, page
from tests.support.processes import sandbox

pytestmark = pytest.mark.anyio

CANARY = "sk_live_CANARY_4f3e2d1c0b9a8f7e"
KINDS = ["asyncio", "trio", "blocking"]
each_client = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentphone._http.retry.INITIAL_BACKOFF", 0.001)


def call(kind: str, url: str, ask: Callable[[Any], Any], **settings: Any) -> Any:
    """Make one call with a client of each kind; return its result or error."""
    settings = {"max_retries": 1, "timeout": 30} | settings
    if kind == "blocking":
        with Client(CANARY, base_url=url, **settings) as client:
            try:
                return ask(client.conversations)
            except Exception as error:  # noqa: BLE001  # it is what the test looks at
                return error

    async def main() -> Any:
        async with AsyncClient(CANARY, base_url=url, **settings) as client:
            try:
                return await ask(client.conversations)
            except Exception as error:  # noqa: BLE001
                return error

    return anyio.run(main, backend=kind)


# ---- Where requests go

IDS = {
    "..": "%2E%2E",
    ".": "%2E",
    "../../admin": "..%2F..%2Fadmin",
    "/": "%2F",
    "//other.example": "%2F%2Fother.example",
    "https://other.example/": "https%3A%2F%2Fother.example%2F",
    "a?limit=1": "a%3Flimit%3D1",
    "a#b": "a%23b",
    "%2e%2e": "%252e%252e",
    "é": "%C3%A9",
    " ": "%20",
}


def asks(conversation_id: str) -> list[Callable[[Any], Any]]:
    return [
        lambda c: c.get(conversation_id),
        lambda c: c.update(conversation_id, metadata=None),
        lambda c: c.messages(conversation_id).page(),
    ]


@each_client
def test_any_id_is_sent_as_one_path_segment(kind: str) -> None:
    with serving() as server:
        for conversation_id in IDS:
            for ask in asks(conversation_id):
                call(kind, server.url, ask)
        assert [request.target for request in server.requests] == [
            f"/v1/conversations/{segment}{tail}" for segment in IDS.values() for tail in ("", "", "/messages?limit=200")
        ]
        for rejected in ("", "a\r\nX-Evil: 1\r\n\r\nGET / HTTP/1.1"):
            for ask in asks(rejected):
                assert isinstance(call(kind, server.url, ask), ValueError)
        assert len(server.requests) == 3 * len(IDS)


@each_client
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_raised_and_not_followed(kind: str, status: int) -> None:
    with serving() as other, serving(answering(status, b"", location=other.url + "/v1/conversations")) as server:
        error = call(kind, server.url, lambda c: c.list().page())
        assert type(error) is APIStatusError
        assert (error.status_code, error.location) == (status, other.url + "/v1/conversations")
        assert other.url in str(error)
        assert (other.connections, server.connections) == (0, 1)


async def test_http_client_with_follow_redirects_does_not_follow() -> None:
    with serving() as other, serving(answering(307, b"", location=other.url)) as server:
        async with (
            httpx.AsyncClient(follow_redirects=True) as http_client,
            AsyncClient(CANARY, base_url=server.url, http_client=http_client) as client,
        ):
            with pytest.raises(APIStatusError) as caught:
                await client.conversations.list()
        assert caught.value.location == other.url
        assert other.connections == 0


@pytest.mark.parametrize("cls", [AsyncClient, Client])
@pytest.mark.parametrize("host", ["api.example", "192.0.2.1", "localhost.example", "0.0.0.0", "[::2]"])
def test_http_is_for_loopback_only(cls: Any, host: str) -> None:
    with pytest.raises(ConfigurationError, match="unencrypted"):
        cls(CANARY, base_url=f"http://{host}")
    cls(CANARY, base_url=f"http://{host}", allow_http=True)


@pytest.mark.parametrize("cls", [AsyncClient, Client])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\nX-Evil: 1"])
def test_key_with_a_line_break_is_rejected(cls: Any, end: str) -> None:
    with pytest.raises(ConfigurationError, match="line break"):
        cls(CANARY + end)


# ---- Where the key is


def shown(error: BaseException) -> str:
    """Return everything that a log, an error reporter or a queue may show of an error."""
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    texts = [*told.format(), str(error), repr(error), repr(vars(error)), repr(error.__cause__)]
    if isinstance(error, AgentPhoneError):
        texts.append(pickle.dumps(error).decode("latin-1"))
    return "\n".join(texts)


def echo(status: int) -> Fault:
    """Respond with the request's own headers, as careless servers do."""

    def fault(connection: Connection) -> None:
        received = connection.read()
        if received is not None:
            key = received.headers["authorization"]
            connection.answer(status, f'{{"detail": "Wrong key: {key}", "data": "{key}"}}'.encode())

    return fault


def break_down(_: object) -> None:
    raise ZeroDivisionError("the hook's own")


def add_a_header_that_is_none(request: httpx.Request) -> None:
    request.headers["X-Team"] = "a\nb"


FAILURES: dict[str, tuple[Fault, dict[str, Any]]] = {
    **{name: (fault, {}) for name, fault in LOST.items()},
    **{name: (fault, {"timeout": 0.03}) for name, fault in SLOW.items() if "byte" not in name},
    "deadline": (SLOW["silence"], {"deadline": 0.05}),
    **{name: (UNREADABLE[name][0], {}) for name in ("HTML with 200", "no gzip", "a list")},
    **{f"echo with {status}": (echo(status), {}) for status in (200, 400, 401, 503)},
    "a hook that breaks down": (answering(200), {"on_response": break_down}),
    "a hook before": (answering(200), {"on_request": break_down}),
    "a header that is none": (answering(200), {"on_request": add_a_header_that_is_none}),
    "too large": (after_request(lambda c, _: c.send(OK_HEAD + b"\r\n" + b" " * 9999)), {"max_response_bytes": 100}),
}


@each_client
@pytest.mark.parametrize("name", FAILURES)
def test_failed_call_shows_no_key(kind: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    fault, settings = FAILURES[name]
    with serving(fault, times=99) as server:
        for ask in (lambda c: c.get("conv_1"), lambda c: c.update("conv_1", metadata={"a": 1})):
            error = call(kind, server.url, ask, **settings)
            assert isinstance(error, AgentPhoneError | ZeroDivisionError)
            assert CANARY not in shown(error)
    assert CANARY not in caplog.text
    if name not in ("a hook before", "a hook that breaks down", "deadline"):  # which end before there is an outcome
        assert "agentphone" in {record.name for record in caplog.records}


async def test_successful_call_logs_no_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving() as server:
        async with (
            httpx.AsyncClient() as http_client,
            AsyncClient(CANARY, base_url=server.url) as client,
            AsyncClient(CANARY, base_url=server.url, http_client=http_client) as through,
        ):
            await client.conversations.list()
            await through.conversations.list()
        assert all(CANARY not in request.target for request in server.requests)
        assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {CANARY}"}
    assert {"agentphone", "httpx", "httpcore.http11"} <= {record.name for record in caplog.records}
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {"timeout": -1},
        {"timeout": "5"},
        {"base_url": "http://api.example"},
        {"base_url": 5},
        {"max_retries": None},
        {"on_request": 5},
        {"base_url": "sandbox:/nowhere/at/all.db"},
    ],
    ids=str,
)
@pytest.mark.parametrize("cls", [AsyncClient, Client])
def test_failed_construction_shows_no_key(cls: Any, settings: dict[str, Any]) -> None:
    with pytest.raises((AgentPhoneError, TypeError, OSError)) as caught:
        cls(CANARY, **settings)
    assert CANARY not in shown(caught.value)


@pytest.mark.parametrize("cls", [AsyncClient, Client])
@pytest.mark.parametrize("end", ["\n", " ", "\u2028"])
def test_rejected_key_is_not_shown(cls: Any, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (CANARY + end, None):
        monkeypatch.setenv("AGENTPHONE_API_KEY", CANARY + end)
        with pytest.raises(ConfigurationError) as caught:
            cls(key)
        told = traceback.TracebackException.from_exception(caught.value.with_traceback(_ours(caught.value)))
        assert CANARY not in str(caught.value)
        assert CANARY not in "".join(told.format())


def _ours(error: BaseException) -> Any:
    """Return a traceback without the test's own frame, which has the key."""
    return error.__traceback__.tb_next if error.__traceback__ else None


@pytest.mark.parametrize("cls", [AsyncClient, Client])
def test_client_shows_no_key_and_is_not_pickled(cls: Any) -> None:
    client = cls(CANARY, base_url="http://localhost:1")
    for part in (client, client.conversations, client.conversations.list(), client.with_options(timeout=1)):
        assert CANARY not in repr(part)
        assert CANARY not in str(part)
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            pickle.dumps(part)


async def test_message_that_contains_the_key_is_returned_unchanged() -> None:
    with Sandbox() as box:
        told = box.receive_sms(from_number="+15555550110", to_number="+15555550100", body=f"my key is {CANARY}")
        async with AsyncClient(CANARY, base_url="https://box.test", transport=box.transport()) as client:
            page = await client.conversations.messages(told["conversationId"])
    assert page[0].body == f"my key is {CANARY}"


async def test_key_is_redacted_in_a_body() -> None:
    body = f'{{"error": {{"message": "Incorrect API key: {CANARY}", "code": "X"}}}}'.encode()
    client, _ = client_of(httpx.Response(401, content=body), api_key=CANARY)
    with pytest.raises(AuthenticationError, match=r"Incorrect API key: \*\*\*") as caught:
        await client.conversations.list()
    assert b"***" in caught.value.body
    client, _ = client_of(httpx.Response(200, content=body), api_key=CANARY)
    with pytest.raises(ResponseDecodeError) as undecoded:
        await client.conversations.list()
    assert b"***" in undecoded.value.body


PARTS = {
    # What the answer is, and how the key stands in it.
    "cut at 500 bytes": lambda key, room: httpx.Response(200, content=b"x" * room + key),
    "cut at 500 bytes of an unknown status": lambda key, room: streamed(b"x" * room + key, "br", 418),
    "cut at 500 bytes of no gzip": lambda key, room: streamed(b"x" * room + key, "gzip"),
    "half a gzip": lambda key, room: streamed(gzip.compress(b"x" * 9 + key[: room - 460], 0)[:-8], "gzip"),
}


async def failure(client: AsyncClient) -> AgentPhoneError:
    """Return the exception of a call, without the test's frame, whose locals have the key."""
    with pytest.raises(AgentPhoneError) as caught:
        await client.conversations.list()
    return caught.value


def streamed(body: bytes, encoding: str, status: int = 200) -> httpx.Response:
    """Return a response whose body was not read before, as from a network."""

    async def chunks() -> AsyncIterator[bytes]:
        yield body

    return httpx.Response(status, content=chunks(), headers={"content-encoding": encoding})


@pytest.mark.parametrize("name", PARTS)
async def test_key_cut_by_the_body_preview_is_redacted(name: str) -> None:
    for room in range(465, 500):
        client, _ = client_of(PARTS[name](CANARY.encode(), room), api_key=CANARY)
        assert CANARY[:4] not in shown(await failure(client)), room


QUOTED: dict[str, Callable[[str], httpx.Response]] = {
    "location": lambda key: httpx.Response(302, headers={"location": f"https://other.example/?key={key}"}),
    "location, percent-encoded": lambda key: httpx.Response(
        302, headers={"location": f"https://other.example/?key={quote(key, safe='')}"}
    ),
    "request id": lambda key: httpx.Response(500, headers={"x-request-id": key}),
    "request id of an answer that cannot be read": lambda key: httpx.Response(
        200, content=b"{", headers={"x-request-id": key}
    ),
    "another encoding": lambda key: httpx.Response(500, content=b"", headers={"content-encoding": key}),
    "a value that does not fit": lambda key: httpx.Response(200, json=page(conversation(lastMessageAt=key))),
    "a complaint": lambda key: httpx.Response(
        422, json={"detail": [{"loc": ["header", key], "msg": f"{key} is wrong", "type": key}]}
    ),
    "all of an envelope": lambda key: httpx.Response(
        400, json={"error": {"message": key, "code": key, "type": key, "details": [{"field": key, key: [key]}]}}
    ),
}


@pytest.mark.parametrize("key", [CANARY, 'sk_"live"/\\CANARY=4f3e2d1c'], ids=["plain", "with quotes"])
@pytest.mark.parametrize("name", QUOTED)
async def test_key_is_redacted_in_every_text_of_the_server(name: str, key: str) -> None:
    client, _ = client_of(QUOTED[name](key), api_key=key, max_retries=0)
    error = await failure(client)
    assert "CANARY" not in shown(error)
    assert "CANARY" not in repr(error.__context__)


SIGNED = "abc+defghijklmnop/qr="
ESCAPED = {
    "JSON, lower case": "abc\\u002bdefghijklmnop\\/qr\\u003d",
    "JSON, upper case": "abc\\u002Bdefghijklmnop\\/qr\\u003D",
    "JSON, every character": "".join(f"\\u{ord(character):04x}" for character in SIGNED),
    "URL, lower case": "abc%2bdefghijklmnop%2fqr%3d",
    "URL, in part": "abc%2Bdefghijklmnop/qr%3D",
    "URL, a letter": "%61bc+%64efghijklmnop%2Fqr=",
}


@pytest.mark.parametrize("form", ESCAPED)
@pytest.mark.parametrize("status", [200, 401])
async def test_escaped_key_is_redacted_in_every_field(form: str, status: int) -> None:
    key = ESCAPED[form]
    envelope = f'{{"message": "bad {key}", "code": "{key}", "type": "{key}", "details": [{{"{key}": [["{key}"]]}}]}}'
    headers = {"location": f"https://other.example/?key={key}", "x-request-id": key}
    body = f'{{"error": {envelope}}}'.encode()
    client, _ = client_of(httpx.Response(status, content=body, headers=headers), api_key=SIGNED, max_retries=0)
    error = await failure(client)
    assert isinstance(error, APIStatusError | ResponseDecodeError)
    for text in (shown(error), error.body.decode(), str(error.request_id)):
        assert "efghijklm" not in text
        assert "\\u0066\\u0067" not in text
    if isinstance(error, APIStatusError):
        assert (error.message, error.code, error.type) == ("bad ***", "***", "***")
        assert error.details == [{"***": [["***"]]}]
        assert error.location == "https://other.example/?key=***"


@pytest.mark.parametrize("form", ESCAPED)
async def test_escaped_key_cut_by_the_body_preview_is_redacted(form: str) -> None:
    for length in range(24, len(ESCAPED[form])):
        body = b"x" * (500 - length) + ESCAPED[form].encode()
        client, _ = client_of(httpx.Response(200, content=body), api_key=SIGNED)
        error = await failure(client)
        assert isinstance(error, ResponseDecodeError)
        assert error.body == b"x" * (500 - length) + b"***"


async def test_details_that_are_numbers_or_deep_are_redacted() -> None:
    body = b'{"error": {"message": "no", "details": [{"key": 123456789012, "n": 5}]}}'
    client, _ = client_of(httpx.Response(400, content=body), api_key="123456789012")
    error = await failure(client)
    assert isinstance(error, APIStatusError)
    assert error.details == [{"key": "***", "n": 5}]
    body = b'{"error": {"message": "no", "details": [{"a": ' + b"[" * 600 + b"]" * 600 + b"}]}}"
    client, _ = client_of(httpx.Response(400, content=body), api_key=CANARY)
    error = await failure(client)
    assert isinstance(error, APIStatusError)
    assert error.message in ("no", "Bad Request")


@pytest.mark.parametrize("key", ["\\" * 12, "a" + "\\" * 12 + "b", "\\abcdefghijkl\\"])
def test_key_with_backslashes_is_redacted(key: str) -> None:
    for text in (key, json.dumps(key)[1:-1], repr(key)[1:-1], quote(key), quote(key).lower()):
        assert Secret(key).redact(f"<{text}>") == "<***>"
        assert Secret(key).redact(f"<{text}", is_truncated=True) == "<***"
    assert Secret(key).redact("hello ab ab\\") == "hello ab ab\\"


@each_client
@pytest.mark.parametrize("answer", [f"HTTP/1.1 {CANARY}\r\n\r\n", f"HTTP/1.1 200 OK\r\n{CANARY}\r\n\r\n"])
def test_key_is_redacted_in_a_response_that_is_not_http(kind: str, answer: str) -> None:
    with serving(raw(answer.encode())) as server:
        error = call(kind, server.url, lambda c: c.get("conv_1"), max_retries=0)
        assert isinstance(error, APIConnectionError)
        assert "***" in str(error)
        assert CANARY not in shown(error)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_sandbox_writes_no_key(anyio_backend: str) -> None:
    with sandbox("--api-key", CANARY) as (process, url):
        async with AsyncClient(CANARY, base_url=url, max_retries=0) as client:
            await client.conversations.list()
            with pytest.raises(APIStatusError):
                await client.conversations.get("conv_nobody")
        async with AsyncClient(CANARY + "x", base_url=url, max_retries=0) as client:
            with pytest.raises(AuthenticationError):
                await client.conversations.list()
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert CANARY not in out + err
    with Sandbox(api_key=CANARY) as box:
        async with AsyncClient(CANARY, base_url="https://box.test", transport=box.transport()) as client:
            await client.conversations.list()
        assert CANARY not in repr(list(box.requests))
