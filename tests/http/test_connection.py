"""One connection on raw sockets: how responses are framed, and when it is reused."""

from __future__ import annotations

import json
import ssl
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import trustme

import agentphone._http.pool
from agentphone import APIConnectionError, APIStatusError, AsyncClient, ConfigurationError
from agentphone._http.connection import READ_SIZE
from tests.support.fault_server import CHUNKED, OK_HEAD, Connection, good, serving
from tests.support.helpers import conversation
from tests.support.processes import SECONDS

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
    "after early hints": lambda body: b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + with_length(body),
    "after two 100 Continue": lambda body: b"HTTP/1.1 100 Continue\r\n\r\n" * 2 + with_length(body),
}
CLOSED: dict[str, Form] = {
    "connection: close": lambda body: with_length(body, OK_HEAD + b"connection: close\r\n"),
    "HTTP/1.0": lambda body: with_length(body, OK_HEAD.replace(b"HTTP/1.1", b"HTTP/1.0")),
    "without a length": lambda body: OK_HEAD + b"\r\n" + body,
    "with trailing bytes": lambda body: with_length(body) + b"HTTP/1.1 200 OK\r\n",
}
BROKEN: dict[str, Form] = {
    "two lengths": lambda body: with_length(body, OK_HEAD + b"content-length: 1\r\n"),
    "a negative length": lambda body: OK_HEAD + b"content-length: -1\r\n\r\n" + body,
    "a length too large": lambda body: with_length(body + b" ")[:-1],
    "an invalid chunk size": lambda body: CHUNKED + b"xyz\r\n" + body,
    "chunks without an end": lambda body: in_chunks(body, b""),
    "a header that never ends": lambda body: OK_HEAD + b"x: " + b"y" * 200_000,
    "a space before a colon": lambda body: with_length(body, OK_HEAD + b"x : y\r\n"),
    "an upgrade": lambda body: b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n" + body,
    "no HTTP": lambda body: b"SSH-2.0-OpenSSH_9.6\r\n" + body,
}


def responding(form: Form, *, is_kept: bool) -> Callable[[Connection], None]:
    """Respond to every request of a connection, or only to the first."""

    def respond(connection: Connection) -> None:
        while (received := connection.read()) is not None:
            connection.send(form(good(received)))
            if not is_kept:
                return

    return respond


@pytest.mark.parametrize("form", [*KEPT, *CLOSED])
async def test_connection_is_kept_where_the_response_allows_it(form: str) -> None:
    is_kept = form in KEPT
    with serving(responding({**KEPT, **CLOSED}[form], is_kept=is_kept), times=9) as server:
        async with AsyncClient(KEY, base_url=server.url, max_retries=0) as client:
            for number in range(3):
                detail = await client.conversations.update(f"conv_{number}", metadata={"number": number})
                assert detail.metadata == {"number": number}
        assert server.connections == (1 if is_kept else 3)


@pytest.mark.parametrize("form", BROKEN)
async def test_invalid_response_is_a_connection_error(form: str) -> None:
    with serving(responding(BROKEN[form], is_kept=False), times=1) as server:
        async with AsyncClient(KEY, base_url=server.url, max_retries=0) as client:
            with pytest.raises(APIConnectionError):
                await client.conversations.get("conv_1")
            assert (await client.conversations.get("conv_1")).id
        assert server.connections == 2


async def test_hook_can_redirect_a_request() -> None:
    with serving() as server, serving() as other:
        elsewhere = iter([other.url, server.url])

        def redirect(request: httpx.Request) -> None:
            request.url = request.url.copy_with(port=httpx.URL(next(elsewhere)).port)

        async with AsyncClient(KEY, base_url=server.url, on_request=redirect) as client:
            await client.conversations.list()
            assert (len(server.requests), len(other.requests)) == (0, 1)
            await client.conversations.list()
            assert (len(server.requests), len(other.requests)) == (1, 1)


FORGED = with_length(json.dumps(conversation(id="forged", messages=[])).encode())
"""An unrequested response, sent together with the response to the request before."""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can hold packets back")
async def test_second_tls_record_is_not_the_next_response(tls: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    """Both records arrive in one packet, so the TLS layer has the second one before it is read."""

    def respond(connection: Connection) -> None:
        received = connection.read()
        assert received is not None
        connection.cork()
        connection.send(with_length(good(received)))
        connection.send(FORGED)
        connection.uncork()
        connection.wait_until_gone()

    with serving(respond, times=1, tls=tls) as server:
        async with AsyncClient(KEY, base_url=server.url, ssl_context=trusting, max_retries=0) as client:
            assert [(await client.conversations.get("conv_1")).id for _ in range(3)] == ["conv_1"] * 3
        assert server.connections == 2


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_later_bytes_are_not_the_next_response(
    tls: ssl.SSLContext, trusting: ssl.SSLContext, secure: bool
) -> None:
    def respond(connection: Connection) -> None:
        received = connection.read()
        assert received is not None
        connection.send(with_length(good(received)))
        has_response.wait(SECONDS)
        connection.send(FORGED)
        was_forged.set()
        connection.wait_until_gone()

    has_response, was_forged = threading.Event(), threading.Event()
    with serving(respond, times=1, tls=tls if secure else None) as server:
        async with AsyncClient(KEY, base_url=server.url, ssl_context=trusting, max_retries=0) as client:
            assert (await client.conversations.get("conv_1")).id == "conv_1"
            has_response.set()
            assert await anyio.to_thread.run_sync(was_forged.wait, SECONDS)
            assert [(await client.conversations.get("conv_1")).id for _ in range(2)] == ["conv_1"] * 2
        assert server.connections == 2


async def test_bytes_after_a_full_read_are_not_the_next_response() -> None:
    """asyncio reads more than requested, and keeps the rest where no check can see it."""

    def respond(connection: Connection) -> None:
        received = connection.read()
        assert received is not None
        connection.send(OK_HEAD + b"content-length: %d\r\n\r\n" % READ_SIZE)
        were_headers_read.wait(SECONDS)
        connection.send(good(received).ljust(READ_SIZE) + FORGED)
        was_sent.set()
        connection.wait_until_gone()

    def hold(_: httpx.Response) -> None:
        were_headers_read.set()
        was_sent.wait(SECONDS)  # blocks the event loop until the rest can be read at once

    were_headers_read, was_sent = threading.Event(), threading.Event()
    with serving(respond, times=1) as server:
        async with AsyncClient(KEY, base_url=server.url, max_retries=0, on_response=hold) as client:
            assert [(await client.conversations.get("conv_1")).id for _ in range(3)] == ["conv_1"] * 3


async def test_tls_connection_is_reused(tls: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    with serving(tls=tls) as server:
        async with AsyncClient(KEY, base_url=server.url, ssl_context=trusting) as client:
            for size in (1, 100, 100_000, 1_000_000, 1):
                detail = await client.conversations.update("conv_1", metadata={"text": "x" * size})
                assert detail.metadata == {"text": "x" * size}
        assert server.connections == 1


def reject_at_once(connection: Connection) -> None:
    connection.read_some()
    connection.answer(413, b'{"error":{"message":"too large"}}', connection="close")
    connection.close()


def reject_in_pieces(connection: Connection) -> None:
    connection.read_some()
    for piece in (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 413 X\r\nconn",
        b"ection: close\r\ncontent-length: 10\r\n\r\n",
    ):
        connection.send(piece)
        connection.gone.wait(0.01)
    connection.send(b'"too large"'[:10])
    connection.close()


def reject_and_read_on(connection: Connection) -> None:
    connection.read_some()
    connection.answer(
        413, b'{"error":{"message":"too large"}}', connection="close"
    )  # the server closes once it has read everything


@pytest.mark.parametrize("reject", [reject_at_once, reject_in_pieces, reject_and_read_on])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize(("size", "times"), [(50_000, 5), (8_000_000, 2)])
async def test_early_413_to_a_large_update_is_its_response(
    tls: ssl.SSLContext,
    trusting: ssl.SSLContext,
    secure: bool,
    reject: Callable[[Connection], None],
    size: int,
    times: int,
) -> None:
    with serving(reject, times=times, tls=tls if secure else None) as server, anyio.fail_after(SECONDS):
        async with AsyncClient(KEY, base_url=server.url, ssl_context=trusting, timeout=20) as client:
            for number in range(1, times + 1):
                with pytest.raises(APIStatusError) as caught:
                    await client.conversations.update("conv_1", metadata={"text": "x" * size})
                assert caught.value.status_code == 413
                assert server.connections == number
            assert (await client.conversations.update("conv_1", metadata={"a": 1})).metadata == {"a": 1}


async def test_callers_ssl_context_is_not_changed(tls: ssl.SSLContext, authority: trustme.CA) -> None:
    class Watched(ssl.SSLContext):
        def set_alpn_protocols(self, alpn_protocols: Any) -> None:
            raise AssertionError(alpn_protocols)

    context = Watched(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    with serving(tls=tls) as server:
        async with AsyncClient(KEY, base_url=server.url, ssl_context=context, max_retries=0) as client:
            assert (await client.conversations.get("conv_1")).id == "conv_1"


@pytest.fixture
def both(authority: trustme.CA) -> ssl.SSLContext:
    """Return a server's TLS context that prefers HTTP/2."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


async def test_ssl_context_that_negotiates_http_2_is_rejected(both: ssl.SSLContext, authority: trustme.CA) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with serving(tls=both) as server:
        async with AsyncClient(KEY, base_url=server.url, ssl_context=context) as client:
            with pytest.raises(ConfigurationError, match=r"ssl_context negotiated 'h2'.*speaks HTTP/1\.1"):
                await client.conversations.get("conv_1")
        assert server.connections == 1
        assert await anyio.to_thread.run_sync(server.wait_until_left)


async def test_default_ssl_context_offers_http_1_1(
    both: ssl.SSLContext, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(response: httpx.Response) -> None:
        found.append(response.extensions["network_stream"].get_extra_info("ssl_object").selected_alpn_protocol())

    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    offers: list[list[str]] = []
    offer = ssl.SSLContext.set_alpn_protocols

    def watched(context: ssl.SSLContext, protocols: list[str]) -> None:
        offers.append(protocols)
        offer(context, protocols)

    found: list[str | None] = []
    monkeypatch.setattr(ssl.SSLContext, "set_alpn_protocols", watched)
    agentphone._http.pool._default_ssl_context.cache_clear()
    try:
        with serving(tls=both) as server:
            for _ in range(3):
                async with AsyncClient(KEY, base_url=server.url, on_response=chosen) as client:
                    await client.conversations.get("conv_1")
    finally:
        agentphone._http.pool._default_ssl_context.cache_clear()
    assert (found, offers) == (["http/1.1"] * 3, [["http/1.1"]])
