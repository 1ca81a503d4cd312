"""Reading much: a list, a history, pages that are decoded, and an export of the whole account."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
import urllib.request
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from .turns import RUNNER, Turn, repeat

AT_A_TIME = 4
"""How many conversations are read at once: what `export` does by default."""


def conversations(library: str, url: str, size: int) -> Turn:
    """Read a list of `size` conversations from end to end: here in pages at once, there in the loop one would write."""
    read: Callable[[], Coroutine[Any, Any, int]]
    if library == "ours":
        from agentphone import AsyncClient

        client = AsyncClient("key", base_url=url)

        async def read_ours() -> int:
            ids = {conversation.id async for conversation in client.conversations.list(concurrency=8)}
            return len(ids)

        read = read_ours
    else:
        from agentphone import AsyncAgentPhone  # type: ignore[attr-defined]  # the vendor's package of this name

        theirs = AsyncAgentPhone("key", base_url=url)

        async def read_vendor() -> int:
            ids: set[str] = set()
            offset = 0
            while True:
                page = await theirs.conversations.list(limit=100, offset=offset)
                ids.update(conversation.id for conversation in page.data)
                offset += len(page.data)
                if not page.has_more:
                    return len(ids)

        read = read_vendor

    async def turn(units: int) -> float:
        began = time.perf_counter()
        for _ in range(units):
            assert await read() == size
        return (time.perf_counter() - began) / units

    return lambda units: RUNNER.run(turn(units))


def decode(library: str, url: str, _: int) -> Turn:
    """Make models of the page at `url`, from bytes."""
    with urllib.request.urlopen(url) as answer:
        body: bytes = answer.read()
    is_history = "/messages" in url
    if library == "ours":
        from agentphone import Conversation, Message, Page
        from agentphone._decoding import decode as decode_ours

        shape: type[Page[Message] | Page[Conversation]] = Page[Message] if is_history else Page[Conversation]
        return repeat(lambda: decode_ours(body, shape))
    if library == "vendor":
        from agentphone.models import ConversationList, MessageList  # type: ignore[attr-defined]  # the vendor's

        from_dict = (MessageList if is_history else ConversationList).from_dict
        return repeat(lambda: from_dict(json.loads(body)))
    return repeat(lambda: json.loads(body))


def history_memory(_library: str, url: str, size: int) -> Turn:
    """Read a history of `size` messages, and return the peak of the process's memory."""
    from agentphone import AsyncClient

    client = AsyncClient("key", base_url=url)

    async def read() -> int:
        count = 0
        async for _ in client.conversations.messages("conv_1", limit=size):
            count += 1
        return count

    def turn(_: int) -> float:
        assert RUNNER.run(read()) == size
        return _peak_memory()

    return turn


def export(library: str, url: str, _: int) -> Turn:
    """Write all messages of the account as JSON lines; a unit is a message.

    Ours does more than the loop by hand: it can be killed at any moment and continues, it sorts, and it checks.
    """
    write = {"ours": ours_export, "httpx": httpx_export}[library](url)

    def turn(units: int) -> float:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            began = time.perf_counter()
            assert RUNNER.run(write(Path(folder))) == units
            return (time.perf_counter() - began) / units

    return turn


def read_all(_library: str, url: str, _: int) -> Turn:
    """Read all messages of the account without writing them; a unit is a message."""
    from agentphone import AsyncClient

    client = AsyncClient("key", base_url=url)

    async def read() -> int:
        count = 0
        ids = iter([conversation.id async for conversation in client.conversations.list(concurrency=AT_A_TIME)])

        async def read_some() -> None:
            nonlocal count
            for conversation_id in ids:
                async for _ in client.conversations.messages(conversation_id):
                    count += 1

        await asyncio.gather(*(read_some() for _ in range(AT_A_TIME)))
        return count

    def turn(units: int) -> float:
        began = time.perf_counter()
        assert RUNNER.run(read()) == units
        return (time.perf_counter() - began) / units

    return turn


def export_memory(library: str, url: str, size: int) -> Turn:
    """Export the account, and return the peak of the process's memory."""
    return _measuring_memory(export(library, url, size))


def read_all_memory(library: str, url: str, size: int) -> Turn:
    """Read all messages of the account, and return the peak of the process's memory."""
    return _measuring_memory(read_all(library, url, size))


def ours_export(url: str) -> Callable[[Path], Coroutine[Any, Any, int]]:
    """Return the export of this SDK."""
    from agentphone import AsyncClient
    from agentphone.export import export as export_account

    client = AsyncClient("key", base_url=url)

    async def write(folder: Path) -> int:
        return (await export_account(client, folder, concurrency=AT_A_TIME)).messages

    return write


def httpx_export(url: str) -> Callable[[Path], Coroutine[Any, Any, int]]:
    """Return the loop that one would write with httpx: it loses messages that share a timestamp."""
    import httpx

    client = httpx.AsyncClient(headers={"Authorization": "Bearer key"}, timeout=30)

    async def get(path: str, query: dict[str, Any]) -> dict[str, Any]:
        page: dict[str, Any] = (await client.get(f"{url}{path}", params=query)).raise_for_status().json()
        return page

    async def write(folder: Path) -> int:
        count = 0
        listed: list[dict[str, Any]] = []
        has_more = True
        while has_more:
            page = await get("/v1/conversations", {"limit": 100, "offset": len(listed)})
            listed += page["data"]
            has_more = page["hasMore"]
        ids = iter([conversation["id"] for conversation in listed])
        with (folder / "conversations.jsonl").open("w") as file:
            file.writelines(json.dumps(conversation) + "\n" for conversation in listed)

        async def write_some() -> None:
            nonlocal count
            for conversation_id in ids:
                query: dict[str, Any] = {"limit": 200}
                has_more = True
                while has_more:
                    page = await get(f"/v1/conversations/{conversation_id}/messages", query)
                    messages.writelines(json.dumps(message) + "\n" for message in page["data"])
                    count += len(page["data"])
                    has_more = page["hasMore"]
                    query["before"] = page["data"][-1]["receivedAt"]

        with (folder / "messages.jsonl").open("w") as messages:
            await asyncio.gather(*(write_some() for _ in range(AT_A_TIME)))
        return count

    return write


def _measuring_memory(turn: Turn) -> Turn:
    def measured_turn(units: int) -> float:
        turn(units)
        return _peak_memory()

    return measured_turn


def _peak_memory() -> float:
    """Return the process's peak memory in bytes, as the system counts it.

    `ru_maxrss` would begin with the parent's, from the fork; `tracemalloc` sees no buffers of C, and takes four times
    as long.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return float(line.split()[1]) * 1024
    import resource

    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
