"""`follow` and `watch` over real sockets, while fifty people text and the server fails and is killed repeatedly."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from agentphone import AsyncClient, Client, Message
from agentphone.sandbox import Sandbox
from tests.support.forked import Forked
from tests.support.long import count
from tests.support.processes import ENVIRONMENT

MESSAGES = count(800, 3400)
PEOPLE = 50
KILLS = 4
START = "2020-01-01T00:00:00Z"
AGENT = "+15555550100"
SECONDS = 240
POLL = {"poll_interval": 0.05, "max_poll_interval": 0.2}

Received = list[tuple[str, Message]]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def serve(path: Path, port: int) -> Forked:
    code = "import sys\nfrom tests.support.flaky_sandbox import main\nmain(sys.argv[1], int(sys.argv[2]))"
    return Forked(code, path, port, env=ENVIRONMENT)


def write(path: Path) -> None:
    """Let people text, in random order."""
    source = random.Random(8)
    with Sandbox(path) as sandbox:
        for number in range(MESSAGES):
            person = f"+1555555{source.randrange(PEOPLE):04}"
            sandbox.receive_sms(from_number=person, to_number=AGENT, body=str(number))


async def watch(url: str) -> Received:
    """Watch until the last message."""
    received: Received = []
    async with AsyncClient("key", base_url=url) as client:
        with anyio.fail_after(SECONDS):
            async for conversation, message in client.conversations.watch(after=START, **POLL):
                received.append((conversation.id, message))
                if len(received) >= MESSAGES:
                    break
    return received


def watch_with_breaks(url: str) -> Received:
    """Watch with the sync client, and resume after some hundreds of messages."""
    source = random.Random(9)
    received: Received = []
    after: Any = START
    deadline_at = time.monotonic() + SECONDS
    while len(received) < MESSAGES:
        left = source.randrange(1, MESSAGES // 2)
        with Client("key", base_url=url) as client:
            for conversation, message in client.conversations.watch(after=after, **POLL):
                assert time.monotonic() < deadline_at
                received.append((conversation.id, message))
                after, left = message, left - 1
                if left == 0 or len(received) >= MESSAGES:
                    break
    return received


async def follow(url: str, count: int, conversation_id: str) -> Received:
    """Follow one conversation from its first message."""
    received: Received = []
    async with AsyncClient("key", base_url=url) as client:
        with anyio.fail_after(SECONDS):
            async for message in client.conversations.follow(conversation_id, after=START, **POLL):
                received.append((conversation_id, message))
                if len(received) >= count:
                    break
    return received


def in_thread(function: Callable[[], Received], results: dict[str, Received], name: str) -> threading.Thread:
    def work() -> None:
        results[name] = function()

    thread = threading.Thread(target=work, name=name)
    thread.start()
    return thread


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_watch_survives_kills_of_the_server(tmp_path: Path) -> None:
    path, port = tmp_path / "box.db", free_port()
    url = f"http://127.0.0.1:{port}"
    with Sandbox(path) as sandbox:
        server = serve(path, port)
        results: dict[str, Received] = {}
        threads = [
            in_thread(lambda: anyio.run(watch, url), results, "asyncio"),
            in_thread(lambda: anyio.run(watch, url, backend="trio"), results, "trio"),
            in_thread(lambda: watch_with_breaks(url), results, "sync"),
        ]
        writer = threading.Thread(target=write, args=(path,))
        writer.start()
        try:
            for _ in range(KILLS):
                writer.join(0.5)
                server.kill()
                server.wait()
                server = serve(path, port)
            writer.join()
            for thread in threads:
                thread.join()
        finally:
            server.kill()
            server.wait()

        transport = sandbox.transport()
        with Client("key", base_url="https://sandbox.test", transport=transport) as client:
            expected = {
                (conversation.id, message.id)
                for conversation in client.conversations.list()
                for message in client.conversations.messages(conversation.id)
            }
    assert len(expected) == MESSAGES
    assert set(results) == {"asyncio", "trio", "sync"}
    for name, received in results.items():
        ids = [(conversation_id, message.id) for conversation_id, message in received]
        assert len(set(ids)) == len(ids), f"{name} repeated"
        assert set(ids) == expected, f"{name} lost"
        order: dict[str, list[int]] = {}
        for conversation_id, message in received:
            order.setdefault(conversation_id, []).append(int(message.body or ""))
        assert all(numbers == sorted(numbers) for numbers in order.values()), f"{name} out of order"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_follow_survives_a_kill_of_the_server(tmp_path: Path, backend: str) -> None:
    path, port = tmp_path / "box.db", free_port()
    with Sandbox(path) as sandbox:
        first = sandbox.receive_sms(from_number="+15555550110", to_number=AGENT, body="0")
        server = serve(path, port)
        results: dict[str, Received] = {}
        identity = first["conversationId"]
        thread = in_thread(
            lambda: anyio.run(follow, f"http://127.0.0.1:{port}", 600, identity, backend=backend), results, "follow"
        )
        try:
            for number in range(1, 600):
                sandbox.receive_sms(from_number="+15555550110", to_number=AGENT, body=str(number))
                if number == 300:
                    server.kill()
                    server.wait()
                    server = serve(path, port)
            thread.join()
        finally:
            server.kill()
            server.wait()
    assert [message.body for _, message in results["follow"]] == [str(number) for number in range(600)]
