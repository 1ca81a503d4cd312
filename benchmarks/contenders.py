"""One contender at one job, in a process of its own: read how many units to do, do them, print figures.

    python benchmarks/contenders.py JOB LIBRARY URL SIZE

The numbers come in lines on stdin. The first figure is in seconds for one unit, or in bytes; the second is the
process's CPU time for the turn. PYTHONPATH says whose `agentphone` is imported. Imports nothing of `benchmarks`, and at
the top only what every interpreter has loaded: what a library loads is part of what is measured.
"""

from __future__ import annotations

import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Sized

    Turn = Callable[[int], float]
    """Do so many units, and give the figure."""
    AsyncCall = Callable[[], Awaitable[Sized]]
    """Read a page of one conversation."""


# What a user of each library writes. Each gets as many connections as calls, where its public face lets it, and half a
# minute for a call, as the SDKs have it.


def ours_async(url: str, width: int) -> AsyncCall:
    """Return a call of this SDK: models, with timestamps parsed."""
    from agentphone import AsyncClient

    client = AsyncClient("key", base_url=url, max_connections=max(width, 20))
    return lambda: client.conversations.list(limit=1).page()


def vendor_async(url: str, _: int) -> AsyncCall:
    """Return a call of the vendor's SDK: models, with timestamps as text. Its 100 connections cannot be changed."""
    from agentphone import AsyncAgentPhone  # type: ignore[attr-defined]  # the vendor's package of this name

    client = AsyncAgentPhone("key", base_url=url)

    async def call() -> Sized:
        page: Sized = (await client.conversations.list(limit=1)).data
        return page

    return call


def httpx_async(url: str, width: int) -> AsyncCall:
    """Return a call of httpx alone: dicts. The query is part of the URL, which is fastest."""
    import httpx

    limits = httpx.Limits(max_connections=max(width, 100), max_keepalive_connections=max(width, 20))
    client = httpx.AsyncClient(headers={"Authorization": "Bearer key"}, limits=limits, timeout=30)

    async def call() -> Sized:
        page: Sized = (await client.get(f"{url}/v1/conversations?limit=1&offset=0")).json()["data"]
        return page

    return call


def aiohttp_async(url: str, width: int) -> AsyncCall:
    """Return a call of aiohttp alone, whose parser is in C: the bound for an asyncio client."""
    import json

    import aiohttp

    session: aiohttp.ClientSession | None = None

    async def call() -> Sized:
        nonlocal session
        if session is None:  # it wants a running event loop
            connector = aiohttp.TCPConnector(limit=max(width, 100))
            session = aiohttp.ClientSession(headers={"Authorization": "Bearer key"}, connector=connector)
        async with session.get(f"{url}/v1/conversations?limit=1&offset=0") as response:
            page: Sized = json.loads(await response.read())["data"]
            return page

    return call


def ours_blocking(url: str) -> Callable[[], Sized]:
    """Return a blocking call of this SDK: models, with timestamps parsed."""
    from agentphone import Client

    client = Client("key", base_url=url)
    return lambda: client.conversations.list(limit=1).page()


def vendor_blocking(url: str) -> Callable[[], Sized]:
    """Return a blocking call of the vendor's SDK, on requests: models, with timestamps as text."""
    import agentphone

    client = agentphone.AgentPhone("key", base_url=url)  # type: ignore[attr-defined]  # the vendor's package

    def call() -> Sized:
        page: Sized = client.conversations.list(limit=1).data
        return page

    return call


def httpx_blocking(url: str) -> Callable[[], Sized]:
    """Return a call of `httpx.Client`: dicts."""
    import httpx

    client = httpx.Client(headers={"Authorization": "Bearer key"}, timeout=30)

    def call() -> Sized:
        page: Sized = client.get(f"{url}/v1/conversations?limit=1&offset=0").json()["data"]
        return page

    return call


# The jobs


def calls(library: str, url: str, size: int) -> Turn:
    """Make calls with `size` of them in flight."""
    import asyncio

    makers = {"ours": ours_async, "vendor": vendor_async, "httpx": httpx_async, "aiohttp": aiohttp_async}
    call = makers[library](url, size)
    runner = _runner()

    async def one_after_another(units: int) -> None:
        for _ in range(units):
            await call()

    async def turn(units: int) -> float:
        assert len(await call()) == 1
        # Not measured: what idled while the others had their turns opens its connections again.
        await asyncio.gather(*(one_after_another(1) for _ in range(size)))
        began = time.perf_counter()
        if size == 1:
            await one_after_another(units)
        else:
            await asyncio.gather(*(one_after_another(units // size) for _ in range(size)))
        return (time.perf_counter() - began) / units

    return lambda units: runner.run(turn(units))


def blocking_calls(library: str, url: str, _: int) -> Turn:
    """Make blocking calls, one at a time."""
    call = {"ours": ours_blocking, "vendor": vendor_blocking, "httpx": httpx_blocking}[library](url)

    def turn(units: int) -> float:
        assert len(call()) == 1
        began = time.perf_counter()
        for _ in range(units):
            call()
        return (time.perf_counter() - began) / units

    return turn


def iterate(library: str, url: str, size: int) -> Turn:
    """Read a list of `size` conversations from end to end: here in pages at once, there in the loop one would write."""
    runner = _runner()
    read: Callable[[], Awaitable[int]]
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

    return lambda units: runner.run(turn(units))


def decode(library: str, url: str, _: int) -> Turn:
    """Make models of the page at `url`, from bytes."""
    import json
    import urllib.request

    with urllib.request.urlopen(url) as answer:
        body: bytes = answer.read()
    is_history = "/messages" in url
    if library == "ours":
        from agentphone import Conversation, Message, Page
        from agentphone._decoding import decode as decode_ours

        shape: type[Page[Message] | Page[Conversation]] = Page[Message] if is_history else Page[Conversation]

        def make() -> object:
            return decode_ours(body, shape)

    elif library == "vendor":
        from agentphone.models import ConversationList, MessageList  # type: ignore[attr-defined]  # the vendor's

        from_dict = (MessageList if is_history else ConversationList).from_dict

        def make() -> object:
            return from_dict(json.loads(body))

    else:

        def make() -> object:
            return json.loads(body)

    def turn(units: int) -> float:
        make()
        began = time.perf_counter()
        for _ in range(units):
            make()
        return (time.perf_counter() - began) / units

    return turn


def load(library: str, _url: str, _size: int) -> Turn:
    """Import a library, once."""

    def turn(_: int) -> float:
        began = time.perf_counter()
        if library == "dependencies":
            import anyio  # noqa: F401
            import attrs  # noqa: F401
            import cattrs  # noqa: F401
            import httpx  # noqa: F401
        else:
            import agentphone  # noqa: F401
        return time.perf_counter() - began

    return turn


def create(_library: str, url: str, size: int) -> Turn:
    """Create the last of `size` clients, up to where it can send."""
    from agentphone import APIConnectionError, AsyncClient

    runner = _runner()

    async def create_one() -> float:
        began = time.perf_counter()
        # A client opens nothing and loads no certificates before its first call. Nobody listens there, so that the call
        # ends at the socket and nothing but the client's own work is in it.
        client = AsyncClient("key", base_url=url, max_retries=0)
        try:
            await client.conversations.get("conv_1")
        except APIConnectionError:
            return time.perf_counter() - began
        raise AssertionError("nobody should listen there")

    for _ in range(size - 1):
        runner.run(create_one())
    return lambda _: runner.run(create_one())


def stream(library: str, url: str, size: int) -> Turn:
    """Read a history of `size` messages, and give the time."""
    runner = _runner()
    read = {"ours": ours_history, "vendor": vendor_history}[library](url)

    async def turn(units: int) -> float:
        began = time.perf_counter()
        for _ in range(units):
            assert await read(size) == size
        return (time.perf_counter() - began) / units

    return lambda units: runner.run(turn(units))


def stream_memory(library: str, url: str, size: int) -> Turn:
    """Read a history of `size` messages, and give the peak of the process's memory."""
    turn = stream(library, url, size)

    def measured_turn(units: int) -> float:
        turn(units)
        return _peak_memory()

    return measured_turn


def ours_history(url: str) -> Callable[[int], Awaitable[int]]:
    """Read a history with this SDK."""
    from agentphone import AsyncClient

    client = AsyncClient("key", base_url=url)

    async def read(size: int) -> int:
        count = 0
        async for _ in client.conversations.messages("conv_1", limit=size):
            count += 1
        return count

    return read


def vendor_history(url: str) -> Callable[[int], Awaitable[int]]:
    """Read a history with the vendor's SDK, in the loop one would write: it loses messages that share an instant."""
    from agentphone import AsyncAgentPhone  # type: ignore[attr-defined]  # the vendor's package of this name

    client = AsyncAgentPhone("key", base_url=url)

    async def read(size: int) -> int:
        count = 0
        before = None
        while count < size:
            page = await client.conversations.get_messages("conv_1", limit=min(200, size - count), before=before)
            for message in page.data:
                count += 1
                before = message.received_at
            if not page.has_more:
                break
        return count

    return read


def _peak_memory() -> float:
    """Return the process's peak memory in bytes, as the system counts it.

    `ru_maxrss` would begin with the parent's, from the fork; `tracemalloc` sees no buffers of C, and takes four times
    as long.
    """
    from pathlib import Path

    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return float(line.split()[1]) * 1024
    import resource

    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _runner() -> asyncio.Runner:
    import asyncio

    return asyncio.Runner()


JOBS = {
    "calls": calls,
    "blocking_calls": blocking_calls,
    "iterate": iterate,
    "decode": decode,
    "load": load,
    "create": create,
    "stream": stream,
    "stream_memory": stream_memory,
}


def main() -> None:
    """Run the turns that arrive on stdin."""
    job, library, url, size = sys.argv[1:]
    turn = JOBS[job](library, url, int(size))
    for line in sys.stdin:
        began = time.process_time()
        figure = turn(int(line))
        print(figure, time.process_time() - began, flush=True)


if __name__ == "__main__":
    main()
