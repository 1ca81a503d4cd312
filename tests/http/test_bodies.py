"""Response bodies: truncated, wrongly compressed, too large."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import httpx
import pytest

from agentphone import (
    APIConnectionError,
    AsyncClient,
    ResponseDecodeError,
    ServerError,
)
from tests.support.helpers import KEY, client_of

pytestmark = pytest.mark.anyio

GARBLED = {
    "nothing": b"",
    "noise": b"\x00\xff garbage\r\n\r\n",
    "half a header": b"HTTP/1.1 200 OK\r\nContent-Le",
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{",
    "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{",
    "endless header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000,
}


@pytest.mark.parametrize("garbled", GARBLED.values(), ids=GARBLED.keys())
async def test_truncated_response_is_a_connection_error(garbled: bytes) -> None:
    async def serve(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(garbled)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with AsyncClient(KEY, base_url=f"http://127.0.0.1:{port}", max_retries=0, timeout=20) as client:
            with pytest.raises(APIConnectionError) as caught:
                await client.conversations.list()
        assert type(caught.value) is APIConnectionError
        tasks.cancel_scope.cancel()


COMPRESSED = {"Content-Encoding": "gzip"}


async def test_body_that_is_not_gzip_is_a_decode_error() -> None:
    client, _ = client_of(httpx.Response(200, stream=httpx.ByteStream(b"no gzip"), headers=COMPRESSED))
    with pytest.raises(ResponseDecodeError, match="gzip"):
        await client.conversations.list()


@pytest.mark.parametrize("size", [1000, 6000])
@pytest.mark.parametrize("status", [200, 500])
async def test_body_above_max_response_bytes_is_not_read(status: int, size: int) -> None:
    read = 0

    async def flood(_: httpx.Request) -> httpx.Response:
        async def chunks() -> Any:
            nonlocal read
            for _ in range(1000):
                read += size
                yield b" " * size
                await anyio.lowlevel.checkpoint()

        return httpx.Response(status, content=chunks())

    client, _ = client_of(flood, max_response_bytes=5000, max_retries=0)
    with pytest.raises((ResponseDecodeError, ServerError), match="max_response_bytes=5000") as caught:
        await client.conversations.list()
    assert isinstance(caught.value, ServerError if status == 500 else ResponseDecodeError)
    assert caught.value.status_code == status
    assert caught.value.body == b" " * 500
    assert read <= 5000 + 2 * size


async def test_too_large_body_closes_the_connection() -> None:
    async def serve(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            await stream.receive()
            try:
                await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
                while True:
                    await stream.send(b" " * 10_000)
            except anyio.BrokenResourceError:
                gone.set()

    gone = anyio.Event()
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with AsyncClient(KEY, base_url=f"http://127.0.0.1:{port}", max_response_bytes=50_000) as client:
            with pytest.raises(ResponseDecodeError, match="max_response_bytes=50000"):
                await client.conversations.list()
            with anyio.fail_after(30):
                await gone.wait()
        tasks.cancel_scope.cancel()
