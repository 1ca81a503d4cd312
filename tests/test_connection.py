"""One connection on raw sockets: how answers are framed, when it is used again, and who may stand in its place."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import respx

from agentphone import APIConnectionError, AsyncClient
from tests.fault_server import CHUNKED, OK_HEAD, Connection, good, serving
from tests.helpers import conversation

pytestmark = pytest.mark.anyio
KEY = "test-key"


def with_length(body: bytes, head: bytes = OK_HEAD) -> bytes:
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


def in_chunks(body: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    pieces = [body[start : start + 7] for start in range(0, len(body), 7)]
    return CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


Form = Callable[[bytes], bytes]
KEPT: dict[str, Form] = {
    "with a length": with_length,
    "in chunks": in_chunks,
    "in chunks with a trailer": lambda body: in_chunks(body, b"0\r\nchecksum: 1\r\n\r\n"),
    "behind early hints": lambda body: b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + with_length(body),
    "behind two 100 Continue": lambda body: b"HTTP/1.1 100 Continue\r\n\r\n" * 2 + with_length(body),
}
GIVEN_UP: dict[str, Form] = {
    "connection: close": lambda body: with_length(body, OK_HEAD + b"connection: close\r\n"),
    "HTTP/1.0": lambda body: with_length(body, OK_HEAD.replace(b"HTTP/1.1", b"HTTP/1.0")),
    "without a length": lambda body: OK_HEAD + b"\r\n" + body,
    "with more behind it": lambda body: with_length(body) + b"HTTP/1.1 200 OK\r\n",
}
BROKEN: dict[str, Form] = {
    "two lengths": lambda body: with_length(body, OK_HEAD + b"content-length: 1\r\n"),
    "a negative length": lambda body: OK_HEAD + b"content-length: -1\r\n\r\n" + body,
    "a length too large": lambda body: with_length(body + b" ")[:-1],
    "a chunk size that is none": lambda body: CHUNKED + b"xyz\r\n" + body,
    "chunks without an end": lambda body: in_chunks(body, b""),
    "a header that never ends": lambda body: OK_HEAD + b"x: " + b"y" * 200_000,
    "a space before a colon": lambda body: with_length(body, OK_HEAD + b"x : y\r\n"),
    "an upgrade": lambda body: b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n" + body,
    "no HTTP": lambda body: b"SSH-2.0-OpenSSH_9.6\r\n" + body,
}


def answering(form: Form, *, is_kept: bool) -> Callable[[Connection], None]:
    """Answer each request of a connection in a form, or one."""

    def answer(connection: Connection) -> None:
        while (received := connection.read()) is not None:
            connection.send(form(good(received)))
            if not is_kept:
                return

    return answer


@pytest.mark.parametrize("form", [*KEPT, *GIVEN_UP])
async def test_each_form_of_an_answer_is_read_and_the_connection_kept_where_it_may_be(form: str) -> None:
    is_kept = form in KEPT
    with serving(answering({**KEPT, **GIVEN_UP}[form], is_kept=is_kept), times=9) as server:
        async with AsyncClient(KEY, base_url=server.url, max_retries=0) as client:
            for number in range(3):
                detail = await client.conversations.update(f"conv_{number}", metadata={"number": number})
                assert detail.metadata == {"number": number}
        assert server.connections == (1 if is_kept else 3)


@pytest.mark.parametrize("form", BROKEN)
async def test_what_is_no_answer_is_a_connection_error_and_the_next_call_is_well(form: str) -> None:
    with serving(answering(BROKEN[form], is_kept=False), times=1) as server:
        async with AsyncClient(KEY, base_url=server.url, max_retries=0) as client:
            with pytest.raises(APIConnectionError):
                await client.conversations.get("conv_1")
            assert (await client.conversations.get("conv_1")).id
        assert server.connections == 2


async def test_a_request_goes_elsewhere_when_a_hook_says_so() -> None:
    with serving() as server, serving() as other:
        elsewhere = iter([other.url, server.url])

        def redirect(request: httpx.Request) -> None:
            request.url = request.url.copy_with(port=httpx.URL(next(elsewhere)).port)

        async with AsyncClient(KEY, base_url=server.url, on_request=redirect) as client:
            await client.conversations.list()
            assert (len(server.requests), len(other.requests)) == (0, 1)
            await client.conversations.list()
            assert (len(server.requests), len(other.requests)) == (1, 1)


async def test_respx_gets_the_calls_of_a_client_that_has_a_connection_already() -> None:
    with serving() as server:
        async with AsyncClient(KEY, base_url=server.url) as client:
            assert (await client.conversations.get("real")).id == "conv_1"
            with respx.mock() as router:
                router.get(path="/v1/conversations/mocked").respond(json=conversation(id="mocked"))
                assert (await client.conversations.get("mocked")).id == "mocked"
            assert (await client.conversations.get("real")).id == "conv_1"
        assert len(server.requests) == 2


async def test_what_is_wrapped_around_the_transport_of_httpx_sees_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    send: Any = httpx.AsyncHTTPTransport.handle_async_request

    @functools.wraps(send)  # as instrumentations are: it calls itself by the name of what it wraps
    async def wrapped(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path)
        answer: httpx.Response = await send(transport, request)
        return answer

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", wrapped)
    with serving() as server:
        async with AsyncClient(KEY, base_url=server.url) as client:
            await client.conversations.get("conv_1")
            monkeypatch.undo()
            await client.conversations.get("conv_2")
        assert seen == ["/v1/conversations/conv_1"]
        assert len(server.requests) == 2
